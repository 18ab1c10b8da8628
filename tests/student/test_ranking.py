"""Signals against labels: ranks and correlation against slow ones, and a real run from training to table."""

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from accuracy import ranking
from accuracy.ranking import (
    LOGGED,
    Scored,
    logged_signals,
    markdown,
    ranks,
    scored,
    spearman,
    stored_answers,
)
from accuracy.truth import TruthEndpoint, write_classmap
from corte_student.asking import Tally
from corte_student.checkpoint import kept_steps
from corte_student.classmap import ClassMap
from corte_student.cli import app, first_cause
from corte_student.cli.telling import Told
from corte_student.data.layouts import pair, read_labels
from corte_student.errors import DataError, Interrupted, Unavailable
from corte_student.pseudo_labels.baselines import Naive
from corte_student.report.recorded import Recorded
from corte_student.report.signals import Logged, Monitor, RunWarning
from corte_student.settings import TrainSettings
from corte_student.terms import settle
from corte_student.trainer import Interval
from corte_student.training import Job, Observer, Summary, train
from street_scenes.domains import CLASSES, PALETTE, TARGET
from street_scenes.generate import write

URL = "http://127.0.0.1:1"
VALUES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)
STEPS = 24


def slow_ranks(values: Sequence[float]) -> list[float]:
    """For each value: how many are smaller, and the middle of its equals."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def slow_spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's correlation of slow ranks, term by term."""
    x, y = slow_ranks(a), slow_ranks(b)
    mean = (len(a) + 1) / 2
    cross = sum((p - mean) * (q - mean) for p, q in zip(x, y, strict=True))
    squares = sum((p - mean) ** 2 for p in x) * sum((q - mean) ** 2 for q in y)
    return cross / squares**0.5 if squares else None


@given(VALUES)
def test_ranks_are_shared_by_equals(values: list[float]) -> None:
    """Against counting what is smaller and what is equal."""
    assert ranks(values) == slow_ranks(values)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12))
def test_correlation_is_that_of_the_definition(drawn: list[tuple[int, int]]) -> None:
    """Ties included; None exactly where a side is constant."""
    a, b = [float(x) for x, _ in drawn], [float(y) for _, y in drawn]
    expected = slow_spearman(a, b)
    assert spearman(a, b) == (None if expected is None else pytest.approx(expected))


def test_correlation_without_ties_is_the_textbook_s() -> None:
    """1 - 6 sum d^2 / (n (n^2 - 1)); order of growth is 1, its reverse -1; what was not logged is out."""
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert spearman([0.1, 0.2, 9.0, None], [1, 5, 6, 0]) == pytest.approx(1)
    assert spearman([3, 2, 1], [1, 5, 6]) == pytest.approx(-1)
    assert spearman([1, 2, None], [1, 2, 3]) is None


def test_signals_are_those_since_the_checkpoint_before() -> None:
    """An interval that ends at a checkpoint belongs to it; intervals without signals to none."""
    intervals = [
        Logged(10, [1, 0], [2, 2], [8, 2], [8, 0], [10, 0], 0.2),
        Logged(20, [2, 2], [2, 2], [4, 6], [4, 6], [4, 6], 0.4),
        Logged(30, [0, 2], [2, 2], [6, 4], [0, 4], [0, 10], 0.8),
        Logged(35, [2, 2], [2, 2], [], [], [], 0.0),
    ]
    first = logged_signals(intervals, 0, 10)
    assert first == dict(zip(LOGGED, (0.8, 0.4, 0.2, 0.25), strict=True))
    last = logged_signals(intervals, 10, 30)
    assert last == dict(zip(LOGGED, (0.7, (0.4 + 0.625) / 2, pytest.approx(0.6), 0.75), strict=True))
    assert logged_signals(intervals, 30, 40) == dict.fromkeys(LOGGED)


def test_the_table_says_how_signals_rank() -> None:
    """Within each run, in its later half, over the runs' ends; a constant signal has no rank."""

    def run(*points: tuple[float, float]) -> list[Scored]:
        return [Scored(i, miou, {"good": good, "flat": 1.0}) for i, (miou, good) in enumerate(points, 1)]

    runs = {
        "a": run((0.1, 1), (0.2, 2), (0.3, 5), (0.4, 4), (0.5, 3), (0.6, 2)),
        "b": run((0.5, 1), (0.4, 2), (0.3, 3)),
        "c": run((0.4, 3), (0.5, 4), (0.9, 6)),
    }
    text = markdown(runs)
    whole, late, across = (
        text.split(f"**{t}")[1] for t in ("Within a run, all", "Within a run, later", "Across")
    )
    assert "| b | -1.00 | - |" in whole.split("**")[1]
    assert "| a | -1.00 | - |" in late.split("**")[1]
    assert "| 3 runs | 0.50 | - |" in across.split("**")[1]
    assert "| 2 | 20.0 | 200.0 | 100.0 |" in text


class Listener(Observer):
    """Keeps the warnings it is told, and stops the run once after a step, as Ctrl-C does."""

    def __init__(self, stop_at: int) -> None:
        self.warnings: list[RunWarning] = []
        self._stop_at = stop_at

    def stepped(self, step: int, tally: Tally) -> None:
        if step == self._stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    def warned(self, warning: RunWarning) -> None:
        self.warnings.append(warning)


def run_of(base: Path, out: Path, observer: Observer, *, resume: bool = False) -> None:
    """Train `out` on the scenes in `base` from their labels."""
    images, labels = base / "scenes/images", base / "scenes/labels"
    pairs = pair(images, labels, "plain")
    endpoint = TruthEndpoint(pairs, lambda p: read_labels(p, "plain", len(CLASSES)), CLASSES, PALETTE)
    how = TrainSettings(
        method="naive",
        steps=STEPS,
        batch=2,
        encoder="test_byobnet",
        init="random",
        decoder_width=8,
        height=96,
        width=192,
        log_every=2,
        checkpoint_every=8,
        keep_checkpoints=True,
        device="cpu",
    )
    classmap = write_classmap(base / "truth.toml", CLASSES, PALETTE)
    job = Job(URL, images, out, how, classes=classmap, ledger=base / "ledger.sqlite", resume=resume)
    asyncio.run(train(job, observer, endpoint))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scenes, their labels, a ledger of true answers and a run with its checkpoints kept."""
    base = tmp_path_factory.mktemp("ranking")
    write(TARGET, "dev", 4, 0, base / "scenes")
    run_of(base, base / "run", Observer())
    return base


def arguments(place: Path) -> list[str]:
    folders = ["--images", f"{place}/scenes/images", "--labels", f"{place}/scenes/labels"]
    stored = ["--answers", f"{place}/scenes/images", "--ledger", f"{place}/ledger.sqlite"]
    return [
        "--runs",
        f"{place}/run",
        *folders,
        *stored,
        "--teacher-url",
        URL,
        "--classes",
        f"{place}/truth.toml",
    ]


def test_a_run_is_ranked_from_its_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every kept checkpoint has a row; where the answers are the truth, mean IoU with them is the mIoU."""
    assert kept_steps(place / "run") == [8, 16, 24]
    ranking.main([*arguments(place), "--out", str(place / "out.md")])
    text = capsys.readouterr().out
    assert (place / "out.md").read_text() == text
    rows = [
        line.split("|")[1:-1] for line in text.splitlines() if line.startswith(("| 8 ", "| 16 ", "| 24 "))
    ]
    assert [int(row[0]) for row in rows] == [8, 16, 24]
    for row in rows:
        assert row[1] == row[-1]
        assert float(row[2]) > 0
    (correlation,) = [line.split("|") for line in text.splitlines() if line.startswith("| mean ")][:1]
    assert float(correlation[-2]) == 1


def test_offline_answers_are_those_that_training_saw(place: Path) -> None:
    """Labels as stored; an image that was never asked about ends it, since nothing may be sent."""
    given = (place / "ledger.sqlite", URL, place / "truth.toml")
    answers = asyncio.run(stored_answers(place / "scenes/images", *given))
    for image, labels in answers:
        assert (
            labels == read_labels(place / "scenes/labels" / f"{image.stem}.png", "plain", len(CLASSES))
        ).all()
    other = place / "other"
    other.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64)).save(other / "new.png")
    with pytest.raises(Unavailable):
        asyncio.run(stored_answers(other, *given))


def test_a_run_without_checkpoints_is_told(place: Path, tmp_path: Path) -> None:
    """With the setting that keeps them."""
    (tmp_path / "run.json").write_bytes((place / "run/run.json").read_bytes())
    with pytest.raises(DataError, match="keep_checkpoints=true"):
        scored(tmp_path, [], "plain", [])


def logged(run: Path) -> list[list[dict[str, object]]]:
    """The warnings of each line of a run's log."""
    return [json.loads(line)["warnings"] for line in (run / "log.jsonl").read_text().splitlines()]


def replayed(run: Path) -> list[list[dict[str, object]]]:
    """The same, as a fresh monitor finds them in the numbers."""
    read = Recorded.read(run)
    monitor = Monitor(read.names, read.steps, read.refines_at)
    return [
        [{"code": w.code, "classes": list(w.classes), "message": w.message} for w in monitor.update(i)]
        for i in read.intervals
    ]


def test_a_stopped_and_resumed_run_warns_as_one(place: Path) -> None:
    """So short a run has learned little: it warns. What was told before the stop is not told after it."""
    assert logged(place / "run") == replayed(place / "run")
    heard, run = Listener(stop_at=14), place / "stopped"
    with pytest.raises(BaseExceptionGroup) as raised:
        run_of(place, run, heard)
    assert isinstance(first_cause(raised.value), Interrupted)
    before = len(logged(run))
    assert any(logged(run))
    run_of(place, run, heard, resume=True)
    assert len(logged(run)) > before + 4
    assert logged(run) == replayed(run)
    assert [w.message for w in heard.warnings] == [w["message"] for line in logged(run) for w in line]


def test_the_end_of_a_run_names_what_still_stands(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each once, with the step since when; and agreement stands beside the bar while it runs."""
    interval = Interval(2, 0.5, 0.75, [3], [4], 1e-3, [8], [6], [8], 0.9)
    info = asyncio.run(TruthEndpoint([], lambda p: read_labels(p, "plain", 1), ("a",), ((0, 0, 0),)).info())
    terms = settle(info, TrainSettings(method="naive"), Naive())
    with Told(TrainSettings(steps=4)) as told:
        told.began(info, ClassMap.identity(info), terms, 1, False, 0)
        told.interval(interval, Tally(), 1.0)
        told.warned(RunWarning("starved", "nothing is kept of a", 2, ("a",)))
    told.finish(Summary(STEPS, Tally(), {}), place / "run")
    lines = capsys.readouterr().err.splitlines()
    assert "warning at step 2: nothing is kept of a" in lines
    assert any("agree 75 %" in line for line in lines)
    standing = Recorded.read(place / "run").monitor().standing()
    assert standing
    for warning in standing:
        assert lines.count(f"warning since step {warning.step}: {warning.message}") == 1


def test_inspect_shows_and_draws_a_run(place: Path) -> None:
    """Table, standing warnings, picture; and JSON that says the same."""
    run, picture = place / "run", place / "curves.png"
    shown = CliRunner().invoke(app, ["inspect", str(run), "--picture", str(picture)], env={"COLUMNS": "100"})
    assert shown.exit_code == 0, shown.output
    assert f"step {STEPS} of {STEPS}" in shown.stdout
    for name in CLASSES:
        assert name in shown.stdout
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
    told = json.loads(CliRunner().invoke(app, ["inspect", str(run), "--json"]).stdout)
    assert [c["name"] for c in told["classes"]] == list(CLASSES)
    assert told["standing"]
    for warning in told["standing"]:
        assert warning["message"] in shown.stdout
    refused = CliRunner().invoke(app, ["inspect", str(run), "--teacher-url", URL])
    assert refused.exit_code == 2
    unwritable = CliRunner().invoke(app, ["inspect", str(run), "--picture", f"{run}/run.json/x.png"])
    assert unwritable.exit_code == 4
    assert "cannot write" in unwritable.stderr
