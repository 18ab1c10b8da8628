"""Images as they were sent: the header is read and judged first, and nothing is decoded before."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

from PIL import Image as Pillow

from corte_protocol import Limits
from corte_teacher.errors import InvalidRequest, TooLarge, Unreadable
from corte_teacher.outline import require_few_parts
from corte_teacher.shortage import is_short

_FORMATS = ("JPEG", "PNG", "WEBP")
_EIGHT_BIT = {"RGB", "L", "1", "P", "PA", "LA", "RGBA", "RGBX", "CMYK", "YCbCr"}


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image of known size, H x W, that is not decoded yet.

    `decode` gives it in mode RGB; it blocks, and raises Unreadable.
    """

    height: int
    width: int
    decode: Callable[[], Pillow.Image]

    @property
    def pixels(self) -> int:
        """H x W."""
        return self.height * self.width


def open_picture(body: bytes | memoryview, limits: Limits) -> Picture:
    """One image as it was encoded: never rotated, alpha dropped, first reduced to RGB. Blocking.

    Raises Unreadable, TooLarge, or InvalidRequest for animations and for grey levels beyond 8 bits, which
    have no plain meaning in RGB.
    """
    require_few_parts(body)
    try:
        picture = Pillow.open(BytesIO(body), formats=_FORMATS)
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as exc:
        raise TooLarge("too many pixels") from exc
    except Exception as exc:  # a decoder on hostile bytes raises anything from OSError to struct.error
        raise Unreadable("no readable header") from exc
    if picture.width * picture.height > limits.max_pixels:
        raise TooLarge("too many pixels")
    if picture.mode not in _EIGHT_BIT:
        raise InvalidRequest(f"mode {picture.mode}")
    if picture.format in ("PNG", "WEBP") and getattr(picture, "n_frames", 1) != 1:
        raise InvalidRequest("more than one frame")
    return Picture(picture.height, picture.width, lambda: _decoded(picture, body))


def _decoded(picture: Pillow.Image, body: bytes | memoryview) -> Pillow.Image:
    try:
        picture.load()
        if picture.mode in ("P", "PA"):  # straight to RGB, Pillow warns about transparent palettes
            found = picture.convert("RGBA").convert("RGB")
        elif picture.mode == "RGB":  # convert() would copy: 0.1 ms at 256 x 512
            found = picture
        else:
            found = picture.convert("RGB")
    except Exception as exc:  # as above: truncated, corrupt, or worse
        raise Unreadable("no readable pixels") from exc
    if picture.format == "PNG" and is_short(body, found):
        raise Unreadable("fewer pixels than the header promises")
    return found
