"""Tiles: the contract, answers that must not depend on the cutting, seams, memory, and faulty models."""

import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from corte_protocol import Disclosure, Prediction
from corte_protocol.types import Float16, UInt8
from corte_teacher.backends import Backend, Source, load_backend
from corte_teacher.backends.tiles import TiledBackend
from corte_teacher.card import Card, Tiles
from corte_teacher.errors import BackendError
from teacher.backend_contract import BackendContract, picture
from teacher.tiny_models import F32, card_data, write_model

FIVE = 5
TILES = Tiles(height=16, width=20, overlap=5)
FREE = Card.model_validate(card_data(input={"multiple_of": 2}))
EXACT = Card.model_validate(card_data(input={"dtype": "uint8"}))
SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


class Answers:
    """An operator's own backend: the same classes and scores [C] at each pixel."""

    def __init__(self, classes: list[int], scores: list[float] | None) -> None:
        self.classes = np.array(classes, np.uint8)
        self.scores = None if scores is None else np.array(scores, np.float16)

    def predict(self, pixels: UInt8) -> tuple[UInt8, Float16 | None]:
        """See `Backend.predict`; views, so that no memory is used."""
        shape = (len(self.classes), *pixels.shape[:2])
        classes = np.broadcast_to(self.classes[:, None, None], shape)
        return classes, None if self.scores is None else np.broadcast_to(self.scores[:, None, None], shape)


def onnx_model(path: Path, card: Card, level: str = "full") -> Backend:
    """The model at `path` without tiles."""
    return load_backend(Source("onnx", path, card), Disclosure.parse(level, FIVE), 1)


def tiled(inner: Backend, level: str = "full", tiles: Tiles = TILES, classes: int = FIVE) -> TiledBackend:
    """`inner` behind tiles, at a level."""
    return TiledBackend(inner, tiles, classes, Disclosure.parse(level, classes))


def starts(length: int, size: int, overlap: int) -> list[int]:
    """Where tiles begin, by walking along."""
    found = [0]
    while found[-1] + size < length:
        found.append(min(found[-1] + size - overlap, length - size))
    return found


def as_maps(classes: UInt8, scores: Float16 | None) -> F32:
    """Ranked planes [C, H, W] as maps in the order of ids."""
    assert scores is not None
    maps = np.empty(scores.shape, np.float32)
    np.put_along_axis(maps, classes.astype(np.int64), scores.astype(np.float32), 0)
    return maps


def blended(inner: Backend, pixels: UInt8, tiles: Tiles) -> F32:
    """The dense reference [C, H, W]: each tile's weight at a pixel from its distance to the tile's edges."""
    height, width = pixels.shape[:2]
    size = (min(tiles.height, height), min(tiles.width, width))
    total, weights = np.zeros((FIVE, height, width)), np.zeros((height, width))
    for top in starts(height, size[0], tiles.overlap):
        for left in starts(width, size[1], tiles.overlap):
            maps = as_maps(*inner.predict(pixels[top : top + size[0], left : left + size[1]].copy()))
            for y in range(size[0]):
                for x in range(size[1]):
                    edges = [y + 1] * (top > 0) + [size[0] - y] * (top + size[0] < height)
                    edges += [x + 1] * (left > 0) + [size[1] - x] * (left + size[1] < width)
                    weight = float(np.prod([min(1.0, e / (tiles.overlap + 1)) for e in edges]))
                    total[:, top + y, left + x] += weight * maps[:, y, x]
                    weights[top + y, left + x] += weight
    reference: F32 = (total / weights).astype(np.float32)
    return reference


class TestTiled(BackendContract):
    """A tiny convolution in tiles of 16 x 20; three of the contract's sizes are larger."""

    card = FREE

    def build(self, folder: Path, ceiling: Disclosure) -> Backend:
        inner = onnx_model(write_model(folder / "m.onnx", self.card), self.card)
        return TiledBackend(inner, TILES, FIVE, ceiling)

    def reference(self, folder: Path, pixels: UInt8) -> F32:
        return blended(onnx_model(folder / "m.onnx", self.card), pixels, TILES)


@pytest.fixture(scope="module")
def pointwise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answer at a pixel is that of the pixel alone.

    Its logits are sums of sixteenths, without rounding, and small, so that no score underflows to a tie.
    """
    path = write_model(tmp_path_factory.mktemp("pointwise") / "m.onnx", EXACT, stride=1)
    model = onnx.load(path)
    stored = next(t for t in model.graph.initializer if t.name == "weights")
    kernel = np.zeros((FIVE, 3, 3, 3), np.float32)
    kernel[:, :, 1, 1] = np.round(4 * numpy_helper.to_array(stored)[:, :, 1, 1]) / 16
    stored.CopyFrom(numpy_helper.from_array(kernel, "weights"))
    onnx.save(model, path)
    return path


@settings(max_examples=40)
@given(size=SIZES, tile=st.tuples(st.integers(3, 24), st.integers(3, 24)), data=st.data())
def test_a_pointwise_model_answers_as_without_tiles(
    pointwise: Path, size: tuple[int, int], tile: tuple[int, int], data: st.DataObject
) -> None:
    """At any size of image, tile and overlap all planes of classes are the same; scores within a step."""
    tiles = Tiles(
        height=tile[0], width=tile[1], overlap=data.draw(st.integers(1, (min(tile) - 1) // 2), "overlap")
    )
    inner = onnx_model(pointwise, EXACT)
    right, right_scores = inner.predict(picture(*size))
    classes, scores = tiled(inner, tiles=tiles).predict(picture(*size))
    assert right_scores is not None and scores is not None
    assert np.array_equal(classes, right)
    assert np.abs(scores.astype(np.float32) - right_scores.astype(np.float32)).max() <= 2**-11


@settings(max_examples=40)
@given(size=SIZES, level=st.sampled_from(["labels", "confidence", "margin", "topk:3", "full"]))
def test_a_constant_answer_stays_exactly_what_it_was(size: tuple[int, int], level: str) -> None:
    """Weights add up to one everywhere, to the last bit, and what float16 made a tie keeps its order."""
    inner = Answers([3, 4, 0, 1, 2], [0.61, 0.17, 0.17, 0.05, 0.0])
    classes, scores = tiled(inner, level).predict(np.zeros((*size, 3), np.uint8))
    ceiling = Disclosure.parse(level, FIVE)
    right, right_scores = inner.predict(np.zeros((*size, 3), np.uint8))
    assert np.array_equal(classes, right[: ceiling.top_k])
    assert (scores is None) == (ceiling.prob_bits == 0)
    if scores is not None:
        assert right_scores is not None and np.array_equal(scores, right_scores[: ceiling.top_k])


@pytest.mark.parametrize("size", [(16, 20), (1, 1), (16, 3), (7, 20)])
def test_an_image_of_one_tile_gets_the_inner_answer(tmp_path: Path, size: tuple[int, int]) -> None:
    """Up to a tile's size nothing is computed beside the model: the planes are equal bit for bit."""
    inner = onnx_model(write_model(tmp_path / "m.onnx", FREE), FREE)
    for level, k in (("full", 5), ("margin", 2)):
        right, right_scores = inner.predict(picture(*size))
        classes, scores = tiled(inner, level).predict(picture(*size))
        assert right_scores is not None and scores is not None
        assert np.array_equal(classes, right[:k]) and np.array_equal(scores, right_scores[:k])
    assert tiled(inner, "labels").predict(picture(*size))[1] is None


@pytest.mark.parametrize("size", [(17, 20), (16, 21), (61, 9), (9, 61), (33, 45)])
def test_any_size_gets_a_legal_answer(tmp_path: Path, size: tuple[int, int]) -> None:
    """One pixel more than a tile, thin images, and tiles that are shifted far inwards."""
    inner = onnx_model(write_model(tmp_path / "m.onnx", FREE), FREE)
    answer = Prediction(*tiled(inner).predict(picture(*size)), "r")
    assert answer.classes.shape == (FIVE, *size)


def test_a_seam_is_softer_than_a_hard_cut(tmp_path: Path) -> None:
    """On a smooth image a convolution that pads with zeros jumps at abutting tiles, and not at ours."""
    inner = onnx_model(write_model(tmp_path / "m.onnx", FREE), FREE)
    ramp = np.add.outer(np.arange(60), np.arange(80)).astype(np.uint8)
    pixels = np.stack([ramp, ramp + 40, 200 - ramp], axis=-1).astype(np.uint8)
    whole = as_maps(*inner.predict(pixels))
    size = 20
    cut = np.empty_like(whole)
    for top in range(0, 60, size):
        for left in range(0, 80, size):
            tile = (slice(top, top + size), slice(left, left + size))
            cut[:, tile[0], tile[1]] = as_maps(*inner.predict(pixels[tile].copy()))
    ours = as_maps(*tiled(inner, tiles=Tiles(height=size, width=size, overlap=8)).predict(pixels))

    def jump(maps: F32) -> float:
        """The largest step between neighbours, away from the border where the whole image jumps too."""
        inside = maps[:, 4:-4, 4:-4]
        return float(max(np.abs(np.diff(inside, axis=axis)).max() for axis in (1, 2)))

    def error(maps: F32) -> float:
        """The largest difference from the answer without tiles."""
        return float(np.abs(maps - whole)[:, 4:-4, 4:-4].max())

    assert error(ours) < 0.25 * error(cut)
    assert jump(ours) - jump(whole) < 0.25 * (jump(cut) - jump(whole))


@pytest.mark.parametrize("size", [(16, 20), (40, 50), (37, 21), (17, 61)])
def test_labels_come_from_the_tile_whose_centre_is_nearest(tmp_path: Path, size: tuple[int, int]) -> None:
    """A model without scores is cut hard, half-way between the centres of neighbouring tiles."""
    card = Card.model_validate(card_data(output={"kind": "labels", "layout": "nhw"}))
    path = write_model(tmp_path / "m.onnx", card)
    inner = onnx_model(path, card, "labels")
    classes, scores = tiled(inner, "labels").predict(picture(*size))
    assert scores is None and classes.shape == (1, *size)
    height, width = min(16, size[0]), min(20, size[1])
    tops, lefts = starts(size[0], height, 5), starts(size[1], width, 5)
    answers = {
        (top, left): inner.predict(picture(*size)[top : top + height, left : left + width].copy())[0][0]
        for top in tops
        for left in lefts
    }
    for y in range(size[0]):
        for x in range(size[1]):
            far = {
                (top, left): (top + height / 2 - y - 0.5) ** 2 + (left + width / 2 - x - 0.5) ** 2
                for top, left in answers
            }
            near = [at for at in far if far[at] == min(far.values())]
            assert classes[0, y, x] in {answers[at][y - at[0], x - at[1]] for at in near}


@pytest.mark.parametrize(
    ("classes", "scores", "message"),
    [
        ([0, 1, 2], [0.5, 0.3, 0.2], "due are"),
        ([0, 1, 2, 3, 3], [0.5, 0.3, 0.2, 0.0, 0.0], "a class twice"),
        ([0, 1, 2, 3, 5], [0.5, 0.3, 0.2, 0.0, 0.0], "its card does not"),
        ([0, 1, 2, 3, 4], [1.5, 0.3, 0.2, 0.0, 0.0], "no probability"),
        ([0, 1, 2, 3, 4], [0.5, 0.3, 0.2, 0.0, -0.1], "no probability"),
        ([0, 1, 2, 3, 4], [np.nan, 0.3, 0.2, 0.0, 0.0], "no probability"),
        ([0, 1], None, "due are"),
    ],
)
def test_a_faulty_tile_is_not_blended_away(
    classes: list[int], scores: list[float] | None, message: str
) -> None:
    """What would be illegal as an answer is an error in a tile too, and never averaged into a legal one."""
    with pytest.raises(BackendError, match=message):
        tiled(Answers(classes, scores)).predict(np.zeros((30, 30, 3), np.uint8))


def peak(backend: Backend, pixels: UInt8) -> int:
    """The most bytes that numpy held during one answer, its planes included."""
    tracemalloc.start()
    try:
        backend.predict(pixels)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [(2048, 2048), (2000, 2100)])
def test_memory_is_bounded_by_a_row_of_tiles(size: tuple[int, int]) -> None:
    """Four megapixels of 19 classes take C (h + overlap) W floats and the answer, not C H W floats."""
    count, tiles = 19, Tiles(height=256, width=512, overlap=64)
    inner = Answers(list(range(count)), [1 / 32] * count)
    pixels: npt.NDArray[np.uint8] = np.zeros((*size, 3), np.uint8)
    answer = 2 * 3 * size[0] * size[1]
    bound = count * (tiles.height + tiles.overlap) * size[1] * 4 + answer
    used = peak(tiled(inner, "margin", tiles, count), pixels)
    assert used < bound < 0.3 * count * size[0] * size[1] * 4
