"""Paired differences between rows: by seed, with a t-interval, and by a block bootstrap over the images.

Strategy: a row is kept as one confusion matrix an image. A resample draws blocks of images with replacement,
adds up the matrices of both rows over the same blocks, and takes the difference of the two mIoUs. Seeds with
images of their own draw their own blocks; seeds that share their images share the draws, since drawing anew
for each would count the same frames as fresh evidence. Differences of seeds are averaged.

Legend: N images, B blocks, C classes, R resamples. Counts are truth by row, prediction by column, the last
column void: [C, C + 1], as in `corte_student.metrics`. mIoU is between 0 and 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
LEAST_SEEDS = 3
# two-sided 95 % quantiles of Student's t by degrees of freedom; the last serves all beyond it
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def miou(counts: Counts) -> Floats:
    """mIoU of each matrix of [..., C, C + 1]; classes absent from the truth left out, NaN where all are."""
    classes = counts.shape[-2]
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    in_truth = counts.sum(axis=-1)
    union = in_truth + counts[..., :classes].sum(axis=-2) - hits
    present = in_truth > 0
    iou = np.where(present, hits / np.where(present, union, 1), 0.0)
    number = present.sum(axis=-1)
    return np.where(number > 0, iou.sum(axis=-1) / np.maximum(number, 1), np.nan)


def sequence_of(name: str) -> str:
    """The sequence of an image: what its name has before the last underscore, or the whole name."""
    stem = PurePath(name).stem
    return stem.rpartition("_")[0] or stem


def blocks_of(names: Sequence[str], size: int) -> npt.NDArray[np.int64]:
    """The block of each image, int64 [N]: `size` or more consecutive images of one sequence, in name order.

    A sequence is cut into as many nearly equal blocks as fit; one shorter than `size` is one block.
    """
    order = sorted(range(len(names)), key=lambda i: names[i])
    sequences: dict[str, list[int]] = {}
    for index in order:
        sequences.setdefault(sequence_of(names[index]), []).append(index)
    blocks, number = np.zeros(len(names), np.int64), 0
    for members in sequences.values():
        for part in np.array_split(np.array(members), max(1, len(members) // size)):
            blocks[part] = number
            number += 1
    return blocks


@dataclass(frozen=True, slots=True)
class Difference:
    """First row less second, in mIoU. `half` is half the 95 % t-interval over seeds, None for one seed.

    `low`, `high`: 95 % block-bootstrap interval of the mean over seeds, from `blocks` blocks a seed.
    """

    seeds: dict[int, float]
    half: float | None
    low: float
    high: float
    blocks: int

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.seeds.values()) / len(self.seeds)

    @property
    def same_sign(self) -> bool:
        """Whether all seeds agree on who is better."""
        return all(v > 0 for v in self.seeds.values()) or all(v < 0 for v in self.seeds.values())

    @property
    def excludes_zero(self) -> bool:
        """Whether the bootstrap interval does."""
        return self.low > 0 or self.high < 0

    @property
    def decided(self) -> bool:
        """Same sign in every seed, and an interval that excludes zero; see `verdict` for the rest."""
        return self.same_sign and self.excludes_zero

    @property
    def win(self) -> bool:
        """The first row is better, in every one of at least three paired seeds, and the interval says so."""
        return self.decided and self.mean > 0 and len(self.seeds) >= LEAST_SEEDS

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.decided:
            return "undecided"
        word = "win" if self.mean > 0 else "loss"
        few = len(self.seeds) < LEAST_SEEDS
        return f"{word}, but {len(self.seeds)} of {LEAST_SEEDS} seeds" if few else word


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % t-interval of the mean; None for fewer than two values."""
    count = len(values)
    if count < 2:
        return None
    mean = sum(values) / count
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    return T95.get(count - 1, T95[max(T95)]) * spread / math.sqrt(count)


def difference(
    first: Mapping[int, Counts],
    second: Mapping[int, Counts],
    blocks: Mapping[int, npt.NDArray[np.int64]],
    *,
    shared: bool,
    resamples: int = RESAMPLES,
    rng_seed: int = 0,
) -> Difference:
    """Compare two rows over the seeds that both have.

    `first`, `second`: counts [N, C, C + 1] by seed, image by image in one order; `blocks`: int64 [N] by
    seed; `shared`: the seeds have the same images. Raises ValueError where there is nothing to compare.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise ValueError("the two rows share no seed")
    for seed in seeds:
        if not len(first[seed]) == len(second[seed]) == len(blocks[seed]):
            raise ValueError(f"seed {seed}: the two rows were scored on different images")
    gaps = {seed: float(miou(first[seed].sum(axis=0)) - miou(second[seed].sum(axis=0))) for seed in seeds}
    total = np.zeros(resamples)
    numbers = {seed: int(blocks[seed].max()) + 1 for seed in seeds}
    for place, seed in enumerate(seeds):
        rng = np.random.default_rng([rng_seed, 0 if shared else place])
        weights = _weights(rng.integers(numbers[seed], size=(resamples, numbers[seed])))
        total += _resampled(first[seed], blocks[seed], weights)
        total -= _resampled(second[seed], blocks[seed], weights)
    low, high = np.nanquantile(total / len(seeds), [0.025, 0.975])
    return Difference(gaps, half_width(list(gaps.values())), float(low), float(high), min(numbers.values()))


def _weights(draws: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How often each resample of [R, B] drawn blocks holds each block, [R, B]."""
    weights = np.zeros_like(draws)
    np.add.at(weights, (np.arange(len(draws))[:, None], draws), 1)
    return weights


def _resampled(counts: Counts, blocks: npt.NDArray[np.int64], weights: npt.NDArray[np.int64]) -> Floats:
    """mIoU of each resample, [R]. Pixel counts stay exact in float64, far below 2**53."""
    summed = np.zeros((weights.shape[1], *counts.shape[1:]))
    np.add.at(summed, blocks, counts)
    return miou(np.tensordot(weights.astype(np.float64), summed, axes=1))
