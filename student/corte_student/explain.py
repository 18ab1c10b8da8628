"""What a run makes of one image: the answer, its relative confidence, what is kept, what refinement changes.

Strategy: nothing is computed in another way than in training. The run's own labeller, as it was saved at a
step, is given the whole clean image's answer and the ema's view of it, and asked once more.

Legend: S student classes, H W image size.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corte_protocol import TeacherInfo
from corte_student.checkpoint import load_labelling, load_student
from corte_student.classmap import ClassMap, Mapped
from corte_student.errors import CheckpointError
from corte_student.models import Student, resize_logits
from corte_student.pseudo_labels import Answers, PseudoLabeller, PseudoLabels
from corte_student.settings import TrainSettings
from corte_student.statistics import MarginStatistics
from corte_student.training import labeller_of

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One image after `step` steps: the ema's `labels` and the `targets` to learn from, uint8 [H, W]."""

    step: int
    labels: UInt8
    targets: UInt8


def read_settings(run: Path) -> TrainSettings:
    """The settings that a run folder was started with."""
    return TrainSettings.model_validate(json.loads((run / "run.json").read_text())["settings"])


def read_classmap(run: Path, info: TeacherInfo) -> ClassMap:
    """The class map of a run folder. Raises CheckpointError where the teacher's classes are others now."""
    saved = json.loads((run / "run.json").read_text())
    _, spec = load_student(run)
    if len(saved["class_table"]) != len(info.classes):
        raise CheckpointError(f"{run} was trained from a teacher with other classes: name that one's URL")
    return ClassMap(spec.classes, spec.colors, np.array(saved["class_table"], np.uint8))


def stage(run: Path, step: int, pixels: UInt8, mapped: Mapped) -> Stage:
    """What the run of folder `run` made of an image uint8 [H, W, 3] and its answer after `step` steps.

    Raises CheckpointError where no checkpoint of that step was kept.
    """
    settings = read_settings(run)
    student, spec = load_student(run, step)
    labeller = labeller_of(settings, len(spec.classes))
    saved, statistics = load_labelling(run, step)
    labeller.restore(saved)
    # the targets of the step that came next; a checkpoint of the end has none, and shows its last
    progress = min(step, settings.steps - 1) / settings.steps
    targets = choose(labeller, student, statistics, pixels, mapped, progress)
    best = ema_logits(student, pixels).argmax(dim=1)[0]
    return Stage(step, best.to(torch.uint8).numpy(), targets.labels[0].to(torch.uint8).numpy())


@torch.inference_mode()
def ema_logits(ema: Student, pixels: UInt8) -> Tensor:
    """The ema's logits of a clean image at its own size, float [1, S, H, W] on the CPU."""
    device = next(ema.parameters()).device
    picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float().to(device)
    return resize_logits(ema(picture), pixels.shape[:2]).cpu()


def choose(
    labeller: PseudoLabeller,
    ema: Student,
    statistics: MarginStatistics,
    pixels: UInt8,
    mapped: Mapped,
    progress: float,
) -> PseudoLabels:
    """The targets [1, H, W] that `labeller` makes of a whole image; it is left as it was."""
    before = {name: value.clone() for name, value in labeller.state().items()}
    logits = ema_logits(ema, pixels) if labeller.wants_ema(progress) else None
    labels = _plane(mapped.labels)
    assert labels is not None
    answers = Answers(
        labels, _plane(mapped.margin), _plane(mapped.confidence), statistics, _plane(mapped.scores)
    )
    targets = labeller(answers, logits, progress)
    labeller.restore(before)
    return targets


def _plane(plane: UInt8 | None) -> Tensor | None:
    return None if plane is None else torch.from_numpy(np.ascontiguousarray(plane))[None]
