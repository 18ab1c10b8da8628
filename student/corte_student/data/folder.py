"""Images in a folder: which there are, their pixels, and the bytes that may leave this machine.

Rule 1: the pixels trained on are those the teacher sees, bit for bit: both sides decode with Pillow, and
what is sent is either the source's own JPEG data or a PNG of the pixels.
Rule 2: nothing but pixels leaves: EXIF, GPS, comments, thumbnails, profiles and file names stay here.
Rule 3: ICC profiles are ignored on purpose, as every data set's training code ignores them.
"""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from corte_protocol import Image
from corte_protocol.types import UInt8
from corte_student.data.jpeg import stripped
from corte_student.errors import DataError

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS: Final = 64_000_000
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One decoded file: `pixels` uint8 [H, W, 3] upright RGB, read-only; `body` what is sent of it."""

    pixels: UInt8
    body: bytes
    media_type: str
    digest: str
    pixel_digest: str


def find_images(root: Path) -> list[Path]:
    """Every image below `root`, sorted by relative path. Names that begin with a dot are skipped.

    Links to folders are followed, after the real folders and each folder once, so a loop ends.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give one that holds {_listed()} files")
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    folders, links = [root], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as exc:
            raise DataError(f"the folder {folder} cannot be read: {exc.strerror}") from exc
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(Path(entry.path))
            elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                found.append(Path(entry.path))
    if not found:
        raise DataError(f"no image in {root}: looked for {_listed()} in it and below")
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def read_picture(path: Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode one file and make the body that is sent of it. Raises DataError in one line."""
    source = _bytes(path)
    body = _sendable(source, path, max_pixels)
    # where the JPEG is sent, the pixels are decoded from what is sent: rule 1 holds by construction
    pixels = _decode(source if body is None else body, path, max_pixels)
    media_type = "image/jpeg" if body is not None else "image/png"
    return Picture(
        pixels=pixels,
        body=body if body is not None else _png(pixels),
        media_type=media_type,
        digest=hashlib.sha256(source).hexdigest(),
        pixel_digest=Image(pixels).digest,
    )


def read_pixels(path: Path, *, max_pixels: int = MAX_PIXELS) -> UInt8:
    """The upright RGB pixels alone, equal to those of `read_picture`, without hashing or encoding."""
    return _decode(_bytes(path), path, max_pixels)


def _listed() -> str:
    return ", ".join(suffix[1:] for suffix in SUFFIXES)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror}") from exc


def _sendable(source: bytes, path: Path, max_pixels: int) -> bytes | None:
    """The source's own JPEG data, where it decodes to upright 8-bit RGB or grey."""
    if not source.startswith(b"\xff\xd8"):
        return None
    picture = _open(source, path, max_pixels, decode=False)
    if picture.mode not in ("L", "RGB") or _orientation(picture) != 1:
        return None
    return stripped(source)


def _decode(source: bytes, path: Path, max_pixels: int) -> UInt8:
    picture = _open(source, path, max_pixels, decode=True)
    orientation = _orientation(picture)
    upright = picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture
    try:
        return _rgb(upright)
    except ValueError as exc:
        raise DataError(
            f"{path} holds {picture.mode} pixels, which have no plain reading as 8-bit RGB: convert it"
        ) from exc


def _open(source: bytes, path: Path, max_pixels: int, *, decode: bool) -> Pillow.Image:
    """The image, its size checked before anything is decoded."""
    try:
        picture = Pillow.open(io.BytesIO(source), formats=_FORMATS)
        width, height = picture.size
        if decode and width * height <= max_pixels:
            picture.load()
    except Pillow.DecompressionBombError as exc:
        raise DataError(f"{path} has more pixels than the limit of {max_pixels}: scale it down") from exc
    except Exception as exc:  # Pillow's readers raise almost anything on broken bytes
        raise DataError(
            f"{path} cannot be decoded, it may be truncated ({_reason(exc)}): replace or remove it"
        ) from exc
    if width * height > max_pixels:
        raise DataError(
            f"{path} has {width} x {height} pixels, above the limit of {max_pixels}: scale it down"
        )
    return picture


def _reason(exc: Exception) -> str:
    if isinstance(exc, UnidentifiedImageError):
        return "no known image format"  # Pillow's text names an object in memory
    return (str(exc).splitlines() or [type(exc).__name__])[0][:120]


def _orientation(picture: Pillow.Image) -> int:
    """EXIF's orientation as Pillow reads it; TIFF files are already upright after `load`."""
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block must not cost the picture
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _rgb(picture: Pillow.Image) -> UInt8:
    """8-bit RGB of any mode. 16 bits lose their lower byte, alpha is dropped, colours as stored."""
    mode = picture.mode
    if mode == "I" or mode.startswith("I;16"):
        grey = np.asarray(picture)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise ValueError("beyond 16 bits")
        eight = (grey >> 8).astype(np.uint8)
        pixels = np.repeat(eight[:, :, None], 3, axis=2)
    elif mode == "F":
        raise ValueError("floats have no known range")
    else:
        if mode in ("P", "PA", "LA", "La", "RGBa"):
            # the detour keeps a transparent palette entry's own colour
            picture = picture.convert("RGBA")
        pixels = np.ascontiguousarray(np.asarray(picture.convert("RGB")))
    pixels.flags.writeable = False
    return pixels


def _png(pixels: UInt8) -> bytes:
    target = io.BytesIO()
    # level 2 is some 5 % larger than the default and several times faster
    Pillow.fromarray(pixels).save(target, "PNG", compress_level=2)
    return target.getvalue()
