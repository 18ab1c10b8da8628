"""What leaves the service at each level."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corte_protocol import Disclosure, InvalidValue, quantise
from corte_protocol.types import Float16, UInt8
from corte_teacher.disclosure import disclose
from corte_teacher.errors import Forbidden

CLASSES = 6
LEVELS = ["labels", "confidence", "margin", "topk:3", "topk:5", "full"]


def ranked(seed: int, sharpness: float) -> tuple[UInt8, Float16]:
    """A random full answer of a backend: classes and scores [C, 3, 4], best first."""
    logits = np.random.default_rng(seed).normal(size=(CLASSES, 3, 4)) * sharpness
    probs = np.exp(logits - logits.max(0))
    probs /= probs.sum(0)
    order = np.argsort(-probs, axis=0, kind="stable")
    return order.astype(np.uint8), np.take_along_axis(probs, order, 0).astype(np.float16)


@given(st.integers(0, 2**32 - 1), st.floats(0, 30), st.sampled_from(LEVELS), st.sampled_from(LEVELS))
def test_narrowing_equals_direct_disclosure(seed: int, sharpness: float, policy: str, asked: str) -> None:
    """An answer at one level, narrowed later, is the answer that the narrower level would have given."""
    wide, narrow = Disclosure.parse(policy, CLASSES), Disclosure.parse(asked, CLASSES)
    classes, scores = ranked(seed, sharpness)
    if not wide.allows(narrow):
        with pytest.raises(Forbidden):
            disclose(classes, scores, wide, narrow, "r")
        return
    direct = disclose(classes[: narrow.top_k], scores[: narrow.top_k], narrow, narrow, "r")
    asked_less = disclose(classes, scores, wide, narrow, "r")
    later = disclose(classes, scores, wide, wide, "r").narrow(narrow)
    for other in (asked_less, later):
        assert other.disclosure == direct.disclosure == narrow
        assert np.array_equal(other.classes, direct.classes)
        if direct.probs is not None:
            assert other.probs is not None and np.array_equal(other.probs, direct.probs)


@given(st.integers(0, 2**32 - 1), st.floats(0, 30), st.sampled_from(["confidence", "margin", "topk:5"]))
def test_eight_bits_never_hold_more_than_the_floor(seed: int, sharpness: float, level: str) -> None:
    """Scores at 8 bits are the floored grid, and one pixel's never add up to more than 255."""
    classes, scores = ranked(seed, sharpness)
    asked = Disclosure.parse(level, CLASSES)
    got = disclose(classes, scores, Disclosure.parse("full", CLASSES), asked, "r")
    assert got.probs is not None and np.array_equal(got.probs, quantise(scores[: asked.top_k]))
    assert int(got.probs.sum(axis=0, dtype=np.int64).max()) <= 255


def test_scores_are_dropped_where_the_policy_holds_none() -> None:
    """A foreign backend gives scores at K = 1; under `labels` they end here."""
    classes, scores = ranked(0, 1.0)
    labels = Disclosure.parse("labels", CLASSES)
    assert disclose(classes[:1], scores[:1], labels, labels, "r").probs is None


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.5])
def test_a_model_that_answers_nonsense_is_found_out(bad: float) -> None:
    """Scores that are no probabilities never reach the wire."""
    policy = Disclosure.parse("confidence", CLASSES)
    with pytest.raises(InvalidValue):
        disclose(np.zeros((1, 2, 2), np.uint8), np.full((1, 2, 2), bad, np.float16), policy, policy, "r")
