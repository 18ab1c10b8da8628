"""Scores of all classes: ranks, shares and what makes a prediction of them, against slow loops."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from corte_protocol import (
    Disclosure,
    InvalidValue,
    Prediction,
)
from corte_student.endpoints.masks import (
    normalised,
    ranked,
    softmax,
    within_one,
)

Float32 = npt.NDArray[np.float32]

score_planes = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.integers(1, 3), st.integers(1, 3)),
    elements=st.floats(-300, 300, width=32) | st.sampled_from([0.0, -0.0, 1.0, -math.inf, math.inf, 1e-40]),
)


@given(score_planes, st.data())
def test_ranks(scores: Float32, data: st.DataObject) -> None:
    """Best first, ties to the lower id, whichever way is taken for that many places."""
    count, height, width = scores.shape
    k = data.draw(st.integers(1, count))
    classes, best = ranked(scores, k)
    assert classes.dtype == np.uint8 and best.dtype == np.float16
    for y in range(height):
        for x in range(width):
            order = sorted(range(count), key=lambda c: (-scores[c, y, x], c))[:k]
            assert classes[:, y, x].tolist() == order
            assert np.array_equal(best[:, y, x], scores[order, y, x].astype(np.float16))


@pytest.mark.parametrize("shape", [(255, 3, 5), (3, 2, 40_000), (3, 40_000, 2), (20, 300, 301)])
@pytest.mark.parametrize("k", [1, 3, 20, 255])
def test_ranks_of_many_classes_and_pixels(shape: tuple[int, int, int], k: int) -> None:
    """Pictures larger than a block and all 255 classes: the same as a stable sort."""
    if k > shape[0]:
        k = shape[0]
    scores = np.random.default_rng(0).integers(0, 40, shape).astype(np.float32) / 8
    scores = scores.transpose(0, 2, 1)  # a view, as of channels last
    classes, best = ranked(scores, k)
    order = np.argsort(-scores, axis=0, kind="stable")[:k]
    assert np.array_equal(classes, order)
    assert np.array_equal(best, np.take_along_axis(scores, order, 0).astype(np.float16))


def test_scores_of_double_precision() -> None:
    """What is beyond float32 is infinite: it ranks, and is no logit."""
    scores = np.array([[[1e300]], [[-1e300]], [[0.0]]])
    classes, best = ranked(scores, 3)
    assert classes.ravel().tolist() == [0, 2, 1] and best.ravel().tolist() == [math.inf, 0.0, -math.inf]
    with pytest.raises(InvalidValue, match="infinite"):
        softmax(scores)
    assert softmax(scores[1:]).ravel().tolist() == [0.0, 1.0]


@given(score_planes)
def test_ranks_leave_the_scores_alone(scores: Float32) -> None:
    """The planes passed in are not changed."""
    before = scores.copy()
    ranked(scores, 1)
    assert np.array_equal(before, scores)


@pytest.mark.parametrize("k", [0, -1, 3])
def test_impossible_ranks(k: int) -> None:
    """As many places as there are classes."""
    with pytest.raises(InvalidValue, match="of 2 classes"):
        ranked(np.zeros((2, 1, 1), np.float32), k)


@pytest.mark.parametrize(
    "scores",
    [
        np.zeros((2, 2), np.float32),
        np.zeros((2, 0, 2), np.float32),
        np.zeros((0, 2, 2), np.float32),
        np.zeros((256, 1, 1), np.float32),
        np.zeros((2, 2, 2), np.int64),
    ],
)
def test_only_planes_of_scores(scores: npt.NDArray[Any]) -> None:
    """[C, H, W] of floats, 255 classes at most."""
    for function in (softmax, normalised, within_one, lambda s: ranked(s, 1)):
        with pytest.raises(InvalidValue):
            function(scores)


def test_no_numbers() -> None:
    """NaN has no rank and no share, infinity no share; neither is normalised."""
    bad = np.array([[[0.0]], [[np.nan]]], np.float32)
    for function in (softmax, lambda s: ranked(s, 1)):
        with pytest.raises(InvalidValue, match="no numbers"):
            function(bad)
    with pytest.raises(InvalidValue):
        softmax(np.array([[[0.0]], [[np.inf]]], np.float32))
    with pytest.raises(InvalidValue):
        softmax(np.full((2, 1, 1), -np.inf, np.float32))
    assert not normalised(bad)


@given(
    hnp.arrays(
        np.float32, (5, 2, 2), elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.just(-math.inf)
    ).filter(lambda a: bool(np.isfinite(a.max(axis=0)).all()))
)
def test_softmax(logits: Float32) -> None:
    """Close to what double precision gives, however large the logits; what it gives is normalised."""
    shares = softmax(logits)
    assert shares.dtype == np.float32 and normalised(shares)
    exact = logits.astype(np.float64)
    weights = np.exp(exact - exact.max(axis=0))
    assert np.allclose(shares, weights / weights.sum(axis=0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("pair", "right"),
    [
        ((0.5, 0.5), True),
        ((1.0, 0.0), True),
        ((0.505, 0.504), True),
        ((0.495, 0.496), True),
        ((0.52, 0.5), False),
        ((0.48, 0.5), False),
        ((1.5, -0.5), False),
        ((0.0, 0.0), False),
        ((3.0, -2.0), False),
    ],
)
def test_normalised(pair: tuple[float, float], right: bool) -> None:
    """Scores between 0 and 1 that add up to one within a hundredth, at every pixel."""
    scores = np.full((2, 2, 2), 0.5, np.float16)
    scores[:, 1, 0] = pair
    assert normalised(scores) is right
    assert normalised(scores.astype(np.float64)) is right


@given(
    hnp.arrays(np.float32, (4, 2, 3), elements=st.floats(0, 1, width=32)).filter(
        lambda a: bool((a.sum(axis=0) > 1e-3).all())
    ),
    st.floats(0.991, 1.0099),
    st.integers(1, 4),
)
def test_shares_make_a_prediction(weights: Float32, total: float, k: int) -> None:
    """Whatever passes for normalised is a legal prediction at every level, once it is within one."""
    scores = weights / weights.sum(axis=0) * np.float32(total)
    if not normalised(scores):
        return
    classes, best = ranked(within_one(scores), k)
    answer = Prediction(classes, best, "unread")
    assert answer.narrow(Disclosure(k, 8)).disclosure == Disclosure(k, 8)


def test_within_one_changes_no_share_below() -> None:
    """Only what is negative or more than one in sum is touched."""
    scores = np.array([[[0.25, 1.5, -0.001]], [[0.5, 0.5, 0.25]]], np.float32)
    assert within_one(scores).tolist() == [[[0.25, 0.75, 0.0]], [[0.5, 0.25, 0.25]]]
    assert scores[0, 0, 2] == np.float32(-0.001)
