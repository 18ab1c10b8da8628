"""Every question that a run will ask, asked now: fills the ledger and stops.

Strategy: as many workers as requests may be in flight, and a few more that read ahead; each takes the next
image, asks its questions and forgets both, so memory does not grow with the folder. An image that cannot be
used is set aside and named; what ends the asking ends it after the requests under way came home.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from corte_protocol import VOID
from corte_student.asking import Asker
from corte_student.classmap import ClassMap
from corte_student.data.folder import read_picture
from corte_student.errors import DataError, ImageRefused, Interrupted
from corte_student.queries import Query
from corte_student.stopping import on_signals

_AHEAD = 2
"""Workers beyond the requests in flight: decoding the next image while others wait."""


@dataclass(slots=True)
class Collected:
    """How a collection stands: images done, those set aside and why, pixels by student class (void last)."""

    areas: npt.NDArray[np.int64]
    done: int = 0
    aside: dict[str, str] = field(default_factory=dict)


async def collect(
    asker: Asker,
    classmap: ClassMap,
    root: Path,
    paths: Sequence[Path],
    queries: Sequence[Query],
    *,
    in_flight: int,
    told: Callable[[Collected], None] = lambda collected: None,
) -> Collected:
    """Ask `queries` about each of `paths` (below `root`), and hear of it through `told` after each image.

    Raises Interrupted after a signal, a TeacherError or LedgerError as they come; DataError where no image
    can be used. Whatever was answered is in the ledger then.
    """
    found = Collected(np.zeros(len(classmap.names) + 1, np.int64))
    waiting = iter(paths)  # shared: each worker takes the next
    signals: list[int] = []

    async def work() -> None:
        for path in waiting:
            if signals:
                return
            try:
                found.areas += await _ask(asker, classmap, path, queries)
            except (DataError, ImageRefused) as exc:
                found.aside[path.relative_to(root).as_posix()] = str(exc)
            found.done += 1
            told(found)

    with on_signals(signals.append):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(in_flight + _AHEAD, len(paths))):
                tasks.create_task(work())
    if signals:
        raise Interrupted(signals[0])
    if len(found.aside) == len(paths):
        name, why = next(iter(found.aside.items()))
        raise DataError(f"none of the {len(paths)} images can be used; {name}: {why}")
    return found


async def _ask(
    asker: Asker, classmap: ClassMap, path: Path, queries: Sequence[Query]
) -> npt.NDArray[np.int64]:
    """Pixels by class of the first question's answer; the others are only asked."""
    picture = await asyncio.to_thread(read_picture, path)
    areas: npt.NDArray[np.int64] | None = None
    for query in queries:
        prediction = await asker.answer(picture, query)
        if areas is None:
            mapped = await asyncio.to_thread(classmap.apply, prediction)
            areas = _areas(mapped.labels, len(classmap.names))
    assert areas is not None
    return areas


def _areas(labels: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.int64]:
    counts = np.bincount(labels.ravel(), minlength=VOID + 1)
    return np.append(counts[:classes], counts[VOID]).astype(np.int64)
