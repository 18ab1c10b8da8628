"""AdamW with a linear warm-up and a cosine to zero."""

import math

import torch

from corte_student.models import Student
from corte_student.settings import TrainSettings


def build_optimizer(student: Student, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019) with a rate of its own for the encoder.

    Biases and normalisation are not decayed.
    """
    groups = []
    for encoder in (True, False):
        named = [(n, p) for n, p in student.named_parameters() if n.startswith("encoder.") is encoder]
        scale = settings.encoder_lr if encoder else 1.0
        for decayed in (True, False):
            chosen = [p for _, p in named if (p.ndim > 1) is decayed]
            decay = settings.weight_decay if decayed else 0.0
            groups.append({"params": chosen, "scale": scale, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=settings.lr)


def set_rate(optimizer: torch.optim.Optimizer, settings: TrainSettings, step: int) -> float:
    """Set the rate of step `step` (from 0) and return the decoder's."""
    warm = max(1, round(settings.lr_warmup * settings.steps))
    if step < warm:
        share = (step + 1) / warm
    else:
        share = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, settings.steps - warm)))
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * share * group["scale"]
    return settings.lr * share
