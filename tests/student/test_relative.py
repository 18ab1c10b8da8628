"""CoRTe's arithmetic against slow loops: selection, running statistics, the three rules, rank weights."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corte_protocol import VOID
from corte_student.pseudo_labels import Answers, Refinement, Selection
from corte_student.pseudo_labels.base import quantised_margin
from corte_student.pseudo_labels.relative import Corte, Running
from corte_student.statistics import MarginStatistics
from student.labeller_contract import SHAPE, answers_of, logits_of, maps_of

CLASSES = st.sampled_from([2, 3, 19, 255])
SEEDS = st.integers(0, 10**6)
Weighted = dict[int, list[tuple[int, Fraction]]]
"""The margins of each class with the weight at which each counts."""


def seen_by(answers: Answers) -> Weighted:
    """Every margin that the statistics of `answers` count, with weight one."""
    rows = enumerate(answers.statistics.histogram.tolist())
    return {k: [(m, Fraction(n)) for m, n in enumerate(row) if n] for k, row in rows if any(row)}


def listed(tensor: Tensor | None) -> list[int]:
    """The pixels of a plane, in order."""
    assert tensor is not None
    return [int(value) for value in tensor.flatten().tolist()]


def reaches_mean(seen: Weighted, label: int, value: int) -> bool:
    """Whether a margin is positive and at least the mean of its class."""
    if label not in seen or value == 0:
        return False
    total = sum((m * weight for m, weight in seen[label]), Fraction(0))
    return value * sum(weight for _, weight in seen[label]) >= total


def rank_of(seen: Weighted, label: int, value: int) -> Fraction:
    """The share of the class's margins that are not larger."""
    if label not in seen:
        return Fraction(0)
    below = sum((weight for m, weight in seen[label] if m <= value), Fraction(0))
    return below / sum(weight for _, weight in seen[label])


def slow_least(margins: list[int], kind: str, value: float) -> int:
    """The least margin that is kept of a class with these margins, by sorting."""
    if kind == "fixed":
        return max(1, round(value * 255))
    if not margins:
        return 256
    if kind == "mean":
        return max(1, math.ceil(Fraction(sum(margins), len(margins))))
    return max(1, sorted(margins)[max(1, math.ceil(value * len(margins))) - 1])


@given(
    CLASSES,
    SEEDS,
    st.sampled_from(["mean", "quantile", "fixed"]),
    st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    st.booleans(),
)
@settings(max_examples=80)
def test_selection_equals_a_loop(classes: int, seed: int, kind: str, value: float, alone: bool) -> None:
    """Mean, quantile and fixed thresholds, over all images planned or over each image alone."""
    answers = answers_of(classes, seed)
    assert answers.margin is not None
    select = Selection(kind, value, "image" if alone else "set")  # type: ignore[arg-type]
    kept = select.kept(answers.labels, answers.margin, answers.statistics)
    assert kept.dtype == torch.bool and kept.shape == answers.labels.shape
    for image in range(SHAPE[0]):
        labels, margins = listed(answers.labels[image]), listed(answers.margin[image])
        of: dict[int, list[int]] = {}
        if alone:
            for label, margin in zip(labels, margins, strict=True):
                of.setdefault(label, []).append(margin)
        else:
            of = {k: [m for m, n in ms for _ in range(int(n))] for k, ms in seen_by(answers).items()}
        wanted = [
            label != VOID and margin >= slow_least(of.get(label, []), kind, value)
            for label, margin in zip(labels, margins, strict=True)
        ]
        assert kept[image].flatten().tolist() == wanted


@pytest.mark.parametrize("kind", ["mean", "quantile"])
def test_a_class_that_no_image_was_answered_with_keeps_nothing(kind: str) -> None:
    """Statistics that know nothing of a class let none of its pixels through, not even the surest."""
    labels = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    margin = torch.full((1, 1, 2), 255, dtype=torch.uint8)
    only_one = MarginStatistics.of(np.array([1], np.uint8), np.array([255], np.uint8), 2)
    kept = Selection(kind).kept(labels, margin, only_one)  # type: ignore[arg-type]
    assert kept.tolist() == [[[False, True]]]


def test_one_class_alone_is_judged_by_its_own_mean() -> None:
    """With a single class in the statistics the threshold is its mean: seven of 1..7 keep 4 to 7."""
    margin = torch.arange(1, 8, dtype=torch.uint8).reshape(1, 1, 7)
    labels = torch.zeros_like(margin)
    one = MarginStatistics.of(labels.numpy(), margin.numpy(), 1)
    assert Selection().kept(labels, margin, one).flatten().tolist() == [False] * 3 + [True] * 4


@given(st.sampled_from([2, 3, 19, 255]), SEEDS)
@settings(max_examples=40)
def test_the_emas_margin_equals_a_loop(classes: int, seed: int) -> None:
    """Labels and margins of probabilities on the wire's grid, ties to the lower id."""
    probs = logits_of(classes, seed).softmax(1)
    labels, margin = quantised_margin(probs)
    rows = probs.permute(0, 2, 3, 1).reshape(-1, classes).tolist()
    for row, label, value in zip(rows, listed(labels), listed(margin), strict=True):
        best = max(range(classes), key=lambda k: (row[k], -k))
        second = max(row[k] for k in range(classes) if k != best)
        assert label == best
        grid = [int(np.floor(np.float32(v) * np.float32(255))) for v in (row[best], second)]
        assert value == grid[0] - grid[1]


def decayed(batches: list[tuple[list[int], list[int]]], decay: Fraction) -> Weighted:
    """The margins of each class, the weight of a batch falling by `decay` with each that follows."""
    seen: Weighted = {}
    for age, (labels, margins) in enumerate(reversed(batches)):
        for label, margin in zip(labels, margins, strict=True):
            if label != VOID:
                seen.setdefault(label, []).append((margin, decay**age))
    return seen


@given(CLASSES, SEEDS, st.sampled_from([0.0, 0.5, 0.75, 1.0]))
@settings(max_examples=50)
def test_running_statistics_equal_a_loop(classes: int, seed: int, decay: float) -> None:
    """After several batches a margin is kept iff positive and at least the decayed mean, as fractions."""
    running = Running(classes, decay)
    batches = []
    for batch in range(4):
        labels, margin, _ = maps_of(classes, seed + batch)
        labels[labels == VOID] = classes - 1  # the ema has an opinion everywhere
        batches.append((labels.flatten().tolist(), margin.flatten().tolist()))
        running.count(torch.from_numpy(labels), torch.from_numpy(margin))
    seen = {k: [pair for pair in ms if pair[1]] for k, ms in decayed(batches, Fraction(decay)).items()}
    seen = {k: ms for k, ms in seen.items() if ms}
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 256)
    for k in range(0, classes, max(1, classes // 20)):
        kept = running.kept(torch.full_like(every, k), every).flatten().tolist()
        assert kept == [reaches_mean(seen, k, value) for value in range(256)]


@pytest.mark.parametrize("value", [1, 49, 127, 254, 255])
def test_equal_margins_reach_their_own_mean_however_long_ago(value: int) -> None:
    """Rounding never starves a class whose margins are all the same, such as a saturated one."""
    running = Running(2, 0.99)
    margin = torch.full((1, 1, 1), value, dtype=torch.uint8)
    label = torch.zeros_like(margin)
    running.count(label, margin)
    for _ in range(300):
        assert bool(running.kept(label, margin).all())
        running.count(label + 1, margin)


def slow_arbitrate(
    answers: Answers, past: list[tuple[list[int], list[int]]], ema: tuple[list[int], list[int]], agreed: bool
) -> list[int]:
    """The arbitration rule, pixel by pixel; `past` are the ema's batches with this one last."""
    box, own = seen_by(answers), decayed(past, Fraction(1, 2))
    out = []
    for label, value, ema_label, ema_value in zip(
        listed(answers.labels), listed(answers.margin), *ema, strict=True
    ):
        box_ok = reaches_mean(box, label, value)
        ema_ok = label != VOID and reaches_mean(own, ema_label, ema_value)
        if box_ok and ema_ok and label != ema_label:
            higher = rank_of(own, ema_label, ema_value) > rank_of(box, label, value)
            out.append(ema_label if higher else label)
        elif box_ok or (agreed and not ema_ok and label == ema_label):
            out.append(label)
        else:
            out.append(ema_label if ema_ok else VOID)
    return out


@given(CLASSES, SEEDS, st.booleans())
@settings(max_examples=60)
def test_arbitration_equals_a_loop(classes: int, seed: int, agreed: bool) -> None:
    """Whoever alone passes is believed, the higher rank where both pass and differ, ties to the teacher.

    Else void or, if asked for, the common label where none passes and both agree. Three batches in a row,
    so that the ema's statistics have a past.
    """
    labeller = Corte(classes, Selection(), Refinement(start=0.0, decay=0.5, agreed=agreed))
    past: list[tuple[list[int], list[int]]] = []
    for batch in range(3):
        answers, logits = answers_of(classes, seed + batch), logits_of(classes, seed + batch)
        labels, margin = quantised_margin(logits.softmax(1))
        ema = (listed(labels), listed(margin))
        past.append(ema)
        targets = labeller(answers, logits, 0.5)
        assert listed(targets.labels) == slow_arbitrate(answers, past, ema, agreed)
        assert listed(targets.weights) == [int(label != VOID) for label in listed(targets.labels)]


def test_a_tie_of_ranks_is_the_teachers() -> None:
    """Both say the surest of their class, one 255 and one 80: the label stays, however old the ema's past."""
    labels = torch.tensor([[[0, 0]]], dtype=torch.uint8)
    margin = torch.tensor([[[10, 80]]], dtype=torch.uint8)
    answers = Answers(labels, margin, margin, MarginStatistics.of(labels.numpy(), margin.numpy(), 2))
    labeller = Corte(2, Selection(), Refinement(start=0.0, decay=0.97))
    for step in range(60):
        logits = torch.tensor([[[[0.0, 0.0]], [[0.1 * step, 60.0]]]])
        assert listed(labeller(answers, logits, 0.5).labels)[1] == 0


def slow_opinion(answers: Answers, logits: Tensor, rule: str, progress: float, power: float) -> Tensor:
    """The mixture or the product of both, float64 [B, S, h, w], pixel by pixel."""
    assert answers.scores is not None
    ema = logits.double().softmax(1)
    out = torch.zeros_like(ema)
    share = 1 - 0.5 * progress
    for image, y, x in np.ndindex(*SHAPE):
        said = [float(v) for v in answers.scores[image, :, y, x]]
        total = max(1.0, sum(said))
        own = ema[image, :, y, x].tolist()
        both = [(q / total, t) for q, t in zip(said, own, strict=True)]
        if rule == "mix":
            joint = [share * q + (1 - share) * t for q, t in both]
        else:
            joint = [q * t**power for q, t in both]
            norm = max(1e-12, sum(joint))
            joint = [value / norm for value in joint]
        out[image, :, y, x] = torch.tensor(joint, dtype=torch.float64)
    return out


@given(
    st.sampled_from([2, 3, 19, 255]),
    SEEDS,
    st.sampled_from(["mix", "product"]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.5, 1.0]),
)
@settings(max_examples=40)
def test_mix_and_product_equal_a_loop(
    classes: int, seed: int, rule: str, progress: float, power: float
) -> None:
    """Both judge one distribution by its own running means: lam q + (1 - lam) t, or q t^g normalised."""
    how = Refinement(rule, start=0.0, decay=0.5, power=power)  # type: ignore[arg-type]
    labeller = Corte(classes, Selection(), how)
    past: list[tuple[list[int], list[int]]] = []
    for batch in range(2):
        answers, logits = answers_of(classes, seed + batch, scores=True), logits_of(classes, seed + batch)
        opinion = labeller._opinion(answers, logits, progress)
        slow = slow_opinion(answers, logits, rule, progress, power)
        torch.testing.assert_close(opinion.double(), slow, rtol=1e-4, atol=1e-6)
        labels, margin = quantised_margin(opinion)
        past.append((listed(labels), listed(margin)))
        own = decayed(past, Fraction(1, 2))
        wanted = [
            label if said != VOID and reaches_mean(own, label, value) else VOID
            for said, label, value in zip(listed(answers.labels), *past[-1], strict=True)
        ]
        assert listed(labeller(answers, logits, progress).labels) == wanted


@given(st.sampled_from([2, 3, 19]), SEEDS, st.sampled_from(["none", "arbitrate"]))
@settings(max_examples=40)
def test_rank_weights_equal_a_loop(classes: int, seed: int, rule: str) -> None:
    """A kept answer weighs the share of its class's margins that are not larger; the ema's word one half."""
    answers, logits = answers_of(classes, seed), logits_of(classes, seed + 1)
    how = [Refinement(rule, start=0.0, decay=0.5, ranked=ranked) for ranked in (False, True)]  # type: ignore[arg-type]
    plain, ranked = (
        Corte(classes, Selection(), each)(answers, logits if rule == "arbitrate" else None, 0.5)
        for each in how
    )
    assert torch.equal(plain.labels, ranked.labels)
    seen = seen_by(answers)
    for said, value, label, weight in zip(
        listed(answers.labels),
        listed(answers.margin),
        listed(plain.labels),
        ranked.weights.flatten().tolist(),
        strict=True,
    ):
        wanted = 0.5 if label != said else float(rank_of(seen, said, value)) if said != VOID else 0.0
        assert weight == pytest.approx(0.0 if label == VOID else wanted, abs=1e-6)


@pytest.mark.parametrize("everything", [True, False])
def test_before_the_warm_up_the_ema_changes_nothing(everything: bool) -> None:
    """Until the warm-up ends the targets are all answers, or those of relative confidence alone."""
    answers = answers_of(4, 6)
    assert answers.margin is not None
    how = Refinement(start=0.5, decay=0.9, all_before=everything)
    targets = Corte(4, Selection(), how)(answers, logits_of(4, 6), 0.46)
    selected = Selection().kept(answers.labels, answers.margin, answers.statistics)
    kept = answers.labels != VOID if everything else selected
    assert torch.equal(targets.labels != VOID, kept)
    assert torch.equal(targets.labels[kept], answers.labels[kept].long())


@pytest.mark.parametrize("how", [Refinement(start=1.0), Refinement("none", start=0.0)])
def test_without_refinement_it_is_relative_confidence_alone(how: Refinement) -> None:
    """By a start of one or by the rule `none`: no pixel is let in for want of an ema, early or late."""
    answers, labeller = answers_of(4, 6), Corte(4, Selection(), how)
    assert answers.margin is not None
    selected = Selection().kept(answers.labels, answers.margin, answers.statistics)
    assert 0 < int(selected.sum()) < selected.numel()
    for progress in (0.0, 0.9):
        assert torch.equal(labeller(answers, None, progress).labels != VOID, selected)
