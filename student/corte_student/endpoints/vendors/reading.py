"""The one way to read an answer that is described by an `AnswerSpec`.

Rule 1: an unknown id, colour or class name is an error that names it and where to list it, unless it was said
to be void. Rule 2: a mask of another size is taken to the nearest pixel, and only if it has the image's
proportions, unless it was said to be stretched: a letter-boxed one would be off silently.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corte_protocol import VOID, InvalidValue, LimitExceeded, MalformedFrame, Prediction, quantise
from corte_protocol.types import VOID_NAME, UInt8
from corte_student.endpoints import masks
from corte_student.endpoints.answers import Received
from corte_student.endpoints.dialect import MAX_JSON
from corte_student.endpoints.vendors.described import CONFIDENCE, MASK, AnswerSpec, found, parsed

__all__ = ["AnswerSpec", "found", "parsed", "read_answer"]

_LEAST_PIXELS: Final = 1 << 24  # a mask may be larger than a small image
_MOST_ITEMS: Final = 1024


def read_answer(
    spec: AnswerSpec, received: Received, height: int, width: int, classes: tuple[str, ...]
) -> Prediction:
    """The prediction for an image of `height` x `width`; `classes` are those of `completed`.

    Raises ProtocolError.
    """
    document = None if spec.format == "image" else parsed(received.body)
    reader = _Reader(spec, received, height, width, classes)
    ids = reader.labels(document)
    if VOID_NAME in classes:
        ids = np.where(ids == VOID, np.uint8(classes.index(VOID_NAME)), ids)
    confidence = None if spec.confidence is None else reader.confidence(found(spec.confidence, document))
    return Prediction(ids[None], None if confidence is None else confidence[None], "unread")


@dataclass(frozen=True, slots=True)
class _Reader:
    """One answer to an image of `height` x `width`."""

    spec: AnswerSpec
    received: Received
    height: int
    width: int
    classes: tuple[str, ...]

    def labels(self, document: Any) -> UInt8:
        """Class ids uint8 [H, W], VOID where there is none."""
        spec = self.spec
        if spec.items is not None:
            return self._painted(found(spec.items, document))
        if spec.format == "image":
            return self._fitted(self._meant(self._decoded(self.received.body)))
        value = found(spec.mask, document)
        if spec.transport == "array":
            return self._fitted(self._meant(_whole(value)))
        return self._fitted(self._meant(self._decoded(self._file(value, MASK))))

    def confidence(self, value: Any) -> UInt8:
        """Uint8 [H, W] in units of 1/255: a PNG's grey, or numbers from 0 to 1."""
        if self.spec.transport == "array":
            shares = _grid(value, np.dtype(np.float32))
            if not (shares.min() >= 0 and shares.max() <= 1):
                raise InvalidValue("confidences that are not between 0 and 1")
            return self._fitted(quantise(shares))
        data = self._file(value, CONFIDENCE)
        return self._fitted(_grey(masks.decode_png(data, max_pixels=self._max_pixels)))

    @property
    def _max_pixels(self) -> int:
        return max(4 * self.height * self.width, _LEAST_PIXELS)

    def _file(self, value: Any, name: str) -> bytes:
        """The bytes of a file that stands in the answer or was linked to as `name`."""
        if not isinstance(value, str):
            raise MalformedFrame(f"the answer holds no {name}")
        if self.spec.transport == "url" and not value.startswith("data:"):
            for part in self.received.linked:
                if part.name == name:
                    return part.body
            raise MalformedFrame(f"the answer links to no {name}")
        return masks.decode_text(value, max_bytes=MAX_JSON)

    def _decoded(self, data: bytes) -> npt.NDArray[np.integer[Any]]:
        """A PNG's ids [h, w], or its colours [h, w, 3]."""
        colors = self.spec.encoding == "palette-png"
        pixels = masks.decode_png(data, max_pixels=self._max_pixels, colors=colors)
        return pixels if colors else _grey(pixels)

    def _meant(self, pixels: npt.NDArray[np.integer[Any]]) -> UInt8:
        """Stored ids or colours to class ids."""
        spec, lenient = self.spec, self.spec.ignore_unknown
        try:
            if spec.encoding == "palette-png":
                palette = {_rgb(color): self._place(name) for color, name in spec.palette.items()}
                return masks.ids_from_colors(
                    pixels.astype(np.uint8), palette, tolerance=spec.tolerance, unlisted_void=lenient
                )
            table = {stored: self._place(name) for stored, name in spec.ids.items()}
            if not table:
                table = {place: place for place, name in enumerate(self.classes) if name != VOID_NAME}
            return _translated(pixels, {**table, **dict.fromkeys(spec.void_ids, VOID)}, lenient=lenient)
        except InvalidValue as exc:
            raise InvalidValue(f"{exc}: see classes, ids, palette and void_ids in --teacher-config") from exc

    def _painted(self, items: Any) -> UInt8:
        """One mask an item, on each other."""
        if not isinstance(items, list):
            raise MalformedFrame("the answer's items are no list")
        if len(items) > _MOST_ITEMS:
            raise LimitExceeded(f"{len(items)} masks in one answer are beyond {_MOST_ITEMS}")
        regions = []
        for number, item in enumerate(items):
            label, score = found(self.spec.label, item), found(self.spec.score, item)
            if not isinstance(label, str):
                raise MalformedFrame(f"the label of item {number} is no text")
            if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
                raise MalformedFrame(f"the score of item {number} is no number")
            try:
                score = None if score is None else float(score)
            except OverflowError as exc:  # JSON's integers have no bound
                raise InvalidValue(f"the score of item {number} is beyond any float") from exc
            if label in self.spec.void_labels or (self.spec.ignore_unknown and label not in self.classes):
                continue
            region = self._region(found(self.spec.mask, item), number)
            regions.append(
                masks.ClassMask(self._place(label), self._fitted(region.view(np.uint8)) > 0, score)
            )
        return masks.labels_from_masks(regions, self.height, self.width)

    def _region(self, value: Any, number: int) -> npt.NDArray[np.bool_]:
        if self.spec.encoding == "coco-rle":
            if not isinstance(value, dict):
                raise MalformedFrame(f"the mask of item {number} has no size and counts")
            return masks.mask_from_rle(value.get("size"), value.get("counts"), max_pixels=self._max_pixels)
        if self.spec.transport == "array":
            region: npt.NDArray[np.bool_] = _whole(value) != 0
            return region
        data = self._file(value, f"{MASK}.{number}")
        return masks.decode_mask(data, max_pixels=self._max_pixels, threshold=self.spec.threshold)

    def _place(self, name: str) -> int:
        """A class's id; VOID for void."""
        if name == VOID_NAME:
            return VOID
        if name not in self.classes:
            raise InvalidValue(
                f"the answer names the class {name[:64]!r}: add it to classes in --teacher-config"
            )
        return self.classes.index(name)

    def _fitted(self, pixels: UInt8) -> UInt8:
        """On the image's grid, if the sides are in proportion, within a pixel."""
        rows, columns = pixels.shape
        apart = abs(columns * self.height - rows * self.width)
        if apart > max(self.height, self.width) and not self.spec.stretched:
            raise InvalidValue(
                f"a mask of {rows} x {columns} for an image of {self.height} x {self.width}: if it covers "
                "all of the image, write stretched = true into --teacher-config"
            )
        return masks.resized(pixels, self.height, self.width)


def _rgb(color: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue


def _grey(pixels: UInt8) -> UInt8:
    """[h, w] of a grey picture that came as RGB."""
    if pixels.ndim == 2:
        return pixels
    if (pixels[..., 1:] != pixels[..., :1]).any():
        raise InvalidValue("a mask in colours where ids are expected: is its encoding palette-png?")
    return np.ascontiguousarray(pixels[..., 0])


def _translated(stored: npt.NDArray[np.integer[Any]], table: dict[int, int], *, lenient: bool) -> UInt8:
    """Stored ids of any size to class ids."""
    present, places = np.unique(stored, return_inverse=True)
    meanings = [table.get(int(value), VOID if lenient else -1) for value in present]
    if -1 in meanings:
        raise InvalidValue(f"the answer holds the id {int(present[meanings.index(-1)])}, which has no class")
    return np.array(meanings, np.uint8)[places].reshape(stored.shape)


def _whole(value: Any) -> npt.NDArray[np.int64]:
    """Rows of whole numbers, int64 [h, w]."""
    numbers = _grid(value, np.dtype(np.float64))
    whole = numbers.astype(np.int64)
    if (whole != numbers).any():
        raise InvalidValue("ids that are no whole numbers")
    return whole


def _grid(value: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Nested lists as [h, w]; sides of one around it are taken off."""
    if not isinstance(value, list):
        raise MalformedFrame("rows of numbers are expected in the answer")
    try:
        grid = np.array(value, dtype)
    except (ValueError, TypeError, OverflowError) as exc:
        raise MalformedFrame("the answer's rows are no numbers, or not equally long") from exc
    while grid.ndim > 2 and 1 in (grid.shape[0], grid.shape[-1]):
        grid = grid[0] if grid.shape[0] == 1 else grid[..., 0]
    if grid.ndim != 2 or 0 in grid.shape or not np.isfinite(grid).all() or np.abs(grid).max() > 2**53:
        raise InvalidValue(f"numbers of the shape {list(grid.shape)} that are no map of an image")
    return grid
