"""The rows that CoRTe is measured against, each against a slow loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_protocol import VOID
from corte_student.pseudo_labels import Answers
from corte_student.pseudo_labels.baselines import ClassMean, Dine, Distil, Naive, RandomMask, Threshold
from corte_student.pseudo_labels.relative import Soft
from corte_student.statistics import MarginStatistics
from student.labeller_contract import answers_of, logits_of

CLASSES = st.sampled_from([2, 3, 19, 255])
SEEDS = st.integers(0, 10**6)


def listed(tensor: torch.Tensor | None) -> list[int]:
    """The pixels of a plane, in order."""
    assert tensor is not None
    return [int(value) for value in tensor.flatten().tolist()]


@given(CLASSES, SEEDS)
@settings(max_examples=30)
def test_naive_is_every_answer(classes: int, seed: int) -> None:
    """All labels with weight one; void where void."""
    answers = answers_of(classes, seed, scored=False)
    targets = Naive()(answers, None, 0.5)
    assert listed(targets.labels) == listed(answers.labels)
    assert listed(targets.weights) == [int(label != VOID) for label in listed(answers.labels)]


@given(CLASSES, SEEDS, st.sampled_from([0.0, 0.5, 0.9, 1.0]))
@settings(max_examples=30)
def test_threshold_equals_a_loop(classes: int, seed: int, least: float) -> None:
    """A pixel is kept iff its best score is at least the threshold on the grid."""
    answers = answers_of(classes, seed)
    pixels = zip(listed(answers.labels), listed(answers.confidence), strict=True)
    wanted = [label if best >= round(255 * least) else VOID for label, best in pixels]
    assert listed(Threshold(least)(answers, None, 0.5).labels) == wanted


@given(CLASSES, SEEDS)
@settings(max_examples=40)
def test_class_mean_equals_a_loop(classes: int, seed: int) -> None:
    """A pixel is kept iff its best score is positive and at least the mean of its class, in integers."""
    answers = answers_of(classes, seed, tests="confidence")
    histogram = answers.statistics.histogram
    wanted = []
    for label, best in zip(listed(answers.labels), listed(answers.confidence), strict=True):
        if label == VOID:
            wanted.append(VOID)
            continue
        count = sum(histogram[label].tolist())
        total = sum(value * n for value, n in enumerate(histogram[label].tolist()))
        wanted.append(label if best > 0 and best * count >= total else VOID)
    assert listed(ClassMean()(answers, None, 0.5).labels) == wanted


@given(CLASSES, SEEDS)
@settings(max_examples=30)
def test_soft_weights_are_the_margin(classes: int, seed: int) -> None:
    """Every answered pixel, weighted by I / 255."""
    answers = answers_of(classes, seed)
    targets = Soft()(answers, None, 0.5)
    assert listed(targets.labels) == listed(answers.labels)
    pixels = zip(listed(answers.labels), listed(answers.margin), strict=True)
    wanted = [0.0 if label == VOID else margin / 255 for label, margin in pixels]
    assert targets.weights.flatten().tolist() == pytest.approx(wanted, abs=1e-6)


def wide_answers(seed: int) -> Answers:
    """Many pixels of three classes, of which relative confidence keeps different shares; class 3 is empty."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, VOID], (2, 80, 100)).astype(np.uint8)
    margin = np.select(
        [labels == 0, labels == 1],
        [rng.integers(0, 256, labels.shape), np.where(rng.random(labels.shape) < 0.1, 200, 0)],
        7,  # all of class 2 alike: all of it reaches the mean
    ).astype(np.uint8)
    plane = torch.from_numpy(margin)
    return Answers(torch.from_numpy(labels), plane, plane, MarginStatistics.of(labels, margin, 4))


def test_the_random_mask_keeps_what_relative_confidence_keeps_of_each_class() -> None:
    """The share of each class is that of its margins that reach the mean, within four deviations."""
    answers = wide_answers(1)
    labels, margins = listed(answers.labels), listed(answers.margin)
    kept = RandomMask(5)(answers, None, 0.5).labels != VOID
    for label in range(3):
        mine = [m for k, m in zip(labels, margins, strict=True) if k == label]
        share = sum(m > 0 and m * len(mine) >= sum(mine) for m in mine) / len(mine)
        got = float(kept[answers.labels == label].float().mean())
        assert abs(got - share) <= 4 * (share * (1 - share) / len(mine)) ** 0.5
    assert bool(kept[answers.labels == 2].all())
    assert not bool(kept[answers.labels == VOID].any())


def test_the_random_mask_follows_from_its_seed_and_state() -> None:
    """The same seed draws the same masks, another one others, and the state says which comes next."""
    answers = wide_answers(2)
    first, second, other = RandomMask(1), RandomMask(1), RandomMask(2)
    masks = [first(answers, None, 0.5).labels for _ in range(3)]
    assert torch.equal(second(answers, None, 0.5).labels, masks[0])
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(other(answers, None, 0.5).labels, masks[0])
    later = RandomMask(9)
    later.restore(second.state())
    assert [torch.equal(later(answers, None, 0.5).labels, mask) for mask in masks[1:]] == [True, True]


def test_the_random_mask_ignores_the_margin() -> None:
    """Among the pixels of one class it keeps small margins as often as large ones."""
    answers = wide_answers(3)
    assert answers.margin is not None
    kept = RandomMask(5)(answers, None, 0.5).labels != VOID
    mine = answers.labels == 0
    low, high = (
        float(kept[mine & part].float().mean()) for part in (answers.margin < 100, answers.margin > 155)
    )
    assert abs(low - high) < 0.08


@given(CLASSES, SEEDS)
@settings(max_examples=40)
def test_distillation_equals_a_loop(classes: int, seed: int) -> None:
    """The target is the scores over their sum; every class alike where there are none; void has no weight."""
    answers = answers_of(classes, seed, scores=True)
    targets = Distil()(answers, None, 0.5)
    assert answers.scores is not None and targets.soft is not None
    for place in np.ndindex(*answers.labels.shape):
        image, y, x = place
        scores = listed(answers.scores[image, :, y, x])
        wanted = [s / sum(scores) for s in scores] if sum(scores) else [1 / classes] * classes
        assert targets.soft[image, :, y, x].tolist() == pytest.approx(wanted, abs=1e-6)
        void = int(answers.labels[place]) == VOID
        assert float(targets.weights[place]) == (0.0 if void else 1.0)
        best = max(range(classes), key=lambda k: (scores[k], -k))
        assert int(targets.labels[place]) == (VOID if void else best)


@given(CLASSES, SEEDS, st.booleans())
@settings(max_examples=40)
def test_dine_equals_a_loop(classes: int, seed: int, late: bool) -> None:
    """The best score, the rest spread over all other classes; from the start on 0.4 of it is the ema's."""
    answers, logits = answers_of(classes, seed), logits_of(classes, seed)
    labeller = Dine(classes)
    assert labeller.wants_ema(0.1) and not labeller.wants_ema(0.09)
    targets = labeller(answers, logits, 0.6 if late else 0.05)
    assert targets.soft is not None and answers.confidence is not None
    ema = logits.softmax(1)
    for place in np.ndindex(*answers.labels.shape):
        image, y, x = place
        label, best = int(answers.labels[place]), int(answers.confidence[place]) / 255
        if label == VOID:
            assert float(targets.weights[place]) == 0.0 and int(targets.labels[place]) == VOID
            continue
        wanted = [best if k == label else (1 - best) / (classes - 1) for k in range(classes)]
        if late:
            own = ema[image, :, y, x].tolist()
            wanted = [0.6 * w + 0.4 * t for w, t in zip(wanted, own, strict=True)]
        assert targets.soft[image, :, y, x].tolist() == pytest.approx(wanted, abs=1e-5)
        assert float(targets.weights[place]) == 1.0
