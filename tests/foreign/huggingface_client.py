"""huggingface_hub's InferenceClient, as installed. Runs in an environment of its own (environments.py).

Standard input: {"url": URL, "key": text, "image": base64}. Standard output: for each element that
`image_segmentation` gives: its label, its score, and its mask's size and bytes (base64, mode L).
"""

import base64
import json
import sys

from huggingface_hub import InferenceClient  # type: ignore[import-not-found]


def main() -> None:
    """Ask once."""
    job = json.load(sys.stdin)
    client = InferenceClient(model=job["url"], token=job["key"])
    found = []
    for element in client.image_segmentation(base64.b64decode(job["image"])):
        mask = element.mask.convert("L")
        pixels = base64.b64encode(mask.tobytes()).decode()
        found.append({"label": element.label, "score": element.score, "size": mask.size, "mask": pixels})
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
