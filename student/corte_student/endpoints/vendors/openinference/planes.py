"""The tensors of an Open Inference answer as a Prediction: scores, labels, or the planes of our own service.

Rule 1: nothing of the metadata is needed, so a stored answer is read years later: a float tensor holds
scores, an integer tensor labels, and `classes` with `scores` are our own service's planes.
Rule 2: scores of another size than the picture are resized bilinearly before anything is compared, labels
to the nearest (this project's teacher does the same). Rule 3: at most one float32 copy of all scores exists,
and none where their size is the picture's: what they add up to is worked out some rows at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

import cv2
import numpy as np
import numpy.typing as npt

from corte_protocol import VOID, Disclosure, InvalidValue, Prediction
from corte_protocol.types import Float16, UInt8
from corte_student.endpoints.masks import normalised, ranked, resized, softmax, within_one
from corte_student.endpoints.tensors import Array, Message, listed
from corte_student.endpoints.vendors.openinference.options import WHERE, Activation, Answer, Layout

CLASSES: Final = "classes"
SCORES: Final = "scores"
_UNREAD: Final = "unread"  # the endpoint knows the revision
_HUGE: Final = 1e30  # an infinite logit would turn into NaN between two pixels
_SLACK: Final = 1e-3  # FP16, or a resize within the model
_BLOCK: Final = 1 << 17  # pixels at a time

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
        if self.activation == "none" and not (low >= -_SLACK and high <= 1 + _SLACK):
            raise InvalidValue(
                f"scores from {low:g} to {high:g}, not 0 to 1: take `activation` out of {WHERE}"
            )
        shares = self.activation == "none" or (self.activation == "auto" and normalised(planes))
        if low < -_HUGE or high > _HUGE:
            planes = _tamed(planes)
        if planes.shape[1:] != (height, width):
            planes = _fitted(planes, height, width)
        if not need.prob_bits:
            return Prediction(ranked(planes, 1)[0], None, _UNREAD)
        return Prediction(*_best(planes, need.top_k, within_one if shares else softmax), _UNREAD)

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


def _tamed(planes: Array) -> Float32:
    """Infinite logits as large ones."""
    with np.errstate(over="ignore"):
        return np.clip(planes.astype(np.float32), -_HUGE, _HUGE)


def _fitted(planes: Array, height: int, width: int) -> Float32:
    """float [C, h, w] to float32 [C, height, width]."""
    fitted = np.empty((len(planes), height, width), np.float32)
    for plane, target in zip(planes, fitted, strict=True):
        source = np.ascontiguousarray(plane, np.float32)
        target[:] = cv2.resize(source, (width, height), interpolation=cv2.INTER_LINEAR)
    return fitted


def _best(planes: Array, k: int, shares: Callable[[Array], Float32]) -> tuple[UInt8, Float16]:
    """The `k` best classes and their shares, [K, H, W] each."""
    _, height, width = planes.shape
    classes = np.empty((k, height, width), np.uint8)
    scores = np.empty((k, height, width), np.float16)
    rows = max(1, _BLOCK // width)
    for top in range(0, height, rows):
        part = slice(top, top + rows)
        classes[:, part], scores[:, part] = ranked(shares(planes[:, part]), k)
    return classes, scores
