"""The tensors of an Open Inference answer as a Prediction: scores, labels, or the planes of our own service.

Rule 1: nothing of the metadata is needed, so a stored answer is read years later: a float tensor holds
scores, an integer tensor labels, and `classes` with `scores` are our own service's planes.
Rule 2: scores of another size than the picture are resized bilinearly before anything is compared, labels
to the nearest (this project's teacher does the same). Rule 3: at most one float32 copy of the scores exists;
the bytes received are read in place.
"""

from dataclasses import dataclass
from typing import Final, cast

import cv2
import numpy as np
import numpy.typing as npt

from corte_protocol import VOID, Disclosure, InvalidValue, Prediction
from corte_protocol.types import Float16, UInt8
from corte_student.endpoints.masks import ranked, resized, softmax
from corte_student.endpoints.tensors import Array, Message, listed
from corte_student.endpoints.vendors.oip_options import WHERE, Activation, Answer, Layout

CLASSES: Final = "classes"
SCORES: Final = "scores"
_UNREAD: Final = "unread"  # the endpoint knows the revision
_HUGE: Final = 1e30  # an infinite logit would turn into NaN between two pixels
_ONE: Final = 0.01  # sums of FP16 scores over many classes are off by less
_SLACK: Final = 1.002  # 255 times that is still 255

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reading:
    """How answers are read: `classes` is their number, None where it is not known yet."""

    output: str | None
    answer: Answer | None
    layout: Layout | None
    activation: Activation
    classes: int | None

    def read(self, message: Message, height: int, width: int, need: Disclosure, most: int) -> Prediction:
        """The prediction in an answer to a picture of `height` x `width`, at least as wide as `need`.

        At most `most` elements are decoded of one tensor. Raises ProtocolError.
        """
        names = message.entries
        if self.output is None and CLASSES in names and SCORES in names:
            return _planes(message, height, width, most)
        if self.output is None and len(names) != 1:
            raise InvalidValue(f"several outputs, {listed(names)}: write `output` into {WHERE}")
        array = message.tensor(self.output or next(iter(names)), most).array
        if 0 in array.shape or array.dtype.kind == "b":
            raise InvalidValue(f"an output of {array.dtype} {list(array.shape)} is no segmentation")
        flat = self._single(array)
        if array.dtype.kind == "f" and (flat is None or self.answer != "labels"):
            return self._scores(array, height, width, need)
        if flat is None:
            raise InvalidValue(f"an integer output of the shape {list(array.shape)} is no map of labels")
        if need.prob_bits:
            raise InvalidValue(f'labels where scores were stated: write `answer = "labels"` into {WHERE}')
        return Prediction(resized(_ids(flat), height, width)[None], None, _UNREAD)

    def _single(self, array: Array) -> Array | None:
        """[1, H, W], [1, 1, H, W], [1, H, W, 1] or [H, W] as [H, W]; None where there are several planes."""
        if array.ndim == 4 and array.shape[0] == 1:
            last = array.shape[3] == 1 and (self.layout == "nhwc" or array.shape[1] != 1)
            array = array[0, ..., 0] if last else array[0]
        if array.ndim == 3 and array.shape[0] == 1:
            array = array[0]
        return array if array.ndim == 2 else None

    def _scores(self, array: Array, height: int, width: int, need: Disclosure) -> Prediction:
        """Scores or logits of every class to the `need.top_k` best."""
        planes = self._channels_first(array)
        low, high = float(planes.min()), float(planes.max())
        if np.isnan(low):
            raise InvalidValue("scores that are no numbers")
        total = None if self.activation == "softmax" else _total(planes)
        chances = self._are_chances(low, high, total)
        fitted = _fitted(planes, height, width, wild=low < -_HUGE or high > _HUGE)
        if not need.prob_bits:
            return Prediction(ranked(fitted, 1)[0], None, _UNREAD)
        if not chances:
            fitted = softmax(fitted)
        elif total is not None and (low < 0 or float(total.max()) > _SLACK):
            fitted = _within_one(fitted)
        classes, scores = ranked(fitted, need.top_k)
        return Prediction(classes, scores, _UNREAD)

    def _are_chances(self, low: float, high: float, total: Float32 | None) -> bool:
        """Whether the numbers are scores between 0 and 1 already, not logits."""
        if total is None:
            return False
        if self.activation == "none":
            if low < 0 or high > 1:
                raise InvalidValue(
                    f"scores from {low:g} to {high:g} are none between 0 and 1: "
                    f"take `activation` out of {WHERE}"
                )
            return True
        return low >= -_ONE and bool((np.abs(total - 1) <= _ONE).all())

    def _channels_first(self, array: Array) -> Array:
        """[1, C, H, W], [1, H, W, C] or the same without the batch, as a view [C, H, W]."""
        shape = array.shape
        if array.ndim == 4 and shape[0] == 1:
            array = array[0]
        if array.ndim != 3:
            raise InvalidValue(f"an output of the shape {list(shape)} holds no scores of one picture")
        layout = self.layout
        if layout is None:
            last = self.classes is not None and array.shape[2] == self.classes != array.shape[0]
            layout = "nhwc" if last else "nchw"
        planes = array if layout == "nchw" else array.transpose(2, 0, 1)
        if self.classes is not None and planes.shape[0] != self.classes:
            raise InvalidValue(
                f"an output of the shape {list(shape)} for {self.classes} classes: "
                f"correct `classes`, or `layout` in {WHERE}"
            )
        return planes


def _planes(message: Message, height: int, width: int, most: int) -> Prediction:
    """Our own service's answer: UINT8 [1, K, H, W] twice, or FP16 scores."""
    classes, scores = (message.tensor(name, most).array for name in (CLASSES, SCORES))
    if classes.ndim != 4 or classes.shape[:1] + classes.shape[2:] != (1, height, width):
        raise InvalidValue(f"planes {list(classes.shape)} for a picture of {height} x {width}")
    if classes.shape != scores.shape:
        raise InvalidValue(f"planes {list(classes.shape)} with scores {list(scores.shape)}")
    return Prediction(cast(UInt8, classes[0]), cast("UInt8 | Float16", scores[0]), _UNREAD)


def _ids(labels: Array) -> UInt8:
    """A map of whole numbers from 0 to 254, of any type, to uint8."""
    low, high = labels.min(), labels.max()
    if not (low >= 0 and high < VOID):  # NaN is neither
        raise InvalidValue(f"the labels reach from {low} to {high}, beyond 0 to {VOID - 1}")
    ids: UInt8 = labels.astype(np.uint8)
    if labels.dtype.kind == "f" and not np.array_equal(ids, labels):
        raise InvalidValue("the labels are no whole numbers")
    return ids


def _total(planes: Array) -> Float32:
    """The sum over the classes, float32 [h, w], plane by plane: no copy of all of them."""
    total = np.zeros(planes.shape[1:], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # logits may be infinite, and then are no chances
        for plane in planes:
            total += plane.astype(np.float32, copy=False)
    return total


def _fitted(planes: Array, height: int, width: int, *, wild: bool) -> Float32:
    """float [C, h, w] to float32 [C, height, width]; a view where nothing has to be done."""
    same = planes.shape[1:] == (height, width)
    if same and not wild:
        return np.ascontiguousarray(planes, np.float32)
    fitted = np.empty((len(planes), height, width), np.float32)
    for plane, target in zip(planes, fitted, strict=True):
        with np.errstate(over="ignore"):
            source = np.ascontiguousarray(plane, np.float32)
        if wild:
            source = np.clip(source, -_HUGE, _HUGE)
        target[:] = source if same else cv2.resize(source, (width, height), interpolation=cv2.INTER_LINEAR)
    return fitted


def _within_one(planes: Float32) -> Float32:
    """Scores that add up to at most one, since a pixel's scores cannot add up to more."""
    planes = np.maximum(planes, np.float32(0))
    planes /= np.maximum(_total(planes), np.float32(1))
    return planes
