"""CoRTe's pseudo-labels: selection by relative confidence, refinement by the student's ema.

CoRTe (Cuttano et al., ICCV Workshops 2023, arXiv 2402.13122) names the components. *Relative confidence*:
a pixel's score is the margin I between its two best classes, kept where it reaches the mean of I over the
pixels of the same predicted class. *Refinement*: a moving average of the student revises those labels with
what was learned on the target. The exact integer arithmetic, quantile and fixed thresholds, the three rules
of refinement and the warm-up are this project's choices.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corte_protocol import VOID, Disclosure
from corte_student.pseudo_labels.base import Answers, Plain, PseudoLabels, in_range, masked, quantised_margin
from corte_student.statistics import NEVER, MarginStatistics

Rule = Literal["none", "arbitrate", "mix", "product"]


@dataclass(frozen=True, slots=True)
class Selection:
    """How large a margin must be: the `mean` of its class (CoRTe's), a `quantile` of its class, or `fixed`.

    `value` is the quantile, or the fixed margin, in [0, 1]. Scope `set` counts over the images planned so
    far, `image` over the same crop alone. Quantile, fixed and scope `image` are this project's choices.
    """

    kind: Literal["mean", "quantile", "fixed"] = "mean"
    value: float = 0.5
    scope: Literal["set", "image"] = "set"

    def kept(self, labels: Tensor, margin: Tensor, statistics: MarginStatistics) -> Tensor:
        """Where the margin is large enough and the label not void: bool, the shape of both [B, h, w]."""
        if self.scope == "set":
            return self._kept(labels, margin, statistics)
        classes = len(statistics.histogram)
        each = []
        for label, plane in zip(labels, margin, strict=True):
            own = MarginStatistics.of(label.numpy(force=True), plane.numpy(force=True), classes)
            each.append(self._kept(label, plane, own))
        return torch.stack(each)

    def _kept(self, labels: Tensor, margin: Tensor, statistics: MarginStatistics) -> Tensor:
        least = torch.from_numpy(self.least(statistics)).to(margin.device)
        return (margin.short() >= least[in_range(labels)]) & (labels != VOID)

    def least(self, statistics: MarginStatistics) -> npt.NDArray[np.int16]:
        """The smallest margin that is kept per class, int16 [S], never below 1."""
        if self.kind == "mean":
            return statistics.least_kept()
        if self.kind == "quantile":
            return statistics.quantile(self.value)
        return statistics.fixed(round(self.value * 255))


@dataclass(frozen=True, slots=True)
class Refinement:
    """When and how the ema revises the answers. `start` is the share of the run before it does; 1 is never.

    `all_before`: until then learn from every answered pixel, so that a student from random weights meets
    all of the picture before it is asked for an opinion; else from relative confidence alone. `agreed`:
    keep a pixel on which the answer and the ema agree, whatever their margins. `decay` is that of the
    running margin statistics, per step; `power` the g of `product`. `ranked` weights each kept pixel by the
    rank of its margin within its class in place of one. Measured in docs/experiments.md.
    """

    rule: Rule = "arbitrate"
    start: float = 0.4
    decay: float = 0.99
    all_before: bool = True
    agreed: bool = True
    power: float = 1.0
    ranked: bool = False


class Running:
    """Decayed margin statistics of what has no fixed set to count over: the ema's margins."""

    def __init__(self, classes: int, decay: float) -> None:
        self.histogram = torch.zeros(classes, 256, dtype=torch.float64)
        self._decay = decay

    def count(self, labels: Tensor, margin: Tensor) -> None:
        """Add one batch's maps, uint8 [B, h, w]."""
        fresh = MarginStatistics.of(labels.numpy(force=True), margin.numpy(force=True), len(self.histogram))
        self.histogram = self.histogram * self._decay + torch.from_numpy(fresh.histogram).double()

    def kept(self, labels: Tensor, margin: Tensor) -> Tensor:
        """Where a margin is positive and reaches the running mean of its class: bool [B, h, w]."""
        count = self.histogram.sum(dim=1)
        total = self.histogram @ torch.arange(256, dtype=torch.float64)
        # margins are whole numbers, so reaching the mean is reaching the next whole number above it; rounding
        # must not lift the mean of equal margins above all of them
        mean = (total / count.clamp(min=1e-12) - 1e-6).ceil()
        mean = torch.where(count > 0, mean, torch.tensor(NEVER).double())
        least = mean.clamp(min=1).short().to(margin.device)
        return margin.short() >= least[labels.long()]


class Corte:
    """Relative confidence, then one of three rules by which black box and ema make the label.

    *arbitrate*: the same test is run on the ema with its own running statistics. Where only one of the two
    passes its test, that one is believed; where both pass and differ, the one whose margin ranks higher
    among the margins of its own class; where none passes, their common label if they agree, else void.
    (Margin over mean would favour weak classes: it can reach 3.0 for a pole and 1.05 for road.)
    *mix*: relative confidence on lam q + (1 - lam) t, lam from 1 to 0.5 over the run. *product*: the same on
    q t^g, normalised (the form in which ProDA, arXiv 2101.10979, uses prototypes). A void answer stays void.
    """

    needs = Disclosure(1, 8)  # from confidence alone the margin has the bound 2 p - 1
    surrogate = True
    tests: Literal["margin", "confidence"] = "margin"

    def __init__(self, classes: int, selection: Selection, refinement: Refinement) -> None:
        self._select, self._how = selection, refinement
        self._running = Running(classes, refinement.decay)
        self.wants_scores = refinement.rule in ("mix", "product") and refinement.start < 1.0

    def wants_ema(self, progress: float) -> bool:
        """From shortly before the warm-up ends, so that its statistics are there when they are needed."""
        refines = self._how.rule != "none" and self._how.start < 1.0
        return refines and progress >= 0.9 * self._how.start

    def __call__(self, answers: Answers, ema_logits: Tensor | None, progress: float) -> PseudoLabels:
        """Kept and refined labels with weight one, or with the rank of their margin."""
        assert answers.margin is not None
        refine = progress >= self._how.start
        if ema_logits is not None and self.wants_ema(progress):
            labels, margin = quantised_margin(self._opinion(answers, ema_logits.float(), progress))
            self._running.count(labels, margin)
            if refine:
                return self._refined(answers, labels, margin)
        waits = self._how.all_before and self._how.rule != "none" and self._how.start < 1.0
        kept = torch.ones_like(answers.labels, dtype=torch.bool) if waits else self._kept(answers)
        return self._weighted(answers, masked(answers.labels, kept))

    def _kept(self, answers: Answers) -> Tensor:
        assert answers.margin is not None
        return self._select.kept(answers.labels, answers.margin, answers.statistics)

    def _opinion(self, answers: Answers, ema_logits: Tensor, progress: float) -> Tensor:
        """The probabilities that are judged beside the answers, [B, S, h, w]: t, a mix, or a product."""
        ema = ema_logits.softmax(dim=1)
        if self._how.rule == "arbitrate":
            return ema
        assert answers.scores is not None
        said = answers.scores.float()
        said = said / said.sum(dim=1, keepdim=True).clamp(min=1.0)
        if self._how.rule == "mix":
            share = 1.0 - 0.5 * progress
            return share * said + (1.0 - share) * ema
        joint = said * ema**self._how.power
        return joint / joint.sum(dim=1, keepdim=True).clamp(min=1e-12)

    def _refined(self, answers: Answers, labels: Tensor, margin: Tensor) -> PseudoLabels:
        accepted = self._running.kept(labels, margin) & (answers.labels != VOID)
        if self._how.rule != "arbitrate":
            return self._weighted(answers, masked(labels, accepted))
        kept = self._kept(answers)
        agree = labels == answers.labels
        take = accepted & ~kept
        differ = accepted & kept & ~agree
        if differ.any():
            take = take | self._outranked(answers, labels, margin, differ)
        keep = kept | accepted | agree if self._how.agreed else kept | accepted
        return self._weighted(answers, masked(torch.where(take, labels, answers.labels), keep))

    def _outranked(self, answers: Answers, labels: Tensor, margin: Tensor, where: Tensor) -> Tensor:
        """Of the pixels `where` both pass and differ, those at which the ema's margin ranks higher."""
        assert answers.margin is not None
        said = ranks(torch.from_numpy(answers.statistics.histogram).double()).to(margin.device)
        own = ranks(self._running.histogram).to(margin.device)
        answer_rank = said[answers.labels[where].long(), answers.margin[where].long()]
        won = torch.zeros_like(where)
        won[where] = own[labels[where].long(), margin[where].long()] > answer_rank
        return won

    def _weighted(self, answers: Answers, targets: PseudoLabels) -> PseudoLabels:
        if not self._how.ranked:
            return targets
        assert answers.margin is not None
        table = ranks(torch.from_numpy(answers.statistics.histogram).double()).float()
        rank = table.to(targets.weights.device)[in_range(answers.labels), answers.margin.long()]
        # where the ema has the word the answer's rank says nothing
        changed = targets.labels != answers.labels.long()
        return PseudoLabels(targets.labels, targets.weights * torch.where(changed, 0.5, rank))

    def state(self) -> dict[str, Tensor]:
        """The running margin histogram."""
        return {"ema_histogram": self._running.histogram.clone()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self._running.histogram = state["ema_histogram"].clone()


class Soft(Plain):
    """Every pixel, weighted by its margin: relative confidence as a weight in place of a mask."""

    needs = Disclosure(1, 8)
    surrogate = True

    def __call__(self, answers: Answers, ema_logits: Tensor | None, progress: float) -> PseudoLabels:
        """All labels with weight I / 255."""
        assert answers.margin is not None
        weights = (answers.margin.float() / 255).masked_fill(answers.labels == VOID, 0.0)
        return PseudoLabels(answers.labels.long(), weights)


def ranks(histogram: Tensor) -> Tensor:
    """For each class and margin the share of the class's margins that are not larger, float64 [S, 256]."""
    below = histogram.cumsum(dim=1)
    # by its own last column, so that the largest margin ranks exactly 1: that is where ties happen
    return below / below[:, -1:].clamp(min=1e-12)
