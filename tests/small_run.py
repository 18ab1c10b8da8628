"""A run folder with a small untrained student, and small labelled images, for tests that need files."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from corte_student.checkpoint import StudentSpec, TrainState, save_checkpoint
from corte_student.ema import Ema
from corte_student.models import Student, build_student
from corte_student.pseudo_labels import Refinement, Selection, build_labeller
from corte_student.stream import StreamState

CLASSES = ("road", "sky", "car")
COLORS = ((128, 64, 128), (70, 130, 180), (0, 0, 142))
_ENCODER = "mobilenetv3_small_050"


def small_student(classes: int = len(CLASSES), seed: int = 0) -> Student:
    """Random weights by `seed`, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_student(_ENCODER, classes, width=8).eval()


def save_run(run: Path, student: Student, classes: tuple[str, ...] = CLASSES) -> Path:
    """A run folder whose checkpoint holds `student`."""
    mean, std = (tuple((t.flatten() / 255).tolist()) for t in (student.mean, student.std))
    spec = StudentSpec(_ENCODER, classes, COLORS[: len(classes)], 8, 4, mean, std)
    state = TrainState(
        step=1,
        student=student,
        ema=Ema(student, 10),
        optimizer=torch.optim.SGD(student.parameters(), lr=0.1),
        labeller=build_labeller(
            "naive", len(classes), selection=Selection(), refinement=Refinement(), least=0.5, seed=0
        ),
        stream=StreamState.fresh(len(classes), 1),
    )
    save_checkpoint(run, state, spec)
    return run


def save_images(folder: Path, sizes: dict[str, tuple[int, int]], seed: int = 0) -> list[Path]:
    """Noise images by name, each of a size (height, width)."""
    rng = np.random.default_rng(seed)
    paths = []
    for name, (height, width) in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        paths.append(path)
    return paths


def save_label(path: Path, labels: npt.NDArray[np.generic]) -> Path:
    """Labels uint8 [H, W] as an index PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)
    return path


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file."""
    with Image.open(path) as picture:
        return picture.size
