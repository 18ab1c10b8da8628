"""huggingface_hub's InferenceClient, as installed. Runs in an environment of its own (environments.py).

Standard input: {"url": URL, "key": text, "image": base64, "parameters": {name: value}}, the last only where
there are any. Standard output: for each element that `image_segmentation` gives: its label, its score, and
its mask's size and bytes (base64, mode L).
"""

import base64
import json
import sys
from typing import Any

from huggingface_hub import InferenceClient


def main() -> None:
    """Ask once."""
    job = json.load(sys.stdin)
    client = InferenceClient(model=job["url"], token=job["key"])
    image = base64.b64decode(job["image"])
    found = []
    for element in client.image_segmentation(image, **job.get("parameters", {})):
        picture: Any = element.mask  # declared as the text that was sent, and is a Pillow image
        mask = picture.convert("L")
        pixels = base64.b64encode(mask.tobytes()).decode()
        found.append({"label": element.label, "score": element.score, "size": mask.size, "mask": pixels})
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
