"""What every backend must do. A test class inherits these and says how to build and what is right."""

from pathlib import Path

import numpy as np
import pytest

from corte_protocol import Disclosure, Prediction
from corte_protocol.types import UInt8
from corte_teacher.backends import Backend
from corte_teacher.card import Card
from teacher.tiny_models import F32

SIZES = [(1, 1), (5, 9), (16, 24), (37, 50)]


def picture(height: int, width: int) -> UInt8:
    """A noisy picture, the same for the same size."""
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


class BackendContract:
    """Inherit as `TestSomething`, with `card`, `build` and `reference`."""

    card: Card

    def build(self, folder: Path, ceiling: Disclosure) -> Backend:
        """The backend under test, at its ceiling."""
        raise NotImplementedError

    def reference(self, folder: Path, pixels: UInt8) -> F32:
        """All probabilities of the answered classes, [A, H, W]."""
        raise NotImplementedError

    @pytest.mark.parametrize("level", ["confidence", "margin", "topk:3", "full"])
    def test_answers_are_those_of_the_slow_reference(self, tmp_path: Path, level: str) -> None:
        """Classes and scores equal a dense numpy computation, at the size of the image that was sent."""
        ceiling = Disclosure.parse(level, len(self.card.outputs))
        backend = self.build(tmp_path, ceiling)
        k = ceiling.top_k
        for size in SIZES:
            pixels = picture(*size)
            classes, scores = backend.predict(pixels)
            dense = self.reference(tmp_path, pixels)
            assert classes.dtype == np.uint8 and classes.shape == (k, *size)
            assert scores is not None and scores.dtype == np.float16 and scores.shape == (k, *size)
            best = np.sort(dense, axis=0)[::-1][:k]
            assert np.abs(scores.astype(np.float32) - best).max() < 2e-3
            # where two classes are closer than rounding, either may come first: compare probabilities
            assert np.abs(np.take_along_axis(dense, classes.astype(np.int64), 0) - best).max() < 1e-5

    def test_an_answer_is_a_legal_prediction(self, tmp_path: Path) -> None:
        """What a backend returns satisfies every invariant of a Prediction."""
        ceiling = Disclosure.parse("full", len(self.card.outputs))
        classes, scores = self.build(tmp_path, ceiling).predict(picture(20, 31))
        assert Prediction(classes, scores, "r").disclosure == ceiling

    @pytest.mark.parametrize("level", ["labels", "confidence", "margin", "topk:3"])
    def test_a_lower_ceiling_gives_the_same_planes(self, tmp_path: Path, level: str) -> None:
        """Bit for bit, a ceiling only cuts: the first planes are those of full disclosure."""
        pixels = picture(20, 31)
        classes = len(self.card.outputs)
        ceiling = Disclosure.parse(level, classes)
        few, few_scores = self.build(tmp_path, ceiling).predict(pixels)
        every, all_scores = self.build(tmp_path, Disclosure.parse("full", classes)).predict(pixels)
        assert np.array_equal(few, every[: ceiling.top_k])
        if few_scores is not None and ceiling.prob_bits:
            assert all_scores is not None and np.array_equal(few_scores, all_scores[: ceiling.top_k])

    def test_the_same_image_gets_the_same_answer(self, tmp_path: Path) -> None:
        """Nothing is remembered between images, whatever their sizes."""
        backend = self.build(tmp_path, Disclosure.parse("margin", len(self.card.outputs)))
        first, _ = backend.predict(picture(9, 40))
        backend.predict(picture(30, 8))
        again, _ = backend.predict(picture(9, 40))
        assert np.array_equal(first, again)
