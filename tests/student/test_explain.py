"""`explain` shows what training itself computes, for a real run behind a real service."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from corte_protocol import VOID
from corte_student.checkpoint import kept_steps, load_labelling, load_student
from corte_student.classmap import Mapped
from corte_student.cli import app
from corte_student.cli.explain import spread
from corte_student.data.folder import read_pixels
from corte_student.explain import choose, ema_logits, read_settings, stage
from corte_student.pseudo_labels import Answers
from corte_student.report.stages import Column, heat, stages
from corte_student.training import labeller_of
from serving import running_teacher
from small_run import picture_size, save_images


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    """The street model behind a real socket."""
    with running_teacher(["--open", "--disclosure", "margin", "--threads", "1"]) as url:
        yield url


@pytest.fixture(scope="module")
def trained(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of CoRTe with every checkpoint kept: six steps, one every two."""
    base = tmp_path_factory.mktemp("explain")
    save_images(base / "images", {"a.png": (40, 48), "b.png": (32, 64)})
    values: tuple[str, ...] = (
        "init=random",
        "encoder=test_byobnet",
        "decoder_width=8",
        "height=32",
        "width=32",
        "batch=2",
    )
    values = (*values, "steps=6", "checkpoint_every=2", "keep_checkpoints=true", "log_every=2")
    done = corte(
        *("train", "--teacher-url", teacher, "--images", base / "images", "--out", base / "run"),
        *("--ledger", base / "ledger.sqlite"),
        *(part for value in values for part in ("--set", value)),
    )
    assert done.exit_code == 0, done.output
    return base


def corte(*args: object) -> Result:
    """The app in this process, as `corte-student ARGS`."""
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "100"})


def answer_of(shape: tuple[int, int], classes: int) -> Mapped:
    """A random answer in the student's classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, shape).astype(np.uint8)
    labels[:3] = VOID
    margin = rng.integers(0, 256, shape).astype(np.uint8)
    return Mapped(labels, margin, np.maximum(margin, 128).astype(np.uint8))


def test_a_stage_is_what_the_labeller_says(trained: Path) -> None:
    """Targets equal a direct call of the run's labeller at that step; the labeller is left as it was."""
    pixels = read_pixels(trained / "images" / "a.png")
    settings = read_settings(trained / "run")
    student, spec = load_student(trained / "run", 4)
    mapped = answer_of(pixels.shape[:2], len(spec.classes))
    saved, statistics = load_labelling(trained / "run", 4)
    labeller = labeller_of(settings, len(spec.classes))
    labeller.restore(saved)
    before = {name: value.clone() for name, value in labeller.state().items()}
    got = choose(labeller, student, statistics, pixels, mapped, 4 / 6)
    assert all(torch.equal(before[name], value) for name, value in labeller.state().items())
    assert mapped.margin is not None and mapped.confidence is not None
    labels, margin, confidence = (
        torch.from_numpy(p)[None] for p in (mapped.labels, mapped.margin, mapped.confidence)
    )
    answers = Answers(labels, margin, confidence, statistics)
    direct = labeller(answers, ema_logits(student, pixels), 4 / 6)
    assert torch.equal(got.labels, direct.labels)
    one = stage(trained / "run", 4, pixels, mapped)
    assert np.array_equal(one.targets, direct.labels[0].numpy())
    assert (one.targets[:3] == VOID).all()


def test_the_picture_has_a_column_for_each_step(teacher: str, trained: Path) -> None:
    """Image, answer, margins, kept pixels and the chosen steps, side by side; nothing new is asked."""
    assert kept_steps(trained / "run") == [2, 4, 6]
    ask = (
        "--teacher-url",
        teacher,
        "--ledger",
        trained / "ledger.sqlite",
        "--image",
        trained / "images/a.png",
    )
    few = corte("explain", trained / "run", *ask, "--step", 4, "--out", trained / "few.png")
    all_ = corte("explain", trained / "run", *ask, "--out", trained / "all.png")
    assert few.exit_code == all_.exit_code == 0, few.output + all_.output
    assert "steps 2, 4, 6" in all_.output
    widths = [picture_size(trained / name)[0] for name in ("few.png", "all.png")]
    assert widths[1] - widths[0] == 2 * (300 + 10)


def test_a_step_that_was_not_kept_is_named(teacher: str, trained: Path) -> None:
    """The error lists the steps that are there."""
    ask = ("--teacher-url", teacher, "--image", trained / "images/a.png", "--out", trained / "no.png")
    done = corte("explain", trained / "run", *ask, "--step", 5)
    assert done.exit_code == 4 and "steps 2, 4, 6" in done.output


def test_what_is_not_learned_from_looks_like_no_class() -> None:
    """Void is hatched in grey; margins rise from dark to bright."""
    labels = np.full((300, 300), VOID, np.uint8)
    sheet = np.asarray(stages([Column("t", "labels", [labels])], ["road"], [(200, 0, 0)]))
    inside = sheet[60:200, 40:200].reshape(-1, 3)
    assert (inside.max(axis=1) == inside.min(axis=1)).all()
    grey = heat(np.arange(256, dtype=np.uint8)[None]).astype(int).sum(axis=2)[0]
    assert grey[0] < grey[128] < grey[255]


@pytest.mark.parametrize(
    ("steps", "chosen"), [([1, 2], [1, 2]), (list(range(1, 11)), [2, 5, 8, 10]), ([], [])]
)
def test_steps_are_spread_and_end_at_the_last(steps: list[int], chosen: list[int]) -> None:
    """Up to four, evenly, the last one always among them."""
    assert spread(steps, 4) == chosen
