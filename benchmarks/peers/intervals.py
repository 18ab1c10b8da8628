"""Paired ratios of cost, and what they may be: a bootstrap over rounds.

Strategy: in each round every server is measured once for every number of clients, at most minutes apart, so
what the machine did to one it did to the other; the ratio is taken inside the round. The summary is the
geometric mean over rounds, since a ratio and its inverse should say the same. A resample draws rounds with
replacement, for every number of clients by itself, and the pooled summary averages those of all (a stratified
bootstrap; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13). With fewer than
some eight rounds such an interval is too narrow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

RESAMPLES: Final = 10_000
_LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """A geometric mean of ratios, and its 95 % percentile interval; `rounds` in each stratum, at least."""

    value: float
    low: float
    high: float
    rounds: int


def ratio_of(strata: Sequence[Sequence[float]], seed: int = 0) -> Ratio:
    """The summary of positive ratios, a sequence for every stratum.

    Raises ValueError where a stratum is empty or a ratio is not positive and finite.
    """
    if not strata or not all(strata):
        raise ValueError("a ratio needs at least one round in each stratum")
    if not all(math.isfinite(value) and value > 0 for values in strata for value in values):
        raise ValueError("ratios are positive and finite: a server that answered nothing has none")
    rng = np.random.default_rng(seed)
    logs = [np.log(np.array(values, np.float64)) for values in strata]
    drawn = np.mean([_means(values, rng) for values in logs], axis=0)
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    value = np.mean([values.mean() for values in logs])
    return Ratio(math.exp(value), math.exp(low), math.exp(high), min(len(values) for values in strata))


def paired(costs: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """The ratios of `costs` to `base` in the rounds that both have, in order of the rounds."""
    return [costs[number] / base[number] for number in sorted(costs.keys() & base.keys())]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of `values` do not exceed; NaN for none (nearest rank)."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _means(values: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """The means of `RESAMPLES` resamples."""
    chosen = rng.integers(0, len(values), (RESAMPLES, len(values)))
    means: npt.NDArray[np.float64] = values[chosen].mean(axis=1)
    return means
