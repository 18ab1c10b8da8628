"""The program that measures view sets, on pictures behind the real service."""

import json
import os
import subprocess
import sys
from pathlib import Path

from accuracy.views import SETS
from corte_student.queries import parse_views
from serving import running_teacher
from street_scenes.domains import TARGET
from street_scenes.generate import write

ROOT = Path(__file__).parents[2]


def test_every_set_is_measured_from_answers_that_are_asked_once(tmp_path: Path) -> None:
    """A row for each set, at margin and from labels alone; a second time the ledger answers everything."""
    write(TARGET, "dev", 2, 0, tmp_path / "data")
    with running_teacher(["--open", "--disclosure", "margin", "--threads", "1"]) as url:
        flags = ["--teacher-url", url, "--images", "data/images", "--labels", "data/labels"]
        flags += ["--layout", "plain", "--ledger", "ledger.sqlite", "--every", "1"]
        first = measured(flags, tmp_path)
    again = measured(flags, tmp_path)
    assert again == first
    assert set(first) == {level + name for name in SETS for level in ("", "labels: ")}
    for name, row in first.items():
        assert row["queries"] == len(parse_views(SETS[name.removeprefix("labels: ")]))
        assert 0 < row["kept"] <= 100 and 0 < row["right"] <= 100 and 0 < row["miou"] < 100
    assert first["identity"]["miou"] == first["labels: identity"]["miou"]
    assert {name for name, row in first.items() if "flip agreement" in row} == {
        "identity",
        "columns:2",
        "columns:3",
    }


def measured(flags: list[str], base: Path) -> dict[str, dict[str, float]]:
    """The rows that the program prints; with the teacher gone it has but the ledger."""
    path = os.pathsep.join(str(ROOT / part) for part in ("benchmarks", "examples"))
    done = subprocess.run(
        [sys.executable, "-m", "accuracy.views", *flags],
        cwd=base,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (line.partition(" {") for line in done.stdout.splitlines())
    return {name.strip(): json.loads("{" + rest) for name, _, rest in lines}
