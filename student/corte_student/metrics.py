"""How good labels are against the truth: one confusion matrix, and the numbers read from it.

Strategy: count pixels, in integers; every number is read from the counts at the end, so matrices of
parts of a data set add up to the matrix of the whole. The means over 16 and 13 classes that papers on SYNTHIA
report are rows of the same 19x19 matrix: a pixel predicted truck still counts against its true class, and
nothing is rescaled.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from corte_protocol import VOID
from corte_student.data.layouts.cityscapes import CLASSES as CITYSCAPES
from corte_student.errors import DataError

UInt8 = npt.NDArray[np.uint8]

ABSENT_RULE = (
    "a class that is absent from the truth has no IoU and is left out of the mean; "
    "pixels wrongly given to it still count against the classes they belong to"
)

# by train id; 16 leaves out terrain, truck and train, which SYNTHIA never shows, 13 also wall, fence and pole
CLASS_LISTS: Final[Mapping[str, tuple[int, ...]]] = {
    "mIoU": tuple(range(len(CITYSCAPES))),
    "mIoU16": (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18),
    "mIoU13": (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18),
}


def class_lists(names: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """The lists of class ids to average over for a model with these classes: Cityscapes' 19, or none."""
    return CLASS_LISTS if tuple(name.lower() for name in names) == CITYSCAPES else {}


class ConfusionMatrix:
    """Pixel counts, truth by row and prediction by column, int64 [C, C + 1].

    Pixels whose truth is void are not counted. The last column holds labelled pixels that were
    predicted void: they are wrong, as a model that stays silent must not score better for it.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts = np.zeros((classes, classes + 1), np.int64)

    def update(self, truth: UInt8, predicted: UInt8, *, source: str = "the labels") -> None:
        """Count one image, both uint8 [H, W]; `source` names the label file in errors."""
        if truth.shape != predicted.shape:
            raise DataError(
                f"{source} is {_size(truth)} pixels and its image {_size(predicted)}: "
                "labels must have the size of their image"
            )
        c = self.classes
        labelled = truth != VOID
        rows, columns = truth[labelled], predicted[labelled]
        if rows.size and int(rows.max()) >= c:
            raise DataError(
                f"{source} holds the label {int(rows.max())}, but there are {c} classes (0..{c - 1}) "
                f"and {VOID} for void: check --layout and the class list"
            )
        columns = np.where(columns == VOID, c, columns.astype(np.int64))
        if columns.size and int(columns.max()) > c:
            raise DataError(
                f"class {int(columns.max())} was predicted for the image of {source}, but there are {c} "
                "classes: the model and the class list do not belong together"
            )
        cells = rows.astype(np.int64) * (c + 1) + columns
        self.counts += np.bincount(cells, minlength=c * (c + 1)).reshape(c, c + 1)

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """The matrix of both sets of images."""
        if other.classes != self.classes:
            raise ValueError(f"matrices of {self.classes} and {other.classes} classes do not add up")
        total = ConfusionMatrix(self.classes)
        total.counts = self.counts + other.counts
        return total

    @property
    def pixels(self) -> int:
        """How many labelled pixels were counted."""
        return int(self.counts.sum())

    def iou(self) -> list[float | None]:
        """Intersection over union of each class, 0..1; None for a class absent from the truth."""
        hits = self.counts.diagonal()
        in_truth = self.counts.sum(axis=1)
        union = in_truth + self.counts[:, : self.classes].sum(axis=0) - hits
        return [
            float(h) / float(u) if present else None
            for h, u, present in zip(hits, union, in_truth > 0, strict=True)
        ]

    def mean_iou(self, classes: Iterable[int]) -> float | None:
        """Mean of the IoUs of `classes` by `ABSENT_RULE`; None where the truth holds none of them."""
        iou = self.iou()
        present = [value for c in classes if (value := iou[c]) is not None]
        return sum(present) / len(present) if present else None

    @property
    def miou(self) -> float:
        """Mean of all IoUs by `ABSENT_RULE`. Raises DataError where nothing is labelled."""
        mean = self.mean_iou(range(self.classes))
        if mean is None:
            raise DataError("the labels hold no labelled pixel, so there is nothing to score: check --layout")
        return mean

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right."""
        if not self.pixels:
            raise DataError("the labels hold no labelled pixel, so there is nothing to score: check --layout")
        return float(self.counts.diagonal().sum()) / float(self.pixels)


def _size(labels: UInt8) -> str:
    return "x".join(str(n) for n in reversed(labels.shape))
