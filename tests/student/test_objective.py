"""The objective against slow loops, its empty cases included."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_protocol import VOID
from corte_student.objective import balanced, weighted_cross_entropy
from corte_student.pseudo_labels import PseudoLabels


def targets_of(classes: int, seed: int) -> PseudoLabels:
    """Labels with void pixels of weight zero."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (2, 4, 6))
    labels[rng.random((2, 4, 6)) < rng.choice([0.0, 0.3, 1.0])] = VOID
    weights = rng.random((2, 4, 6)).astype(np.float32) * (labels != VOID)
    return PseudoLabels(torch.from_numpy(labels).long(), torch.from_numpy(weights).float())


@given(st.sampled_from([2, 3, 255]), st.integers(0, 10**6), st.sampled_from([1, 2]))
@settings(max_examples=40, deadline=None)
def test_the_loss_is_a_weighted_mean(classes: int, seed: int, stride: int) -> None:
    """Summed with weights over the sum of weights (at least one), pixel by pixel; void never counts."""
    targets = targets_of(classes, seed)
    logits = torch.randn(2, classes, 4 // stride, 6 // stride, generator=torch.Generator().manual_seed(seed))
    total, weight = 0.0, 0.0
    for b in range(2):
        for y in range(0, 4, stride):
            for x in range(0, 6, stride):
                label, w = int(targets.labels[b, y, x]), float(targets.weights[b, y, x])
                if label != VOID:
                    total -= w * float(logits[b, :, y // stride, x // stride].log_softmax(0)[label])
                    weight += w
    loss = weighted_cross_entropy(logits, targets, stride)
    assert float(loss) == pytest.approx(total / max(weight, 1.0), abs=1e-4)


def test_nothing_kept_is_a_zero_with_a_gradient() -> None:
    """A batch without a kept pixel moves nothing and is not a NaN."""
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    nothing = PseudoLabels(torch.full((1, 2, 2), VOID), torch.zeros(1, 2, 2))
    loss = weighted_cross_entropy(logits, balanced(nothing, np.zeros(3, np.int64), 0.25))
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None and float(logits.grad.abs().sum()) == 0.0


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.25, 1.0]))
@settings(max_examples=40, deadline=None)
def test_balance_is_frequency_to_the_minus_exponent(seed: int, exponent: float) -> None:
    """Each pixel's weight is scaled by its class alone; classes that occur have mean one; void stays zero."""
    counts = np.random.default_rng(seed).choice([0, 1, 50, 10**6], 4).astype(np.int64)
    targets = targets_of(4, seed)
    out = balanced(targets, counts, exponent)
    seen = [float(c) ** -exponent for c in counts if c > 0]
    mean = sum(seen) / len(seen) if seen else 1.0
    for label, before, after in zip(
        targets.labels.flatten().tolist(),
        targets.weights.flatten().tolist(),
        out.weights.flatten().tolist(),
        strict=True,
    ):
        scale = 1.0 if label == VOID or not seen else float(max(counts[label], 1)) ** -exponent / mean
        wanted = before * (1.0 if exponent == 0 else scale)
        assert after == pytest.approx(0.0 if label == VOID else wanted, rel=1e-5)


def test_resizing_reaches_the_labels_size() -> None:
    """Logits at a coarser stride are compared at full size."""
    targets = PseudoLabels(torch.zeros(1, 8, 8, dtype=torch.int64), torch.ones(1, 8, 8))
    coarse = torch.zeros(1, 3, 2, 2)
    assert float(weighted_cross_entropy(coarse, targets)) == pytest.approx(
        float(F.cross_entropy(torch.zeros(1, 3), torch.tensor([0])))
    )
