"""Scores labels against the truth, with one code for a student and for the black box itself.

Strategy: whatever predicts is a coroutine from an image file to its labels; `score` runs a few at a time,
reads the truth beside each and adds up one confusion matrix. Integers add up alike in any order.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from corte_student.asking import Asker
from corte_student.classmap import ClassMap
from corte_student.data.folder import read_picture, read_pixels
from corte_student.data.layouts import read_labels
from corte_student.errors import DataError, ImageRefused
from corte_student.metrics import ConfusionMatrix
from corte_student.models import Student, resize_logits

UInt8 = npt.NDArray[np.uint8]
Predict = Callable[[Path], Awaitable[UInt8]]


def predict_pixels(student: Student, pixels: UInt8) -> UInt8:
    """The student's best class of each pixel of uint8 [H, W, 3], as uint8 [H, W].

    One image at its own size, arg-max of the logits resized to it: what a device would do.
    """
    device = next(student.parameters()).device
    with torch.inference_mode():
        picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(device)
        logits = resize_logits(student(picture), pixels.shape[:2])
        labels: UInt8 = logits.argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
    return labels


def student_predicts(student: Student) -> Predict:
    """A student, to be scored. It must be in eval mode."""

    async def predict(image: Path) -> UInt8:
        return await asyncio.to_thread(lambda: predict_pixels(student, read_pixels(image)))

    return predict


def teacher_predicts(asker: Asker, classmap: ClassMap) -> Predict:
    """The black box, to be scored in the student's classes; every answer goes through the ledger."""

    async def predict(image: Path) -> UInt8:
        picture = await asyncio.to_thread(read_picture, image)
        try:
            prediction = await asker.answer(picture)
        except ImageRefused as exc:
            # a score without it would be a score of another set of images
            raise DataError(f"the teacher will not take {image}: {exc}") from exc
        return (await asyncio.to_thread(classmap.apply, prediction)).labels

    return predict


async def score(
    predict: Predict,
    pairs: Sequence[tuple[Path, Path]],
    *,
    layout: str,
    classes: int,
    in_flight: int = 1,
    on_image: Callable[[int], None] = lambda done: None,
) -> ConfusionMatrix:
    """The confusion matrix of `predict` over pairs of image and label file, `in_flight` at a time.

    `on_image` hears after each image how many are done. The first failure ends it, as an ExceptionGroup.
    """
    total = ConfusionMatrix(classes)
    waiting = iter(pairs)  # shared: each worker takes the next pair
    done = itertools.count(1)

    async def work() -> None:
        for image, label_file in waiting:
            predicted = await predict(image)
            truth = await asyncio.to_thread(read_labels, label_file, layout, classes)
            total.update(truth, predicted, source=str(label_file))
            on_image(next(done))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(in_flight, len(pairs))):
            tasks.create_task(work())
    return total
