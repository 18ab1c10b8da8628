"""Target images to training batches: asks ahead of the trainer, maps, augments, collates.

Strategy: one coroutine walks the plan. Some positions ahead of the step being assembled, each image is read
and the teacher asked (or the ledger, by the asker), many in flight; assembly waits for the images of its own
step only. The margin statistics that a batch carries cover exactly the images planned up to it, whatever
arrived meanwhile, so a run that trains while it collects can be resumed bit for bit. Only while the teacher
is away, and enough was answered before, images that are paid for stand in for those that are not: training
goes on, and the missing ones are asked about again when the plan comes to them.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corte_student.asking import Asker
from corte_student.classmap import ClassMap, Mapped
from corte_student.data.augment import ViewSettings, cut, draw_geometry, strengthen
from corte_student.data.folder import read_picture
from corte_student.errors import DataError, ImageRefused, Unavailable
from corte_student.plan import Plan, Rarity
from corte_student.pseudo_labels import Answers
from corte_student.queries import IDENTITY, Query
from corte_student.statistics import MarginStatistics
from corte_student.views import ask_views

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class StreamState:
    """What a resume must know: statistics so far, which images they cover, which were set aside and why.

    `areas` int64 [N, S]: pixels of each class in each image's answer, zero where it was not seen yet.
    """

    statistics: MarginStatistics
    seen: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.int64]
    aside: dict[int, str] = field(default_factory=dict)

    @classmethod
    def fresh(cls, classes: int, images: int) -> "StreamState":
        """Nothing seen yet."""
        return cls(
            MarginStatistics.empty(classes), np.zeros(images, np.bool_), np.zeros((images, classes), np.int64)
        )

    @property
    def complete(self) -> bool:
        """Whether every image was seen or set aside."""
        return all(int(image) in self.aside for image in np.flatnonzero(~self.seen))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One step's input: `weak`, `strong` uint8 [B, 3, h, w] in one geometry with `answers`.

    `state` is the stream's state after this batch, so that a checkpoint taken now resumes behind it. `rng` is
    for what is drawn for the batch as a whole.
    """

    step: int
    weak: Tensor
    strong: Tensor
    answers: Answers
    state: StreamState
    rng: np.random.Generator


@dataclass(frozen=True, slots=True, eq=False)
class _Example:
    pixels: UInt8
    mapped: Mapped

    @property
    def nbytes(self) -> int:
        mapped = self.mapped
        maps = (mapped.labels, mapped.margin, mapped.confidence, mapped.scores)
        return self.pixels.nbytes + sum(0 if m is None else m.nbytes for m in maps)


@dataclass(frozen=True, slots=True)
class Reading:
    """How answers are read for the labeller: the queries, and which planes it wants of them."""

    queries: tuple[Query, ...] = (IDENTITY,)
    surrogate: bool = False
    scores: bool = False
    tests: Literal["margin", "confidence"] = "margin"


@dataclass(frozen=True, slots=True)
class _Away:
    """No answer now: the teacher is away."""

    why: Unavailable


_Shelf = OrderedDict[int, "asyncio.Task[_Example | _Away | str]"]
_GLANCE_S = 0.5
"""So often it is looked whether the teacher went away while an image is waited for."""


class Stream:
    """Feeds a queue with every batch of the plan from `first` on, then with None."""

    def __init__(
        self,
        paths: list[Path],
        plan: Plan,
        view: ViewSettings,
        asker: Asker,
        classmap: ClassMap,
        reading: Reading,
        state: StreamState,
        *,
        ahead: int,
        memory_bytes: int,
        away_share: float = 0.5,
        skip_unknown: bool = False,
    ) -> None:
        self.stood_in = 0
        self._away_share, self._skip_unknown = away_share, skip_unknown
        self._paths, self._plan, self._view = paths, plan, view
        self._asker, self._classmap, self._reading, self._state = asker, classmap, reading, state
        self._ahead, self._memory = ahead, memory_bytes
        self._shelf: _Shelf = OrderedDict()
        self._rarity: Rarity | None = None

    async def feed(self, queue: "asyncio.Queue[Batch | None]", first: int) -> None:
        """Put batches `first`.. of the plan into `queue`; ends by itself, so success needs no cancelling."""
        async with asyncio.TaskGroup() as readers:
            for step in range(first, self._plan.steps):
                window = self._window(step)
                for image in window:
                    self._take(image, readers)
                self._make_room(set(window))
                await queue.put(await self._assemble(step, readers))
            for task in self._shelf.values():
                task.cancel()  # of what the plan needs no more; a request under way still comes home
        await queue.put(None)

    def _window(self, step: int) -> list[int]:
        start = step * self._plan.batch
        end = min(start + self._plan.batch + self._ahead, self._plan.steps * self._plan.batch)
        wanted = (self._image(position) for position in range(start, end) if self._known(position))
        return [image for image in dict.fromkeys(wanted) if image not in self._state.aside]

    def _known(self, position: int) -> bool:
        return not self._plan.rare or self._plan.known(position, self._state.complete)

    def _image(self, position: int) -> int:
        if self._rarity is None and self._plan.rare and self._state.complete:
            self._rarity = Rarity(self._state.areas)  # complete: the areas do not change any more
        return self._plan.image_at(position, self._rarity)

    def _take(self, image: int, readers: asyncio.TaskGroup) -> "asyncio.Task[_Example | _Away | str]":
        task = self._shelf.get(image)
        if task is None or (task.done() and isinstance(task.result(), _Away)):  # then it is asked again
            self._shelf[image] = readers.create_task(self._example(self._paths[image]))
        self._shelf.move_to_end(image)
        return self._shelf[image]

    def _make_room(self, window: set[int]) -> None:
        """Forget the longest unused examples beyond the memory that was granted."""
        done = {i: t.result() for i, t in self._shelf.items() if t.done() and not t.exception()}
        total = sum(e.nbytes for e in done.values() if isinstance(e, _Example))
        for image, example in done.items():
            if total <= self._memory:
                break
            if image not in window and isinstance(example, _Example):
                total -= example.nbytes
                del self._shelf[image]

    async def _example(self, path: Path) -> _Example | _Away | str:
        """The picture and its mapped answer, or why this image is set aside, or that it must wait."""
        try:
            picture = await asyncio.to_thread(read_picture, path)
            how = self._reading
            mapped = await ask_views(
                self._asker, self._classmap, picture, how.queries, surrogate=how.surrogate, scores=how.scores
            )
            return _Example(picture.pixels, mapped)
        except (DataError, ImageRefused) as exc:
            return str(exc)
        except Unavailable as exc:
            return _Away(exc)

    async def _usable(self, image: int, readers: asyncio.TaskGroup) -> tuple[int, _Example]:
        """The image, or the next one in the folder's order that is not set aside."""
        count = len(self._paths)
        away: _Away | None = None
        for _ in range(count):
            if image not in self._state.aside:
                example = await self._arrived(image, readers)
                if isinstance(example, _Example):
                    self.stood_in += away is not None
                    return image, example
                if isinstance(example, str):
                    self._state.aside[image] = example
                elif not self._skip_unknown:
                    return await self._stand_in(image, example, readers)
                else:
                    away = example
            image = (image + 1) % count
        if away is not None:
            raise away.why
        raise DataError(f"none of the {count} images can be used; the first: {self._state.aside[0]}")

    async def _arrived(self, image: int, readers: asyncio.TaskGroup) -> _Example | _Away | str:
        """What becomes of an image; that it must wait, as soon as the teacher is seen to be away."""
        task = self._take(image, readers)
        while not (await asyncio.wait([task], timeout=_GLANCE_S))[0]:
            if self._asker.down and self._enough():
                return _Away(Unavailable("the teacher is away"))
        return task.result()

    def _enough(self) -> bool:
        return int(self._state.seen.sum()) >= max(1, self._away_share * len(self._paths))

    async def _stand_in(self, image: int, away: _Away, readers: asyncio.TaskGroup) -> tuple[int, _Example]:
        """The next image in the folder's order that was answered before. Unavailable below the share."""
        if not self._enough():
            raise away.why
        answered = np.flatnonzero(self._state.seen)
        for other in np.roll(answered, -int(np.searchsorted(answered, image))).tolist():
            example = await self._take(other, readers)
            if isinstance(example, _Example):
                self.stood_in += 1
                return other, example
        raise away.why

    async def _assemble(self, step: int, readers: asyncio.TaskGroup) -> Batch:
        examples = []
        for slot in range(self._plan.batch):
            image = self._image(step * self._plan.batch + slot)
            number, example = await self._usable(image, readers)
            self._count(number, example.mapped)
            examples.append(example)
        now = self._state  # its arrays are never written to: `_count` makes new ones
        state = StreamState(now.statistics, now.seen, now.areas, dict(now.aside))
        return await asyncio.to_thread(self._collate, step, examples, state)

    def _count(self, image: int, mapped: Mapped) -> None:
        if self._state.seen[image]:
            return
        plane = mapped.margin if self._reading.tests == "margin" else mapped.confidence
        plane = np.zeros_like(mapped.labels) if plane is None else plane
        fresh = MarginStatistics.of(mapped.labels, plane, len(self._classmap.names))
        seen, areas = self._state.seen.copy(), self._state.areas.copy()
        seen[image], areas[image] = True, fresh.counts
        self._state = StreamState(self._state.statistics + fresh, seen, areas, self._state.aside)

    def _collate(self, step: int, examples: list[_Example], state: StreamState) -> Batch:
        weak, strong = [], []
        maps: dict[str, list[UInt8]] = {"labels": [], "margin": [], "confidence": [], "scores": []}
        for slot, example in enumerate(examples):
            rng = self._plan.view_rng(step, slot)
            height, width = example.mapped.labels.shape
            geometry = draw_geometry((height, width), self._view, rng)
            clean = cut(example.pixels, geometry, self._view, smooth=True)
            weak.append(clean.transpose(2, 0, 1))
            strong.append(strengthen(clean, self._view, rng).transpose(2, 0, 1))
            for name, planes in maps.items():
                plane = getattr(example.mapped, name)
                if plane is not None and plane.ndim == 2:
                    planes.append(cut(plane, geometry, self._view, smooth=False))
                elif plane is not None:
                    each = [cut(p, geometry, self._view, smooth=False) for p in plane]
                    planes.append(np.stack(each))
        stacked = {name: torch.from_numpy(np.stack(p)) if p else None for name, p in maps.items()}
        labels = stacked["labels"]
        assert labels is not None
        answers = Answers(
            labels, stacked["margin"], stacked["confidence"], state.statistics, stacked["scores"]
        )
        return Batch(
            step,
            torch.from_numpy(np.stack(weak)),
            torch.from_numpy(np.stack(strong)),
            answers,
            state,
            self._plan.step_rng(step),
        )
