"""A run as its folder tells it: settings, classes and logged intervals, without loading a model or torch."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corte_student.errors import CheckpointError
from corte_student.report.runlog import read_log
from corte_student.report.signals import Logged, Monitor


@dataclass(frozen=True, slots=True)
class Recorded:
    """What RUN/run.json and RUN/log.jsonl hold; `settings` as they were saved."""

    names: tuple[str, ...]
    settings: dict[str, Any]
    intervals: list[Logged]

    @classmethod
    def read(cls, run: Path) -> "Recorded":
        """The run in a folder. Raises CheckpointError where there is none, or its files are damaged."""
        try:
            head = json.loads((run / "run.json").read_text())
            log = read_log(run)
            intervals = [Logged.of(record) for record in log]
            return cls(tuple(head["classes"]), head["settings"], intervals)
        except OSError as exc:
            raise CheckpointError(f"{run} is no run folder of `corte-student train`: {exc.strerror}") from exc
        except (ValueError, KeyError, TypeError) as exc:
            raise CheckpointError(f"run.json or log.jsonl in {run} is damaged: {exc}") from exc

    @property
    def steps(self) -> int:
        """The length that the run was planned with."""
        return int(self.settings["steps"])

    @property
    def refines_at(self) -> int | None:
        """The first step whose targets the ema may change; None for a run that never refines."""
        refines = self.settings["method"] == "corte" and self.settings.get("refine", "arbitrate") != "none"
        start = float(self.settings["refine_from"])
        return math.ceil(start * self.steps) if refines and start < 1 else None

    def monitor(self) -> Monitor:
        """A monitor that has seen the whole log."""
        monitor = Monitor(self.names, self.steps, self.refines_at)
        for interval in self.intervals:
            monitor.update(interval)
        return monitor
