"""Makes the work: the graph with its head, pictures, and the label maps that are right.

What is right is the service's own backend, run here, without HTTP and without the peers' `pipeline`.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
from PIL import Image as Pillow

from corte_protocol import Disclosure
from corte_teacher.backends.onnx import build
from corte_teacher.backends.onnx_head import append_head
from corte_teacher.backends.street import files
from corte_teacher.card import read_card
from peers.work import GRAPH_FILE, HEIGHT, MARK, WIDTH, Work, read_work


def make_work(folder: Path, pictures: int = 8) -> Work:
    """Write the graph and all pictures with their label maps to `folder`."""
    model, card_file = files()
    card, labels = read_card(card_file), Disclosure(1, 0)
    graph = onnx.load(str(model))
    append_head(graph, card, labels, tiles=True)
    onnx.save(graph, str(folder / GRAPH_FILE))
    backend = build(model, card, labels, threads=1)
    for index in range(pictures):
        jpeg = picture(index)
        pixels = np.asarray(Pillow.open(BytesIO(jpeg)).convert("RGB"))
        (folder / f"{index}.jpg").write_bytes(jpeg)
        (folder / f"{index}.labels").write_bytes(backend.predict(pixels)[0].tobytes())
    return read_work(folder)


def picture(seed: int) -> bytes:
    """A JPEG of some 40 KB: soft shapes and fine grain, the same for the same seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (HEIGHT // 32, WIDTH // 32, 3), np.uint8)
    soft = Pillow.fromarray(coarse).resize((WIDTH, HEIGHT), Pillow.Resampling.BICUBIC)
    grain = rng.normal(0.0, 12.0, (HEIGHT, WIDTH, 3))
    pixels = np.clip(np.asarray(soft, np.float64) + grain, 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Pillow.fromarray(pixels).save(buffer, "JPEG", quality=85)
    plain = buffer.getvalue()
    return plain[:2] + MARK + bytes(8) + plain[2:]
