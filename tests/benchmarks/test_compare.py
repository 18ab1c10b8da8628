"""Paired differences: the fast bootstrap against slow loops, and what it says of rows that are known."""

from collections.abc import Mapping
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from accuracy.compare import Difference, blocks_of, difference, half_width, miou, sequence_of
from corte_student.metrics import ConfusionMatrix

CLASSES = 3
Counts = npt.NDArray[np.int32]
Blocks = npt.NDArray[np.int64]


def matrix_of(counts: npt.NDArray[np.integer]) -> ConfusionMatrix:
    matrix = ConfusionMatrix(counts.shape[-2])
    matrix.counts = counts.astype(np.int64)
    return matrix


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[int, Counts], dict[int, Counts], dict[int, Blocks]]:
    """Counts of two rows over up to three seeds, every class in every image's truth, and blocks."""
    first, second, blocks = {}, {}, {}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for seed in draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True)):
        images = draw(st.integers(1, 7))
        first[seed], second[seed] = (
            rng.integers(0, 50, (images, CLASSES, CLASSES + 1), np.int32) for _ in range(2)
        )
        for counts in (first[seed], second[seed]):
            counts[:, range(CLASSES), range(CLASSES)] += 1
        number = draw(st.integers(1, images))
        blocks[seed] = np.arange(images, dtype=np.int64) * number // images
    return first, second, blocks


def slow(
    first: Mapping[int, Counts], second: Mapping[int, Counts], blocks: Mapping[int, Blocks], shared: bool
) -> tuple[float, float]:
    """The interval by loops over resamples, blocks and images."""
    found = []
    draws = {}
    for place, seed in enumerate(sorted(first)):
        number = int(blocks[seed].max()) + 1
        rng = np.random.default_rng([0, 0 if shared else place])
        draws[seed] = rng.integers(number, size=(30, number))
    for resample in range(30):
        gaps = []
        for seed in sorted(first):
            totals = [ConfusionMatrix(CLASSES), ConfusionMatrix(CLASSES)]
            for block in draws[seed][resample]:
                for image in np.flatnonzero(blocks[seed] == block):
                    for place, row in enumerate((first, second)):
                        totals[place] = totals[place] + matrix_of(row[seed][image])
            gaps.append(totals[0].miou - totals[1].miou)
        found.append(sum(gaps) / len(gaps))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


@settings(max_examples=25)
@given(tables(), st.booleans())
def test_the_interval_is_that_of_slow_loops(
    table: tuple[dict[int, Counts], dict[int, Counts], dict[int, Blocks]], shared: bool
) -> None:
    """Resampling sums of blocks by matrix products gives what adding image by image gives."""
    first, second, blocks = table
    found = difference(first, second, blocks, shared=shared, resamples=30)
    assert (found.low, found.high) == pytest.approx(slow(first, second, blocks, shared), abs=1e-12)
    for seed in first:
        gap = matrix_of(first[seed].sum(axis=0)).miou - matrix_of(second[seed].sum(axis=0)).miou
        assert found.seeds[seed] == pytest.approx(gap, abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.sets(st.integers(0, CLASSES - 1), max_size=CLASSES - 1))
def test_miou_is_that_of_the_student(seed: int, absent: set[int]) -> None:
    """The vectorised mIoU follows the student's own rule for classes that the truth lacks."""
    counts = np.random.default_rng(seed).integers(0, 9, (CLASSES, CLASSES + 1))
    counts[sorted(absent)] = 0
    assume(counts.sum() > 0)
    assert float(miou(counts)) == pytest.approx(matrix_of(counts).miou)


@given(
    st.dictionaries(st.sampled_from(["0001TP", "0006R0", "a_b"]), st.integers(1, 70), min_size=1),
    st.integers(1, 20),
    st.randoms(use_true_random=False),
)
def test_blocks_are_consecutive_frames_of_one_sequence_and_long_enough(
    lengths: dict[str, int], size: int, random: Random
) -> None:
    """Whatever order the names come in: no block is split, spans two sequences or is too short."""
    names = [f"{name}_{frame:06d}.jpg" for name, length in lengths.items() for frame in range(length)]
    random.shuffle(names)
    blocks = dict(zip(names, blocks_of(names, size).tolist(), strict=True))
    for name, length in lengths.items():
        own = [blocks[one] for one in sorted(names) if sequence_of(one) == name]
        assert own == sorted(own)  # consecutive
        sizes = [own.count(block) for block in set(own)]
        assert min(sizes) >= min(size, length) and max(sizes) < 2 * size + 1
        assert not set(own) & {block for one, block in blocks.items() if sequence_of(one) != name}


def test_names_without_a_sequence_are_sequences_of_their_own() -> None:
    """Street scenes are independent: each is its own block."""
    assert sorted(blocks_of(["0002.png", "0000.png", "0001.png"], 1).tolist()) == [0, 1, 2]


def noisy(quality: float, rng: np.random.Generator, images: int = 40) -> Counts:
    """Counts of a row that is right on about `quality` of 300 pixels a class, and differs by image."""
    counts = np.zeros((images, CLASSES, CLASSES + 1), np.int32)
    for image in range(images):
        for label in range(CLASSES):
            right = rng.binomial(300, np.clip(quality + rng.normal(0, 0.05), 0, 1))
            counts[image, label, label] = right
            counts[image, label, (label + 1) % CLASSES] = 300 - right
    return counts


def compared(gap: float, seeds: int) -> Difference:
    """A row that is `gap` better than another, over so many seeds."""
    rng = np.random.default_rng(5)
    second = {seed: noisy(0.7, rng) for seed in range(seeds)}
    first = {seed: noisy(0.7 + gap, rng) for seed in range(seeds)}
    blocks = {seed: np.arange(40) for seed in range(seeds)}
    return difference(first, second, blocks, shared=False)


def test_a_row_does_not_differ_from_itself() -> None:
    """The interval of identical rows is zero, and no win."""
    rng = np.random.default_rng(1)
    rows = {seed: noisy(0.7, rng) for seed in range(3)}
    found = difference(rows, rows, {seed: np.arange(40) for seed in rows}, shared=False)
    assert found.low == found.high == found.mean == 0
    assert not found.win and found.verdict == "undecided"


def test_rows_of_equal_quality_are_undecided_and_a_planted_difference_is_found() -> None:
    """Noise alone keeps zero inside; three points more are a win, three less a loss."""
    assert compared(0.0, 3).low < 0 < compared(0.0, 3).high
    assert compared(0.03, 3).win and compared(0.03, 3).low > 0
    assert not compared(-0.03, 3).win and compared(-0.03, 3).verdict == "loss"


def test_a_win_needs_three_seeds_that_agree() -> None:
    """With fewer seeds, or one that disagrees, a clear interval is no win."""
    two = compared(0.03, 2)
    assert two.decided and not two.win and "2 of 3 seeds" in two.verdict
    mixed = Difference({0: 0.05, 1: 0.06, 2: -0.001}, None, 0.01, 0.05, 40)
    assert mixed.excludes_zero and not mixed.win


def test_seeds_that_share_their_images_are_no_fresh_evidence() -> None:
    """The same counts in three seeds: drawn together the interval is one seed's, apart it would shrink."""
    rng = np.random.default_rng(2)
    first, second = noisy(0.72, rng), noisy(0.7, rng)
    blocks = np.arange(40)

    def width(seeds: int, shared: bool) -> float:
        rows = [dict.fromkeys(range(seeds), counts) for counts in (first, second)]
        found = difference(rows[0], rows[1], dict.fromkeys(range(seeds), blocks), shared=shared)
        return found.high - found.low

    assert width(3, True) == pytest.approx(width(1, True))
    assert width(3, False) < 0.75 * width(1, True)


def test_rows_on_different_images_are_refused() -> None:
    """Pairing needs the same images, and a seed in common."""
    rng = np.random.default_rng(3)
    with pytest.raises(ValueError, match="different images"):
        difference({0: noisy(0.7, rng, 4)}, {0: noisy(0.7, rng, 5)}, {0: np.arange(4)}, shared=False)
    with pytest.raises(ValueError, match="no seed"):
        difference({0: noisy(0.7, rng, 4)}, {1: noisy(0.7, rng, 4)}, {0: np.arange(4)}, shared=False)


def test_the_interval_over_seeds_is_students() -> None:
    """Three values 1, 2, 3: t of two degrees of freedom, 4.30, times 1 over the root of 3."""
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.30 / 3**0.5)
    assert half_width([1.0]) is None
