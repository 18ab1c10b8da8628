"""Predictions to test with: random legal ones, and the fixed ones behind the golden frames."""

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from corte_protocol import Disclosure, Prediction

GOLDEN_LEVELS = ("labels", "confidence", "margin", "topk:3", "full")


def full_prediction(classes: int, height: int, width: int, seed: int, sharpness: float = 3.0) -> Prediction:
    """A random answer at full disclosure."""
    logits = np.random.default_rng(seed).normal(size=(classes, height, width)) * sharpness
    probs = np.exp(logits - logits.max(0))
    probs /= probs.sum(0)
    order = np.argsort(-probs, axis=0, kind="stable")
    scores = np.take_along_axis(probs, order, 0).astype(np.float16)
    return Prediction(order.astype(np.uint8), scores, f"r{seed}")


@st.composite
def predictions(draw: Callable[..., int]) -> Prediction:
    """A legal prediction of any small shape at any level."""
    classes = draw(st.integers(2, 12))
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    full = full_prediction(
        classes, *shape, draw(st.integers(0, 1 << 30)), draw(st.sampled_from([0, 1, 9, 99]))
    )
    bits = draw(st.sampled_from([0, 8, 16]))
    return full.narrow(Disclosure(draw(st.integers(1, classes)) if bits else 1, bits))


def golden_prediction() -> Prediction:
    """The fixed full answer behind every golden frame: five classes on 3 x 4 pixels, no randomness."""
    at = np.arange(12).reshape(3, 4)
    classes = np.stack([(at + k) % 5 for k in range(5)]).astype(np.uint8)
    scores = np.array([0.5, 0.25, 0.125, 0.0625, 0.03125], np.float16)[:, None, None]
    return Prediction(classes, np.broadcast_to(scores, (5, 3, 4)).copy(), "golden-1")
