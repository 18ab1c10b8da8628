"""JPEG bytes without their metadata, the compressed picture untouched.

Strategy: walk the segments of the first image; keep what decoding needs, rewrite the two application
segments that decide on colours to their fixed part, drop all others and whatever follows the end.
Anything unusual gives None, and the caller sends a PNG instead.
"""

import re
from typing import Final

_SOI: Final = 0xD8
_EOI: Final = 0xD9
_SOS: Final = 0xDA
_COM: Final = 0xFE
_APP0: Final = 0xE0
_APP14: Final = 0xEE
_APPS: Final = range(0xE0, 0xF0)
_BARE: Final = {0x01, *range(0xD0, 0xD8)}
_FRAMES: Final = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_NEXT_MARKER: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_JFIF_BYTES: Final = 14
_ADOBE_BYTES: Final = 12


def stripped(source: bytes) -> bytes | None:
    """The first image of `source` without metadata, or None where it is not plain 8-bit grey or colour."""
    if source[:2] != b"\xff\xd8":
        return None
    kept = [source[:2]]
    at = 2
    while True:
        marker, at = _marker(source, at)
        if marker is None or marker == _SOI:
            return None
        if marker == _EOI:
            kept.append(b"\xff\xd9")
            return b"".join(kept)
        if marker in _BARE:
            kept.append(bytes((0xFF, marker)))
            continue
        end = at + int.from_bytes(source[at : at + 2], "big")
        payload = source[at + 2 : end]
        if end < at + 2 or end > len(source) or not _plain(marker, payload):
            return None
        kept.append(_segment(marker, payload))
        at = end
        if marker == _SOS:
            found = _NEXT_MARKER.search(source, at)
            if found is None:
                return None
            kept.append(source[at : found.start()])
            at = found.start()


def _marker(source: bytes, at: int) -> tuple[int | None, int]:
    """The marker at `at` after any fill bytes, and where what follows it begins."""
    if at >= len(source) or source[at] != 0xFF:
        return None, at
    while at < len(source) and source[at] == 0xFF:
        at += 1
    if at >= len(source) or source[at] == 0:
        return None, at
    return source[at], at + 1


def _plain(marker: int, payload: bytes) -> bool:
    """Whether a frame header announces 8 bits and one or three components; true of other segments."""
    if marker not in _FRAMES:
        return True
    return len(payload) >= 6 and payload[0] == 8 and payload[5] in (1, 3)


def _segment(marker: int, payload: bytes) -> bytes:
    if marker == _APP0 and payload[:5] == b"JFIF\0" and len(payload) >= _JFIF_BYTES:
        payload = payload[: _JFIF_BYTES - 2] + b"\0\0"  # no thumbnail
    elif marker == _APP14 and payload[:5] == b"Adobe" and len(payload) >= _ADOBE_BYTES:
        payload = payload[:_ADOBE_BYTES]
    elif marker in _APPS or marker == _COM:
        return b""
    return bytes((0xFF, marker)) + (len(payload) + 2).to_bytes(2, "big") + payload
