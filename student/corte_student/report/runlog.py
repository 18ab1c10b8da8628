"""The run's log on disk: one JSON object a line, appended, so a killed run keeps what it wrote."""

import json
from pathlib import Path
from typing import Any


class RunLog:
    """Appends to RUN/log.jsonl. A resume cuts off lines behind the checkpoint it starts from."""

    def __init__(self, run: Path, *, step: int = 0) -> None:
        self.path = run / "log.jsonl"
        if self.path.exists():
            kept = [line for line in _lines(self.path) if json.loads(line)["step"] <= step]
            self.path.write_text("".join(line + "\n" for line in kept))

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it must hold a `step`."""
        with self.path.open("a") as log:
            log.write(json.dumps(record) + "\n")


def read_log(run: Path) -> list[dict[str, Any]]:
    """All records of a run, oldest first; none where nothing was logged yet. Raises ValueError."""
    path = run / "log.jsonl"
    return [json.loads(line) for line in _lines(path)] if path.exists() else []


def _lines(path: Path) -> list[str]:
    """Whole lines only: the last may have been cut by a kill."""
    text = path.read_text()
    return [line for line in text[: text.rfind("\n") + 1].splitlines() if line]
