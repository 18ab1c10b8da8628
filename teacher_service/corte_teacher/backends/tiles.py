"""Large images in overlapping tiles, around any backend that answers all classes with scores.

Strategy: a tile's scores are put back into the order of ids, weighted with a ramp over the overlap, and added
up in float32. Tiles run row by row, and a strip as high as one tile holds what later rows may still add to,
so dense maps of the whole image never exist: C * tile height * W * 4 bytes, whatever the image's height.

Legend: C answered classes, K disclosed ones, H W the image's size, h w a tile's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from corte_protocol import Disclosure
from corte_protocol.types import Float16, UInt8
from corte_teacher.backends import Backend
from corte_teacher.card import Tiles
from corte_teacher.errors import BackendError

_F32 = npt.NDArray[np.float32]

# Two classes may share a float16 score and still have an order: each rank is 2^-20 of itself lower. 254 ranks
# stay below half a step of float16 (2^-12), so that rounding gives the tile's own score back.
_RANK: Final = 2.0**-20
_BLOCK: Final = 1 << 14  # pixels at a time: C=19 in float32 is 1.2 MiB, which stays in the cache
_FEW: Final = 5  # up to here repeated arg-max beats a stable sort: 19x512x2048, K=5: 0.39 against 0.47 s


class TiledBackend:
    """Any backend, tile by tile.

    `inner` answers all `classes` with float16 scores (its ceiling is full), or labels only, without scores.
    An image that fits in one tile gets the inner answer itself, cut to `ceiling`.
    """

    def __init__(self, inner: Backend, tiles: Tiles, classes: int, ceiling: Disclosure) -> None:
        self._inner = inner
        self._tiles = tiles
        self._classes = classes
        self._ceiling = ceiling

    def predict(self, pixels: UInt8) -> tuple[UInt8, Float16 | None]:
        """See `Backend.predict`. Raises BackendError when a tile's answer is not as the class demands."""
        height, width, _ = pixels.shape
        tiles, k = self._tiles, self._ceiling.top_k
        if height <= tiles.height and width <= tiles.width:
            classes, scores = self._inner.predict(pixels)
            return classes[:k], None if scores is None or not self._ceiling.prob_bits else scores[:k]
        rows = _spans(height, tiles.height, tiles.overlap)
        columns = _spans(width, tiles.width, tiles.overlap)
        canvas: _Canvas | None = None
        for row, finished in zip(rows, [*(later.start for later in rows[1:]), height], strict=True):
            for column in columns:
                tile = np.ascontiguousarray(pixels[row.start : row.stop, column.start : column.stop])
                classes, scores = self._inner.predict(tile)
                due = (1 if scores is None else self._classes, *tile.shape[:2])
                if classes.shape != due or (scores is not None and scores.shape != due):
                    raise BackendError(f"a tile's answer is {list(classes.shape)}, due are {list(due)}")
                if canvas is None:
                    canvas = self._canvas(scores is not None, height, width)
                canvas.add(row, column, classes, scores)
            assert canvas is not None
            canvas.finish(finished)
        assert canvas is not None
        return canvas.classes, canvas.scores

    def _canvas(self, scored: bool, height: int, width: int) -> "_Canvas":
        if not scored:
            return _Nearest(height, width)
        return _Blend(self._classes, min(self._tiles.height, height), height, width, self._ceiling)


@dataclass(frozen=True, slots=True, eq=False)
class _Span:
    """One tile along one axis: what it covers, where its centre is the nearest, and its weights float32 [n].

    The weights of all tiles add up to one at each pixel of the axis; so do their products over both axes.
    """

    start: int
    stop: int
    owned: tuple[int, int]
    weights: _F32


def _spans(length: int, size: int, overlap: int) -> list[_Span]:
    """Tiles of `size` over `length` pixels, neighbours sharing at least `overlap`; the last is shifted in."""
    starts = [0] if length <= size else [*range(0, length - size, size - overlap), length - size]
    size = min(size, length)
    ramps = np.zeros((len(starts), size))
    total = np.zeros(length)
    for index, start in enumerate(starts):
        into, out = np.ones(size), np.ones(size)
        if index:
            into[:overlap] = np.arange(1, overlap + 1) / (overlap + 1)
        if start + size < length:
            out[size - overlap :] = np.arange(overlap, 0, -1) / (overlap + 1)
        ramps[index] = into * out
        total[start : start + size] += ramps[index]
    middles = [(one + other + size) // 2 for one, other in pairwise(starts)]
    bounds = [0, *middles, length]
    return [
        _Span(
            start,
            start + size,
            (bounds[index], bounds[index + 1]),
            (ramps[index] / total[start : start + size]).astype(np.float32),
        )
        for index, start in enumerate(starts)
    ]


class _Canvas(Protocol):
    """Where tiles become an answer: `classes` uint8 [K, H, W] and `scores` float16 [K, H, W] or None."""

    classes: UInt8
    scores: Float16 | None

    def add(self, row: _Span, column: _Span, classes: UInt8, scores: Float16 | None) -> None:
        """One tile's answer; rows of tiles come from top to bottom."""

    def finish(self, stop: int) -> None:
        """No later tile reaches above the image's row `stop`."""


class _Nearest:
    """Labels without scores: a pixel is answered by the tile whose centre is nearest."""

    def __init__(self, height: int, width: int) -> None:
        self.classes: UInt8 = np.empty((1, height, width), np.uint8)
        self.scores: Float16 | None = None

    def add(self, row: _Span, column: _Span, classes: UInt8, scores: Float16 | None) -> None:
        """See `_Canvas.add`."""
        (top, bottom), (left, right) = row.owned, column.owned
        inside = classes[0, top - row.start : bottom - row.start, left - column.start : right - column.start]
        self.classes[0, top:bottom, left:right] = inside

    def finish(self, stop: int) -> None:
        """See `_Canvas.finish`: nothing is held back."""


class _Blend:
    """Scores added up in a strip float32 [C, h, W] whose first row is the image's row `_top`."""

    def __init__(self, count: int, rows: int, height: int, width: int, ceiling: Disclosure) -> None:
        k = ceiling.top_k
        self.classes: UInt8 = np.empty((k, height, width), np.uint8)
        self.scores: Float16 | None = np.empty((k, height, width), np.float16) if ceiling.prob_bits else None
        self._strip = np.zeros((count, rows, width), np.float32)
        self._top = 0
        self._factors = (1 - _RANK * np.arange(count)).astype(np.float32)[:, None, None]

    def add(self, row: _Span, column: _Span, classes: UInt8, scores: Float16 | None) -> None:
        """See `_Canvas.add`. Raises BackendError for a class that is unknown, missing or without a score."""
        if scores is None:
            raise BackendError("one tile of an image has scores, another none")
        if int(classes.max()) >= len(self._strip):
            raise BackendError("a tile names a class that its card does not")
        for part in _blocks(row.stop - row.start, column.stop - column.start):
            ranked = scores[:, part].astype(np.float32) * self._factors
            dense = np.full(ranked.shape, np.nan, np.float32)
            np.put_along_axis(dense, classes[:, part].astype(np.intp), ranked, axis=0)
            if not (dense.min() >= 0 and dense.max() <= 1):  # a class named twice leaves another at NaN
                raise BackendError("a tile names a class twice, or a score that is no probability")
            dense *= row.weights[part, None] * column.weights
            at = slice(row.start - self._top + part.start, row.start - self._top + part.stop)
            self._strip[:, at, column.start : column.stop] += dense

    def finish(self, stop: int) -> None:
        """See `_Canvas.finish`: the best K of the finished rows leave the strip, the others move up."""
        rows, top = stop - self._top, self._top
        for part in _blocks(rows, self._strip.shape[2]):
            values, ids = _best(self._strip[:, part], len(self.classes))
            at = slice(top + part.start, top + part.stop)
            self.classes[:, at] = ids
            if self.scores is not None:
                self.scores[:, at] = values
        for plane in self._strip:  # one by one: source and target may overlap, which numpy copies first
            plane[: len(plane) - rows] = plane[rows:]
            plane[len(plane) - rows :] = 0
        self._top = stop


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of whole rows, about `_BLOCK` pixels each."""
    step = max(1, _BLOCK // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _best(x: _F32, k: int) -> tuple[_F32, npt.NDArray[np.intp]]:
    """The k largest over axis 0 of [C, rows, W] and their ids, descending, ties to the lower id. Spoils x."""
    if k > _FEW:
        ids = np.argsort(-x, axis=0, kind="stable")[:k]
        return np.take_along_axis(x, ids, 0), ids
    values = np.empty((k, *x.shape[1:]), np.float32)
    ids = np.empty((k, *x.shape[1:]), np.intp)
    for rank in range(k):
        best = x.argmax(axis=0, keepdims=True)
        ids[rank : rank + 1] = best
        values[rank : rank + 1] = np.take_along_axis(x, best, 0)
        np.put_along_axis(x, best, -np.inf, axis=0)
    return values, ids
