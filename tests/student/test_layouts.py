"""Pairing images with labels, and reading class numbers without ever looking at colours.

Each layout on its own byte format, and the contract of all, are in test_layouts_formats.py.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corte_student.data.layouts import LAYOUTS, check_classes, pair, read_labels
from corte_student.errors import DataError, SettingsError

CAMVID = LAYOUTS["camvid"].classes


def save(path: Path, values: object, *, mode: str = "L", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(values, np.uint8))
    if mode == "P":
        picture.putpalette([200, 10, 30] * 256, "RGB")
    elif mode != "L":
        picture = picture.convert(mode)
    picture.save(path, **options)  # type: ignore[arg-type]
    return path


def photo(path: Path) -> Path:
    return save(path, np.zeros((2, 3)), mode="RGB")


def test_files_pair_by_path_without_suffix(tmp_path: Path) -> None:
    """Sub-folders count, suffixes and their case do not."""
    images = [photo(tmp_path / "i/a/x.jpg"), photo(tmp_path / "i/b/x.PNG")]
    labels = [save(tmp_path / "l/a/x.png", [[0]]), save(tmp_path / "l/b/x.PNG", [[0]])]
    assert pair(tmp_path / "i", tmp_path / "l", "plain") == list(zip(images, labels, strict=True))


def test_labels_in_a_folder_below_the_images_are_not_images(tmp_path: Path) -> None:
    """`--images D --labels D/labels` is an ordinary thing to ask for."""
    image, label = photo(tmp_path / "x.jpg"), save(tmp_path / "labels/x.png", [[0]])
    assert pair(tmp_path, tmp_path / "labels", "plain") == [(image, label)]


def test_an_image_without_label_is_told_with_counts_and_an_example(tmp_path: Path) -> None:
    """The message says how many, which one, and where its label was looked for."""
    photo(tmp_path / "i/x.jpg")
    photo(tmp_path / "i/y.jpg")
    save(tmp_path / "l/x.png", [[0]])
    with pytest.raises(DataError, match=r"1 of 2 images have no label: .*y\.jpg needs .*y\.png"):
        pair(tmp_path / "i", tmp_path / "l", "plain")


def test_a_label_without_image_is_told(tmp_path: Path) -> None:
    """A score over part of the labels would pass for one over all."""
    photo(tmp_path / "i/x.jpg")
    save(tmp_path / "l/x.png", [[0]])
    save(tmp_path / "l/z.png", [[0]])
    with pytest.raises(DataError, match=r"1 of 2 labels have no image.*z\.png"):
        pair(tmp_path / "i", tmp_path / "l", "plain")


def test_folders_are_checked(tmp_path: Path) -> None:
    """A missing folder and one folder for both are each one clear line."""
    photo(tmp_path / "x.jpg")
    with pytest.raises(DataError, match=r"--labels .*nowhere is not a folder"):
        pair(tmp_path, tmp_path / "nowhere", "plain")
    with pytest.raises(DataError, match="the same folder"):
        pair(tmp_path, tmp_path / ".", "plain")


def test_an_unknown_layout_lists_the_choices(tmp_path: Path) -> None:
    """The message names what exists."""
    with pytest.raises(SettingsError, match="choose one of plain, camvid"):
        pair(tmp_path, tmp_path, "pascal")


@pytest.mark.parametrize("options", [{"mode": "L"}, {"mode": "P"}, {"mode": "P", "bits": 4}])
def test_stored_numbers_are_read_whatever_the_palette(tmp_path: Path, options: dict[str, object]) -> None:
    """Grey and palette PNGs give their indices, never a luminance."""
    path = save(tmp_path / "x.png", [[0, 1], [3, 2]], **options)  # type: ignore[arg-type]
    assert read_labels(path, "plain", 4).tolist() == [[0, 1], [3, 2]]


def test_camvid_11_is_void(tmp_path: Path) -> None:
    """SegNet's CamVid stores unlabelled as 11; 255 is void everywhere."""
    path = save(tmp_path / "x.png", [[10, 11, 255]])
    assert read_labels(path, "camvid", 11).tolist() == [[10, 255, 255]]


def test_an_unknown_value_is_named_with_its_file(tmp_path: Path) -> None:
    """The value is the stored one."""
    path = save(tmp_path / "x.png", [[0, 11]])
    with pytest.raises(DataError, match=r"x\.png holds the value 11.*0\.\.10"):
        read_labels(path, "plain", 11)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1", "I;16"])
def test_colours_and_odd_depths_are_refused_with_the_remedy(tmp_path: Path, mode: str) -> None:
    """An RGB label would otherwise turn into grey levels that look like classes."""
    path = save(tmp_path / "x.png", [[0, 1]], mode=mode)
    with pytest.raises(DataError, match="8-bit PNG that stores one class number a pixel"):
        read_labels(path, "plain", 2)


def test_grey_of_four_bits_is_refused(tmp_path: Path) -> None:
    """Pillow stretches such levels to 0..255, so their numbers are no classes any more."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\x00\x12"))
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b""))
    with pytest.raises(DataError, match="less than eight bits"):
        read_labels(path, "plain", 4)


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    """A truncated PNG and a JPEG in disguise are told with their path."""
    whole = save(tmp_path / "x.png", np.zeros((64, 64))).read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    photo(tmp_path / "y.jpg").rename(tmp_path / "y.png")
    for name in ("x.png", "y.png"):
        with pytest.raises(DataError, match=name):
            read_labels(tmp_path / name, "plain", 2)


def test_class_lists_must_fit_the_layout() -> None:
    """Other names are fine, another count or another order is not."""
    check_classes("plain", ("a", "b"))
    check_classes("camvid", CAMVID)
    check_classes("camvid", tuple("sidewalk" if name == "pavement" else name for name in CAMVID))
    with pytest.raises(DataError, match="11 classes and the model 2"):
        check_classes("camvid", ("a", "b"))
    with pytest.raises(DataError, match="'building' is class 0 of the model but class 1"):
        check_classes("camvid", (CAMVID[1], CAMVID[0], *CAMVID[2:]))
