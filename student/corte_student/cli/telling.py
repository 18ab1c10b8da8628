"""What `train` tells a person: the teacher, the class census, progress, and how it ended."""

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

from corte_protocol import VOID, TeacherInfo
from corte_student.asking import Tally
from corte_student.classmap import ClassMap
from corte_student.metering import Purse
from corte_student.money import show
from corte_student.report.progress import Progress
from corte_student.report.recorded import Recorded
from corte_student.report.signals import RunWarning
from corte_student.settings import TrainSettings
from corte_student.terms import Terms
from corte_student.trainer import Interval
from corte_student.training import Observer, Summary


class Told(Observer):
    """Prints what a run tells. Use as a context, so that a bar is closed whatever happens."""

    def __init__(self, settings: TrainSettings, purse: Purse | None = None) -> None:
        self._settings = settings
        self._price = None if purse is None else purse.price
        self._console = Console(file=sys.stderr)
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.__exit__(kind, value, trace)

    def began(
        self, info: TeacherInfo, classmap: ClassMap, terms: Terms, images: int, offline: bool, step: int
    ) -> None:
        """The teacher, what will be asked of it, the census, and the start of the bar."""
        where = "offline: answers from the ledger only" if offline else f"discloses {info.disclosure}"
        self._console.print(f"teacher {info.teacher}, revision {info.revision}, {where}", highlight=False)
        self._console.print(terms.cost(images), highlight=False, soft_wrap=True)
        self._console.print(
            f"{images} images, method {self._settings.method}, encoder {self._settings.encoder}, "
            f"{self._settings.steps} steps of {self._settings.batch}, seed {self._settings.seed}",
            highlight=False,
        )
        if self._settings.init == "random":
            self._console.print("the encoder starts at random weights: expect less than with --weights")
        self._console.print(_census(info, classmap))
        self._progress = Progress(self._settings.steps, "train", batch=self._settings.batch, initial=step)
        self._progress.__enter__()

    def stepped(self, step: int, tally: Tally) -> None:
        """Move the bar."""
        if self._progress is not None:
            cost = {} if self._price is None else {"cost": show(tally.spent, self._price.currency)}
            self._progress.update(step, sent=tally.sent, saved=tally.saved, **cost)

    def interval(self, interval: Interval, tally: Tally, per_second: float) -> None:
        """Fresh numbers beside the bar."""
        if self._progress is not None:
            facts = {"loss": f"{interval.loss:.3f}", "kept": f"{100 * interval.kept_share:.0f} %"}
            if said := sum(interval.said):
                facts["agree"] = f"{100 * sum(interval.agreed) / said:.0f} %"
            self._progress.update(interval.step, **facts)

    def warned(self, warning: RunWarning) -> None:
        """A line of its own, above the bar where there is one."""
        if self._progress is not None:
            self._progress.note(f"warning at step {warning.step}: {warning.message}")

    def finish(self, summary: Summary, out: Path) -> None:
        """Close the bar and say what came of it."""
        tally = summary.tally
        self._console.print(
            f"done: {summary.step} steps; requests sent {tally.sent}, served by the ledger {tally.saved}, "
            f"{tally.bytes_up / 1e6:.1f} MB up, {tally.bytes_down / 1e6:.1f} MB down"
            + ("" if self._price is None else f", spent {show(tally.spent, self._price.currency)}"),
            highlight=False,
            soft_wrap=True,
        )
        for warning in Recorded.read(out).monitor().standing():
            self._console.print(
                f"warning since step {warning.step}: {warning.message}", highlight=False, soft_wrap=True
            )
        if summary.stood_in:
            self._console.print(
                f"answers were missing: {summary.stood_in} times another image stood in, "
                f"{summary.missing} images were never learned from. "
                "For all of them: `corte-student collect`, then a new run",
                highlight=False,
                soft_wrap=True,
            )
        for name, why in summary.aside.items():
            self._console.print(f"set aside: {name}: {why}", highlight=False, soft_wrap=True)
        self._console.print(
            f"score it with: corte-student evaluate {out} --images DIR --labels DIR",
            highlight=False,
            soft_wrap=True,
        )


def _census(info: TeacherInfo, classmap: ClassMap) -> Table:
    table = Table("student class", "from the teacher's", box=None, pad_edge=False)
    for index, (name, color) in enumerate(zip(classmap.names, classmap.colors, strict=True)):
        table.add_row(
            Text("■ ", style=f"rgb({color[0]},{color[1]},{color[2]})") + name, _from(info, classmap, index)
        )
    if (classmap.table == VOID).any():
        table.add_row("(void)", _from(info, classmap, VOID))
    return table


def _from(info: TeacherInfo, classmap: ClassMap, index: int) -> str:
    return ", ".join(n for n, slot in zip(info.classes, classmap.table, strict=True) if slot == index)
