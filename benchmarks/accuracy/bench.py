"""The table's queue: method x seed on street scenes and on CamVid, resumable, in the background for hours.

    python -m accuracy.bench --pairs street,camvid --rows naive,corte --seeds 0,1,2 --work runs/bench

Strategy: every job is a folder that says itself what is missing (`accuracy.tasks`), so the queue keeps no
state: kill it at any time and start it again, or start several on one work folder. A job is taken by a lock
that its process holds. Jobs go seed by seed, so that the first seed's table is there first. One teacher a
pair and queue, and one ledger a pair: an answer is paid for once, whichever row needs it first.
"""

import argparse
import logging
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from accuracy.jobs import do
from accuracy.rows import PAIRS, ROWS, Pair, find_rows, street
from accuracy.service import Taken, die_with_parent, lock, serving
from accuracy.street import REPORT_IMAGES, TRAIN_IMAGES
from accuracy.tasks import Skipped, Task, complete, finished
from corte_protocol import CorteError
from corte_student.cli import first_cause
from corte_student.errors import Interrupted


def say(line: str) -> None:
    """One line, at once: the output of a background process is read while it runs."""
    print(line, flush=True)


def unfinished(tasks: Sequence[Task]) -> tuple[list[Task], int]:
    """The tasks that are still to be done, and how many cannot be, which are named."""
    found, skipped = [], 0
    for task in tasks:
        try:
            result = finished(task)
            if result is not None and complete(result):
                say(f"{task.label}: finished before")
                continue
        except Skipped as exc:
            skipped += 1
            say(f"{task.label}: SKIPPED: {exc}")
            continue
        found.append(task)
    return found, skipped


def work(tasks: Sequence[Task], url: str | None, threads: int) -> int:
    """Do the tasks that nobody else does; returns how many could not be done. Raises Interrupted."""
    torch.set_num_threads(threads)
    # timm warns about its own weights' metadata; nothing a reader of the log could act on
    logging.getLogger("timm").setLevel(logging.ERROR)
    failed = 0
    for number, task in enumerate(tasks, 1):
        try:
            with lock(task.beside(".lock")):
                say(f"{task.label}: job {number} of {len(tasks)}")
                result = do(task, task.pair.data(task.base, task.seed), url, say)
            say(f"{task.label}: mIoU {100 * result['miou']:.2f} after {result['seconds']:.0f} s")
        except Taken:
            say(f"{task.label}: another queue works on it")
        except Skipped as exc:
            failed += 1
            say(f"{task.label}: SKIPPED: {exc}")
        except (CorteError, BaseExceptionGroup) as exc:
            cause = first_cause(exc)
            if not isinstance(cause, CorteError):
                raise
            if isinstance(cause, Interrupted):
                raise cause from exc
            failed += 1
            say(f"{task.label}: FAILED: {cause}")
    return failed


def _child(tasks: Sequence[Task], url: str | None, threads: int) -> None:
    die_with_parent()
    try:
        sys.exit(work(tasks, url, threads))
    except Interrupted as exc:
        sys.exit(exc.exit_code)


def run_pair(tasks: Sequence[Task], jobs: int, threads: int) -> int:
    """Do the tasks of one pair with `jobs` processes; returns how many could not be done."""
    tasks, skipped = unfinished(tasks)
    if not tasks:
        return skipped
    with _teacher(tasks) as url:
        if jobs == 1:
            return skipped + work(tasks, url, threads)
        # spawned, not forked: torch's threads do not survive a fork
        context = multiprocessing.get_context("spawn")
        children = [context.Process(target=_child, args=(tasks, url, threads)) for _ in range(jobs)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        return skipped + sum(1 for child in children if child.exitcode)


@contextmanager
def _teacher(tasks: Sequence[Task]) -> Iterator[str | None]:
    """The pair's service, where a task asks it."""
    if all(task.row.kind == "truth" for task in tasks):
        yield None
        return
    with serving((*tasks[0].pair.serve, "--disclosure", "margin", "--threads", "1")) as url:
        yield url


def _pairs(flags: argparse.Namespace) -> Iterator[Pair]:
    for name in flags.pairs.split(","):
        if name not in PAIRS:
            raise SystemExit(f"no pair {name!r}; there are {', '.join(PAIRS)}")
        pair = street(flags.train_images, flags.report_images) if name == "street" else PAIRS[name]()
        if pair.missing:
            say(f"{name}: SKIPPED: DATA MISSING: no {', '.join(pair.missing)}; set CORTE_TEST_DATA")
            continue
        seeds = tuple(int(seed) for seed in flags.seeds.split(",")) if flags.seeds else pair.seeds
        yield replace(pair, seeds=seeds)


def main() -> None:
    """Run the queue; the exit status is 1 where a job failed or was skipped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", default=",".join(PAIRS))
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS))
    parser.add_argument("--seeds", default="", help="by default the pair's own")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each")
    parser.add_argument("--set", action="append", default=[], dest="extra", metavar="KEY=VALUE")
    parser.add_argument("--train-images", type=int, default=TRAIN_IMAGES, help="of street scenes")
    parser.add_argument("--report-images", type=int, default=REPORT_IMAGES, help="of street scenes")
    flags = parser.parse_args()
    try:
        rows = find_rows(flags.rows)
    except KeyError as exc:
        raise SystemExit(exc.args[0]) from exc
    failed = 0
    for pair in _pairs(flags):
        tasks = [Task(pair, row, seed, flags.work, tuple(flags.extra)) for seed in pair.seeds for row in rows]
        try:
            failed += run_pair(tasks, flags.jobs, flags.threads)
        except Interrupted as exc:
            say("stopped; the state is saved, start the queue again to go on")
            raise SystemExit(exc.exit_code) from exc
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
