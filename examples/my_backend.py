"""A backend of your own in one file: `PYTHONPATH=examples corte-teacher serve --backend my_backend:build`.

It needs no model: a pixel's class is the one whose colour on the card is nearest. Replace `_probabilities`
by your network. A real network should resize, softmax and choose its K best on its own device, as
`corte_teacher.backends.timm` does, so that no dense map becomes a Python object.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from corte_protocol.types import Float16, UInt8
from corte_teacher.card import Card


class NearestColour:
    """Answers with the K classes whose card colours are nearest to each pixel."""

    def __init__(self, card: Card, k: int) -> None:
        # `outputs`, not `classes`: the ids that clients see, after the card's groups
        self._colours = np.array([answer.color for answer in card.outputs], np.float32)
        self._k = k

    def predict(self, pixels: UInt8) -> tuple[UInt8, Float16 | None]:
        """uint8 [H, W, 3] to classes uint8 [K, H, W] and scores float16 [K, H, W], best first."""
        probs = self._probabilities(pixels)
        best = np.argsort(-probs, axis=0, kind="stable")[: self._k]  # stable: ties to the lower id
        return best.astype(np.uint8), np.take_along_axis(probs, best, 0).astype(np.float16)

    def _probabilities(self, pixels: UInt8) -> npt.NDArray[np.float32]:
        """Softmax over minus the squared distance of colours, float32 [A, H, W]."""
        away = pixels.astype(np.float32)[None] - self._colours[:, None, None]
        score = -np.square(away / 64).sum(axis=-1)
        power = np.exp(score - score.max(axis=0))
        probs: npt.NDArray[np.float32] = power / power.sum(axis=0)
        return probs


def build(model: Path | None, card: Card | None, k: int) -> NearestColour:
    """What corte-teacher calls once: the files it was started with, and how many classes a pixel it wants."""
    if card is None:
        raise ValueError("this backend needs a card")
    return NearestColour(card, k)
