"""The objective against slow loops, its empty cases included."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_protocol import VOID
from corte_student.objective import GCE_Q, SCE_BETA, Loss, balanced, pixel_loss
from corte_student.pseudo_labels import PseudoLabels

LOSSES: tuple[Loss, ...] = ("ce", "sce", "gce")


def targets_of(classes: int, seed: int, *, soft: bool = False) -> PseudoLabels:
    """Labels with void pixels of weight zero."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (2, 4, 6))
    labels[rng.random((2, 4, 6)) < rng.choice([0.0, 0.3, 1.0])] = VOID
    weights = rng.random((2, 4, 6)).astype(np.float32) * (labels != VOID)
    spread = torch.from_numpy(rng.dirichlet(np.full(classes, 0.3), (2, 4, 6))).permute(0, 3, 1, 2)
    return PseudoLabels(
        torch.from_numpy(labels).long(), torch.from_numpy(weights).float(), spread.float() if soft else None
    )


def slow_loss(loss: str, logs: list[float], label: int, soft: list[float] | None) -> float:
    """The loss of one pixel from the log-probabilities of all classes."""
    if soft is not None:
        return -sum(share * log for share, log in zip(soft, logs, strict=True))
    right = math.exp(logs[label])
    if loss == "ce":
        return -logs[label]
    if loss == "gce":
        return (1 - math.pow(right, GCE_Q)) / GCE_Q
    # the reverse term: -sum p log q of a hard q, with log 1 = 0 and log 0 cut off at -4
    reverse = -sum(math.exp(log) * (0.0 if k == label else -4.0) for k, log in enumerate(logs))
    return SCE_BETA * reverse - logs[label]


@given(st.sampled_from([2, 3, 255]), st.integers(0, 10**6), st.sampled_from(LOSSES), st.booleans())
@settings(max_examples=80)
def test_the_loss_is_a_weighted_mean(classes: int, seed: int, loss: Loss, soft: bool) -> None:
    """Summed with weights over the sum of weights (at least one), pixel by pixel; void never counts.

    Cross-entropy, symmetric, generalised; soft targets take cross-entropy with their distribution.
    """
    targets = targets_of(classes, seed, soft=soft)
    logits = 3 * torch.randn(2, classes, 4, 6, generator=torch.Generator().manual_seed(seed))
    total, weight = 0.0, 0.0
    for b, y, x in np.ndindex(2, 4, 6):
        label, w = int(targets.labels[b, y, x]), float(targets.weights[b, y, x])
        if label != VOID:
            share = None if targets.soft is None else targets.soft[b, :, y, x].tolist()
            logs = logits[b, :, y, x].double().log_softmax(0).tolist()
            total += w * slow_loss(loss, logs, label, share)
            weight += w
    got = float(pixel_loss(logits, targets, loss))
    assert got == pytest.approx(total / max(weight, 1.0), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_nothing_kept_is_a_zero_with_a_gradient(loss: Loss, soft: bool) -> None:
    """A batch without a kept pixel moves nothing and is not a NaN."""
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    even = torch.full((1, 3, 2, 2), 1 / 3) if soft else None
    nothing = PseudoLabels(torch.full((1, 2, 2), VOID), torch.zeros(1, 2, 2), even)
    got = pixel_loss(logits, balanced(nothing, np.zeros(3, np.int64), 0.25), loss)
    torch.autograd.backward(got)
    assert float(got.detach()) == 0.0
    assert logits.grad is not None and float(logits.grad.abs().sum()) == 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_a_hopelessly_wrong_pixel_has_a_finite_gradient(loss: Loss) -> None:
    """Where the label's probability is zero in float32 neither loss nor gradient is infinite or no number."""
    logits = torch.tensor([[[[300.0]], [[-300.0]]]], requires_grad=True)
    wrong = PseudoLabels(torch.tensor([[[1]]]), torch.ones(1, 1, 1))
    got = pixel_loss(logits, wrong, loss)
    torch.autograd.backward(got)
    assert logits.grad is not None
    assert bool(torch.isfinite(got)) and bool(torch.isfinite(logits.grad).all())


def test_robust_losses_doubt_what_the_student_calls_impossible() -> None:
    """The gradient of a wrong label against that of an uncertain one: largest for ce, smallest for gce."""
    pulls = {}
    for loss in LOSSES:
        logits = torch.tensor([[[[0.0, 8.0]], [[0.0, 0.0]]]], requires_grad=True)
        targets = PseudoLabels(torch.ones(1, 1, 2, dtype=torch.int64), torch.ones(1, 1, 2))
        torch.autograd.backward(pixel_loss(logits, targets, loss))
        assert logits.grad is not None
        uncertain, wrong = logits.grad[0, 1, 0].abs().tolist()
        pulls[loss] = wrong / uncertain
    assert pulls["gce"] < 0.2 < pulls["sce"] < pulls["ce"]


@pytest.mark.parametrize("soft", [False, True])
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.25, 1.0]))
@settings(max_examples=40)
def test_balance_is_frequency_to_the_minus_exponent(soft: bool, seed: int, exponent: float) -> None:
    """Each pixel's weight is scaled by its class alone; classes that occur have mean one; void stays zero."""
    counts = np.random.default_rng(seed).choice([0, 1, 50, 10**6], 4).astype(np.int64)
    targets = targets_of(4, seed, soft=soft)
    out = balanced(targets, counts, exponent)
    assert out.soft is targets.soft and torch.equal(out.labels, targets.labels)
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
    assert float(pixel_loss(coarse, targets)) == pytest.approx(
        float(F.cross_entropy(torch.zeros(1, 3), torch.tensor([0])))
    )
