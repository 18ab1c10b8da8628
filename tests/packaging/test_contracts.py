"""The import contracts hold, and each breaks when a leak is planted: a contract that cannot fail is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shared/corte_protocol", "teacher_service/corte_teacher", "student/corte_student")

NO_TEACHER = "The student never imports the teacher or a web framework"
NO_STUDENT = "The teacher never imports the student or its HTTP client"
ALONE = "The protocol does no I/O and imports neither side"
ONE_CLIENT = "Only corte_student.endpoints.http imports httpx"
ONE_RUNTIME = "Only corte_teacher.backends.onnx imports onnxruntime"
ONE_TORCH = "Only the torch backends import torch, and one each timm and transformers"
LAYERS = "The student's layers: a verb, a run, a step, a batch, an answer"
SERVING = "The teacher's layers: a verb, a process, a route, a question, the threads, a model"
COMPUTES = "What computes knows nothing of runs, files or teachers"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The three packages and the contracts, in a folder where a leak may be planted."""
    for package in PACKAGES:
        target = tmp_path / Path(package).name
        shutil.copytree(ROOT / package, target, ignore=shutil.ignore_patterns("__pycache__", "*.onnx"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> tuple[int, dict[str, str]]:
    """lint-imports in `folder`: its exit code, and KEPT or BROKEN of every contract by name."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    verdicts = {}
    for line in done.stdout.splitlines():
        for verdict in ("KEPT", "BROKEN"):
            name, found, _ = line.partition(f" {verdict}")
            if found:
                verdicts[name.strip()] = verdict
    assert verdicts, done.stdout + done.stderr
    return done.returncode, verdicts


def test_every_contract_holds(copy: Path) -> None:
    """The sources as they are, seen through the copy that the next test plants into."""
    status, verdicts = lint(copy)
    assert status == 0
    assert verdicts == dict.fromkeys(
        (NO_TEACHER, NO_STUDENT, ALONE, ONE_CLIENT, ONE_RUNTIME, ONE_TORCH, SERVING, LAYERS, COMPUTES),
        "KEPT",
    )


@pytest.mark.parametrize(
    ("module", "leak", "broken"),
    [
        ("corte_student/training.py", "import corte_teacher", {NO_TEACHER}),
        ("corte_student/cli/train.py", "def late():\n    from fastapi import FastAPI", {NO_TEACHER}),
        ("corte_student/ledger/store.py", "import httpx", {ONE_CLIENT}),
        ("corte_teacher/backends/onnx.py", "import torch", {ONE_TORCH}),
        ("corte_teacher/app.py", "import onnxruntime", {ONE_RUNTIME}),
        ("corte_teacher/identity.py", "import httpx", {NO_STUDENT}),
        ("corte_teacher/identity.py", "from corte_student import ledger", {NO_STUDENT}),
        ("corte_protocol/types.py", "import pydantic", {ALONE}),
        ("corte_teacher/model.py", "def late():\n    from corte_teacher import service", {SERVING}),
        ("corte_student/stream.py", "def late():\n    from corte_student import trainer", {LAYERS}),
        ("corte_student/pseudo_labels/base.py", "from corte_student import objective", {COMPUTES}),
    ],
    ids=lambda value: value.splitlines()[-1].strip() if isinstance(value, str) else "",
)
def test_a_planted_leak_breaks_its_contract(copy: Path, module: str, leak: str, broken: set[str]) -> None:
    """One import more, at the top or inside a function, and just the contract against it is named."""
    with (copy / module).open("a") as file:
        file.write(f"\n{leak}\n")
    status, verdicts = lint(copy)
    assert status == 1
    assert {name for name, verdict in verdicts.items() if verdict == "BROKEN"} == broken
