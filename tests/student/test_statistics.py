"""Margin statistics against plain Python arithmetic."""

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
@settings(max_examples=80, deadline=None)
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
@settings(max_examples=40, deadline=None)
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
@settings(max_examples=20, deadline=None)
def test_all_void_counts_nothing(margin: np.ndarray) -> None:
    """An image without a class leaves no trace."""
    labels = np.full((4, 4), VOID, np.uint8)
    assert MarginStatistics.of(labels, margin, 5).histogram.sum() == 0
