"""PNGs whose data end before their pixels: Pillow leaves the rest black and says nothing.

Strategy: rows that were never filled are black, so only a picture with a black row at its end is counted, by
inflating its data once more, up to what its header promises (PNG specification, third edition, 7 and 8).
"""

import zlib
from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL.Image import Image

_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PASSES: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_STEP: Final = 1 << 16


def is_short(body: bytes | memoryview, picture: Image) -> bool:
    """Whether the PNG in `body`, decoded to `picture` in mode RGB, holds fewer pixels than it promises."""
    last = picture.crop((0, max(0, picture.height - 2), picture.width, picture.height))
    ends = np.asarray(last).any(axis=(1, 2))  # interlaced, one of the two is in the last pass
    return not ends.all() and not _holds(body, _promised(body))


def _promised(body: bytes | memoryview) -> int:
    """Bytes of all rows with their filter types, as the header says."""
    width, height = (int.from_bytes(body[at : at + 4], "big") for at in (16, 20))
    bits = body[24] * _SAMPLES[body[25]]
    if not body[28]:
        return _rows(width, height, bits)
    return sum(
        _rows(-(-(width - x) // dx), -(-(height - y) // dy), bits)
        for x, y, dx, dy in _PASSES
        if width > x and height > y
    )


def _rows(width: int, height: int, bits: int) -> int:
    return height * (1 + -(-width * bits // 8))


def _holds(body: bytes | memoryview, promised: int) -> bool:
    """Whether the data inflate to `promised` bytes; nothing beyond them is inflated, and broken data end."""
    inflate = zlib.decompressobj()
    left = promised
    try:
        for data in _data(body):
            while data and not inflate.eof:
                left -= len(inflate.decompress(data, min(_STEP, left)))
                if left <= 0:
                    return True
                data = inflate.unconsumed_tail
        return len(inflate.flush(_STEP)) >= left
    except zlib.error:
        return False


def _data(body: bytes | memoryview) -> Iterator[bytes | memoryview]:
    """The contents of the IDAT chunks, in pieces."""
    at = 8
    while at + 8 <= len(body):
        length = int.from_bytes(body[at : at + 4], "big")
        if body[at + 4 : at + 8] == b"IDAT":
            end = at + 8 + length
            for start in range(at + 8, end, _STEP):  # what is not consumed is copied, so not all at once
                yield body[start : min(start + _STEP, end)]
        at += 12 + length
