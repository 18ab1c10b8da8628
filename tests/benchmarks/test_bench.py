"""The table's queue as a process: killed midway, started again, beside others; and its report."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from accuracy import report
from accuracy.compare import miou
from accuracy.report import budget, compared, read
from accuracy.rows import ALL, PAIRS, find_rows, street
from accuracy.scoring import Scores, score_teacher
from accuracy.service import lock
from accuracy.tasks import Skipped, Task, changed, finished, steps_done, trained
from corte_student.queries import parse_views
from serving import running_teacher

pytestmark = pytest.mark.run

ROOT = Path(__file__).resolve().parents[2]
TRAIN, REPORT, STEPS = 8, 4, 40
KNOWN = ("black box", "black box + flip", "naive", "corte", "target-only")
SETS = {"steps": STEPS, "batch": 2, "height": 64, "width": 96, "log_every": 4, "checkpoint_every": 4}


def command(work: Path, *more: str, rows: Sequence[str] = KNOWN) -> list[str]:
    """A queue over a few small scenes."""
    return [
        *(sys.executable, "-m", "accuracy.bench", "--pairs", "street", "--seeds", "0"),
        *("--work", str(work), "--rows", ",".join(rows)),
        *("--train-images", str(TRAIN), "--report-images", str(REPORT)),
        *(text for key, value in SETS.items() for text in ("--set", f"{key}={value}")),
        *more,
    ]


def environment(**more: str) -> dict[str, str]:
    """Where the programs are found, and one thread each."""
    here = {"PYTHONPATH": f"{ROOT}/benchmarks:{ROOT}/examples", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **here, **more}


def run(args: list[str], *, status: int = 0, data: Path | None = None) -> str:
    """Run to the end; what it printed. `status` must be the exit status, `data` is CORTE_TEST_DATA."""
    env = environment() if data is None else environment(CORTE_TEST_DATA=str(data))
    done = subprocess.run(args, capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def children(process: int) -> list[int]:
    """The processes that a process started."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def alive(process: int) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class Queue:
    """A work folder after a kill and a second queue, copies from in between, and what was printed."""

    work: Path
    killed: Path
    again: str
    services: tuple[int, ...]

    def result(self, row: str) -> dict[str, Any]:
        """A row's result."""
        found: dict[str, Any] = json.loads((self.row(row) / "result.json").read_text())
        return found

    def row(self, row: str, work: Path | None = None) -> Path:
        """A row's folder."""
        return (work or self.work) / "street" / "seed0" / row.replace(" ", "-")


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Queue:
    """Killed with SIGKILL while `corte` trains, then started again as two processes."""
    work, killed = tmp_path_factory.mktemp("bench") / "work", tmp_path_factory.mktemp("killed") / "work"
    log = work / "street" / "seed0" / "corte" / "log.jsonl"
    process = subprocess.Popen(command(work), stdout=subprocess.DEVNULL, env=environment())
    try:
        while process.poll() is None and not (log.exists() and '"step": 12,' in log.read_text()):
            time.sleep(0.005)
        services = tuple(children(process.pid))
        assert process.poll() is None and services, "the queue ended before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    shutil.copytree(work, killed)
    return Queue(work, killed, run(command(work, "--jobs", "2")), services)


def test_a_second_queue_goes_on_where_the_killed_one_was(queue: Queue) -> None:
    """What was finished is not touched, the interrupted job resumes from its checkpoint, the rest is done."""
    assert not (queue.row("corte", queue.killed) / "result.json").exists()
    for row in ("black box", "black box + flip", "naive"):
        assert f"street/seed0/{row}: finished before" in queue.again
        assert content(queue.row(row)) == content(queue.row(row, queue.killed))
    first, second = queue.result("corte")["sessions"]
    assert first["from"] == 0 and second["from"] >= 8 and second["to"] == STEPS
    assert second["from"] == steps_done(queue.row("corte", queue.killed))
    assert len(queue.result("target-only")["sessions"]) == 1


def test_the_service_of_a_killed_queue_ends_with_it(queue: Queue) -> None:
    """Nobody has to look for what a SIGKILL left behind."""
    until = time.monotonic() + 20
    while any(alive(service) for service in queue.services) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(service) for service in queue.services)


def test_nothing_is_asked_twice(queue: Queue) -> None:
    """All rows and both queues together sent each view of each image once; the truth never answered them."""
    sent = {row: queue.result(row)["queries"]["sent"] for row in KNOWN}
    expected = {"black box": REPORT, "black box + flip": REPORT, "naive": TRAIN, "corte": 0}
    assert sent == {**expected, "target-only": TRAIN}
    assert queue.result("corte")["queries"]["served"] == 2 * TRAIN  # each session reads them all
    assert queue.result("black box + flip")["queries"]["views"] == 2


def test_a_third_queue_has_nothing_to_do(queue: Queue, tmp_path: Path) -> None:
    """It says so, leaves a job that another one holds to it, names missing data, and changes no file."""
    with lock(queue.work / "street" / "seed0" / "threshold.lock"):
        before = content(queue.work)
        args = command(queue.work, "--pairs", "street,camvid", rows=[*KNOWN, "threshold"])
        told = run(args, data=tmp_path).splitlines()
    assert told[: len(KNOWN)] == [f"street/seed0/{row}: finished before" for row in KNOWN]
    assert "street/seed0/threshold: another queue works on it" in told
    assert "camvid: SKIPPED: DATA MISSING" in told[-1] and str(tmp_path / "camvid" / "val") in told[-1]
    assert content(queue.work) == before


def test_a_queue_with_other_settings_or_images_is_refused(queue: Queue) -> None:
    """Each job says what differs, nothing is touched, and the exit status tells."""
    before = content(queue.work)
    told = run(command(queue.work, "--set", "lr=0.001"), status=1)
    assert told.count("SKIPPED") == told.count("lr: 0.004 -> 0.001") == 3
    assert content(queue.work) == before
    fewer = Task(street(4, REPORT), find_rows("black box")[0], 0, queue.work)
    with pytest.raises(Skipped, match="another --work"):
        finished(fewer)


def test_runs_that_were_started_by_hand_are_scored_when_finished_and_never_trained(queue: Queue) -> None:
    """A finished one gets the result that the queue's own got; an unfinished one is named and left alone."""
    work = queue.killed
    naive, corte = queue.row("naive", work), queue.row("corte", work)
    written = ("result.json", "report.npz", "sessions.json")
    for path in (*(naive / name for name in written), corte / "sessions.json"):
        path.unlink()
    training, unfinished = content(naive), content(corte)
    told = run(command(work, rows=["naive", "corte"]), status=1)
    assert "corte was started by hand and is at step" in told
    assert content(corte) == unfinished
    assert training.items() <= content(naive).items()
    found, own = json.loads((naive / "result.json").read_text()), queue.result("naive")
    for key in ("miou", "iou", "settings", "kept", "queries"):
        assert found[key] == own[key]


def test_numbers_follow_from_the_counts_by_image(queue: Queue) -> None:
    """What result.json says is what the kept matrices say, and they hold every image."""
    for row in KNOWN:
        scores, result = Scores.load(queue.row(row) / "report.npz"), queue.result(row)
        assert scores.names == tuple(f"{n:04d}.png" for n in range(REPORT))
        assert scores.counts.dtype.name == "int32"
        assert result["miou"] == pytest.approx(float(miou(scores.counts.sum(axis=0))))
        assert result["iou"] == scores.total().iou()


def test_kept_pixels_are_judged_by_the_truth_without_asking(queue: Queue) -> None:
    """Naive keeps all answers, so they are as right as the black box is on the train images."""
    pair = street(TRAIN, REPORT)
    data = pair.data(queue.work / "street", 0)
    ledger, folders = queue.work / "street" / "ledger.sqlite", [(data.train, data.train_labels)]
    with running_teacher(["--open", "--backend", "street"]) as url:
        (scores,), tally = score_teacher(url, ledger, pair, folders, ["identity"])
    assert tally.sent == 0
    naive, corte = queue.result("naive")["kept"], queue.result("corte")["kept"]
    assert naive["answers_right"] == pytest.approx(scores.total().pixel_accuracy)
    assert naive["right"] == pytest.approx(naive["answers_right"]) and naive["end"] == 1
    assert corte["answers_right"] == naive["answers_right"] and corte["looked_at"] == TRAIN
    assert 0 < corte["end"] < 1 and corte["right"] != corte["answers_right"]


def test_the_report_prints_what_was_measured(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Markdown and JSON, dated; forty steps do not count, one seed is no win, and both are said."""
    flags = ["--pair", "street", "--date", "2030-01-02", "--work", str(queue.work), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["report", *flags])
    report.main()
    text = capsys.readouterr().out
    assert text == (tmp_path / "2030-01-02-street.md").read_text()
    for row in KNOWN:
        assert f"| {row} | {100 * queue.result(row)['miou']:.1f} |" in text
    assert "**The rows do not count: the budget is measured**" in text
    assert f"{REPORT} blocks" in text and "of 3 seeds" in text and "absent from the truth" in text
    held = json.loads((tmp_path / "2030-01-02-street.json").read_text())
    assert {result["row"] for result in held["results"]} == set(KNOWN)
    assert not held["budget"]["counts"] and not any(one["win"] for one in held["differences"])


def test_rows_count_from_eight_points_on(queue: Queue) -> None:
    """The rule looks at target-only less the black box, and names rows of another budget."""
    rows = read(queue.work / "street")
    differences = compared(rows)
    bound = differences["target-only", "black box"]
    for gap, counts in ((0.079, False), (0.081, True)):
        planted = {("target-only", "black box"): replace(bound, seeds={0: gap})}
        assert budget(rows, planted)["counts"] is counts
    rows["corte"][0]["settings"]["steps"] += 1
    assert budget(rows, differences)["others"] == ["corte"]


def test_results_that_do_not_belong_together_are_not_mixed(queue: Queue, tmp_path: Path) -> None:
    """One row with two settings, or on two class lists, makes no table."""
    for seed in (0, 1):
        shutil.copytree(queue.row("naive"), tmp_path / f"seed{seed}" / "naive")
    path = tmp_path / "seed1" / "naive" / "result.json"
    result = json.loads(path.read_text()) | {"seed": 1}
    path.write_text(json.dumps(result))
    assert list(read(tmp_path)["naive"]) == [0, 1]
    path.write_text(json.dumps({**result, "settings": {**result["settings"], "lr": 1.0}}))
    with pytest.raises(ValueError, match="'naive' differ in lr"):
        read(tmp_path)
    path.write_text(json.dumps({**result, "classes": ["road"]}))
    with pytest.raises(ValueError, match="differ in 'classes'"):
        read(tmp_path)


def test_a_setting_that_did_not_exist_then_stands_for_its_default(queue: Queue) -> None:
    """An old run is taken for the same as long as the new setting has its default, and only then."""
    sets = tuple(f"{key}={value}" for key, value in SETS.items())
    task = Task(street(TRAIN, REPORT), find_rows("naive")[0], 0, queue.work, sets)
    saved = {k: v for k, v in queue.result("naive")["settings"].items() if k != "loss_stride"}
    assert trained(task) and finished(task) is not None
    assert changed(saved, task) == []
    newer = replace(task, extra=(*sets, "loss_stride=4"))
    assert changed(saved, newer) == ["loss_stride: 2 -> 4"]
    with pytest.raises(Skipped, match="loss_stride: 2 -> 4"):
        finished(newer)


def test_every_row_can_be_run() -> None:
    """Names and folders are distinct, settings are legal on both pairs, and views exist."""
    assert len({row.slug for row in ALL}) == len(ALL) == len({row.name for row in ALL})
    pairs = [pair for pair in (make() for make in PAIRS.values()) if not pair.missing]
    for row in ALL:
        assert find_rows(row.name) == find_rows(row.slug) == [row]
        if row.kind == "teacher":
            assert parse_views(row.views(("columns:2",)))
            continue
        for pair in pairs:
            settings = Task(pair, row, 3, Path("work")).settings
            assert (settings.method, settings.seed) == (row.method, 3)
    with pytest.raises(KeyError, match="there are black box"):
        find_rows("naive,nobody")
