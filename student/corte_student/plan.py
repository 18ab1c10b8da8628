"""Which image each step sees: decided by the seed alone, before anything is asked.

Strategy: the run walks one endless sequence of epochs, each a fresh permutation of all images. Positions in
that sequence, not arrival times, decide what a step may know; that makes a resumed run the same run.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Plan:
    """`steps` batches of `batch` images out of `images`."""

    images: int
    batch: int
    steps: int
    seed: int
    rare: float = 0.0
    temperature: float = 0.1

    def image_at(self, position: int, rarity: "Rarity | None" = None) -> int:
        """The image at a position of the endless sequence.

        The first epoch is a permutation, so that everything is asked once. After it a share `rare` of the
        positions is drawn by class, which needs `rarity`: the answers of the whole first epoch.
        """
        epoch, place = divmod(position, self.images)
        if epoch and self.rare:
            rng = np.random.default_rng([self.seed, 2, position])
            if rng.random() < self.rare:
                if rarity is None:
                    raise ValueError("rare-class draws need the answers of the first epoch")
                return rarity.draw(self.temperature, rng)
        return int(_permutation(self.images, self.seed, epoch)[place])

    def known(self, position: int, complete: bool) -> bool:
        """Whether `image_at` can be told already; `complete`: the first epoch has been answered."""
        return complete or not self.rare or position < self.images

    def step_rng(self, step: int) -> np.random.Generator:
        """The generator that mixes and masks the batch of one step."""
        return np.random.default_rng([self.seed, 3, step])

    def view_rng(self, step: int, slot: int) -> np.random.Generator:
        """The generator that draws the views of one slot of one step."""
        return np.random.default_rng([self.seed, 1, step, slot])


@dataclass(frozen=True, eq=False)
class Rarity:
    """Pixels of each class in each image's answer, int64 [N, S]; all zero for an image that is set aside."""

    areas: npt.NDArray[np.int64]

    @cached_property
    def _pixels(self) -> npt.NDArray[np.int64]:
        pixels: npt.NDArray[np.int64] = self.areas.sum(axis=0)
        return pixels

    def draw(self, temperature: float, rng: np.random.Generator) -> int:
        """Draw a class by softmax((1 - f) / T), then an image by the root of its share of that class.

        Rare-class sampling (Hoyer et al., "DAFormer", CVPR 2022, arXiv 2111.14887), with f from the
        teacher's answers in place of source labels.
        """
        pixels = self._pixels
        present = np.flatnonzero(pixels)
        if not len(present):
            return int(rng.integers(len(self.areas)))
        weight = (1 - pixels[present] / pixels.sum()) / temperature
        chance = np.exp(weight - weight.max())
        chosen = present[rng.choice(len(present), p=chance / chance.sum())]
        # by the root of the area: a picture full of it before one with a speck, but not always the same
        area = np.sqrt(self.areas[:, chosen])
        return int(rng.choice(len(area), p=area / area.sum()))


@lru_cache(maxsize=4)  # a batch straddles two epochs; a draw for each position is quadratic
def _permutation(images: int, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng([seed, 0, epoch]).permutation(images)
