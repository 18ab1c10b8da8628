"""Confusion matrix, mIoU and R2CP, on plain arrays. C classes, N images, H W pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from street_scenes.domains import CLASSES, VOID, Image

LEVELS = 255


@dataclass(frozen=True, slots=True)
class Kept:
    """R2CP over a set: share of all pixels kept, and share of right ones among the kept that are not void."""

    share: float
    right: float


def confusion(truth: Image, predicted: Image) -> NDArray[np.int64]:
    """Count (truth, predicted) pairs int64[C,C] of any two equal shapes; void truth is left out."""
    classes, labelled = len(CLASSES), truth != VOID
    pairs = truth[labelled].astype(np.int64) * classes + predicted[labelled]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_ious(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return IoU in percent float64[C]; a class that occurs nowhere is NaN."""
    hits = np.diag(matrix).astype(np.float64)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
    return np.where(union > 0, 100 * hits / np.maximum(union, 1), np.nan)


def mean_iou(matrix: NDArray[np.int64]) -> float:
    """Return the mean over classes in percent."""
    return float(np.nanmean(class_ious(matrix)))


def margins(probabilities: NDArray[np.float32]) -> Image:
    """Return the relative confidence uint8[N,H,W] of float32[N,C,H,W] on the wire's grid of 1/255."""
    top = np.partition(probabilities, -2, axis=1)[:, -2:]
    levels = np.floor(top * LEVELS).astype(np.int32)
    return (levels[:, 1] - levels[:, 0]).astype(np.uint8)


def r2cp(truth: Image, predicted: Image, margin: Image) -> Kept:
    """Keep a pixel iff I > 0 and I * n_k >= S_k; count and sum per predicted class k over the whole set."""
    counts = np.bincount(predicted.ravel(), minlength=len(CLASSES))
    sums = np.bincount(predicted.ravel(), weights=margin.ravel(), minlength=len(CLASSES)).astype(np.int64)
    level = margin.astype(np.int64)
    kept = (level > 0) & (level * counts[predicted] >= sums[predicted])
    judged = kept & (truth != VOID)
    right = (truth == predicted) & judged
    return Kept(share=100 * float(kept.mean()), right=100 * float(right.sum()) / max(1, int(judged.sum())))
