"""What several views of one picture say together.

Combination (this project's choice): the bounds of `ClassMap` are averaged over the queries that saw a pixel,
so a margin stays a lower bound of the average's margin; labels alone become votes. Where only labels are
disclosed, votes and local purity stand in for the margin.

Legend: H W picture size, K disclosed classes, S student classes.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from corte_protocol import Prediction, on_grid
from corte_student.asking import Asker
from corte_student.classmap import ClassMap, Mapped
from corte_student.data.folder import Picture
from corte_student.errors import DataError, ImageRefused, SettingsError, Unavailable
from corte_student.queries import Query

UInt8 = npt.NDArray[np.uint8]
Int16 = npt.NDArray[np.int16]

PURITY_WINDOW = 15


async def ask_views(
    asker: Asker,
    classmap: ClassMap,
    picture: Picture,
    queries: Sequence[Query],
    *,
    surrogate: bool = False,
    scores: bool = False,
) -> Mapped:
    """All queries about one picture, combined; see the module.

    `surrogate`: where only labels are disclosed, margin and confidence are made of votes and purity.
    `scores`: with the scores of all student classes. An image that cannot be used, or a teacher that is away,
    raises as it does when it is asked about once: the first of the reasons, not a group.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(asker.answer(picture, query)) for query in queries]
    except ExceptionGroup as group:
        known, others = group.split((DataError, ImageRefused, Unavailable))
        if known is None or others is not None:
            raise
        unusable, _ = known.split((DataError, ImageRefused))
        raise (unusable or known).exceptions[0] from None
    answers = [task.result() for task in asked]
    return await asyncio.to_thread(
        combine, classmap, answers, queries, picture.pixels.shape[:2], surrogate=surrogate, scores=scores
    )


def combine(
    classmap: ClassMap,
    answers: Sequence[Prediction],
    queries: Sequence[Query],
    size: tuple[int, int],
    *,
    surrogate: bool = False,
    scores: bool = False,
) -> Mapped:
    """One answer [H, W] of those to each query; a single identity query is mapped as it is."""
    dense = _averaged_scores(classmap, answers, queries, size) if scores else None
    if len(queries) == 1:
        mapped = replace(classmap.apply(_upright(answers[0], queries[0], size)), scores=dense)
    else:
        lower, upper = _averaged_bounds(classmap, answers, queries, size)
        mapped = replace(classmap.decided(lower, upper), scores=dense)
    if any(answer.probs is None for answer in answers):
        if not surrogate:
            return replace(mapped, margin=None, confidence=None)
        return _surrogate(mapped, len(classmap.names))
    return mapped


def _surrogate(mapped: Mapped, classes: int) -> Mapped:
    """Margin and confidence of label-only answers: votes, where several views voted, times local purity."""
    pure = purity(mapped.labels, classes).astype(np.uint16)
    planes = [pure if p is None else (p * pure + 127) // 255 for p in (mapped.margin, mapped.confidence)]
    margin, confidence = (plane.astype(np.uint8) for plane in planes)
    return replace(mapped, margin=margin, confidence=confidence)


def purity(labels: UInt8, classes: int, window: int = PURITY_WINDOW) -> UInt8:
    """The share of a `window` x `window` neighbourhood that has a pixel's own label, in 1/255: uint8 [H, W].

    A prior that costs no query: labels near an edge between classes are wrong more often. 0 where void.
    """
    pure = np.zeros(labels.shape, np.float32)
    for label in range(classes):
        mine = labels == label
        if mine.any():
            near = cv2.boxFilter(
                mine.astype(np.float32), -1, (window, window), borderType=cv2.BORDER_REPLICATE
            )
            pure[mine] = near[mine]
    # a float mean of ones may be a hair below one, and must not become 254
    share: UInt8 = np.floor(pure * 255 + 1e-3).astype(np.uint8)
    return share


def _upright(answer: Prediction, query: Query, size: tuple[int, int]) -> Prediction:
    if query.name == "identity":
        return answer
    probs = None if answer.probs is None else query.back(on_grid(answer.probs), *size)
    return Prediction(np.ascontiguousarray(query.back(answer.classes, *size)), probs, answer.revision)


def _planes(answer: Prediction, query: Query, size: tuple[int, int]) -> tuple[UInt8, Int16 | None]:
    probs = None if answer.probs is None else query.back(on_grid(answer.probs), *size).astype(np.int16)
    return query.back(answer.classes, *size), probs


def _averaged_bounds(
    classmap: ClassMap, answers: Sequence[Prediction], queries: Sequence[Query], size: tuple[int, int]
) -> tuple[Int16, Int16]:
    slots = len(classmap.names) + 1
    low, high = (np.zeros((slots, *size), np.int16) for _ in range(2))
    for answer, query in zip(answers, queries, strict=True):
        lower, upper = classmap.bounds(*_planes(answer, query, size))
        low[:, :, query.window(size[1])] += lower
        high[:, :, query.window(size[1])] += upper
    seen = _seen(queries, size)
    # the lower bound is rounded down and the upper up, so that the margin stays a lower bound
    return low // seen, -(-high // seen)


def _averaged_scores(
    classmap: ClassMap, answers: Sequence[Prediction], queries: Sequence[Query], size: tuple[int, int]
) -> UInt8:
    total = np.zeros((len(classmap.names), *size), np.int16)
    for answer, query in zip(answers, queries, strict=True):
        total[:, :, query.window(size[1])] += classmap.spread(*_planes(answer, query, size))
    return (total // _seen(queries, size)).astype(np.uint8)


def _seen(queries: Sequence[Query], size: tuple[int, int]) -> Int16:
    """How many queries saw each column, int16 [W]."""
    seen = np.zeros(size[1], np.int16)
    for query in queries:
        seen[query.window(size[1])] += 1
    if not seen.all():
        raise SettingsError("views: together they must show the whole picture")
    return seen
