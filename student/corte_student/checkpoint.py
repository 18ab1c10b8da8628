"""A run folder on disk: settings, log, and the latest checkpoint, in safetensors and JSON only.

    RUN/run.json                    what was started: settings, classes, teacher, images
    RUN/log.jsonl                   one line a log interval
    RUN/checkpoints/step-00000250/  tensors.safetensors, state.json
    RUN/checkpoints/LATEST          the name of the folder above, replaced atomically

Strategy: a checkpoint is written into a folder with a temporary name, synced, renamed, and only then named
in LATEST; the one before it is removed last. At any kill LATEST names a complete checkpoint. No pickle.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from corte_student.durable import sync, write
from corte_student.ema import Ema
from corte_student.errors import CheckpointError
from corte_student.models import Student, build_student
from corte_student.pseudo_labels import PseudoLabeller
from corte_student.statistics import MarginStatistics
from corte_student.stream import StreamState

FORMAT = 1


@dataclass(frozen=True, slots=True)
class StudentSpec:
    """What builds the student again without its encoder's weights: mean and std on the 0..1 scale."""

    encoder: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    width: int
    stride: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def build(self) -> Student:
        """A student of this shape, with random weights."""
        return build_student(
            self.encoder,
            len(self.classes),
            width=self.width,
            stride=self.stride,
            mean=self.mean,
            std=self.std,
        )


@dataclass(slots=True, eq=False)
class TrainState:
    """All that a resume needs and nothing else. `step` counts the steps that are done."""

    step: int
    student: Student
    ema: Ema
    optimizer: torch.optim.Optimizer
    labeller: PseudoLabeller
    stream: StreamState


def save_checkpoint(run: Path, state: TrainState, spec: StudentSpec, *, keep_all: bool = False) -> Path:
    """Write a checkpoint of `state`; returns its folder. Raises CheckpointError, the one before it intact.

    Earlier ones are removed, unless `keep_all`.
    """
    folder = run / "checkpoints" / f"step-{state.step:08d}"
    fresh = folder.with_suffix(".new")
    optimizer = state.optimizer.state_dict()["state"]
    tensors = _prefixed("student", state.student.state_dict())
    tensors |= _prefixed("ema", state.ema.model.state_dict())
    tensors |= _prefixed("labeller", state.labeller.state())
    for index, values in optimizer.items():
        tensors |= _prefixed(f"optimizer.{index}", values)
    tensors["stream.histogram"] = torch.from_numpy(state.stream.statistics.histogram)
    tensors["stream.seen"] = torch.from_numpy(state.stream.seen)
    tensors["stream.areas"] = torch.from_numpy(state.stream.areas)
    tensors["rng.torch"] = torch.get_rng_state()
    aside = {str(image): reason for image, reason in state.stream.aside.items()}
    head = {"format": FORMAT, "step": state.step, "aside": aside, "spec": asdict(spec)}
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, fresh / "tensors.safetensors"
        )
        (fresh / "state.json").write_text(json.dumps(head))
        for file in (fresh / "tensors.safetensors", fresh / "state.json", fresh):
            sync(file)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
        _point(run, folder.name)
    except (OSError, SafetensorError) as exc:
        shutil.rmtree(fresh, ignore_errors=True)
        raise CheckpointError(
            f"cannot write the checkpoint of step {state.step} to {run}: {exc}; "
            "the one before it is intact: free space and go on with --resume"
        ) from exc
    for other in folder.parent.glob("step-*"):
        if other != folder and not keep_all:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def latest(run: Path) -> Path | None:
    """The folder of the latest checkpoint, or None."""
    pointer = run / "checkpoints" / "LATEST"
    if not pointer.is_file():
        return None
    folder = pointer.parent / pointer.read_text().strip()
    return folder if folder.is_dir() else None


def restore(run: Path, state: TrainState) -> TrainState:
    """`state` with the content of the latest checkpoint. Raises CheckpointError."""
    tensors, head = _read(run)
    try:
        state.student.load_state_dict(_under(tensors, "student"))
        state.ema.model.load_state_dict(_under(tensors, "ema"))
        state.labeller.restore(_under(tensors, "labeller"))
        saved = state.optimizer.state_dict()
        saved["state"] = {
            index: _under(tensors, f"optimizer.{index}")
            for group in saved["param_groups"]
            for index in group["params"]
        }
        state.optimizer.load_state_dict(saved)
        torch.set_rng_state(tensors["rng.torch"])
        state.stream = StreamState(
            MarginStatistics(tensors["stream.histogram"].numpy()),
            tensors["stream.seen"].numpy().astype(np.bool_),
            tensors["stream.areas"].numpy(),
            {int(image): reason for image, reason in head["aside"].items()},
        )
        state.step = int(head["step"])
    except (KeyError, RuntimeError, ValueError) as exc:
        raise CheckpointError(f"the checkpoint in {run} does not fit these settings: {exc}") from exc
    return state


def load_student(run: Path, step: int | None = None) -> tuple[Student, StudentSpec]:
    """The trained student (the ema's weights, in eval mode) of a run folder, at its end or at a kept `step`.

    Raises CheckpointError.
    """
    tensors, head = _read(run, step)
    try:
        raw = head["spec"]
        spec = StudentSpec(
            encoder=raw["encoder"],
            classes=tuple(raw["classes"]),
            colors=tuple((c[0], c[1], c[2]) for c in raw["colors"]),
            width=raw["width"],
            stride=raw["stride"],
            mean=tuple(raw["mean"]),
            std=tuple(raw["std"]),
        )
        student = spec.build()
        student.load_state_dict(_under(tensors, "ema"))
    except (KeyError, TypeError, RuntimeError) as exc:
        raise CheckpointError(f"the checkpoint in {run} is not a student: {exc}") from exc
    return student.eval(), spec


def load_statistics(run: Path) -> MarginStatistics:
    """The margin statistics of a run folder's answers. Raises CheckpointError."""
    tensors, _ = _read(run)
    return MarginStatistics(tensors["stream.histogram"].numpy())


def load_labelling(run: Path, step: int | None = None) -> tuple[dict[str, Tensor], MarginStatistics]:
    """The labeller's state and the statistics of the answers, at the end or at a kept `step`.

    Raises CheckpointError.
    """
    tensors, _ = _read(run, step)
    return _under(tensors, "labeller"), MarginStatistics(tensors["stream.histogram"].numpy())


def kept_steps(run: Path) -> list[int]:
    """The steps whose checkpoints are there, ascending."""
    return sorted(int(f.name.removeprefix("step-")) for f in (run / "checkpoints").glob("step-????????"))


def _read(run: Path, step: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    folder = latest(run) if step is None else run / "checkpoints" / f"step-{step:08d}"
    if folder is None:
        raise CheckpointError(f"{run} holds no checkpoint: train one with `corte-student train --out {run}`")
    try:
        head = json.loads((folder / "state.json").read_text())
        tensors = load_file(folder / "tensors.safetensors")
    except (OSError, ValueError, SafetensorError) as exc:
        raise CheckpointError(f"the checkpoint {folder} cannot be read: {exc}") from exc
    if head.get("format") != FORMAT:
        raise CheckpointError(
            f"the checkpoint {folder} has format {head.get('format')}, this version {FORMAT}"
        )
    return tensors, head


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = prefix + "."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _point(run: Path, name: str) -> None:
    write(run / "checkpoints" / "LATEST", name + "\n")
