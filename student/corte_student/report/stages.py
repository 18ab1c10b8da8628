"""One picture that explains a run: answer, relative confidence, kept pixels, targets over training.

Strategy: every column is labels in their colours, or a map of margins; a row an image. What is not learned
from is hatched, so that nobody takes it for a class.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from corte_protocol import VOID
from corte_student.report.drawing import (
    FAINT,
    INK,
    MARGIN,
    PAPER,
    SWATCH,
    TEXT_SIZE,
    TITLE_SIZE,
    Rgb,
    fitted,
    font,
    legend,
)
from corte_student.report.preview import hatch, painted

UInt8 = npt.NDArray[np.uint8]

_CELL, _GAP = 300, 10
_LEVELS = ("I = 0", "0.25", "0.5", "0.75", "1")


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One column: `planes` uint8 [H, W], one a row; RGB [H, W, 3] for pictures.

    `kind`: "picture", "labels" (VOID is hatched) or "margin" (dark is undecided, bright is sure).
    """

    title: str
    kind: str
    planes: Sequence[UInt8]
    captions: Sequence[str] = ()


def stages(columns: Sequence[Column], names: Sequence[str], colors: Sequence[Rgb]) -> Image.Image:
    """The picture of `columns`, all of which have as many rows."""
    heights = [round(_CELL * plane.shape[0] / plane.shape[1]) for plane in columns[0].planes]
    captioned = any(column.captions for column in columns)
    caption = TEXT_SIZE + 10 if captioned else 0
    width = 2 * MARGIN + len(columns) * _CELL + (len(columns) - 1) * _GAP
    key = legend(_entries(names, colors), width - 2 * MARGIN)
    top = MARGIN + TITLE_SIZE + 12
    height = top + sum(h + caption + _GAP for h in heights) + key.height + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, column in enumerate(columns):
        left, y = MARGIN + place * (_CELL + _GAP), top
        draw.text((left, MARGIN), fitted(column.title, font(TITLE_SIZE), _CELL), INK, font(TITLE_SIZE))
        for row, (plane, high) in enumerate(zip(column.planes, heights, strict=True)):
            sheet.paste(Image.fromarray(_cell(plane, column.kind, colors, (_CELL, high))), (left, y))
            if row < len(column.captions):
                text = fitted(column.captions[row], font(TEXT_SIZE), _CELL)
                draw.text((left, y + high + 4), text, FAINT, font(TEXT_SIZE))
            y += high + caption + _GAP
    sheet.paste(key, (MARGIN, height - key.height - MARGIN))
    return sheet


def _cell(plane: UInt8, kind: str, colors: Sequence[Rgb], size: tuple[int, int]) -> UInt8:
    if kind == "picture":
        return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.LANCZOS))
    if kind == "margin":
        return heat(np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.NEAREST)))
    labels = np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.NEAREST))
    cell: UInt8 = np.where((labels == VOID)[:, :, None], hatch(size), painted(plane, colors, size))
    return cell


def heat(margin: UInt8) -> UInt8:
    """Margins [H, W] as colours [H, W, 3]: Viridis, whose steps are even to every eye and in grey."""
    return np.asarray(cv2.applyColorMap(margin, cv2.COLORMAP_VIRIDIS)[:, :, ::-1], np.uint8)


def _entries(names: Sequence[str], colors: Sequence[Rgb]) -> list[tuple[str, Rgb | Image.Image]]:
    entries: list[tuple[str, Rgb | Image.Image]] = list(zip(names, colors, strict=True))
    entries.append(("not learned from", Image.fromarray(hatch((SWATCH, SWATCH)))))
    for place, text in enumerate(_LEVELS):
        level = np.full((SWATCH, SWATCH), round(255 * place / (len(_LEVELS) - 1)), np.uint8)
        entries.append((text, Image.fromarray(heat(level))))
    return entries
