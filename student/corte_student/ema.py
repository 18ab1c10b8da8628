"""The exponential moving average of the student's weights, always called *ema*, never teacher."""

import copy

import torch
from torch import Tensor, nn

from corte_student.models import Student


class Ema:
    """A second student whose weights follow the first: pairs by name, copies what is not a float.

    The rate at step n of N is min(1 - 1/(n+1), 1 - 1/(span N), 0.999): short runs forget their random
    start, long ones average a thousand steps; `span` is the share of the run that the average looks back.
    BatchNorm buffers follow as the weights do. CoRTe refines with a moving average of the student (arXiv
    2402.13122); the rate is this project's choice.
    """

    def __init__(self, student: Student, steps: int, span: float = 0.05) -> None:
        self.model = copy.deepcopy(student).eval().requires_grad_(False)
        self._steps, self._span = steps, span

    @staticmethod
    def rate(step: int, steps: int, span: float = 0.05) -> float:
        """The share of the old average that step `step` (from 0) of `steps` keeps."""
        return max(0.0, min(1 - 1 / (step + 1), 1 - 1 / (span * steps), 0.999))

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Follow `student` after its step `step`."""
        rate = self.rate(step, self._steps, self._span)
        fresh = student.state_dict()
        old: list[Tensor] = []
        new: list[Tensor] = []
        for name, value in self.model.state_dict().items():
            if value.dtype.is_floating_point:
                old.append(value)
                new.append(fresh[name])
            else:
                value.copy_(fresh[name])
        torch._foreach_lerp_(old, new, 1 - rate)
