"""Margin statistics against plain Python arithmetic."""

import math
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from corte_protocol import VOID
from corte_student.statistics import NEVER, MarginStatistics

MAPS = st.tuples(st.sampled_from([1, 2, 3, 19, 255]), st.integers(0, 10**6))


def draw_maps(classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (some void, some classes empty) and margins of one small image."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, min(classes, 4), (6, 7)).astype(np.uint8)
    labels[rng.random((6, 7)) < rng.choice([0, 0.3, 1.0])] = VOID
    return labels, rng.integers(0, 256, (6, 7)).astype(np.uint8)


@given(MAPS)
@settings(max_examples=80)
def test_the_least_kept_margin_is_the_exact_mean(case: tuple[int, int]) -> None:
    """A margin is kept iff it is positive and at least the mean of its class, as exact fractions."""
    classes, seed = case
    labels, margin = draw_maps(classes, seed)
    least = MarginStatistics.of(labels, margin, classes).least_kept()
    for k in range(classes):
        mine = [int(m) for m, c in zip(margin.flat, labels.flat, strict=True) if c == k]
        if not mine:
            assert least[k] == NEVER
            continue
        mean = Fraction(sum(mine), len(mine))
        for value in range(256):
            assert (value >= least[k]) == (value > 0 and value >= mean)


@given(MAPS, st.integers(0, 10**6))
@settings(max_examples=40)
def test_statistics_merge_in_any_order(case: tuple[int, int], other: int) -> None:
    """Adding the statistics of two images is the statistics of both together."""
    classes, seed = case
    first, second = draw_maps(classes, seed), draw_maps(classes, other)
    a = MarginStatistics.of(*first, classes)
    b = MarginStatistics.of(*second, classes)
    both = MarginStatistics.of(
        np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]]), classes
    )
    np.testing.assert_array_equal((a + b).histogram, both.histogram)
    np.testing.assert_array_equal((b + a).histogram, both.histogram)


@given(hnp.arrays(np.uint8, (4, 4)))
@settings(max_examples=20)
def test_all_void_counts_nothing(margin: np.ndarray) -> None:
    """An image without a class leaves no trace."""
    labels = np.full((4, 4), VOID, np.uint8)
    assert MarginStatistics.of(labels, margin, 5).histogram.sum() == 0


@given(MAPS, st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])))
@settings(max_examples=80)
def test_a_quantile_is_found_by_sorting(case: tuple[int, int], share: float) -> None:
    """The ceil(share n)-th smallest of the n margins of a class, at least 1; the smallest for share 0."""
    classes, seed = case
    labels, margin = draw_maps(classes, seed)
    margin = margin if seed % 2 else margin // 64 * 60  # ties, zeros among them
    least = MarginStatistics.of(labels, margin, classes).quantile(share)
    for k in range(classes):
        mine = sorted(int(m) for m, c in zip(margin.flat, labels.flat, strict=True) if c == k)
        if mine:
            place = max(1, math.ceil(share * len(mine)))
            assert least[k] == max(1, mine[place - 1])
        else:
            assert least[k] == NEVER


@given(MAPS, st.integers(0, 255))
@settings(max_examples=20)
def test_a_fixed_threshold_is_the_same_for_all(case: tuple[int, int], margin: int) -> None:
    """Whatever was seen, classes without a pixel included, and never below 1."""
    classes, seed = case
    least = MarginStatistics.of(*draw_maps(classes, seed), classes).fixed(margin)
    assert least.tolist() == [max(1, margin)] * classes


@given(MAPS)
@settings(max_examples=60)
def test_the_kept_share_is_counted(case: tuple[int, int]) -> None:
    """Of each class the share of pixels that are positive and reach their mean; 0 for an empty class."""
    classes, seed = case
    labels, margin = draw_maps(classes, seed)
    share = MarginStatistics.of(labels, margin, classes).kept_share()
    for k in range(classes):
        mine = [int(m) for m, c in zip(margin.flat, labels.flat, strict=True) if c == k]
        kept = [m for m in mine if m > 0 and m * len(mine) >= sum(mine)]
        assert share[k] == (len(kept) / len(mine) if mine else 0)


@given(st.integers(0, 10**6))
@settings(max_examples=40)
def test_keeps_is_the_rule_pixel_by_pixel(seed: int) -> None:
    """I > 0, I n >= S of the predicted class, and not void; classes that were never counted keep nothing."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, VOID], (4, 5)).astype(np.uint8)
    margin = rng.choice([0, 1, 100, 255], (4, 5)).astype(np.uint8)
    counted = labels.copy()
    counted[counted == 2] = VOID
    found = MarginStatistics.of(counted, margin, 3)
    kept = found.keeps(labels, margin)
    for (y, x), label in np.ndenumerate(labels):
        mine = [int(m) for m, c in zip(margin.flat, counted.flat, strict=True) if c == label != VOID]
        value = int(margin[y, x])
        assert kept[y, x] == (bool(mine) and value > 0 and value * len(mine) >= sum(mine))
