"""Files of too many parts are refused by their outline, before a decoder sees them."""

import struct

import pytest

from corte_protocol import Limits
from corte_teacher.errors import TeacherServiceError
from corte_teacher.pictures import open_picture
from hostile_bodies import chunk, encoded, picture, png

LIMITS = Limits(16 << 20, 4 << 20)


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes `count` times."""
    whole = encoded(picture(256, 256), "JPEG", progressive=True)
    at = whole.rindex(b"\xff\xda")
    return whole[:at] + whole[at:-2] * count + whole[-2:]


@pytest.mark.parametrize(
    "body",
    [
        scans(3000),
        png(8, 8, *([chunk(b"tEXt", b"a\0b")] * 20_000)),
        b"\xff\xd8" + (b"\xff\xfe" + struct.pack(">H", 4) + b"ab") * 100_000,
    ],
    ids=["scans", "chunks", "comments"],
)
def test_too_many_parts_are_refused(body: bytes) -> None:
    """Thousands of scans, chunks or comments are refused, though a decoder would go through them all."""
    with pytest.raises(TeacherServiceError):
        open_picture(body, LIMITS).decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_ordinary_files_pass(kind: str) -> None:
    """What encoders write has few parts, progressive JPEGs too."""
    assert open_picture(encoded(picture(), kind), LIMITS).decode().size == (64, 48)
    progressive = encoded(picture(), "JPEG", progressive=True)
    assert open_picture(progressive, LIMITS).decode().size == (64, 48)
