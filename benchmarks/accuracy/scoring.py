"""Scores a row image by image: the counts that the table and the bootstrap are made of.

Strategy: one confusion matrix an image, int32 [N, C, C + 1], kept with the image names as one npz file. All
that a table prints follows from them; they add up to the matrix of the whole set.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from accuracy.compare import sequence_of
from accuracy.rows import Data, Pair
from corte_protocol import Disclosure
from corte_student.asking import Asker, Tally, ask_info
from corte_student.checkpoint import load_student
from corte_student.classmap import ClassMap, load_classmap
from corte_student.cli import first_cause
from corte_student.data.folder import read_picture
from corte_student.data.layouts import pair as pair_up
from corte_student.data.layouts import read_labels
from corte_student.endpoints import connect
from corte_student.errors import DataError, ImageRefused
from corte_student.evaluate import Predict, student_predicts
from corte_student.ledger import Ledger
from corte_student.metrics import ConfusionMatrix
from corte_student.queries import Query, parse_views
from corte_student.views import ask_views

LEVEL = Disclosure(2, 8)
"""What every row is given of an answer: `margin`."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Image names, and their counts int32 [N, C, C + 1] in the same order."""

    names: tuple[str, ...]
    counts: npt.NDArray[np.int32]

    def total(self, only: str | None = None) -> ConfusionMatrix:
        """The matrix of all images, or of those of the sequence `only`."""
        matrix = ConfusionMatrix(self.counts.shape[1])
        taken = [only is None or sequence_of(name) == only for name in self.names]
        matrix.counts = self.counts[taken].sum(axis=0, dtype=np.int64)
        return matrix

    def save(self, path: Path) -> None:
        """Write an npz file, whole or not at all."""
        fresh = path.with_suffix(".new.npz")
        np.savez_compressed(fresh, names=np.array(self.names), counts=self.counts)
        os.replace(fresh, path)

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as held:
            return cls(tuple(held["names"].tolist()), held["counts"])


async def score_images(
    predict: Predict, images: Path, labels: Path, layout: str, classes: int, in_flight: int = 1
) -> Scores:
    """Score `predict` on every image of a folder, `in_flight` at a time. Raises DataError or TeacherError."""
    pairs = pair_up(images, labels, layout)
    counts = np.zeros((len(pairs), classes, classes + 1), np.int32)
    waiting = iter(enumerate(pairs))  # shared: each worker takes the next pair

    async def work() -> None:
        for place, (image, label) in waiting:
            matrix = ConfusionMatrix(classes)
            predicted = await predict(image)
            matrix.update(read_labels(label, layout, classes), predicted, source=str(label))
            counts[place] = matrix.counts

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(in_flight, len(pairs))):
            tasks.create_task(work())
    return Scores(tuple(image.relative_to(images).as_posix() for image, _ in pairs), counts)


def score_student(run: Path, pair: Pair, images: Path, labels: Path) -> Scores:
    """The ema of a run's last checkpoint. Raises CheckpointError or DataError."""
    student, spec = load_student(run)
    return asyncio.run(
        score_images(student_predicts(student), images, labels, pair.layout, len(spec.classes))
    )


def score_teacher(
    url: str, ledger: Path, pair: Pair, folders: Sequence[tuple[Path, Path]], views: Sequence[str]
) -> tuple[list[Scores], Tally]:
    """The black box asked over `views`, on each folder of (images, labels); with what the asking cost.

    Raises SettingsError for an unknown view, DataError for an image that is refused, TeacherError.
    """

    async def run() -> tuple[list[Scores], Tally]:
        endpoint = connect(url, deadline_s=120, connections=4)
        store = Ledger.open(ledger)
        try:
            info, _ = await ask_info(endpoint, store, url)
            classmap = load_classmap(pair.classmap, info) if pair.classmap else ClassMap.identity(info)
            asker = Asker(endpoint, store, info, LEVEL, 4)
            predict = _views_predict(asker, classmap, parse_views(views))
            found = [
                await score_images(predict, images, labels, pair.layout, len(pair.classes), in_flight=4)
                for images, labels in folders
            ]
            return found, asker.tally
        finally:
            await endpoint.aclose()
            store.close()

    return asyncio.run(run())


def _views_predict(asker: Asker, classmap: ClassMap, queries: Sequence[Query]) -> Predict:
    """The labels of all queries about an image combined, as a student would be taught them."""

    async def predict(image: Path) -> npt.NDArray[np.uint8]:
        picture = await asyncio.to_thread(read_picture, image)
        try:
            return (await ask_views(asker, classmap, picture, queries)).labels
        except* ImageRefused as exc:
            # a score without it would be a score of another set of images
            raise DataError(f"the teacher will not take {image}: {first_cause(exc)}") from exc

    return predict


def folders_of(pair: Pair, data: Data) -> list[tuple[str, Path, Path]]:
    """What is scored: name, images, labels. The report set first; then train, where the pair says so."""
    folders = [("report", data.report, data.report_labels)]
    return folders + ([("train", data.train, data.train_labels)] if pair.sequences else [])
