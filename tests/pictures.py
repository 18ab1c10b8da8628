"""Small pictures for tests of the student."""

import asyncio
import hashlib
import io
from collections.abc import Callable

import numpy as np
from PIL import Image as Pillow

from corte_protocol import Image
from corte_student.data.folder import Picture


def make_picture(seed: int, *, file: str = "", height: int = 12, width: int = 16) -> Picture:
    """The picture of this seed, as if read from a file whose bytes also depend on `file`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    pixels.flags.writeable = False
    target = io.BytesIO()
    Pillow.fromarray(pixels).save(target, "PNG")
    body = target.getvalue()
    digest = hashlib.sha256(body + file.encode()).hexdigest()
    return Picture(pixels, body, "image/png", digest, Image(pixels).digest)


async def until(true: Callable[[], object]) -> None:
    """Wait for something that another thread brings about."""
    while not true():  # noqa: ASYNC110 - the other side is a thread and knows no event of this loop
        await asyncio.sleep(0.01)
