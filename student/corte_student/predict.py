"""Writes what a student sees: label PNGs and overlays, one of each for every image.

    OUT/labels/REL.png      8-bit class numbers with the classes' colours as palette
    OUT/overlays/REL.jpg    the image, tinted by class

Both have the exact size of the upright image; REL is the image's path below its folder.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from corte_student.data.folder import find_images, read_pixels
from corte_student.errors import DataError
from corte_student.evaluate import predict_pixels
from corte_student.models import Student

UInt8 = npt.NDArray[np.uint8]
Rgb = tuple[int, int, int]

_TINT = 0.55  # the class must be recognised and the image still be read


@dataclass(frozen=True, slots=True)
class Job:
    """One image and the two files that are made of it."""

    image: Path
    labels: Path
    overlay: Path


def plan_outputs(images: Path, out: Path) -> list[Job]:
    """What `predict_folder` will write. Raises DataError where an input could be overwritten."""
    source, target = images.resolve(), out.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise DataError(
            f"--out {out} and --images {images} lie inside one another: choose an --out beside the images"
        )
    jobs: dict[Path, Job] = {}
    for image in find_images(images):
        stem = image.relative_to(images)
        labels = out / "labels" / stem.with_suffix(".png")
        if labels in jobs:
            raise DataError(
                f"{jobs[labels].image} and {image} differ only in their suffix and would share {labels}: "
                "rename one"
            )
        jobs[labels] = Job(image, labels, out / "overlays" / stem.with_suffix(".jpg"))
    return list(jobs.values())


def predict_folder(
    student: Student,
    colors: Sequence[Rgb],
    jobs: Sequence[Job],
    on_image: Callable[[int], None] = lambda done: None,
) -> dict[Path, str]:
    """Do the jobs; returns the images that could not be read, each with the reason."""
    unread: dict[Path, str] = {}
    for done, job in enumerate(jobs, start=1):
        try:
            pixels = read_pixels(job.image)
        except DataError as exc:
            unread[job.image] = str(exc)
        else:
            labels = predict_pixels(student, pixels)
            _save(label_picture(labels, colors), job.labels, "PNG")
            _save(Image.fromarray(overlay(pixels, labels, colors)), job.overlay, "JPEG", quality=92)
        on_image(done)
    return unread


def label_picture(labels: UInt8, colors: Sequence[Rgb]) -> Image.Image:
    """Labels uint8 [H, W] as a palette picture whose stored values are the class numbers."""
    picture = Image.fromarray(labels)
    picture.putpalette(palette(colors).tobytes(), "RGB")
    return picture


def overlay(pixels: UInt8, labels: UInt8, colors: Sequence[Rgb]) -> UInt8:
    """`pixels` uint8 [H, W, 3] tinted with the colour of each pixel's class."""
    mixed = (1 - _TINT) * pixels.astype(np.float32) + _TINT * palette(colors)[labels].astype(np.float32)
    return mixed.round().astype(np.uint8)


def palette(colors: Sequence[Rgb]) -> UInt8:
    """Colours by class number, uint8 [256, 3]; what is no class, void included, is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    return table


def _save(picture: Image.Image, path: Path, kind: str, **options: Any) -> None:
    """Whole or not at all: a reader never meets half a picture."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(fresh, kind, **options)
        os.replace(fresh, path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise DataError(
            f"cannot write {path} ({exc.strerror or exc}): free space or choose another --out"
        ) from exc
