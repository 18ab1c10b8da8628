"""Values: what may exist, and how one level follows from another."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from corte_protocol import VOID, Disclosure, Image, InvalidValue, Limits, Prediction, quantise
from protocol.samples import full_prediction

U8, F16 = np.uint8, np.float16


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("labels", (1, 0)),
        ("confidence", (1, 8)),
        ("margin", (2, 8)),
        ("topk:1", (1, 8)),
        ("topk:3", (3, 8)),
        ("topk:99", (5, 8)),
        ("full", (5, 16)),
    ],
)
def test_levels_have_names(text: str, level: tuple[int, int]) -> None:
    """A name gives top_k and bits, never more classes than exist, and is read back from its own text."""
    parsed = Disclosure.parse(text, 5)
    assert (parsed.top_k, parsed.prob_bits) == level
    assert Disclosure.parse(str(parsed), 5) == parsed


@pytest.mark.parametrize("text", ["", "all", "topk:0", "topk:-1", "topk:1.5", "topk:", "FULL", "topk:1234"])
def test_unknown_levels_list_the_choices(text: str) -> None:
    """The error names what may be said instead."""
    with pytest.raises(InvalidValue, match="choose labels, confidence, margin, topk:K"):
        Disclosure.parse(text, 5)


@pytest.mark.parametrize("level", [(0, 8), (256, 8), (1, 4), (2, 0)])
def test_impossible_levels_do_not_exist(level: tuple[int, int]) -> None:
    """No zero classes, no odd bits, no second class without scores."""
    with pytest.raises(InvalidValue):
        Disclosure(*level)


@given(st.integers(0, 1 << 30), st.sampled_from([0.0, 1.0, 9.0, 99.0]), st.data())
def test_narrowing_in_steps_equals_narrowing_at_once(seed: int, sharp: float, data: st.DataObject) -> None:
    """The same value is shown at every level, however it was reached."""
    levels = [Disclosure.parse(t, 6) for t in ("full", "topk:4", "margin", "confidence", "labels")]
    full = full_prediction(6, 3, 4, seed, sharp)
    first = data.draw(st.integers(0, 4))
    last = data.draw(st.integers(first, 4))
    direct, stepwise = full.narrow(levels[last]), full.narrow(levels[first]).narrow(levels[last])
    assert np.array_equal(direct.classes, stepwise.classes)
    if direct.probs is not None:
        assert stepwise.probs is not None and np.array_equal(direct.probs, stepwise.probs)
    for a, b in ((direct.confidence, stepwise.confidence), (direct.margin, stepwise.margin)):
        assert (a is None) == (b is None) and (a is None or b is None or np.array_equal(a, b))


def test_an_answer_never_widens() -> None:
    """Asking a value for more than it holds is an error."""
    margin = full_prediction(4, 2, 2, 0).narrow(Disclosure(2, 8))
    for wider in (Disclosure(3, 8), Disclosure(2, 16), Disclosure(1, 16)):
        with pytest.raises(InvalidValue, match="does not hold"):
            margin.narrow(wider)


@given(hnp.arrays(np.float32, 20, elements=st.floats(0, 1, width=32)))
def test_the_quantiser_floors(scores: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """Never above the score, never a whole step below it, and order is kept."""
    grid = quantise(scores).astype(np.float64)
    exact = scores.astype(np.float64) * 255
    assert (grid <= exact + 1e-4).all() and (grid > exact - 1 - 1e-4).all()
    ordered = np.sort(scores)
    assert (np.diff(quantise(ordered).astype(int)) >= 0).all()


@given(st.integers(0, 1 << 30), st.sampled_from([0.0, 0.1, 1.0, 30.0]), st.integers(2, 40))
def test_scores_of_a_pixel_never_exceed_one(seed: int, sharp: float, classes: int) -> None:
    """All 8-bit scores of a pixel add up to 255 at most, so such a prediction can exist."""
    full = full_prediction(classes, 4, 4, seed, sharp)
    probs = full.narrow(Disclosure(classes, 8)).probs
    assert probs is not None and int(probs.sum(axis=0, dtype=np.int64).max()) <= 255


def test_margin_is_best_minus_second() -> None:
    """In units of 1/255, from the same grid at 8 and at 16 bits; unknown without a second class."""
    full = full_prediction(4, 3, 3, 1)
    margin = full.narrow(Disclosure(2, 8))
    assert margin.probs is not None and full.margin is not None and margin.margin is not None
    assert np.array_equal(margin.margin, margin.probs[0] - margin.probs[1])
    assert np.array_equal(full.margin, margin.margin)
    assert full.narrow(Disclosure(1, 8)).margin is None
    assert full.narrow(Disclosure(1, 0)).confidence is None


@pytest.mark.parametrize(
    ("classes", "probs"),
    [
        (np.zeros((1, 2), U8), None),
        (np.zeros((1, 2, 2), np.int64), None),
        (np.zeros((1, 0, 2), U8), None),
        (np.zeros((2, 1, 1), U8), None),
        (np.full((1, 1, 1), VOID, U8), None),
        (np.zeros((2, 1, 1), U8), np.zeros((2, 1, 1), U8)),
        (np.zeros((1, 1, 1), U8), np.zeros((1, 1, 2), U8)),
        (np.zeros((1, 1, 1), U8), np.zeros((1, 1, 1), np.float32)),
        (np.zeros((1, 1, 1), U8), np.full((1, 1, 1), 1.5, F16)),
        (np.zeros((1, 1, 1), U8), np.full((1, 1, 1), np.nan, F16)),
        (np.array([0, 1], U8).reshape(2, 1, 1), np.array([1, 2], U8).reshape(2, 1, 1)),
        (np.array([0, 1], U8).reshape(2, 1, 1), np.array([200, 100], U8).reshape(2, 1, 1)),
        (np.arange(5, dtype=U8).reshape(5, 1, 1) % 4, np.zeros((5, 1, 1), U8)),
    ],
)
def test_an_illegal_prediction_cannot_exist(classes: Any, probs: Any) -> None:
    """Each invariant is checked where the value is made."""
    with pytest.raises(InvalidValue):
        Prediction(classes, probs, "r")


_SCORE = st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0]) | st.floats(width=16)


@given(st.integers(0, 1 << 30), st.integers(2, 255), st.sampled_from([8, 56, 57, 64, 255]))
def test_a_class_named_twice_is_found(seed: int, k: int, classes: int) -> None:
    """However many classes a pixel names and whichever they are, one named twice makes an answer illegal."""
    rng = np.random.default_rng(seed)
    named = rng.integers(0, classes, (k, 1, 2), np.uint8)
    if k <= classes and rng.integers(2):
        named = np.stack([rng.permutation(classes)[:k] for _ in range(2)], 1).astype(np.uint8)[:, None]
    fine = all(len(set(pixel)) == k for pixel in named.reshape(k, 2).T.tolist())
    try:
        Prediction(named, np.zeros((k, 1, 2), np.float16), "r")
    except InvalidValue:
        assert not fine
    else:
        assert fine


@given(hnp.arrays(np.float16, st.tuples(st.integers(1, 4), st.just(1), st.just(2)), elements=_SCORE))
def test_scores_are_checked_as_numbers(probs: np.ndarray[Any, np.dtype[np.float16]]) -> None:
    """Scores of 16 bits are legal where all lie in 0..1 and descend, be a zero negative or not."""
    fine = bool(((probs >= 0) & (probs <= 1)).all()) and not (probs[1:] > probs[:-1]).any()
    ids = np.arange(len(probs), dtype=np.uint8)[:, None, None].repeat(2, 2)
    try:
        Prediction(ids, probs, "r")
    except InvalidValue:
        assert not fine
    else:
        assert fine


def test_values_keep_their_own_arrays() -> None:
    """A caller's array stays writable and is not shared."""
    pixels = np.zeros((2, 3, 3), U8)
    image = Image(pixels)
    pixels[0, 0, 0] = 9
    assert image.pixels[0, 0, 0] == 0 and not image.pixels.flags.writeable
    classes = np.zeros((1, 2, 2), U8)
    prediction = Prediction(classes, None, "r")
    classes[0, 0, 0] = 3
    assert prediction.labels[0, 0] == 0


def test_an_images_digest_is_of_shape_and_pixels() -> None:
    """Equal pixels have equal digests, another shape of the same bytes has another."""
    a, b = Image(np.zeros((2, 6, 3), U8)), Image(np.zeros((3, 4, 3), U8))
    assert a.digest == Image(np.zeros((2, 6, 3), U8)).digest != b.digest
    for bad in (np.zeros((2, 2), U8), np.zeros((2, 2, 4), U8), np.zeros((0, 2, 3), U8), np.zeros((2, 2, 3))):
        with pytest.raises(InvalidValue):
            Image(bad)  # type: ignore[arg-type]


def test_limits_are_positive() -> None:
    """A limit of nothing is no limit."""
    with pytest.raises(InvalidValue):
        Limits(0, 1)
