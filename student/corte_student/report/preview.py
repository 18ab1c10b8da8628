"""One picture that shows a run: image, teacher, kept pixels, student and truth, row by row.

Strategy: Pillow only. Every cell of a column set has one width, small images are enlarged and large ones
reduced; labels by nearest neighbour, because a mean of two classes' colours is a third class's colour.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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

UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

COLUMNS = ("image", "teacher", "kept", "student", "truth")
_TITLES = {
    "image": "Image",
    "teacher": "Teacher (black box)",
    "kept": "Kept to learn from",
    "student": "Student",
    "truth": "Truth",
}
_CELL = 320  # wide enough to read a caption, five of them fit a screen
_GAP = 10
_VOID_COLOR = (0, 0, 0)
_HATCH = ((224, 224, 224), (150, 150, 150))
_HATCH_PERIOD = 8


@dataclass(frozen=True, slots=True, eq=False)
class PreviewRow:
    """One image and what is known of its pixels; labels uint8 [H, W], `kept_mask` bool [H, W].

    `captions` are short texts below cells, by column name: image, teacher, kept, student, truth.
    """

    image: UInt8
    teacher: UInt8
    kept_mask: Bool | None = None
    student: UInt8 | None = None
    truth: UInt8 | None = None
    captions: dict[str, str] = field(default_factory=dict)


def panel(rows: Sequence[PreviewRow], names: Sequence[str], colors: Sequence[Rgb]) -> Image.Image:
    """The picture of `rows`; a column that no row fills is left out."""
    if not rows:
        raise ValueError("a preview needs at least one row")
    columns = [column for column in COLUMNS if any(_has(row, column) for row in rows)]
    heights = [round(_CELL * row.image.shape[0] / row.image.shape[1]) for row in rows]
    captioned = any(row.captions for row in rows)
    caption = TEXT_SIZE + 10 if captioned else 0
    width = 2 * MARGIN + len(columns) * _CELL + (len(columns) - 1) * _GAP
    title_face, face = font(TITLE_SIZE), font(TEXT_SIZE)
    key = legend(_entries(names, colors, hatched="kept" in columns), width - 2 * MARGIN)
    top = MARGIN + TITLE_SIZE + 12
    height = top + sum(h + caption + _GAP for h in heights) + key.height + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = [MARGIN + i * (_CELL + _GAP) for i in range(len(columns))]
    for left, column in zip(lefts, columns, strict=True):
        draw.text((left, MARGIN), _TITLES[column], INK, title_face)
    for row, cell_height in zip(rows, heights, strict=True):
        for left, column in zip(lefts, columns, strict=True):
            if _has(row, column):
                sheet.paste(_cell(row, column, colors, (_CELL, cell_height)), (left, top))
            else:
                draw.rectangle((left, top, left + _CELL - 1, top + cell_height - 1), outline=_HATCH[0])
            if text := row.captions.get(column):
                draw.text((left, top + cell_height + 4), fitted(text, face, _CELL), FAINT, face)
        top += cell_height + caption + _GAP
    sheet.paste(key, (MARGIN, top))
    return sheet


def panel_png(rows: Sequence[PreviewRow], names: Sequence[str], colors: Sequence[Rgb]) -> bytes:
    """`panel` as the bytes of a PNG."""
    target = io.BytesIO()
    panel(rows, names, colors).save(target, "PNG", optimize=True)
    return target.getvalue()


def save_panel(path: Path, rows: Sequence[PreviewRow], names: Sequence[str], colors: Sequence[Rgb]) -> None:
    """Write `panel` to a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(panel_png(rows, names, colors))


def _has(row: PreviewRow, column: str) -> bool:
    field_name = "kept_mask" if column == "kept" else column
    return getattr(row, field_name) is not None


def _cell(row: PreviewRow, column: str, colors: Sequence[Rgb], size: tuple[int, int]) -> Image.Image:
    if column == "image":
        return Image.fromarray(row.image).resize(size, Image.Resampling.LANCZOS)
    labels = {"teacher": row.teacher, "kept": row.teacher, "student": row.student, "truth": row.truth}[column]
    assert labels is not None
    cell = painted(labels, colors, size)
    if column != "kept" or row.kept_mask is None:
        return Image.fromarray(cell)
    kept = np.asarray(Image.fromarray(row.kept_mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    return Image.fromarray(np.where((kept > 0)[:, :, None], cell, hatch(size)))


def painted(labels: UInt8, colors: Sequence[Rgb], size: tuple[int, int]) -> UInt8:
    """Labels [H, W] in their colours at `size` (width, height): uint8 [height, width, 3]."""
    table = np.full((256, 3), _VOID_COLOR, np.uint8)
    table[: len(colors)] = colors
    table[VOID] = _VOID_COLOR
    scaled = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    painted: UInt8 = table[scaled]
    return painted


def hatch(size: tuple[int, int]) -> UInt8:
    """Diagonal grey stripes: no class looks like that, whatever its colour."""
    width, height = size
    stripe = (np.add.outer(np.arange(height), np.arange(width)) % _HATCH_PERIOD) < _HATCH_PERIOD // 4
    return np.array(_HATCH, np.uint8)[stripe.astype(np.intp)]


def _entries(
    names: Sequence[str], colors: Sequence[Rgb], *, hatched: bool
) -> list[tuple[str, Rgb | Image.Image]]:
    entries: list[tuple[str, Rgb | Image.Image]] = [
        *zip(names, colors, strict=True),
        ("void", _VOID_COLOR),
    ]
    return [*entries, ("not kept", Image.fromarray(hatch((SWATCH, SWATCH))))] if hatched else entries
