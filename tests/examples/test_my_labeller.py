"""The labeller of examples/ keeps the contract, does what it says, and trains through the real program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_protocol import VOID
from corte_student.pseudo_labels import Answers, PseudoLabeller, Refinement, Selection, build_labeller
from corte_student.statistics import MarginStatistics
from serving import running_teacher
from small_run import save_images
from student.labeller_contract import LabellerContract

pytestmark = pytest.mark.run

ROOT = Path(__file__).parents[2]


class TestMyLabellerContract(LabellerContract):
    """It keeps what every labeller guarantees, built as `--method` builds it."""

    def make(self, classes: int) -> PseudoLabeller:
        """By its path."""
        return build_labeller(
            "my_labeller:build",
            classes,
            selection=Selection(),
            refinement=Refinement(),
            least=0.5,
            seed=0,
        )


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 7))
@settings(max_examples=40)
def test_it_keeps_what_has_no_other_label_beside_it(seed: int, height: int, width: int) -> None:
    """Pixel by pixel: every neighbour inside the picture has the same label; void is another label."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, VOID], (2, height, width), p=[0.8, 0.1, 0.1]).astype(np.uint8)
    answers = Answers(torch.from_numpy(labels), None, None, MarginStatistics.empty(2))
    labeller = TestMyLabellerContract().make(2)
    got = labeller(answers, None, 0.5).labels
    for image, y, x in np.ndindex(*labels.shape):
        near = labels[image, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        inner = labels[image, y, x] != VOID and (near == labels[image, y, x]).all()
        assert int(got[image, y, x]) == (labels[image, y, x] if inner else VOID)


def test_it_trains_through_the_program(tmp_path: Path) -> None:
    """From the command line against a real service that discloses labels alone; a recipe may not name it."""
    save_images(tmp_path / "images", {f"{n}.png": (40, 48) for n in range(3)})
    sets = ("init=random", "batch=2", "height=32", "width=32", "decoder_width=8", "log_every=2")
    env = {**os.environ, "PYTHONPATH": str(ROOT / "examples")}

    def train(url: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "corte_student", "train", "--teacher-url", url),
                *("--images", str(tmp_path / "images"), "--out", str(tmp_path / "run")),
                *("--ledger", str(tmp_path / "ledger.sqlite"), "--encoder", "test_byobnet"),
                *("--steps", "4", *(text for value in sets for text in ("--set", value)), *more),
            ],
            capture_output=True,
            text=True,
            env=env,
            timeout=120,
            check=False,
        )

    with running_teacher(["--open", "--disclosure", "labels", "--threads", "1"]) as url:
        done = train(url, "--method", "my_labeller:build")
    assert done.returncode == 0, done.stderr
    assert "done: 4 steps; requests sent 3," in done.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["settings"]["method"] == "my_labeller:build"
    for line in (tmp_path / "run/log.jsonl").read_text().splitlines():
        told = json.loads(line)
        assert 0 <= sum(told["kept_per_class"]) < sum(told["answered_per_class"])
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('method = "my_labeller:build"\n')
    refused = train("http://127.0.0.1:9", "--recipe", str(recipe))
    assert refused.returncode == 2 and "say it with --method" in refused.stderr
