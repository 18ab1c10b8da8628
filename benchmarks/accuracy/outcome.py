"""What a finished job says: scores, cost and history, as the object that result.json holds.

Legend: every score is between 0 and 1; an IoU is None for a class that is absent from the truth.
"""

import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from accuracy.compare import sequence_of
from accuracy.cost import student_cost, teacher_cost
from accuracy.rows import Data, Pair
from accuracy.scoring import Scores, folders_of, score_student, score_teacher
from accuracy.street import kept_share
from accuracy.tasks import Task, commit, now
from corte_student.checkpoint import load_student
from corte_student.data.folder import find_images, read_pixels
from corte_student.metrics import ABSENT_RULE
from corte_student.queries import parse_views


def head(task: Task, images: dict[str, int]) -> dict[str, Any]:
    """What every result begins with; `images` counts those of each folder."""
    return {
        "pair": task.pair.name,
        "about_pair": task.pair.about,
        "row": task.row.name,
        "about": task.row.about,
        "kind": task.row.kind,
        "seed": task.seed,
        "settings": task.planned,
        "commit": commit(),
        "date": now(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "classes": list(task.pair.classes),
        "absent_rule": ABSENT_RULE,
        "block": task.pair.block,
        "fixed": task.pair.fixed,
        "images": images,
    }


def student_result(task: Task, data: Data, images: int) -> dict[str, Any]:
    """Scores, cost and history of a finished run."""
    found = {}
    for name, pictures, labels in folders_of(task.pair, data):
        found[name] = score_student(task.folder, task.pair, pictures, labels)
        found[name].save(task.folder / f"{name}.npz")
    student, _ = load_student(task.folder)
    sessions = _sessions(task.folder)
    return _scored(task.pair, found) | {
        "kept": {"share": kept_share(task.folder)},
        "queries": {
            "images": images,
            "views": len(sessions[-1].get("queries", ["identity"])),
            "sent": sum(s["sent"] for s in sessions),
            "served": sum(s["served"] for s in sessions),
        },
        "seconds": round(sum(s["seconds"] for s in sessions), 1),
        "sessions": sessions,
        "cost": asdict(student_cost(student, _first(data))),
    }


def teacher_result(task: Task, data: Data, url: str) -> dict[str, Any]:
    """The black box: scores, what asking cost, and the model's own cost."""
    began = time.monotonic()
    task.folder.mkdir(parents=True, exist_ok=True)
    folders = folders_of(task.pair, data)
    views = task.row.views(task.pair.more)
    scores, tally = score_teacher(
        url, task.base / "ledger.sqlite", task.pair, [f[1:] for f in folders], views
    )
    found = {name: one for (name, _, _), one in zip(folders, scores, strict=True)}
    for name, one in found.items():
        one.save(task.folder / f"{name}.npz")
    seconds = round(time.monotonic() - began, 1)
    cost = teacher_cost(task.pair.serve, _first(data))
    number = sum(len(one.names) for one in scores)
    return _scored(task.pair, found) | {
        "kept": {"share": None},
        "queries": {
            "images": number,
            "views": len(parse_views(views)),
            "sent": tally.sent,
            "served": tally.saved,
        },
        "seconds": seconds,
        "sessions": [],
        "cost": asdict(cost),
    }


def _scored(pair: Pair, found: dict[str, Scores]) -> dict[str, Any]:
    """The numbers of the report set, and of train by sequence where it was scored."""
    numbers = _numbers(found["report"])
    if "train" in found:
        sequences = sorted({sequence_of(name) for name in found["train"].names})
        numbers["transductive"] = {"all": _numbers(found["train"])} | {
            one: _numbers(found["train"], one) for one in sequences
        }
    return numbers


def _numbers(scores: Scores, only: str | None = None) -> dict[str, Any]:
    matrix = scores.total(only)
    return {"miou": matrix.miou, "pixel_accuracy": matrix.pixel_accuracy, "iou": matrix.iou()}


def _first(data: Data) -> npt.NDArray[np.uint8]:
    """An image of the report set, for its size."""
    return read_pixels(find_images(data.report)[0])


def _sessions(run: Path) -> list[dict[str, Any]]:
    """The sessions that trained a run; of one that was started by hand, what its log tells."""
    path = run / "sessions.json"
    if path.exists():
        found: list[dict[str, Any]] = json.loads(path.read_text())
        return found
    batch = json.loads((run / "run.json").read_text())["settings"]["batch"]
    sessions, before = [{"from": 0, "to": 0, "seconds": 0.0, "sent": 0, "served": 0}], 0
    for record in (json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()):
        asked = record["sent"] + record["saved"]
        if asked < sessions[-1]["sent"] + sessions[-1]["served"]:  # the counters began anew: a resume
            sessions.append({"from": before, "seconds": 0.0})
        seconds = (record["step"] - before) * batch / record["images_per_second"]
        before = record["step"]
        sessions[-1] |= {"to": before, "sent": record["sent"], "served": record["saved"]}
        sessions[-1]["seconds"] = round(sessions[-1]["seconds"] + seconds, 1)
    return sessions
