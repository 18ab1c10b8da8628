"""What a run will cost before it is paid: requests, bytes, minutes, money, disk, training time.

Strategy: read every image once, as a run would, and look each question up in the ledger; ask about three of
the unanswered ones, which are paid for and kept like any others; the first alone, the next two together, so
that a teacher which answers one at a time is told from one that answers many. Time per request at c in
flight is Amdahl's law with the serial share so measured; the pacer's slow start is added from its own
schedule.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from corte_student.asking import Asker
from corte_student.data.folder import read_picture
from corte_student.endpoints.rate import slow_start_s
from corte_student.errors import DataError
from corte_student.metering import Purse
from corte_student.queries import Query

PROBES = 3
_READERS = 2
_ROW_OVERHEAD = 1.05
"""A row's key, checksum and share of SQLite's pages, beside the answer."""
_SERIAL_NOISE = 0.15
"""Below this share two probes together took no longer than one."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What is in the folder, seen from the ledger; from `questions` on, what is to be asked."""

    images: int = 0
    unreadable: int = 0
    duplicates: int = 0
    known: int = 0
    questions: int = 0
    bytes_up: int = 0
    micros: int = 0

    def __add__(self, other: "Survey") -> "Survey":
        return Survey(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Probe:
    """What asking about up to three images showed: seconds, bytes an answer takes on the wire and on disk."""

    asked: int
    latency_s: float
    serial: float
    bytes_down: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A survey and a probe, multiplied out. `seconds` for asking; `disk` in bytes."""

    survey: Survey
    probe: Probe | None
    seconds: float
    bytes_down: int
    disk: int


async def survey(
    asker: Asker,
    paths: Sequence[Path],
    queries: Sequence[Query],
    purse: Purse,
    told: Callable[[int], None] = lambda done: None,
) -> tuple[Survey, list[Path]]:
    """Look at every image; with it, the first images (at most three, spread) that have an unanswered
    question.
    """
    looked: list[Survey] = []
    fresh: list[Path] = []
    seen: set[str] = set()
    waiting = iter(paths)

    async def work() -> None:
        for path in waiting:
            one = await _looked(asker, path, queries, purse, seen)
            looked.append(one)
            if one.questions:
                fresh.append(path)
            told(len(looked))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(_READERS):
            tasks.create_task(work())
    count = min(PROBES, len(fresh))
    return sum(looked, Survey()), [fresh[i * len(fresh) // count] for i in range(count)]


async def _looked(asker: Asker, path: Path, queries: Sequence[Query], purse: Purse, seen: set[str]) -> Survey:
    """The survey of one image."""
    try:
        picture = await asyncio.to_thread(read_picture, path)
    except DataError:
        return Survey(images=1, unreadable=1)
    if picture.pixel_digest in seen:
        return Survey(images=1, duplicates=1)
    seen.add(picture.pixel_digest)
    found = Survey(images=1)
    for query in queries:
        if not await asker.knows(picture, query):
            shown = await asyncio.to_thread(query.shown, picture)
            pixels = shown.pixels.shape[0] * shown.pixels.shape[1]
            micros = 0 if purse.price is None else purse.price.cost(pixels)
            found += Survey(questions=1, bytes_up=len(shown.body), micros=micros)
    return found if found.questions else replace(found, known=1)


async def answered(asker: Asker, paths: Sequence[Path], queries: Sequence[Query]) -> list[Path]:
    """Up to three images about which the ledger knows everything: to time a step on."""
    found: list[Path] = []
    for path in paths:
        try:
            picture = await asyncio.to_thread(read_picture, path)
        except DataError:
            continue
        if all([await asker.knows(picture, query) for query in queries]):
            found.append(path)
        if len(found) == PROBES:
            break
    return found


async def probe(asker: Asker, paths: Sequence[Path], queries: Sequence[Query]) -> Probe | None:
    """Ask about `paths` (at most three), the first alone. None where there is nothing to ask."""
    if not paths:
        return None
    clock = asyncio.get_running_loop().time

    async def timed(path: Path) -> float:
        picture = await asyncio.to_thread(read_picture, path)
        began = clock()
        for query in queries:
            await asker.answer(picture, query)
        return (clock() - began) / len(queries)

    before = asker.tally
    first = await timed(paths[0])  # opens the connection: slower than those that follow
    together = sorted(await asyncio.gather(*(timed(path) for path in paths[1:PROBES])))
    alone = max(1e-4, together[0] if together else first)
    serial = min(1.0, (together[1] - alone) / alone) if len(together) > 1 else 0.0
    sent = asker.tally.sent - before.sent
    down = (asker.tally.bytes_down - before.bytes_down) // max(1, sent)
    return Probe(sent, alone, serial if serial > _SERIAL_NOISE else 0.0, down)


def estimate(found: Survey, seen: Probe | None, in_flight: int, *, ramp: bool) -> Estimate:
    """What is left to ask after the probe, multiplied out. `ramp`: the pacer starts slowly (foreign
    teachers).
    """
    if seen is None:
        return Estimate(found, None, 0.0, 0, 0)
    rest = max(0, found.questions - seen.asked)
    rounds = -(-rest // in_flight)
    seconds = seen.latency_s * ((1 - seen.serial) * rounds + seen.serial * rest)
    if ramp and rest:
        seconds += slow_start_s(rest, rest / seconds)
    down = found.questions * seen.bytes_down
    return Estimate(found, seen, seconds, down, round(down * _ROW_OVERHEAD))
