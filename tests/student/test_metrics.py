"""The confusion matrix against a slow loop, and the rules for void and absent classes."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from corte_protocol import VOID
from corte_student.data.layouts.cityscapes import CLASSES as CITYSCAPES
from corte_student.errors import DataError
from corte_student.metrics import CLASS_LISTS, ConfusionMatrix, class_lists

UInt8 = npt.NDArray[np.uint8]

CLASSES = 4
maps = arrays(np.uint8, (3, 5), elements=st.sampled_from([*range(CLASSES), VOID]))


def matrix_of(*pairs: tuple[UInt8, UInt8], classes: int = CLASSES) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes)
    for truth, predicted in pairs:
        matrix.update(truth, predicted)
    return matrix


def row(*values: int) -> UInt8:
    return np.array([values], np.uint8)


def slow_iou(truth: UInt8, predicted: UInt8, label: int) -> float | None:
    both = either = present = 0
    for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        if t == VOID:
            continue
        both += t == label and p == label
        either += t == label or p == label
        present += t == label
    return both / either if present else None


@settings(max_examples=80)
@given(maps, maps)
def test_iou_is_what_a_loop_over_pixels_counts(truth: UInt8, predicted: UInt8) -> None:
    """Each IoU is intersection over union of the labelled pixels; void in the truth is not counted."""
    matrix = matrix_of((truth, predicted))
    assert matrix.iou() == [slow_iou(truth, predicted, label) for label in range(CLASSES)]
    assert matrix.pixels == int((truth != VOID).sum())


@settings(max_examples=40)
@given(maps, maps)
def test_scores_are_the_mean_and_the_share_of_right_pixels(truth: UInt8, predicted: UInt8) -> None:
    """The mean leaves absent classes out, and the accuracy counts right pixels among labelled ones."""
    matrix = matrix_of((truth, predicted))
    labelled = truth != VOID
    if not labelled.any():
        with pytest.raises(DataError, match="no labelled pixel"):
            _ = matrix.miou
        with pytest.raises(DataError, match="no labelled pixel"):
            _ = matrix.pixel_accuracy
        return
    present = [value for value in matrix.iou() if value is not None]
    assert matrix.miou == pytest.approx(sum(present) / len(present))
    assert matrix.pixel_accuracy == pytest.approx((truth == predicted)[labelled].mean())
    assert 0 <= matrix.miou <= 1


@settings(max_examples=40)
@given(maps, maps, maps, maps)
def test_matrices_add_up(a: UInt8, b: UInt8, c: UInt8, d: UInt8) -> None:
    """The matrix of two images is the sum of their matrices."""
    together = matrix_of((a, b), (c, d))
    assert ((matrix_of((a, b)) + matrix_of((c, d))).counts == together.counts).all()


def test_an_absent_class_that_is_predicted_has_no_iou_but_hurts_the_others() -> None:
    """Class 2 is not in the truth: it stays out of the mean; the pixel given to it is lost for class 1."""
    matrix = matrix_of((row(0, 0, 1, 1), row(0, 0, 1, 2)), classes=3)
    assert matrix.iou() == [1.0, 0.5, None]
    assert matrix.miou == 0.75


def test_a_void_prediction_on_a_labelled_pixel_is_wrong() -> None:
    """Staying silent costs as much as a mistake."""
    matrix = matrix_of((row(0, 0, 1, VOID), row(0, VOID, 1, VOID)), classes=2)
    assert matrix.iou() == [0.5, 1.0]
    assert matrix.pixel_accuracy == pytest.approx(2 / 3)


def test_a_label_beyond_the_classes_is_named_with_its_file() -> None:
    """The message holds the value and the file."""
    with pytest.raises(DataError, match=r"a\.png holds the label 7.*0\.\.1"):
        ConfusionMatrix(2).update(row(7, 0), row(0, 0), source="a.png")


def test_a_prediction_beyond_the_classes_is_not_counted_as_anything() -> None:
    """It is an error, never a silent shift into another cell."""
    with pytest.raises(DataError, match="class 5 was predicted"):
        ConfusionMatrix(2).update(row(0, 0), row(0, 5))


def test_sizes_must_agree() -> None:
    """Labels of another size than the image are refused, width first."""
    with pytest.raises(DataError, match=r"a\.png is 3x1 pixels and its image 2x1"):
        ConfusionMatrix(2).update(row(0, 0, 0), row(0, 0), source="a.png")


def test_matrices_of_other_classes_do_not_add_up() -> None:
    """Adding is for parts of one set."""
    with pytest.raises(ValueError, match="do not add up"):
        ConfusionMatrix(2) + ConfusionMatrix(3)


def test_the_class_lists_of_papers_are_what_their_names_leave_out() -> None:
    """16 is Cityscapes' 19 without what SYNTHIA never shows, 13 also without wall, fence and pole."""
    left_out = {
        title: {name for i, name in enumerate(CITYSCAPES) if i not in chosen}
        for title, chosen in CLASS_LISTS.items()
    }
    assert left_out == {
        "mIoU": set(),
        "mIoU16": {"terrain", "truck", "train"},
        "mIoU13": {"terrain", "truck", "train", "wall", "fence", "pole"},
    }
    assert class_lists([name.title() for name in CITYSCAPES]) == CLASS_LISTS
    assert class_lists(CITYSCAPES[:16]) == class_lists(CITYSCAPES[::-1]) == {}


@settings(max_examples=40)
@given(
    arrays(np.uint8, (6, 9), elements=st.sampled_from([*range(19), VOID])),
    arrays(np.uint8, (6, 9), elements=st.integers(0, 18)),
)
def test_a_mean_over_some_classes_is_the_mean_of_their_rows(truth: UInt8, predicted: UInt8) -> None:
    """Each IoU is that of all 19 predicted classes, whatever the list; absent classes are left out."""
    matrix = matrix_of((truth, predicted), classes=19)
    for chosen in CLASS_LISTS.values():
        rows = [iou for c in chosen if (iou := slow_iou(truth, predicted, c)) is not None]
        expected = pytest.approx(sum(rows) / len(rows)) if rows else None
        assert matrix.mean_iou(chosen) == expected


def test_a_pixel_predicted_truck_still_counts_against_its_class() -> None:
    """Class 14 is not among the 16, yet the car pixels it took are lost; nothing is scaled by 19/16."""
    car, truck, road = (CITYSCAPES.index(name) for name in ("car", "truck", "road"))
    matrix = matrix_of((row(car, car, road, road), row(car, truck, road, road)), classes=19)
    assert matrix.mean_iou(CLASS_LISTS["mIoU16"]) == pytest.approx((0.5 + 1.0) / 2)
    assert matrix.mean_iou(CLASS_LISTS["mIoU16"]) == matrix.miou


def test_a_list_without_any_class_in_the_truth_has_no_mean() -> None:
    """Zero would be a score; there is none."""
    assert matrix_of((row(0, 0), row(0, 1))).mean_iou([2, 3]) is None
