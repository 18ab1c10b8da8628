"""The rows that CoRTe is measured against, behind the same interface.

None of them is CoRTe's: each docstring says whose idea it is, or that it is this project's control.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from corte_protocol import VOID, Disclosure
from corte_student.pseudo_labels.base import Answers, Plain, PseudoLabels, in_range, masked
from corte_student.pseudo_labels.relative import Selection


class Naive(Plain):
    """Every answered pixel, whatever its score: the baseline that any method must beat."""

    def __call__(self, answers: Answers, ema_logits: Tensor | None, progress: float) -> PseudoLabels:
        """All labels with weight one."""
        return masked(answers.labels, torch.ones_like(answers.labels, dtype=torch.bool))


class Threshold(Plain):
    """Pixels whose absolute confidence reaches one fixed value: the common filter CoRTe argues against."""

    needs = Disclosure(1, 8)
    tests: Literal["margin", "confidence"] = "confidence"

    def __init__(self, least: float) -> None:
        self.least = round(least * 255)

    def __call__(self, answers: Answers, ema_logits: Tensor | None, progress: float) -> PseudoLabels:
        """Labels whose confidence is at least the threshold."""
        assert answers.confidence is not None
        return masked(answers.labels, answers.confidence >= self.least)


class ClassMean(Plain):
    """Absolute confidence with per-class means: CoRTe's thresholds without its relative confidence.

    This project's control: what it lacks to `corte` without refinement is the margin alone.
    """

    needs = Disclosure(1, 8)
    tests: Literal["margin", "confidence"] = "confidence"

    def __call__(self, answers: Answers, ema_logits: Tensor | None, progress: float) -> PseudoLabels:
        """Labels whose confidence reaches the mean confidence of their class."""
        assert answers.confidence is not None
        return masked(
            answers.labels, Selection().kept(answers.labels, answers.confidence, answers.statistics)
        )


class RandomMask(Plain):
    """As many pixels of each class as relative confidence keeps, drawn at random.

    This project's control: what it lacks to `corte` without refinement is the choice of pixels.
    """

    needs = Disclosure(1, 8)
    surrogate = True

    def __init__(self, seed: int) -> None:
        self._draw = torch.Generator().manual_seed(seed)

    def __call__(self, answers: Answers, ema_logits: Tensor | None, progress: float) -> PseudoLabels:
        """Labels, each kept with the share that relative confidence keeps of its class."""
        share = torch.from_numpy(answers.statistics.kept_share()).float().to(answers.labels.device)
        luck = torch.rand(answers.labels.shape, generator=self._draw).to(answers.labels.device)
        return masked(answers.labels, luck < share[in_range(answers.labels)])

    def state(self) -> dict[str, Tensor]:
        """The generator's."""
        return {"generator": self._draw.get_state()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self._draw.set_state(state["generator"])


class Distil(Plain):
    """Soft distillation (Hinton et al., arXiv 1503.02531): cross-entropy with the teacher's own scores.

    What is not disclosed is spread evenly over the undisclosed classes, as DINE does.
    """

    needs = Disclosure(1, 8)
    wants_scores = True

    def __call__(self, answers: Answers, ema_logits: Tensor | None, progress: float) -> PseudoLabels:
        """Every answered pixel with its distribution."""
        assert answers.scores is not None
        return _softened(answers, _distribution(answers.scores))


class Dine(Plain):
    """A DINE-style row (Liang et al., "DINE", CVPR 2022, arXiv 2104.01539), for dense prediction.

    The best score alone, the rest spread evenly over all other classes (its adaptive label smoothing), and
    from `start` on mixed with the ema's view of the same pixels (its moving average of predictions, which
    per pixel of a cropped view there is no room to keep). Its MixUp and mutual-information terms are left
    out: they are defined on one label an image.
    """

    needs = Disclosure(1, 8)

    def __init__(self, classes: int, *, keep: float = 0.6, start: float = 0.1) -> None:
        self._classes, self._keep, self._start = classes, keep, start

    def wants_ema(self, progress: float) -> bool:
        """After the first steps, in which the ema knows nothing."""
        return progress >= self._start

    def __call__(self, answers: Answers, ema_logits: Tensor | None, progress: float) -> PseudoLabels:
        """Every answered pixel with its smoothed distribution."""
        assert answers.confidence is not None
        best = answers.confidence.float()[:, None] / 255
        rest = (1 - best) / max(1, self._classes - 1)
        hot = F.one_hot(in_range(answers.labels), self._classes).permute(0, 3, 1, 2).float()
        soft = hot * best + (1 - hot) * rest
        if ema_logits is not None and progress >= self._start:
            soft = self._keep * soft + (1 - self._keep) * ema_logits.float().softmax(dim=1)
        return _softened(answers, soft)


def _distribution(scores: Tensor) -> Tensor:
    """Scores uint8 [B, S, h, w] as probabilities; what the class map calls void has no share."""
    values = scores.float()
    total = values.sum(dim=1, keepdim=True)
    even = torch.full_like(values, 1 / values.shape[1])
    return torch.where(total > 0, values / total.clamp(min=1.0), even)


def _softened(answers: Answers, soft: Tensor) -> PseudoLabels:
    void = answers.labels == VOID
    labels = soft.argmax(dim=1).masked_fill(void, VOID)
    return PseudoLabels(labels, (~void).float(), soft)
