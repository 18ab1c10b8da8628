"""Pseudo-labels: which pixels of the teacher's answers to learn from, and what the student's ema adds.

CoRTe (Cuttano et al., ICCV Workshops 2023, arXiv 2402.13122) names three components. *Relative confidence*:
a pixel's score is the margin I between its two best classes, kept where it reaches the mean of I over the
pixels of the same predicted class. *Refinement*: a moving average of the student revises those labels with
what was learned on the target. The exact integer arithmetic, the arbitration rule and the warm-up are this
project's choices.

Legend: B batch, S student classes, h w crop. Margins are integers in units of 1/255.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from corte_protocol import VOID, Disclosure
from corte_student.errors import SettingsError
from corte_student.statistics import MarginStatistics


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What the teacher said about a batch, in the student's classes.

    `labels` uint8 [B, h, w], VOID where no class; `margin`, `confidence` uint8 [B, h, w] or None where not
    disclosed; `statistics` over the images planned so far, never over later ones.
    """

    labels: Tensor
    margin: Tensor | None
    confidence: Tensor | None
    statistics: MarginStatistics

    def to(self, device: torch.device) -> "Answers":
        """The same on a device."""
        margin = None if self.margin is None else self.margin.to(device)
        confidence = None if self.confidence is None else self.confidence.to(device)
        return Answers(self.labels.to(device), margin, confidence, self.statistics)


@dataclass(frozen=True, slots=True, eq=False)
class PseudoLabels:
    """`labels` int64 [B, h, w], VOID where nothing is learned; `weights` float [B, h, w], 0 wherever void."""

    labels: Tensor
    weights: Tensor


class PseudoLabeller(Protocol):
    """Turns answers into targets. One instance serves one run; its state is saved with the checkpoint."""

    needs: Disclosure
    """The least that the teacher must disclose."""

    def wants_ema(self, progress: float) -> bool:
        """Whether `ema_logits` are used at this point of the run: they cost a forward pass."""
        ...

    def __call__(self, answers: Answers, ema_logits: Tensor | None, progress: float) -> PseudoLabels:
        """Targets for one batch; `ema_logits` float [B, S, h, w]; `progress` of the run in [0, 1]."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything a resume needs."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        ...


class Stateless:
    """What labellers without a memory share."""

    def wants_ema(self, progress: float) -> bool:
        """Never."""
        return False

    def state(self) -> dict[str, Tensor]:
        """Nothing to save."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to restore."""


class Naive(Stateless):
    """Every answered pixel, whatever its score: the baseline that any method must beat."""

    needs = Disclosure(1, 0)

    def __call__(self, answers: Answers, ema_logits: Tensor | None, progress: float) -> PseudoLabels:
        """All labels with weight one."""
        return masked(answers.labels, torch.ones_like(answers.labels, dtype=torch.bool))


class Threshold(Stateless):
    """Pixels whose absolute confidence reaches one fixed value: the common filter CoRTe argues against."""

    needs = Disclosure(1, 8)

    def __init__(self, least: float) -> None:
        self.least = round(least * 255)

    def __call__(self, answers: Answers, ema_logits: Tensor | None, progress: float) -> PseudoLabels:
        """Labels whose confidence is at least the threshold."""
        assert answers.confidence is not None
        return masked(answers.labels, answers.confidence >= self.least)


class Soft(Stateless):
    """Every pixel, weighted by its margin: relative confidence as a weight in place of a mask."""

    needs = Disclosure(1, 8)  # from confidence alone the margin has the bound 2 p - 1

    def __call__(self, answers: Answers, ema_logits: Tensor | None, progress: float) -> PseudoLabels:
        """All labels with weight I / 255."""
        assert answers.margin is not None
        void = answers.labels == VOID
        weights = (answers.margin.float() / 255).masked_fill(void, 0.0)
        return PseudoLabels(answers.labels.long(), weights)


@dataclass(frozen=True, slots=True)
class Refinement:
    """When and how the ema revises the answers. `start` is the share of the run before it does; 1 is never.

    `all_before`: until then learn from every answered pixel, so that a student from random weights meets
    all of the picture before it is asked for an opinion; else from relative confidence alone. `agreed`:
    keep a pixel on which the answer and the ema agree, whatever their margins. `decay` is that of the ema's
    margin statistics, per step. All of them this project's choices, measured in docs/experiments.md.
    """

    start: float
    decay: float
    all_before: bool
    agreed: bool


class Corte:
    """Relative confidence, then arbitration between the black box and the student's ema.

    After the warm-up the same test is run on the ema with its own running statistics. Where only one of
    the two passes its test, that one is believed; where both pass and differ, the one whose margin ranks
    higher among the margins of its own class; where none passes, their common label if they agree, else
    void. A void answer stays void. (Margin over mean would favour weak classes: it can reach 3.0 for a
    pole and 1.05 for road.)
    """

    needs = Disclosure(1, 8)  # from confidence alone the margin has the bound 2 p - 1

    def __init__(self, classes: int, refinement: Refinement) -> None:
        self._how = refinement
        self._ema = torch.zeros(classes, 256, dtype=torch.float64)

    def wants_ema(self, progress: float) -> bool:
        """From shortly before the warm-up ends, so that its statistics are there when they are needed."""
        return self._how.start < 1.0 and progress >= 0.9 * self._how.start

    def __call__(self, answers: Answers, ema_logits: Tensor | None, progress: float) -> PseudoLabels:
        """Kept and refined labels with weight one."""
        kept = relative_confidence(answers)
        refine = ema_logits is not None and progress >= self._how.start
        if ema_logits is not None:
            ema_labels, ema_margin = quantised_margin(ema_logits)
            self._count(ema_labels, ema_margin)
        if refine:
            return self._arbitrate(answers, kept, ema_labels, ema_margin)
        everything = self._how.all_before and self._how.start < 1.0
        return masked(answers.labels, torch.ones_like(kept) if everything else kept)

    def _count(self, ema_labels: Tensor, ema_margin: Tensor) -> None:
        labels, margin = ema_labels.numpy(force=True), ema_margin.numpy(force=True)
        fresh = MarginStatistics.of(labels, margin, len(self._ema))
        self._ema = self._ema * self._how.decay + torch.from_numpy(fresh.histogram).double()

    def _arbitrate(
        self, answers: Answers, kept: Tensor, ema_labels: Tensor, ema_margin: Tensor
    ) -> PseudoLabels:
        assert answers.margin is not None
        device = kept.device
        least, ema_ranks = _thresholds_and_ranks(self._ema)
        ema_kept = (ema_margin > 0) & (ema_margin.double() >= least.to(device)[ema_labels.long()])
        ema_kept &= answers.labels != VOID  # what the class map calls void stays void
        _, ranks = _thresholds_and_ranks(torch.from_numpy(answers.statistics.histogram).double())
        # void answers index a class that exists; `kept` is false there, so the value is never used
        safe = answers.labels.long().masked_fill(answers.labels == VOID, 0)
        rank = ranks.to(device)[safe, answers.margin.long()]
        ema_rank = ema_ranks.to(device)[ema_labels.long(), ema_margin.long()]
        agree = ema_labels == answers.labels
        take_ema = (ema_kept & ~kept) | (ema_kept & kept & ~agree & (ema_rank > rank))
        keep = kept | ema_kept
        if self._how.agreed:
            keep |= agree
        return masked(torch.where(take_ema, ema_labels, answers.labels), keep)

    def state(self) -> dict[str, Tensor]:
        """The ema's decayed margin histogram."""
        return {"ema_histogram": self._ema.clone()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self._ema = state["ema_histogram"].clone()


def relative_confidence(answers: Answers) -> Tensor:
    """Where I > 0 and I reaches the mean of its predicted class: bool [B, h, w].

    CoRTe's selection by relative confidence. "Reaches" in place of "exceeds", so that a saturated class or
    one of a single pixel does not starve, is this project's choice.
    """
    assert answers.margin is not None
    least = torch.from_numpy(answers.statistics.least_kept()).to(answers.margin.device)
    void = answers.labels == VOID
    needed = least[answers.labels.long().masked_fill(void, 0)]
    return (answers.margin.short() >= needed) & ~void


def quantised_margin(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and margins of logits [B, S, h, w] on the wire's grid, uint8 [B, h, w]; ties to the lower id."""
    scores = logits.float().softmax(dim=1)
    best, labels = scores.max(dim=1)
    second = scores.scatter(1, labels[:, None], -1.0).amax(dim=1)
    margin = (best * 255).floor() - (second * 255).floor()
    return labels.to(torch.uint8), margin.to(torch.uint8)


def masked(labels: Tensor, keep: Tensor) -> PseudoLabels:
    """Hard targets of weight one where `keep` and not void."""
    keep = keep & (labels != VOID)
    return PseudoLabels(labels.long().masked_fill(~keep, VOID), keep.float())


def _thresholds_and_ranks(histogram: Tensor) -> tuple[Tensor, Tensor]:
    """Mean margin per class, float64 [S], infinite for an empty one; share of margins <= I, [S, 256]."""
    count = histogram.sum(dim=1)
    total = histogram @ torch.arange(256, dtype=histogram.dtype)
    mean = torch.where(count > 0, total / count.clamp(min=1e-12), torch.inf)
    ranks = histogram.cumsum(dim=1) / count.clamp(min=1e-12)[:, None]
    return mean, ranks


METHODS = ("corte", "naive", "threshold", "soft")


def build_labeller(method: str, classes: int, *, refinement: Refinement, least: float) -> PseudoLabeller:
    """The labeller of that name; an unknown name is a SettingsError that lists the choices."""
    if method == "corte":
        return Corte(classes, refinement)
    if method == "naive":
        return Naive()
    if method == "threshold":
        return Threshold(least)
    if method == "soft":
        return Soft()
    raise SettingsError(f"unknown method {method!r}: choose {', '.join(METHODS)}")
