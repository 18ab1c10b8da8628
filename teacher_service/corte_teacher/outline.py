"""How many parts a picture's file is of, counted before a decoder walks them one by one.

Decoders spend time by the part, whatever its size: 16 MB of empty comments keep Pillow busy for 5 s, of
repeated colour profiles for 22 s, and a progressive JPEG that passes over its blocks once every 20 bytes for
minutes. The bounds are far above what writers of pictures make: a progressive JPEG has about 10 scans,
libpng's chunks of data are 8 KiB.
"""

import re
from typing import Final

from corte_teacher.errors import Unreadable

_MOST_DATA: Final = 16_384  # chunks of a PNG in all
_MOST_NOTES: Final = 1024  # chunks that are no data, segments of a JPEG, chunks of a WebP
_MOST_PACKED: Final = 16  # chunks that Pillow inflates, up to 1 MiB each
_MOST_SCANS: Final = 100

_MARKER: Final = re.compile(rb"\xff[^\x00\xff]")
_AFTER_SCAN: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # entropy-coded data hold the others
_BARE: Final = {0x01, *range(0xD0, 0xDA)}  # markers without a segment
_FRAMES: Final = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE: Final = {0xC2, 0xC6, 0xCA, 0xCE}
_END, _SCAN = 0xD9, 0xDA


def require_few_parts(body: bytes | memoryview) -> None:
    """Let a picture pass whose file is of no more parts than a decoder walks in some 50 ms.

    Raises Unreadable. What is no JPEG, PNG or WebP passes, for the decoder to refuse.
    """
    start = bytes(body[:12])
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(body)
    elif start.startswith(b"\xff\xd8"):
        _check_jpeg(body)
    elif start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        _check_webp(body)


def _check_png(body: bytes | memoryview) -> None:
    at, chunks, notes, packed = 8, 0, 0, 0
    while at + 8 <= len(body):
        size, kind = int.from_bytes(body[at : at + 4], "big"), bytes(body[at + 4 : at + 8])
        at += 12 + size
        chunks += 1
        notes += kind not in (b"IDAT", b"fdAT", b"fcTL")
        packed += kind in (b"iCCP", b"zTXt", b"iTXt")
        if chunks > _MOST_DATA or notes > _MOST_NOTES or packed > _MOST_PACKED:
            raise Unreadable("too many chunks")
        if kind == b"IEND":
            return


def _check_webp(body: bytes | memoryview) -> None:
    at = 12
    for _ in range(_MOST_NOTES):
        if at + 8 > len(body):
            return
        size = int.from_bytes(body[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    raise Unreadable("too many chunks")


def _check_jpeg(body: bytes | memoryview) -> None:
    """ITU-T T.81, B.1.1. Bytes between segments count as parts, because Pillow reads them one by one."""
    at, parts, scans = 2, 0, 0
    components, progressive = 0, False
    pattern = _MARKER
    while found := pattern.search(body, at, len(body) if scans else at + _MOST_NOTES):
        parts += 1 if scans else 1 + found.start() - at
        kind, at = body[found.start() + 1], found.end()
        if kind == _END and scans:
            return
        if kind not in _BARE:
            segment = bytes(body[at : at + 8])
            at += max(2, int.from_bytes(segment[:2], "big"))
            if kind in _FRAMES:
                components, progressive = segment[7] if len(segment) > 7 else 0, kind in _PROGRESSIVE
            elif kind == _SCAN:
                scans += 1
                if scans == 1 and not progressive and segment[2:3] == bytes([components]):
                    return  # all there is: libjpeg does not look for another
                pattern = _AFTER_SCAN
        if parts > _MOST_NOTES or scans > _MOST_SCANS:
            raise Unreadable("too many segments or scans")
    if not scans and at + _MOST_NOTES < len(body):
        raise Unreadable("no segment where one is due")
