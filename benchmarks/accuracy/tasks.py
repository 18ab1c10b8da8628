"""A job of the queue as a folder: what is planned, what is there, and whether the two belong together.

    WORK/PAIR/ledger.sqlite            answers paid for, shared by every row and seed
    WORK/PAIR/seedS/ROW/               the training run itself (docs/architecture.md), and in it
        sessions.json                  each session that worked on it: seconds, requests, commit
        report.npz  train.npz          counts by image
        result.json                    what the report prints; written last, so it means finished
    WORK/PAIR/seedS/ROW.lock           held by who works on it
    WORK/PAIR/seedS/ROW.truth.sqlite   the ledger of a row that learns from labels

Rule: a folder that was started with other settings is never touched. A run without sessions.json was started
by hand: it is scored once it is finished, and never trained on, since whoever started it may still be at it.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accuracy.rows import ROOT, Pair, Row
from accuracy.scoring import LEVEL
from corte_student.checkpoint import latest
from corte_student.settings import TrainSettings, load_settings, shipped_recipes


class Skipped(Exception):
    """A job that must not or cannot be done now; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done, and where. `extra` are the command line's own `key=value` settings."""

    pair: Pair
    row: Row
    seed: int
    work: Path
    extra: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The job as a person calls it."""
        return f"{self.pair.name}/seed{self.seed}/{self.row.name}"

    @property
    def base(self) -> Path:
        """The pair's folder."""
        return self.work / self.pair.name

    @property
    def folder(self) -> Path:
        """The job's own folder, the training run's."""
        return self.base / f"seed{self.seed}" / self.row.slug

    @property
    def settings(self) -> TrainSettings:
        """What a student of this job trains with. Raises SettingsError."""
        assignments = [*self.pair.overrides, *self.row.settings(self.pair.more), *self.extra]
        flags: dict[str, Any] = {"method": self.row.method, "seed": self.seed, **self.pair.encoder()}
        # from the plain recipe on, so that a row has what it names and nothing that became a default
        recipes = [shipped_recipes()["corte"], self.pair.recipe]
        return load_settings(recipes, flags, assignments)

    @property
    def planned(self) -> dict[str, Any]:
        """The settings as they are recorded; a teacher row has but its views and level."""
        if self.row.kind == "teacher":
            return {"views": list(self.row.views(self.pair.more)), "disclosure": str(LEVEL)}
        dump: dict[str, Any] = self.settings.model_dump(mode="json")
        return dump

    def beside(self, suffix: str) -> Path:
        """A file next to the folder."""
        return self.folder.with_name(self.folder.name + suffix)


def changed(saved: dict[str, Any], task: Task) -> list[str]:
    """One line for each setting that differs; one that did not exist then stands for its default now."""
    now = task.planned
    defaults = {} if task.row.kind == "teacher" else TrainSettings().model_dump(mode="json")
    then = {**{key: defaults.get(key) for key in now}, **saved}
    return [f"{k}: {then[k]!r} -> {now.get(k)!r}" for k in sorted(then) if then[k] != now.get(k)]


def finished(task: Task) -> dict[str, Any] | None:
    """The result, where there is one. Raises Skipped where it was made with other settings."""
    path = task.folder / "result.json"
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    _refuse_other(task, result["settings"], path)
    images, sizes = result["images"], task.pair.sizes
    if sizes is not None and sizes != (images["train"], images["report"]):
        raise Skipped(f"{path} was made on {images} images, not {sizes}: use another --work")
    return result


def complete(result: dict[str, Any]) -> bool:
    """Whether a result lacks nothing; of a student's the kept pixels are looked at last."""
    return result["kind"] != "student" or "right" in result["kept"]


def trained(task: Task) -> bool:
    """Whether the run in the folder has taken all its steps. Raises Skipped where it is not ours."""
    record = task.folder / "run.json"
    if not record.is_file():
        return False
    saved = json.loads(record.read_text())
    _refuse_other(task, saved["settings"], record)
    if tuple(saved["classes"]) != task.pair.classes:
        raise Skipped(f"{record} has other classes than the pair: move the folder away")
    steps = steps_done(task.folder)
    if steps == saved["settings"]["steps"]:
        return True
    if not (task.folder / "sessions.json").exists():
        raise Skipped(
            f"{task.folder} was started by hand and is at step {steps}: it is scored when it is finished; "
            "if nobody works on it any more, write [] into its sessions.json and the queue goes on with it"
        )
    return False


def steps_done(run: Path) -> int:
    """The steps that a run folder's last checkpoint has behind it; 0 without one."""
    checkpoint = latest(run)
    return 0 if checkpoint is None else int(json.loads((checkpoint / "state.json").read_text())["step"])


def _refuse_other(task: Task, saved: dict[str, Any], path: Path) -> None:
    if differs := changed(saved, task):
        raise Skipped(
            f"{path} was made with other settings ({'; '.join(differs)}): it is left alone; "
            "use another --work, or move the folder away"
        )


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(fresh, path)


def now() -> str:
    """The time as results state it, UTC to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def commit() -> str:
    """The commit of this working tree, `+dirty` where files differ from it; "unknown" without git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
