"""How the pacer finds, holds and finds again the limit of a teacher that tells nobody: real HTTP, real time.

Usage: python -m speed.pacing [--limits 20,100] [--offsets 0,0.25,0.5,0.75] [--write FILE]. Two minutes a row.

Strategy: the teacher (speed.limited_teacher) is a process of its own; the client is 64 asyncio tasks that ask
without end, through a Pacer and plain httpx, and know no limit. The teacher's own log says what arrived when.
After 50 s it is killed, for 30 s nobody listens, then it runs again for 30 s.

What is counted in a second: for a bucket every span of one second. For a limit by the clock's second that
second: two of them may each hold what is allowed, and the span across both nearly twice that, before the
first refusal says so; every span is reported beside it. (To keep every span below 1.2 X wherever the seconds
begin, none may bring 1.2 times what the one before brought: from 24, for X = 20, to 95, for X = 100, that
alone takes eight seconds, and then the limit must still be met, waited out and settled at, all before the
tenth.)
"""

import argparse
import asyncio
import math
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx

from corte_student.endpoints.hints import wait_of
from corte_student.endpoints.pacing import Outcome, Pacer

_LATENCY_S = 0.05
_TASKS = 64
_BEFORE_S, _OUTAGE_S, _AFTER_S = 50.0, 30.0, 30.0
_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Case:
    """A teacher of `limit` images a second: a bucket (a tenth of them at once), or fixed, from `offset_s`."""

    kind: str
    limit: int
    offset_s: float = 0.0


@dataclass(slots=True)
class Run:
    """Times on the machine's monotonic clock: of 200s at the client; of arrivals, and whether allowed."""

    began: float = 0.0
    back: float = 0.0
    answered: list[float] = field(default_factory=list)
    arrivals: list[tuple[float, bool]] = field(default_factory=list)

    def rate(self, begin: float, end: float) -> float:
        """200s a second in [begin, end)."""
        return sum(begin <= at < end for at in self.answered) / (end - begin)


@dataclass(frozen=True, slots=True)
class Teacher:
    """The process that serves a case, to be killed and started again on the same port."""

    case: Case
    port: int

    def start(self) -> subprocess.Popen[bytes]:
        """Start it; it listens a moment later."""
        burst = "fixed" if self.case.kind == "fixed" else str(self.case.limit / 10)
        arguments = [self.port, self.case.limit, _LATENCY_S, burst, self.case.offset_s]
        command = [sys.executable, "-m", "speed.limited_teacher", *map(str, arguments)]
        return subprocess.Popen(command, cwd=Path(__file__).parents[1])

    async def listening(self) -> None:
        """Wait until it accepts a connection."""
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except ConnectionError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return

    async def stop(self, process: subprocess.Popen[bytes], http: httpx.AsyncClient, run: Run) -> None:
        """Kill it, after what it saw is kept."""
        told = await http.get(f"http://127.0.0.1:{self.port}/arrivals")
        run.arrivals += [(float(at), bool(allowed)) for at, allowed in told.json()]
        process.kill()
        process.wait()


async def _ask(http: httpx.AsyncClient, url: str, pacer: Pacer, run: Run) -> None:
    """One task: asks again and again."""
    loop = asyncio.get_running_loop()
    while True:
        await pacer.enter(loop.time() + _PATIENCE_S)
        told = Outcome("cancelled")
        try:
            answer = await http.post(url, content=b"image")
            if answer.status_code == 200:
                run.answered.append(loop.time())
                told = Outcome("answered")
            else:
                told = Outcome("refused", wait_of(answer.headers, datetime.now(UTC)))
        except httpx.TransportError:
            told = Outcome("lost")
        finally:
            pacer.leave(told)


async def measure(case: Case) -> Run:
    """All phases of one case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    teacher, run = Teacher(case, port), Run()
    pool = httpx.Limits(max_connections=_TASKS + 1, max_keepalive_connections=_TASKS + 1)
    async with httpx.AsyncClient(limits=pool, timeout=30.0, trust_env=False) as http:
        process = teacher.start()
        try:
            await teacher.listening()
            # from a whole second, so that the offset says where in the teacher's second the asking begins
            await asyncio.sleep(1.0 - time.monotonic() % 1.0)
            run.began = time.monotonic()
            pacer = Pacer(_TASKS)
            url = f"http://127.0.0.1:{port}/ask"
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_ask(http, url, pacer, run)) for _ in range(_TASKS)]
                await asyncio.sleep(_BEFORE_S)
                await teacher.stop(process, http, run)
                await asyncio.sleep(_OUTAGE_S)
                process = teacher.start()
                await teacher.listening()
                run.back = time.monotonic()
                await asyncio.sleep(_AFTER_S)
                await teacher.stop(process, http, run)
                for task in tasks:
                    task.cancel()
        finally:
            process.kill()
            process.wait()
    return run


def most_in_a_second(times: Sequence[float]) -> int:
    """The most in any span of one second."""
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def back_after(run: Run, limit: int) -> float:
    """Seconds from the teacher's return to the end of the first second with 90 % of the limit."""
    for step in range(int(10 * (_AFTER_S - 1))):
        begin = run.back + step / 10
        if run.rate(begin, begin + 1.0) >= 0.9 * limit:
            return step / 10 + 1.0
    return math.inf


@dataclass(frozen=True, slots=True)
class Figure:
    """A column: its title, its limit, whether a value keeps it."""

    title: str
    text: str
    value: Callable[[Case, Run], float]
    keeps: Callable[[float], bool] | None


def _own_second(case: Case, run: Run) -> float:
    times = sorted(at for at, _ in run.arrivals)
    if case.kind == "fixed":
        return max(Counter(math.floor(at - case.offset_s) for at in times).values()) / case.limit
    return most_in_a_second(times) / case.limit


def _any_second(case: Case, run: Run) -> float:
    return most_in_a_second(sorted(at for at, _ in run.arrivals)) / case.limit


def _refused(case: Case, run: Run) -> float:
    return 100 * sum(not allowed for _, allowed in run.arrivals) / len(run.arrivals)


FIGURES = (
    Figure(
        "200s in s 10..20, share of X",
        ">= 0.95",
        lambda case, run: run.rate(run.began + 10, run.began + 20) / case.limit,
        lambda value: value >= 0.95,
    ),
    Figure(
        "in s 20..50",
        "",
        lambda case, run: run.rate(run.began + 20, run.began + _BEFORE_S) / case.limit,
        None,
    ),
    Figure("refused, % of all", "< 2", _refused, lambda value: value < 2),
    Figure("most in a second, of X", "<= 1.2", _own_second, lambda value: value <= 1.2),
    Figure("in any span of 1 s", "", _any_second, None),
    Figure(
        "s until 0.9 X again",
        "<= 5",
        lambda case, run: back_after(run, case.limit),
        lambda value: value <= 5,
    ),
    Figure(
        "in s 5..30 after",
        "",
        lambda case, run: run.rate(run.back + 5, run.back + _AFTER_S) / case.limit,
        None,
    ),
)


def table(rows: Sequence[tuple[Case, Run]]) -> str:
    """Markdown: a row a case, each figure below its limit."""
    lines = [
        "| teacher | X | requests | " + " | ".join(figure.title for figure in FIGURES) + " | |",
        "|---|---:|---:|" + "---:|" * len(FIGURES) + "---|",
        "| limit | | | " + " | ".join(figure.text for figure in FIGURES) + " | |",
    ]
    for case, run in rows:
        name = "bucket" if case.kind == "bucket" else f"by the second, from {case.offset_s:g} s"
        values = [figure.value(case, run) for figure in FIGURES]
        kept = all(
            figure.keeps is None or figure.keeps(value) for figure, value in zip(FIGURES, values, strict=True)
        )
        cells = " | ".join(f"{value:.2f}" for value in values)
        lines.append(
            f"| {name} | {case.limit} | {len(run.arrivals)} | {cells} | {'kept' if kept else 'MISSED'} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write; 1 if a limit is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limits", default="20,100", help="images a second, with commas")
    parser.add_argument("--offsets", default="0,0.25,0.5,0.75", help="where the teacher's seconds begin")
    parser.add_argument("--write", type=Path, help="also write the table to this Markdown file")
    options = parser.parse_args()
    cases = []
    for limit in map(int, options.limits.split(",")):
        cases.append(Case("bucket", limit))
        cases += [Case("fixed", limit, float(offset)) for offset in options.offsets.split(",")]
    rows = []
    before = os.getloadavg()[0]
    for case in cases:
        rows.append((case, asyncio.run(measure(case))))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    text = table(rows)
    print(text)
    if options.write is not None:
        title = f"# Pacing against a hidden limit, {datetime.now(UTC):%Y-%m-%d}"
        how = (
            f"`python -m speed.pacing --limits {options.limits} --offsets {options.offsets}`: "
            f"{_LATENCY_S * 1000:.0f} ms latency, {_TASKS} tasks, {_BEFORE_S:.0f} s, then an outage of "
            f"{_OUTAGE_S:.0f} s, then {_AFTER_S:.0f} s; 429 with `Retry-After: 1`; one run a row. Client and "
            f"teacher share {os.cpu_count()} cores with whatever else runs (load {before:.1f} at the start, "
            f"{os.getloadavg()[2]:.1f} on average over the last quarter of an hour)."
        )
        what = (
            "Most in a second: arrivals, cold start included. For the bucket (X a second, X/10 at once) in "
            "any span of a second; for the limit by the clock's second in that second: a span across two "
            "of them may hold more before the first refusal tells; it is beside it, without a limit."
        )
        options.write.write_text(f"{title}\n\n{how}\n\n{what}\n\n{text}\n")
    return 1 if "MISSED" in text else 0


if __name__ == "__main__":
    sys.exit(main())
