"""What every pseudo-labeller takes and gives.

    Answers -> PseudoLabeller -> PseudoLabels

Legend: B batch, S student classes, h w the sampled grid of a crop. Scores and margins are integers in units
of 1/255.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from corte_protocol import VOID, Disclosure
from corte_student.statistics import MarginStatistics


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What the teacher said about a batch, in the student's classes.

    `labels` uint8 [B, h, w], VOID where no class; `margin`, `confidence` uint8 [B, h, w] or None where not
    disclosed; `scores` uint8 [B, S, h, w], only for a labeller that wants them. `statistics` of the plane
    that the labeller tests, over the images planned so far, never over later ones.
    """

    labels: Tensor
    margin: Tensor | None
    confidence: Tensor | None
    statistics: MarginStatistics
    scores: Tensor | None = None

    def to(self, device: torch.device) -> "Answers":
        """The same on a device."""
        return self._each(lambda plane: plane.to(device))

    def sampled(self, stride: int, phase: tuple[int, int]) -> "Answers":
        """Every `stride`-th pixel of both axes, from row and column `phase` on."""
        return self._each(lambda plane: plane[..., phase[0] :: stride, phase[1] :: stride])

    def _each(self, change: "_Change") -> "Answers":
        def of(plane: Tensor | None) -> Tensor | None:
            return None if plane is None else change(plane).contiguous()

        labels = change(self.labels).contiguous()
        return Answers(labels, of(self.margin), of(self.confidence), self.statistics, of(self.scores))


class _Change(Protocol):
    def __call__(self, plane: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class PseudoLabels:
    """`labels` int64 [B, h, w], VOID where nothing is learned; `weights` float [B, h, w], 0 wherever void.

    `soft` float [B, S, h, w], summing to one over S, takes the place of the hard labels in the loss; the
    labels are its arg-max then.
    """

    labels: Tensor
    weights: Tensor
    soft: Tensor | None = None


class PseudoLabeller(Protocol):
    """Turns answers into targets. One instance serves one run; its state is saved with the checkpoint."""

    needs: Disclosure
    """The least that the teacher must disclose."""

    surrogate: bool
    """Whether, where only labels are disclosed, a margin made from votes or purity will do."""

    tests: Literal["margin", "confidence"]
    """The plane that `Answers.statistics` counts."""

    wants_scores: bool
    """Whether `Answers.scores` must be there."""

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


class Plain:
    """What labellers without a memory share; also the simplest base for one of your own."""

    needs: Disclosure = Disclosure(1, 0)
    surrogate: bool = False
    tests: Literal["margin", "confidence"] = "margin"
    wants_scores: bool = False

    def wants_ema(self, progress: float) -> bool:
        """Never."""
        return False

    def state(self) -> dict[str, Tensor]:
        """Nothing to save."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to restore."""


def masked(labels: Tensor, keep: Tensor) -> PseudoLabels:
    """Hard targets of weight one where `keep` and not void."""
    keep = keep & (labels != VOID)
    return PseudoLabels(labels.long().masked_fill(~keep, VOID), keep.float())


def in_range(labels: Tensor) -> Tensor:
    """Labels as int64 indices, void as class 0: for looking up what is masked afterwards."""
    return labels.long().masked_fill(labels == VOID, 0)


def quantised_margin(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and margins of probabilities [B, S, h, w] in 1/255, uint8 [B, h, w]; ties to the lower id."""
    best, labels = scores.max(dim=1)
    second = scores.scatter(1, labels[:, None], -1.0).amax(dim=1)
    margin = (best * 255).floor() - (second * 255).floor()
    return labels.to(torch.uint8), margin.to(torch.uint8)
