"""How right the pixels are that a student learns from, which only a benchmark can know: it reads the labels.

Strategy: restore the end of a finished run and let its own labeller choose once more, at progress 1, on whole
clean train images. Answers come from the ledger alone, so nothing is asked for this; the ema sees the clean
image, as in training. Every image meets the state in which the run ended, none the traces of the one before.

Legend: S student classes, H W image size.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from corte_protocol import VOID
from corte_student.asking import Asker, ask_info
from corte_student.checkpoint import restore
from corte_student.classmap import ClassMap, load_classmap
from corte_student.data.folder import find_images, read_picture
from corte_student.data.layouts import pair as pair_up
from corte_student.data.layouts import read_labels
from corte_student.endpoints import connect
from corte_student.explain import choose
from corte_student.ledger import Ledger
from corte_student.pseudo_labels import PseudoLabels
from corte_student.terms import settle
from corte_student.training import Job, build
from corte_student.views import ask_views

IMAGES = 100


@dataclass(frozen=True, slots=True)
class Kept:
    """Shares between 0 and 1, None where no such pixel was seen.

    `end`: of the answered pixels, those kept. `right`: of the kept and labelled pixels' weight, what is
    right. `answers_right`: of the answered and labelled pixels, those whose answer is right. `looked_at`
    counts the images.
    """

    end: float | None
    right: float | None
    answers_right: float | None
    looked_at: int


def measure(job: Job, labels: Path, layout: str, count: int = IMAGES) -> Kept:
    """Look at `count` train images, spread over those that the run has seen.

    `job` as the run was started, its URL that of a running teacher, which is asked for nothing but its
    info. Raises CheckpointError, DataError or TeacherError.
    """
    return asyncio.run(_measure(job, labels, layout, count))


async def _measure(job: Job, labels: Path, layout: str, count: int) -> Kept:
    paths = find_images(job.images)
    truths = dict(pair_up(job.images, labels, layout))
    assert job.ledger is not None
    endpoint = connect(job.url, deadline_s=60, connections=1)
    ledger = Ledger.open(job.ledger)
    try:
        info, _ = await ask_info(endpoint, ledger, job.url)
        classmap = load_classmap(job.classes, info) if job.classes else ClassMap.identity(info)
        state, _ = build(job, classmap, len(paths))
        state = restore(job.out, state)
        terms = settle(info, job.settings, state.labeller)
        asker = Asker(None, ledger, info, terms.level, 1)
        tally = _Tally()
        for place in _spread(np.flatnonzero(state.stream.seen), count):
            picture = read_picture(paths[place])
            scores = state.labeller.wants_scores
            mapped = await ask_views(
                asker, classmap, picture, terms.queries, surrogate=terms.surrogate, scores=scores
            )
            targets = await asyncio.to_thread(
                choose,
                state.labeller,
                state.ema.model,
                state.stream.statistics,
                picture.pixels,
                mapped,
                1.0,
            )
            truth = read_labels(truths[paths[place]], layout, len(classmap.names))
            tally.add(targets, mapped.labels, truth)
        return tally.kept()
    finally:
        await endpoint.aclose()
        ledger.close()


class _Tally:
    """Adds up images."""

    def __init__(self) -> None:
        self._images = self._answered = self._kept = self._known = self._known_right = 0
        self._weight = self._right = 0.0

    def add(self, targets: PseudoLabels, said: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> None:
        """One image: its targets [1, H, W], its answer and its truth [H, W]."""
        labels, weights = targets.labels[0].numpy(), targets.weights[0].numpy()
        kept = (labels != VOID) & (weights > 0)
        self._images += 1
        self._answered += int((said != VOID).sum())
        self._kept += int(kept.sum())
        labelled = truth != VOID
        self._known += int((labelled & (said != VOID)).sum())
        self._known_right += int((labelled & (said == truth)).sum())
        self._weight += float(weights[kept & labelled].sum(dtype=np.float64))
        self._right += float(weights[kept & labelled & (labels == truth)].sum(dtype=np.float64))

    def kept(self) -> Kept:
        """The shares."""
        return Kept(
            self._kept / self._answered if self._answered else None,
            self._right / self._weight if self._weight else None,
            self._known_right / self._known if self._known else None,
            self._images,
        )


def _spread(places: npt.NDArray[np.intp], count: int) -> Sequence[int]:
    """At most `count` of `places`, evenly spaced: neighbours are frames of one scene."""
    if len(places) <= count:
        return [int(p) for p in places]
    return [int(places[i * len(places) // count]) for i in range(count)]
