"""Which image each step sees: decided by the seed alone, before anything is asked.

Strategy: the run walks one endless sequence of epochs, each a fresh permutation of all images. Positions in
that sequence, not arrival times, decide what a step may know; that makes a resumed run the same run.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, slots=True)
class Plan:
    """`steps` batches of `batch` images out of `images`."""

    images: int
    batch: int
    steps: int
    seed: int

    def image_at(self, position: int) -> int:
        """The image at a position of the endless sequence."""
        epoch, place = divmod(position, self.images)
        return int(_permutation(self.images, self.seed, epoch)[place])

    def batch_at(self, step: int) -> list[int]:
        """The images of one step, in order."""
        return [self.image_at(step * self.batch + slot) for slot in range(self.batch)]

    def view_rng(self, step: int, slot: int) -> np.random.Generator:
        """The generator that draws the views of one slot of one step."""
        return np.random.default_rng([self.seed, 1, step, slot])


@lru_cache(maxsize=4)  # a batch straddles two epochs; a draw for each position is quadratic
def _permutation(images: int, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng([seed, 0, epoch]).permutation(images)
