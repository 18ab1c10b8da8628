"""Per-class statistics of margins: exact, mergeable over images, processes and machines.

For each class a 256-bin histogram of the margin in units of 1/255. Counts and sums follow from it, so the
mean threshold of relative confidence is integer arithmetic and does not depend on the order of arrival.
This project's choice; what is averaged is CoRTe's (arXiv 2402.13122).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from corte_protocol import VOID

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]

NEVER = 256  # above every margin: a class that was never predicted keeps nothing


@dataclass(frozen=True, slots=True, eq=False)
class MarginStatistics:
    """`histogram` int64 [S, 256]: how many pixels of each predicted class have each margin."""

    histogram: Int64

    @classmethod
    def empty(cls, classes: int) -> "MarginStatistics":
        """No pixel seen."""
        return cls(np.zeros((classes, 256), np.int64))

    @classmethod
    def of(cls, labels: UInt8, margin: UInt8, classes: int) -> "MarginStatistics":
        """Statistics of label and margin maps of equal shape; void pixels do not count."""
        seen = labels != VOID
        index = labels[seen].astype(np.int64) * 256 + margin[seen]
        return cls(np.bincount(index, minlength=classes * 256).reshape(classes, 256).astype(np.int64))

    def __add__(self, other: "MarginStatistics") -> "MarginStatistics":
        return MarginStatistics(self.histogram + other.histogram)

    @property
    def counts(self) -> Int64:
        """Pixels per predicted class, int64 [S]."""
        counts: Int64 = self.histogram.sum(axis=1)
        return counts

    @property
    def sums(self) -> Int64:
        """Sum of margins per predicted class in units of 1/255, int64 [S]."""
        return self.histogram @ np.arange(256, dtype=np.int64)

    def least_kept(self) -> npt.NDArray[np.int16]:
        """The smallest margin that is kept per class, int16 [S]: max(1, ceil(sum / count)).

        I >= ceil(S / n) is I n >= S in integers: no rounding anywhere.
        """
        counts, sums = self.counts, self.sums
        mean = -(-sums // np.maximum(counts, 1))
        return np.where(counts > 0, np.maximum(mean, 1), NEVER).astype(np.int16)

    def keeps(self, labels: UInt8, margin: UInt8) -> npt.NDArray[np.bool_]:
        """Where relative confidence keeps a pixel of label and margin maps of equal shape; void never."""
        void = labels == VOID
        kept: npt.NDArray[np.bool_] = (margin >= self.least_kept()[np.where(void, 0, labels)]) & ~void
        return kept

    def quantile(self, share: float) -> npt.NDArray[np.int16]:
        """The smallest margin kept per class if the lowest `share` of each class goes, int16 [S], at least 1.

        It is the ceil(share n)-th smallest of the n margins of the class (the smallest for share 0).
        """
        counts = self.counts
        place = np.maximum(np.ceil(share * counts), 1)
        found = (self.histogram.cumsum(axis=1) >= place[:, None]).argmax(axis=1)
        return np.where(counts > 0, np.maximum(found, 1), NEVER).astype(np.int16)

    def fixed(self, margin: int) -> npt.NDArray[np.int16]:
        """The same smallest margin for every class, int16 [S], at least 1."""
        return np.full(len(self.histogram), max(1, margin), np.int16)

    def kept_share(self) -> npt.NDArray[np.float64]:
        """The share of each class that relative confidence keeps, float64 [S], 0 for an empty one."""
        kept = [row[least:].sum() for row, least in zip(self.histogram, self.least_kept(), strict=True)]
        share: npt.NDArray[np.float64] = np.array(kept) / np.maximum(self.counts, 1)
        return share
