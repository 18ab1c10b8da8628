"""Does one job of the queue: one row of one pair with one seed, from whatever is there to result.json.

Strategy: look at the folder, do what is missing, write the result last and whole.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from accuracy.kept import measure
from accuracy.outcome import head, student_result, teacher_result
from accuracy.rows import Data
from accuracy.tasks import Task, commit, complete, finished, now, steps_done, trained, write_json
from accuracy.truth import TruthEndpoint, write_classmap
from corte_protocol import TeacherInfo
from corte_student.asking import Tally
from corte_student.classmap import ClassMap
from corte_student.data.folder import find_images
from corte_student.data.layouts import pair as pair_up
from corte_student.data.layouts import read_labels
from corte_student.terms import Terms
from corte_student.trainer import Interval
from corte_student.training import Job, Observer, train

Tell = Callable[[str], None]


def do(task: Task, data: Data, url: str | None, tell: Tell) -> dict[str, Any]:
    """Do what is missing of a job; returns its result. Raises Skipped or a CorteError.

    `url` is the teacher's; None where the row needs none. `tell` gets a line at a time.
    """
    sizes = {"train": len(find_images(data.train)), "report": len(find_images(data.report))}
    result = finished(task)
    if result is None:
        if task.row.kind == "teacher":
            assert url is not None
            result = teacher_result(task, data, url)
        else:
            if not trained(task):
                asyncio.run(train(_job(task, data, url), _Watch(task, tell), _endpoint(task, data)))
            result = student_result(task, data, sizes["train"])
        result = head(task, sizes) | result
        write_json(task.folder / "result.json", result)
    if not complete(result):
        result["kept"] |= asdict(measure(_job(task, data, url), data.train_labels, task.pair.layout))
        write_json(task.folder / "result.json", result)
    return result


def _job(task: Task, data: Data, url: str | None) -> Job:
    """The training job. A row that learns from labels has a teacher and a ledger of its own."""
    classes, ledger = task.pair.classmap, task.base / "ledger.sqlite"
    if task.row.kind == "truth":
        # the truth is free, and must never answer for a teacher
        ledger, url = task.beside(".truth.sqlite"), "http://127.0.0.1:1"
        if not (task.folder / "run.json").exists():
            ledger.unlink(missing_ok=True)
        task.folder.parent.mkdir(parents=True, exist_ok=True)
        classes = write_classmap(task.beside(".truth.toml"), task.pair.classes, task.pair.colors)
    assert url is not None
    return Job(
        *(url, data.train, task.folder, task.settings),
        classes=classes,
        weights=task.pair.weights,
        ledger=ledger,
        resume=True,
    )


def _endpoint(task: Task, data: Data) -> TruthEndpoint | None:
    """What stands in for the service; None where the service itself is asked."""
    if task.row.kind != "truth":
        return None
    layout, number = task.pair.layout, len(task.pair.classes)
    pairs = pair_up(data.train, data.train_labels, layout)
    return TruthEndpoint(
        pairs, lambda path: read_labels(path, layout, number), task.pair.classes, task.pair.colors
    )


class _Watch(Observer):
    """Tells a line at each log interval and keeps the session's record on disk."""

    def __init__(self, task: Task, tell: Tell) -> None:
        self._path, self._label, self._tell = task.folder / "sessions.json", task.label, tell
        self._steps, self._began = task.settings.steps, time.monotonic()
        self._from = steps_done(task.folder)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._before: list[dict[str, Any]] = json.loads(self._path.read_text()) if self._path.exists() else []
        self._head: dict[str, Any] = {"began": now(), "commit": commit()}
        self._tally = Tally()
        self._write(self._from)

    def began(
        self, info: TeacherInfo, classmap: ClassMap, terms: Terms, images: int, offline: bool, step: int
    ) -> None:
        """What will be asked of each image, for the record."""
        self._head["queries"] = [query.name for query in terms.queries]
        self._write(step)

    def stepped(self, step: int, tally: Tally) -> None:
        """Whether anything was sent is on disk before the next step, so that a kill loses no count."""
        if tally.sent != self._tally.sent or step == self._steps:
            self._tally = tally
            self._write(step)

    def interval(self, interval: Interval, tally: Tally, per_second: float) -> None:
        """One line."""
        self._tally = tally
        self._write(interval.step)
        spent = time.monotonic() - self._began
        left = spent / max(1, interval.step - self._from) * (self._steps - interval.step)
        self._tell(
            f"{self._label} step {interval.step}/{self._steps} loss {interval.loss:.3f} "
            f"kept {100 * interval.kept_share:.0f} % sent {tally.sent} "
            f"{per_second:.1f} img/s ETA {int(left) // 60}:{int(left) % 60:02d}"
        )

    def _write(self, step: int) -> None:
        record: dict[str, Any] = {**self._head, "from": self._from, "to": step}
        record["seconds"] = round(time.monotonic() - self._began, 1)
        record |= {"sent": self._tally.sent, "served": self._tally.saved}
        write_json(self._path, [*self._before, record])
