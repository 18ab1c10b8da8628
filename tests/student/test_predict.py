"""Label PNGs and overlays: exact sizes, stored class numbers, and inputs that stay as they are."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from corte_student.data.folder import read_pixels
from corte_student.errors import DataError
from corte_student.evaluate import predict_pixels
from corte_student.predict import overlay, plan_outputs, predict_folder
from small_run import COLORS, picture_size, save_images, small_student

STUDENT = small_student()


@settings(max_examples=8)
@given(st.integers(1, 70), st.integers(1, 70))
def test_outputs_have_the_exact_size_of_the_input(height: int, width: int) -> None:
    """For any size, down to one pixel, the PNG stores the student's class numbers."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (image,) = save_images(root / "in", {"deep/er/x.png": (height, width)})
        (job,) = plan_outputs(root / "in", root / "out")
        assert predict_folder(STUDENT, COLORS, [job]) == {}
        with Image.open(root / "out/labels/deep/er/x.png") as labels:
            assert labels.mode == "P"
            assert labels.size == (width, height)
            assert (np.asarray(labels) == predict_pixels(STUDENT, read_pixels(image))).all()
            assert labels.getpalette()[:9] == [v for color in COLORS for v in color]  # type: ignore[index]
        with Image.open(root / "out/overlays/deep/er/x.jpg") as tinted:
            assert tinted.size == (width, height)


def test_an_image_that_lies_on_its_side_is_written_upright(tmp_path: Path) -> None:
    """EXIF orientation is applied, as it was for training."""
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "in/x.jpg", exif=exif)
    predict_folder(STUDENT, COLORS, plan_outputs(tmp_path / "in", tmp_path / "out"))
    assert picture_size(tmp_path / "out/labels/x.png") == (20, 40)


def test_a_broken_image_is_left_out_and_named(tmp_path: Path) -> None:
    """The others are done, and every image counts as progress."""
    save_images(tmp_path / "in", {"a.png": (8, 8), "c.png": (8, 8)})
    (tmp_path / "in/b.jpg").write_bytes(b"\xff\xd8\xff broken")
    told: list[int] = []
    unread = predict_folder(STUDENT, COLORS, plan_outputs(tmp_path / "in", tmp_path / "out"), told.append)
    assert [path.name for path in unread] == ["b.jpg"]
    assert told == [1, 2, 3]
    assert sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file()) == [
        "a.jpg",
        "a.png",
        "c.jpg",
        "c.png",
    ]


@pytest.mark.parametrize(("images", "out"), [("in", "in"), ("in", "in/out"), ("out/in", "out")])
def test_folders_inside_one_another_are_refused(tmp_path: Path, images: str, out: str) -> None:
    """An input could be overwritten, or be taken for an image in the next run."""
    save_images(tmp_path / images, {"x.png": (4, 4)})
    with pytest.raises(DataError, match="inside one another"):
        plan_outputs(tmp_path / images, tmp_path / out)


def test_two_images_never_share_an_output(tmp_path: Path) -> None:
    """x.png and x.bmp would both become x.png."""
    save_images(tmp_path / "in", {"x.png": (4, 4), "x.bmp": (4, 4)})
    with pytest.raises(DataError, match="differ only in their suffix"):
        plan_outputs(tmp_path / "in", tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A file stands where the folder should be; nothing half-written stays."""
    save_images(tmp_path / "in", {"x.png": (4, 4)})
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match=r"cannot write .*labels/x\.png"):
        predict_folder(STUDENT, COLORS, plan_outputs(tmp_path / "in", tmp_path / "out"))


def test_an_overlay_lies_between_image_and_class_colour() -> None:
    """Void tints black, which is no class."""
    pixels = np.full((1, 2, 3), 200, np.uint8)
    mixed = overlay(pixels, np.array([[1, 255]], np.uint8), COLORS)
    assert (mixed[0, 0] > COLORS[1]).all()
    assert (mixed[0, 0] < 200).all()
    assert (mixed[0, 1] == 90).all()
