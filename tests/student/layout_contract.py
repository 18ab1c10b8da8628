"""What every layout must do with a data set written in its format; inherit `LayoutContract`."""

import warnings
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest

from corte_student.data.folder import read_pixels
from corte_student.data.layouts import LAYOUTS, find_pairs, read_labels
from corte_student.errors import DataError
from formats import VOID, WRITERS, Truths, save_photo, street


class LayoutContract:
    """Say which layout it is, in which form its files are written, and how its errors name the remedy."""

    layout: ClassVar[str]
    form: ClassVar[str]  # of formats.WRITERS
    classes: ClassVar[int] = 19
    split: ClassVar[str] = "val"
    remedy: ClassVar[str]
    copies: ClassVar[int] = 1  # how often the writer stores each truth

    def made(self, root: Path) -> Truths:
        """Two images of other sizes on disk."""
        truths = {
            "a_000000_000019": street(0, classes=self.classes),
            "b_000001_000019": street(1, classes=self.classes, size=(24, 40)),
        }
        WRITERS[self.form](root, truths, self.split)
        return truths

    def pairs(self, root: Path) -> list[tuple[Path, Path]]:
        """The pairs that the layout finds."""
        return find_pairs(root, self.layout, self.split)

    def test_every_pixel_has_its_class(self, tmp_path: Path) -> None:
        """Pairs are found in a tree as it is unpacked, and labels are the truth, class by class, void too."""
        truths = self.made(tmp_path)
        pairs = self.pairs(tmp_path)
        assert len(pairs) == len(truths) * self.copies
        for image, label in pairs:
            (name,) = [name for name in truths if image.name.startswith(name)]
            labels = read_labels(label, self.layout, self.classes)
            assert labels.dtype == np.uint8
            assert set(np.unique(labels)) == {*range(self.classes), VOID}
            np.testing.assert_array_equal(labels, truths[name])
            assert read_pixels(image).shape[:2] == labels.shape

    def test_the_layout_names_its_classes(self) -> None:
        """As many names as ids; a model with another count is told before anything is scored."""
        assert len(LAYOUTS[self.layout].classes) == self.classes

    def test_colours_in_place_of_numbers_are_refused_with_the_remedy(self, tmp_path: Path) -> None:
        """An 8-bit RGB label is the wrong file, and the message says which is the right one."""
        truths = self.made(tmp_path)
        _, label = self.pairs(tmp_path)[0]
        save_photo(label, next(iter(truths.values())))
        with pytest.raises(DataError, match=self.remedy) as caught:
            read_labels(label, self.layout, self.classes)
        assert str(label) in str(caught.value)

    def test_a_luminance_is_never_taken_for_classes(self, tmp_path: Path) -> None:
        """A label that went through `convert("L")` is refused: its grey levels are no numbers of classes."""
        truths = self.made(tmp_path)
        _, label = self.pairs(tmp_path)[0]
        photo = cv2.imread(str(save_photo(tmp_path / "x.png", next(iter(truths.values())))), 0)
        assert photo is not None and cv2.imwrite(str(label), photo)
        with pytest.raises(DataError, match=label.name):
            read_labels(label, self.layout, self.classes)

    def test_a_truncated_label_is_one_line(self, tmp_path: Path) -> None:
        """Half a file never becomes half a truth."""
        self.made(tmp_path)
        _, label = self.pairs(tmp_path)[0]
        label.write_bytes(label.read_bytes()[:-40])
        with pytest.raises(DataError, match="cannot be read as a PNG"):
            read_labels(label, self.layout, self.classes)

    def test_an_image_without_label_is_never_passed_over_in_silence(self, tmp_path: Path) -> None:
        """Strict layouts refuse; those whose copies are usually partial warn with the count."""
        self.made(tmp_path)
        pairs = self.pairs(tmp_path)
        image, gone = pairs[0]
        for sibling in gone.parent.glob(f"{image.name[:15]}*.png"):
            sibling.unlink()
        message = r"1 of 2 images have no label"
        if LAYOUTS[self.layout].partial:
            with pytest.warns(UserWarning, match=message):
                assert self.pairs(tmp_path) == pairs[1:]
        else:
            with pytest.raises(DataError, match=message) as caught:
                self.pairs(tmp_path)
            assert str(gone.parent) in str(caught.value)

    def test_a_label_without_image_is_never_passed_over_in_silence(self, tmp_path: Path) -> None:
        """The same for the other side, and files that belong to a known image cost no warning."""
        self.made(tmp_path)
        pairs = self.pairs(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert self.pairs(tmp_path) == pairs
        pairs[0][0].unlink()
        if LAYOUTS[self.layout].partial:
            with pytest.warns(UserWarning, match="labels have no image"):
                assert self.pairs(tmp_path) == pairs[1:]
        else:
            with pytest.raises(DataError, match="labels have no image"):
                self.pairs(tmp_path)
