"""The picture of a run: what is in it, and that odd content does not break it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corte_student.report.preview import PreviewRow, panel, panel_png, save_panel

NAMES = ("road", "sky")
COLORS = ((128, 64, 128), (70, 130, 180))
TRUTH = np.array([[0, 1, 255], [0, 0, 1]], np.uint8)


def row(**extra: object) -> PreviewRow:
    return PreviewRow(np.full((2, 3, 3), 90, np.uint8), TRUTH, **extra)  # type: ignore[arg-type]


def colors_in(picture: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(c) for c in np.asarray(picture).reshape(-1, 3).tolist()}


def test_columns_that_nothing_fills_are_left_out() -> None:
    """Image and teacher alone make a narrower picture than all five columns."""
    short = panel([row()], NAMES, COLORS)
    full = panel([row(kept_mask=TRUTH == 0, student=TRUTH, truth=TRUTH)], NAMES, COLORS)
    assert short.width < full.width
    assert full.width / full.height > 1


def test_labels_are_drawn_in_their_class_colours_and_nothing_between() -> None:
    """A label cell that is scaled up holds only class colours and void."""
    picture = panel([row()], NAMES, COLORS)
    teacher = picture.crop((370, 70, 660, 250))
    assert colors_in(teacher) <= {*COLORS, (0, 0, 0)}
    assert len(colors_in(teacher)) == 3


def test_pixels_that_are_not_kept_are_hatched() -> None:
    """No class colour remains where nothing is kept."""
    picture = panel([row(kept_mask=np.zeros((2, 3), bool))], NAMES, COLORS)
    kept = picture.crop((700, 70, 990, 250))
    assert not colors_in(kept) & set(COLORS)


def test_rows_of_other_sizes_and_missing_cells_stand_together() -> None:
    """A tall image, a row without truth and a caption that is too long all fit."""
    tall = PreviewRow(np.zeros((40, 10, 3), np.uint8), np.zeros((40, 10), np.uint8))
    rows = [row(truth=TRUTH, captions={"teacher": "words " * 60}), tall]
    picture = panel(rows, NAMES * 1, COLORS)
    assert picture.height > 1280


def test_the_file_is_a_png_of_the_picture(tmp_path: Path) -> None:
    """Bytes and file hold the same picture, in a folder made for it."""
    data = panel_png([row()], NAMES, COLORS)
    save_panel(tmp_path / "a/b.png", [row()], NAMES, COLORS)
    assert (tmp_path / "a/b.png").read_bytes() == data
    assert Image.open(io.BytesIO(data)).format == "PNG"


def test_without_rows_there_is_no_picture() -> None:
    """It is the caller's mistake."""
    with pytest.raises(ValueError, match="at least one row"):
        panel([], NAMES, COLORS)
