"""One optimiser step: targets from the answers and the ema, mixing, loss, backward, ema.

Strategy: everything after the network works on every `loss_stride`-th pixel. The sampled phase wanders with
the step, so that no half-pixel shift is learned, and a stride of 2 costs a quarter of the loss.

Legend: B batch, S student classes, H W crop, h w its sampled grid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from corte_protocol import VOID
from corte_student.checkpoint import TrainState
from corte_student.mixing import MixSettings, draw_regions, mask_blocks, paste_pixels, paste_targets
from corte_student.models import resize_logits
from corte_student.objective import balanced, pixel_loss
from corte_student.optim import set_rate
from corte_student.pseudo_labels import Answers, PseudoLabels
from corte_student.settings import TrainSettings
from corte_student.stream import Batch


@dataclass(frozen=True, slots=True, eq=False)
class Signals:
    """What can be seen without labels, int64 [S] pixel counts of one batch.

    `said` by the answers' class, `agreed` of those where the ema says the same, `ema` by the ema's class;
    `confidence` float scalar, the ema's mean best probability.
    """

    said: Tensor
    agreed: Tensor
    ema: Tensor
    confidence: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class StepReport:
    """One step's outcome as tensors: `loss` scalar, `kept` and `answered` int64 [S] pixels per class."""

    loss: Tensor
    kept: Tensor
    answered: Tensor
    rate: float
    signals: Signals | None


class Step:
    """Advances a `TrainState` by one batch at a time."""

    def __init__(self, state: TrainState, settings: TrainSettings, device: torch.device) -> None:
        self.state, self._settings, self._device = state, settings, device
        self._mix = MixSettings(
            settings.class_mix,
            settings.cut_mix,
            settings.mask_share,
            settings.mask_block,
            settings.mask_ratio,
        )

    def __call__(self, batch: Batch) -> StepReport:
        """One optimiser step on `batch`."""
        state, settings = self.state, self._settings
        stride = settings.loss_stride
        phase = (batch.step % stride, batch.step // stride % stride)
        whole = batch.answers.to(self._device)
        answers = whole.sampled(stride, phase)
        progress = batch.step / settings.steps
        looks = (batch.step + 1) % settings.log_every == 0
        wants = state.labeller.wants_ema(progress)
        ema_logits = self._ema_logits(batch.weak, stride, phase) if wants or looks else None
        targets = state.labeller(answers, ema_logits if wants else None, progress)
        weighted = balanced(targets, answers.statistics.counts, settings.class_balance)
        strong, mixed = self._mixed(batch, whole, weighted, phase)
        rate = set_rate(state.optimizer, settings, batch.step)
        state.student.train()
        loss = pixel_loss(state.student(strong), mixed, settings.loss)
        self._descend(loss)
        state.ema.update(state.student, batch.step)
        state.step, state.stream = batch.step + 1, batch.state
        classes = state.student.classes
        seen = signals(answers, ema_logits, classes) if looks and ema_logits is not None else None
        kept, answered = per_class(targets.labels, classes), per_class(answers.labels, classes)
        return StepReport(loss.detach(), kept, answered, rate, seen)

    def _mixed(
        self, batch: Batch, whole: Answers, targets: PseudoLabels, phase: tuple[int, int]
    ) -> tuple[Tensor, PseudoLabels]:
        """The strong view as the network takes it, and its targets."""
        rng = batch.rng
        strong = batch.strong.to(self._device, non_blocking=True)
        if self._mix.mixes:
            regions = draw_regions(whole.labels, self._mix, rng)
            stride = self._settings.loss_stride
            strong = paste_pixels(strong, regions)
            targets = paste_targets(targets, regions[:, phase[0] :: stride, phase[1] :: stride])
        if self._mix.masked > 0:
            strong = mask_blocks(strong, self.state.student.mean, self._mix, rng)
        return _as_input(strong), targets

    def _descend(self, loss: Tensor) -> None:
        optimizer = self.state.optimizer
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.state.student.parameters(), self._settings.clip)
        optimizer.step()

    @torch.no_grad()
    def _ema_logits(self, weak: Tensor, stride: int, phase: tuple[int, int]) -> Tensor:
        """The ema's logits of the weak view on the sampled grid, [B, S, h, w]."""
        pixels = _as_input(weak.to(self._device, non_blocking=True))
        logits = resize_logits(self.state.ema.model(pixels), (weak.shape[-2], weak.shape[-1]))
        return logits[..., phase[0] :: stride, phase[1] :: stride].contiguous()


def signals(answers: Answers, ema_logits: Tensor, classes: int) -> Signals:
    """Agreement of answers and ema on one batch, void answers left out."""
    best, ema = ema_logits.softmax(dim=1).max(dim=1)
    seen = answers.labels != VOID
    agreed = answers.labels.long().masked_fill(ema != answers.labels, VOID)
    return Signals(
        per_class(answers.labels, classes),
        per_class(agreed, classes),
        per_class(ema.masked_fill(~seen, VOID), classes),
        best.mean(),
    )


def per_class(labels: Tensor, classes: int) -> Tensor:
    """How many pixels have each class, int64 [S]; void is not counted."""
    return torch.bincount(labels.flatten().long(), minlength=VOID + 1)[:classes]


def _as_input(pixels: Tensor) -> Tensor:
    return pixels.float().contiguous(memory_format=torch.channels_last)
