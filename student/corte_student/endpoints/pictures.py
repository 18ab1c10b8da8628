"""The size of an encoded image, from its header alone."""

import io

from PIL import Image as Pillow

from corte_student.errors import ImageRefused


def size_of(body: bytes) -> tuple[int, int]:
    """Height and width in pixels. Raises ImageRefused for what is no image; nothing was sent then."""
    try:
        with Pillow.open(io.BytesIO(body)) as picture:
            return picture.height, picture.width
    except OSError as exc:
        raise ImageRefused("what should be sent is no image: not sent") from exc
