"""Label files to class ids.

Strategy: labels are read as stored indices, never through colours. A luminance of an RGB label, or a
grey PNG of less than eight bits that was stretched to 0..255, would be numbers that look like classes.
"""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from corte_protocol import VOID
from corte_student.data.layouts.layout import UNKNOWN, Layout
from corte_student.data.layouts.presets import find_layout
from corte_student.errors import DataError

UInt8 = npt.NDArray[np.uint8]
_VALUES = 256


def read_labels(path: Path, layout: str, classes: int) -> UInt8:
    """The class of each pixel, uint8 [H, W], void as 255. Raises DataError naming the file."""
    rules = find_layout(layout)
    stored = _read_red(path, rules) if rules.stored == "red16" else _read_indices(path, rules)
    meant = _table(path, rules, stored)[stored]
    wrong = (meant == UNKNOWN) | ((meant >= classes) & (meant != VOID))
    if wrong.any():
        raise DataError(
            f"{path} holds the value {int(stored[wrong][0])}, which layout {layout} with {classes} classes "
            f"does not know (0..{classes - 1}): check --layout and the class list"
        )
    return meant.astype(np.uint8)


def _table(path: Path, rules: Layout, stored: UInt8) -> npt.NDArray[np.int16]:
    """The table by the file's name; where it leaves a choice, the first that knows all values stored."""
    tables = rules.tables(path)
    if len(tables) == 1:
        return tables[0]
    present = np.bincount(stored.ravel(), minlength=_VALUES) > 0
    return next((table for table in tables if (table[present] != UNKNOWN).all()), tables[-1])


def _read_indices(path: Path, rules: Layout) -> UInt8:
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            mode = picture.mode
            # Pillow stretches grey of 2 or 4 bits to 0..255; its decoder's name is the only trace
            raw = picture.tile[0].args if picture.tile else mode
            if rules.stored == "palette" and mode != "P":
                raise DataError(f"{path} is no palette PNG ({mode}): {rules.remedy}")
            if mode not in ("L", "P"):
                raise DataError(f"{path} holds colours ({mode}), not class numbers: {rules.remedy}")
            if mode == "L" and raw not in ("L", ("L",)):
                raise DataError(f"{path} holds grey levels of less than eight bits: {rules.remedy}")
            return np.asarray(picture, np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise DataError(f"{path} cannot be read as a PNG ({exc}): replace the file") from exc


def _read_red(path: Path, rules: Layout) -> UInt8:
    """The red channel of a 16-bit PNG. Through OpenCV: Pillow reads such a file as zeros of eight bits."""
    try:
        source = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {exc.strerror}") from exc
    planes = cv2.imdecode(source, cv2.IMREAD_UNCHANGED) if source.size else None
    if planes is None:
        raise DataError(f"{path} cannot be read as a PNG: replace the file")
    if planes.dtype != np.uint16 or planes.ndim != 3:
        raise DataError(f"{path} does not hold three channels of 16 bits: {rules.remedy}")
    red = planes[:, :, 2]  # OpenCV orders blue, green, red
    if int(red.max()) >= _VALUES:
        raise DataError(f"{path} holds the value {int(red.max())} in red, no class: {rules.remedy}")
    return np.asarray(red, np.uint8)
