"""Pictures as they arrive at a service, and class ids as it answers them."""

import io

import numpy as np
from PIL import Image as Pillow

from corte_protocol.types import UInt8


def pixels_of(body: bytes) -> UInt8:
    """The picture in `body`, uint8 [H, W, 3]."""
    return np.asarray(Pillow.open(io.BytesIO(body)).convert("RGB"))


def png(ids: UInt8, *, palette: bool = False) -> bytes:
    """Class ids uint8 [H, W] as a PNG: grey, or with a palette whose colours mean nothing."""
    picture = Pillow.fromarray(ids)
    if palette:
        picture = picture.copy()
        picture.putpalette([255 - i // 3 for i in range(768)])
    target = io.BytesIO()
    picture.save(target, "PNG")
    return target.getvalue()
