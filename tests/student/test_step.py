"""One optimiser step: which pixels it looks at, what the labeller is given, what is mixed, what is told."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corte_protocol import VOID, Disclosure
from corte_student.checkpoint import TrainState
from corte_student.classmap import ClassMap
from corte_student.models import resize_logits
from corte_student.objective import pixel_loss
from corte_student.plan import Plan
from corte_student.pseudo_labels import Answers, Plain, PseudoLabels, masked
from corte_student.settings import TrainSettings
from corte_student.statistics import MarginStatistics
from corte_student.step import Step, signals
from corte_student.stream import Batch, StreamState
from corte_student.training import Job, build

SIDE, CLASSES = 32, 3
CPU = torch.device("cpu")


class Watching(Plain):
    """A labeller of every answer that remembers what it was given."""

    needs = Disclosure(1, 8)

    def __init__(self, *, ema: bool = False) -> None:
        self.given: list[tuple[Answers, Tensor | None]] = []
        self._ema = ema

    def wants_ema(self, progress: float) -> bool:
        """As it was made."""
        return self._ema

    def __call__(self, answers: Answers, ema_logits: Tensor | None, progress: float) -> PseudoLabels:
        """All labels."""
        self.given.append((answers, ema_logits))
        return masked(answers.labels, torch.ones_like(answers.labels, dtype=torch.bool))


def settings_of(**values: object) -> TrainSettings:
    """A small run from random weights."""
    base = {"encoder": "test_byobnet", "init": "random", "decoder_width": 8, "steps": 100, "batch": 2}
    return TrainSettings.model_validate({**base, "height": SIDE, "width": SIDE, **values})


def state_of(how: TrainSettings, labeller: Watching) -> TrainState:
    """A fresh state whose labeller is that one."""
    names = tuple("abc")
    classmap = ClassMap(names, ((0, 0, 0), (1, 1, 1), (2, 2, 2)), np.arange(3, dtype=np.uint8))
    state, _ = build(Job("http://nowhere", Path("none"), Path("none"), how), classmap, 4)
    state.labeller = labeller
    return state


def batch_at(step: int) -> Batch:
    """Random views and answers; margin and confidence tell the row and the column of each pixel."""
    rng = np.random.default_rng(step)
    weak, strong = (torch.from_numpy(rng.integers(0, 256, (2, 3, SIDE, SIDE), np.uint8)) for _ in range(2))
    labels = rng.choice([0, 1, 2, VOID], (2, SIDE // 8, SIDE // 8)).astype(np.uint8)
    labels = np.kron(labels, np.ones((8, 8), np.uint8))
    rows, columns = (np.broadcast_to(p, labels.shape).astype(np.uint8) for p in np.mgrid[:SIDE, :SIDE])
    answers = Answers(
        torch.from_numpy(labels),
        torch.from_numpy(rows.copy()),
        torch.from_numpy(columns.copy()),
        MarginStatistics.of(labels, rows, CLASSES),
    )
    return Batch(
        step, weak, strong, answers, StreamState.fresh(CLASSES, 4), Plan(4, 2, 100, 0).step_rng(step)
    )


@pytest.mark.parametrize(("stride", "first"), [(1, 0), (2, 0), (2, 5), (3, 7)])
def test_successive_steps_sample_every_pixel_once(stride: int, first: int) -> None:
    """Over stride squared steps, wherever they begin and whether or not the stride divides the view."""
    labeller = Watching()
    how = settings_of(loss_stride=stride)
    step = Step(state_of(how, labeller), how, CPU)
    for number in range(first, first + stride**2):
        step(batch_at(number))
    seen = np.zeros((SIDE, SIDE), int)
    for answers, _ in labeller.given:
        assert answers.margin is not None and answers.confidence is not None
        seen[answers.margin[0].long().numpy(), answers.confidence[0].long().numpy()] += 1
    assert (seen == 1).all()


def test_the_labeller_gets_the_emas_logits_of_the_pixels_it_judges() -> None:
    """Of the weak view, on the sampled grid, from the ema as it was before the step; none if not wanted."""
    labeller = Watching(ema=True)
    how = settings_of(loss_stride=2, log_every=1000)
    step = Step(state_of(how, labeller), how, CPU)
    for number in range(4):
        batch = batch_at(number)
        with torch.no_grad():
            whole = resize_logits(step.state.ema.model(batch.weak.float()), (SIDE, SIDE))
        step(batch)
        answers, logits = labeller.given[-1]
        assert logits is not None and answers.margin is not None and answers.confidence is not None
        wanted = whole[:, :, answers.margin[0].long(), answers.confidence[0].long()]
        torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-4)
        assert not logits.requires_grad
    blind = Watching()
    Step(state_of(how, blind), how, CPU)(batch_at(0))
    assert blind.given[0][1] is None


def test_looking_at_the_ema_for_the_log_changes_nothing() -> None:
    """The interval at which numbers are told decides nothing of what is learned."""
    ends = []
    for log_every in (1, 1000):
        how = settings_of(log_every=log_every, class_mix=0.5, mask_share=0.5, mask_block=8)
        step = Step(state_of(how, Watching()), how, CPU)
        reports = [step(batch_at(number)) for number in range(3)]
        assert all((report.signals is not None) == (log_every == 1) for report in reports)
        ends.append(step.state.student.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_loss_is_that_of_the_mixed_batch() -> None:
    """Class mixing and masking of everything: the loss is that of what a loop pastes and blanks."""
    how = settings_of(loss_stride=2, class_mix=1.0, mask_share=1.0, mask_block=8, class_balance=0.0)
    state = state_of(how, Watching())
    batch = batch_at(3)
    rng, labels = Plan(4, 2, 100, 0).step_rng(3), batch.answers.labels
    strong, target = batch.strong.float(), labels.long()
    mixed, pasted = strong.clone(), target.clone()
    for slot in range(2):
        rng.random()
        present = sorted(set(labels[slot - 1].flatten().tolist()) - {VOID})
        for label in rng.choice(present, (len(present) + 1) // 2, replace=False).tolist():
            where = labels[slot - 1] == label
            mixed[slot][:, where] = strong[slot - 1][:, where]
            pasted[slot][where] = target[slot - 1][where]
    fill = state.student.mean[0, :, 0, 0].to(torch.uint8).float()
    for slot in range(2):
        rng.random()
        blank = np.kron(rng.random((4, 4)) < 0.7, np.ones((8, 8), bool))
        mixed[slot][:, torch.from_numpy(blank)] = fill[:, None]
    grid = pasted[:, 1::2, 1::2]  # step 3 samples odd rows and columns
    logits = state.student.train()(mixed)
    wanted = pixel_loss(logits, PseudoLabels(grid, (grid != VOID).float()))
    report = Step(state_of(how, Watching()), how, CPU)(batch)
    assert float(report.loss) == pytest.approx(float(wanted.detach()), rel=1e-4)


def test_what_a_step_tells_is_counted() -> None:
    """Answered and kept pixels per class, before anything is mixed; the step is done, its state kept."""
    how = settings_of(loss_stride=1, class_mix=1.0, log_every=1)
    step = Step(state_of(how, Watching()), how, CPU)
    batch = batch_at(0)
    report = step(batch)
    counted = [int((batch.answers.labels == k).sum()) for k in range(CLASSES)]
    assert report.kept.tolist() == report.answered.tolist() == counted
    assert step.state.step == 1 and step.state.stream is batch.state


@given(st.integers(0, 10**6))
@settings(max_examples=40)
def test_signals_equal_a_loop(seed: int) -> None:
    """Pixels by the answer's class, those on which the ema agrees, pixels by the ema's; void left out."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 2, VOID][: 1 + seed % 3], (2, 3, 4)).astype(np.uint8)
    logits = torch.from_numpy(rng.normal(size=(2, CLASSES, 3, 4)))
    plane = torch.from_numpy(labels)
    seen = signals(Answers(plane, None, None, MarginStatistics.empty(CLASSES)), logits, CLASSES)
    said, agreed, ema, best = [0] * CLASSES, [0] * CLASSES, [0] * CLASSES, []
    for b, y, x in np.ndindex(*labels.shape):
        scores = logits[b, :, y, x].softmax(0).tolist()
        best.append(max(scores))
        if labels[b, y, x] == VOID:
            continue
        own = scores.index(max(scores))
        said[labels[b, y, x]] += 1
        ema[own] += 1
        agreed[own] += own == labels[b, y, x]
    assert (seen.said.tolist(), seen.agreed.tolist(), seen.ema.tolist()) == (said, agreed, ema)
    assert float(seen.confidence) == pytest.approx(sum(best) / len(best))
