"""Every labeller against the contract, and CoRTe's arithmetic against slow loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_protocol import VOID
from corte_student.errors import SettingsError
from corte_student.pseudo_labels import (
    METHODS,
    Answers,
    Corte,
    PseudoLabeller,
    Refinement,
    build_labeller,
    quantised_margin,
    relative_confidence,
)
from corte_student.statistics import MarginStatistics


def answers_of(classes: int, seed: int, shape: tuple[int, int, int] = (2, 5, 6)) -> Answers:
    """Random answers: ties, empty classes, void pixels, now and then nothing but void."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, min(classes, 3 + seed % 3), shape).astype(np.uint8)
    labels[rng.random(shape) < rng.choice([0.0, 0.2, 1.0], p=[0.5, 0.4, 0.1])] = VOID
    margin = rng.choice([0, 1, 127, 128, 255] if seed % 2 else np.arange(256), shape).astype(np.uint8)
    confidence = np.maximum(margin, 128).astype(np.uint8)
    statistics = MarginStatistics.of(labels, margin, classes)
    return Answers(
        torch.from_numpy(labels), torch.from_numpy(margin), torch.from_numpy(confidence), statistics
    )


def logits_of(classes: int, seed: int, shape: tuple[int, int, int] = (2, 5, 6)) -> torch.Tensor:
    """Random logits with ties."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(shape[0], classes, *shape[1:])) * 3
    return torch.from_numpy(np.round(values) if seed % 2 else values).float()


class LabellerContract:
    """What every labeller guarantees; each inherits it."""

    def make(self, classes: int) -> PseudoLabeller:
        """The labeller under test."""
        raise NotImplementedError

    @pytest.mark.parametrize("classes", [2, 3, 255])
    @pytest.mark.parametrize("seed", range(8))
    def test_targets_are_legal(self, classes: int, seed: int) -> None:
        """Labels are classes or void, weights finite, in [0, 1] and zero wherever void."""
        answers = answers_of(classes, seed)
        targets = self.make(classes)(answers, logits_of(classes, seed), 1.0)
        assert targets.labels.dtype == torch.int64 and targets.labels.shape == answers.labels.shape
        assert targets.weights.dtype == torch.float32 and targets.weights.shape == answers.labels.shape
        void = targets.labels == VOID
        assert bool(((targets.labels < classes) | void).all())
        assert bool(((targets.weights >= 0) & (targets.weights <= 1)).all())
        assert bool((targets.weights[void] == 0).all())

    def test_a_restored_labeller_goes_on_as_the_first(self) -> None:
        """State saved and restored gives the same targets from then on."""
        first, second = self.make(5), self.make(5)
        first(answers_of(5, 1), logits_of(5, 1), 1.0)
        second.restore(first.state())
        a = first(answers_of(5, 2), logits_of(5, 2), 1.0)
        b = second(answers_of(5, 2), logits_of(5, 2), 1.0)
        assert torch.equal(a.labels, b.labels) and torch.equal(a.weights, b.weights)

    def test_the_answers_are_left_alone(self) -> None:
        """A labeller never writes into what it was given."""
        answers = answers_of(4, 3)
        before = answers.labels.clone()
        self.make(4)(answers, logits_of(4, 3), 1.0)
        assert torch.equal(answers.labels, before)


def _by_name(name: str) -> type[LabellerContract]:
    class Named(LabellerContract):
        def make(self, classes: int) -> PseudoLabeller:
            return build_labeller(name, classes, refinement=Refinement(0.3, 0.9, True, True), least=0.8)

    return Named


class TestCorteContract(_by_name("corte")):  # type: ignore[misc]
    """CoRTe keeps the contract."""


class TestNaiveContract(_by_name("naive")):  # type: ignore[misc]
    """Naive keeps the contract."""


class TestThresholdContract(_by_name("threshold")):  # type: ignore[misc]
    """Threshold keeps the contract."""


class TestSoftContract(_by_name("soft")):  # type: ignore[misc]
    """Soft keeps the contract."""


def test_every_method_has_a_contract_test() -> None:
    """A method added to the list without a contract test is noticed here."""
    tested = {
        n.removeprefix("Test").removesuffix("Contract").lower() for n in globals() if n.endswith("Contract")
    }
    assert set(METHODS) <= tested


def test_an_unknown_method_lists_the_choices() -> None:
    """The error names the methods that exist."""
    with pytest.raises(SettingsError, match="choose corte, naive, threshold, soft"):
        build_labeller("magic", 3, refinement=Refinement(0, 0, True, True), least=0)


@given(st.sampled_from([1, 2, 5, 255]), st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_relative_confidence_equals_a_loop(classes: int, seed: int) -> None:
    """CoRTe's selection: I > 0 and I n >= S of the predicted class, in Python integers."""
    answers = answers_of(classes, seed)
    assert answers.margin is not None
    labels, margin = answers.labels.flatten().tolist(), answers.margin.flatten().tolist()
    wanted = []
    for label, value in zip(labels, margin, strict=True):
        mine = [m for c, m in zip(labels, margin, strict=True) if c == label]
        wanted.append(label != VOID and value > 0 and value * len(mine) >= sum(mine))
    assert relative_confidence(answers).flatten().tolist() == wanted


@given(st.sampled_from([2, 3, 19]), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_the_emas_margin_equals_a_loop(classes: int, seed: int) -> None:
    """Labels and margins of logits on the wire's grid, ties to the lower id."""
    logits = logits_of(classes, seed)
    labels, margin = quantised_margin(logits)
    scores = logits.softmax(1).permute(0, 2, 3, 1).reshape(-1, classes).tolist()
    for row, label, value in zip(scores, labels.flatten().tolist(), margin.flatten().tolist(), strict=True):
        best = max(range(classes), key=lambda k: (row[k], -k))
        second = max(row[k] for k in range(classes) if k != best)
        assert label == best
        grid = [int(np.floor(np.float32(v) * np.float32(255))) for v in (row[best], second)]
        assert value == grid[0] - grid[1]


def slow_arbitrate(answers: Answers, logits: torch.Tensor, agreed: bool) -> list[int]:
    """The arbitration rule, pixel by pixel, for a labeller that sees its first batch."""
    assert answers.margin is not None
    ema_labels, ema_margin = (t.flatten().tolist() for t in quantised_margin(logits))
    labels, margin = answers.labels.flatten().tolist(), answers.margin.flatten().tolist()

    def kept(all_labels: list[int], all_margins: list[int], label: int, value: int) -> bool:
        mine = [m for c, m in zip(all_labels, all_margins, strict=True) if c == label]
        return label != VOID and value > 0 and value * len(mine) >= sum(mine)

    def rank(all_labels: list[int], all_margins: list[int], label: int, value: int) -> float:
        mine = [m for c, m in zip(all_labels, all_margins, strict=True) if c == label]
        return sum(m <= value for m in mine) / len(mine)

    out = []
    for label, value, ema_label, ema_value in zip(labels, margin, ema_labels, ema_margin, strict=True):
        box_ok = kept(labels, margin, label, value)
        ema_ok = kept(ema_labels, ema_margin, ema_label, ema_value) and label != VOID
        if box_ok and ema_ok and label != ema_label:
            higher = rank(ema_labels, ema_margin, ema_label, ema_value) > rank(labels, margin, label, value)
            out.append(ema_label if higher else label)
        elif box_ok or (agreed and not ema_ok and label == ema_label):
            out.append(label)
        else:
            out.append(ema_label if ema_ok else VOID)
    return out


@given(st.sampled_from([2, 3, 19]), st.integers(0, 10**6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_arbitration_equals_a_loop(classes: int, seed: int, agreed: bool) -> None:
    """After the warm-up: whoever alone passes is believed, the higher rank where both do, else void.

    Or, if asked for, the common label where none passes and both agree.
    """
    answers, logits = answers_of(classes, seed), logits_of(classes, seed + 1)
    targets = Corte(classes, Refinement(0.0, 0.9, True, agreed))(answers, logits, 0.5)
    assert targets.labels.flatten().tolist() == slow_arbitrate(answers, logits, agreed)


@pytest.mark.parametrize("everything", [True, False])
def test_before_the_warm_up_the_ema_changes_nothing(everything: bool) -> None:
    """Until the warm-up ends the targets are all answers, or those of relative confidence alone."""
    answers = answers_of(4, 6)
    targets = Corte(4, Refinement(0.5, 0.9, everything, True))(answers, logits_of(4, 6), 0.46)
    kept = answers.labels != VOID if everything else relative_confidence(answers)
    assert torch.equal(targets.labels != VOID, kept)
    assert torch.equal(targets.labels[kept], answers.labels[kept].long())


def test_without_refinement_it_is_relative_confidence_alone() -> None:
    """A start of one means that the ema is never asked, and no pixel is let in for want of it."""
    answers, labeller = answers_of(4, 6), Corte(4, Refinement(1.0, 0.9, True, True))
    assert not labeller.wants_ema(0.999)
    assert torch.equal(labeller(answers, None, 0.9).labels != VOID, relative_confidence(answers))
