"""Signals without labels: windows against plain sums; noise warns of nothing, planted faults do.

Noise is drawn from the same seeds each time: of healthy runs without end some are accused (seed 68473 is).
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_student.errors import CheckpointError
from corte_student.report.overview import overview
from corte_student.report.recorded import Recorded
from corte_student.report.runlog import RunLog
from corte_student.report.signals import WINDOW, Logged, Monitor, RunWarning, before, windows

NAMES = ("road", "building", "car", "pole", "sign")
SHARES = np.array([0.4, 0.4, 0.15, 0.045, 0.005])
INTERVALS, EVERY = 60, 20
STEPS, REFINES_AT = INTERVALS * EVERY, INTERVALS * EVERY * 2 // 5
# as on street scenes at a batch of 8: a small class comes in objects, some batches hold next to nothing of it
BATCH, CLASS_NOISE, BATCH_NOISE = 65536, 0.06, 0.02
SAID_NOISE, EMA_NOISE = (np.array(n) for n in ([0.1, 0.1, 0.2, 0.4, 0.6], [0.08, 0.08, 0.15, 0.3, 0.4]))

Rng = np.random.Generator
Change = Callable[[int, dict[str, np.ndarray]], None]


def series(rng: Rng, change: Change = lambda place, share: None) -> list[Logged]:
    """A run that learns and then stays, as noisy as a real one; `change` plants a fault by interval.

    It is given float [S]: `kept`, the share of a class that is kept; `agree`, the share of it on which the
    ema agrees; `ema`, its pixels over the answers'.
    """
    found = []
    for place in range(INTERVALS):
        learned = 1 - np.exp(-(place + 1) / 4 * np.array([3, 3, 1.5, 1, 0.8]))
        share = {
            "kept": np.full(5, 0.7 if place * EVERY > REFINES_AT else 1.0) * rng.uniform(0.97, 1.03, 5),
            "agree": learned * np.array([0.9, 0.88, 0.8, 0.6, 0.5]),
            "ema": learned * rng.lognormal(0, EMA_NOISE),
        }
        change(place, share)
        said = BATCH * SHARES * rng.lognormal(0, SAID_NOISE)
        agree = share["agree"] + rng.normal(0, CLASS_NOISE, 5) + rng.normal(0, BATCH_NOISE)
        agreed = said * np.clip(agree, 0, np.minimum(1, share["ema"]))
        answered = BATCH * EVERY * SHARES
        found.append(
            Logged(
                (place + 1) * EVERY,
                counts(answered * share["kept"]),
                counts(answered),
                counts(said),
                counts(agreed),
                counts(said * share["ema"]),
                0.8,
            )
        )
    return found


def counts(values: np.ndarray) -> list[int]:
    return [int(v) for v in values]


def told(intervals: Sequence[Logged], monitor: Monitor | None = None) -> list[RunWarning]:
    """All that a monitor says of a series."""
    monitor = monitor or Monitor(NAMES, STEPS, REFINES_AT)
    return [warning for interval in intervals for warning in monitor.update(interval)]


def gone_from(start: int, *classes: int, until: int = INTERVALS) -> Change:
    """The ema predicts almost nothing of these classes from interval `start` on."""

    def change(place: int, share: dict[str, np.ndarray]) -> None:
        if start <= place < until:
            share["ema"][list(classes)] *= 0.01

    return change


@settings(max_examples=60, derandomize=True)
@given(st.integers(0, 1 << 32))
def test_a_healthy_noisy_run_warns_of_nothing(seed: int) -> None:
    """Neither its rise, nor refinement that keeps less, nor the noise of batches."""
    assert told(series(np.random.default_rng(seed))) == []


@settings(max_examples=40, derandomize=True)
@given(st.integers(0, 1 << 32), st.integers(25, 45), st.sets(st.integers(0, 4), min_size=1))
def test_classes_that_vanish_are_a_collapse_and_named(seed: int, start: int, gone: set[int]) -> None:
    """Within two windows, each once, and no other class; a large one costs agreement as well."""
    found = told(series(np.random.default_rng(seed), gone_from(start, *gone)))
    collapses = [w for w in found if w.code == "collapse"]
    assert sorted(name for w in collapses for name in w.classes) == sorted(NAMES[c] for c in gone)
    others = {w.code for w in found} - {"collapse"}
    assert others == {"agreement"} if gone & {0, 1} else others <= {"agreement"}
    for warning in collapses:
        assert start * EVERY < warning.step <= (start + 2 * WINDOW) * EVERY
        assert "a later refine_from" in warning.message


@settings(max_examples=40, derandomize=True)
@given(st.integers(0, 1 << 32), st.integers(25, 45), st.sampled_from([1, 12]))
def test_a_fall_of_agreement_is_told_once(seed: int, start: int, over: int) -> None:
    """Whether it comes at once or over twelve intervals; its message says from where to where."""

    def fall(place: int, share: dict[str, np.ndarray]) -> None:
        share["agree"] -= 0.35 * min(1.0, max(0, place - start + 1) / over)

    found = told(series(np.random.default_rng(seed), fall))
    assert [w.code for w in found] == ["agreement"]
    assert found[0].step > start * EVERY
    best, now = map(int, re.findall(r"(\d+) %", found[0].message))
    assert 75 < best < 96
    assert now + 10 <= best + 1  # both are rounded


@settings(max_examples=30, derandomize=True)
@given(st.integers(0, 1 << 32), st.integers(0, 4))
def test_a_class_of_which_nothing_is_kept_is_starved(seed: int, c: int) -> None:
    """It is told at the first window that is judged, and of that class alone."""

    def starve(place: int, share: dict[str, np.ndarray]) -> None:
        share["kept"][c] = 0.001

    found = told(series(np.random.default_rng(seed), starve))
    assert [(w.code, w.classes) for w in found] == [("starved", (NAMES[c],))]


def test_a_class_that_never_came_is_unlearned_not_lost() -> None:
    """The advice differs: nothing has to be undone. Once it comes, nothing stands."""
    intervals = series(np.random.default_rng(1), gone_from(0, 3, until=40))
    monitor = Monitor(NAMES, STEPS, REFINES_AT)
    found = told(intervals[:40], monitor)
    assert [(w.code, w.classes) for w in found] == [("unlearned", ("pole",))]
    assert "more steps" in found[0].message
    assert monitor.standing() == found
    assert told(intervals[40:], monitor) == []
    assert monitor.standing() == []


def test_a_warning_stands_until_it_recovers_and_may_come_again() -> None:
    """Gone, back and gone again is two warnings; at the end the second stands, with its own step."""
    twice = gone_from(20, 1, until=32)
    again = gone_from(46, 1)

    def both(place: int, share: dict[str, np.ndarray]) -> None:
        twice(place, share)
        again(place, share)

    intervals = series(np.random.default_rng(2), both)
    monitor = Monitor(NAMES, STEPS, None)
    first = told(intervals[:32], monitor)
    assert {w.code for w in monitor.standing()} == {w.code for w in first} == {"collapse", "agreement"}
    assert told(intervals[32:45], monitor) == []
    assert monitor.standing() == []
    second = told(intervals[45:], monitor)
    assert {w.code: w.step for w in monitor.standing()} == {w.code: w.step for w in second}
    assert sorted(w.code for w in second) == ["agreement", "collapse"]


def test_before_the_warm_up_ends_nothing_is_said() -> None:
    """A student from random weights predicts one class at first."""
    early = series(np.random.default_rng(3), gone_from(0, 1, 2, 3, 4, until=INTERVALS // 5))
    assert told(early) == []


def test_a_class_too_rare_to_judge_is_left_alone() -> None:
    """A few pixels of a class in a window are a few objects at most: no ground for a warning."""
    rare = [
        Logged(
            i.step,
            i.kept_per_class,
            i.answered_per_class,
            [*i.said[:4], 60],
            [*i.agreed[:4], 0],
            [*i.ema[:4], 0],
            0,
        )
        for i in series(np.random.default_rng(4))
    ]
    assert told(rare) == []


def test_many_classes_are_named_in_one_line() -> None:
    """The first six by name and share, the rest by number."""
    names = [f"class {c}" for c in range(10)]
    flat = [
        Logged(s * 10, [900] * 10, [900] * 10, [900] * 10, [800] * 10, [900] * 10, 0.9) for s in range(40)
    ]
    lost = [
        Logged(s * 10, [900] * 10, [900] * 10, [900] * 10, [0] * 10, [0] * 10, 0.9) for s in range(40, 60)
    ]
    collapse = next(w for w in told([*flat, *lost], Monitor(names, 600, None)) if w.code == "collapse")
    assert len(collapse.classes) == 10
    assert "class 5 (10 % of the answers) and 4 more" in collapse.message
    assert "a smaller lr" in collapse.message


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 9)), max_size=25))
def test_windows_are_plain_sums(drawn: list[tuple[bool, int, int]]) -> None:
    """Against adding up by hand; an interval without signals is as if it were not there."""
    intervals = [
        Logged(step, [a, b], [a + b, b], [a, b] if seen else [], [a, 0], [a + b, a], a / 10)
        for step, (seen, a, b) in enumerate(drawn)
    ]
    held = [(step, a, b) for step, (seen, a, b) in enumerate(drawn) if seen]
    found = windows(intervals)
    assert len(found) == max(0, len(held) - WINDOW + 1)
    for place, window in enumerate(found):
        part = held[place : place + WINDOW]
        a, b = sum(p[1] for p in part), sum(p[2] for p in part)
        assert (window.first, window.step) == (part[0][0], part[-1][0])
        assert tuple(window.said) == (a, b)
        assert window.agreement == (a / (a + b) if a + b else 0)
        assert window.agreement_of(0) == (1 if a else None)
        assert window.kept_of(0) == (a / (a + b) if a + b else None)
        assert window.confidence == pytest.approx(a / 10 / WINDOW)
        assert window.iou(0) == (a / (a + b) if a + b else 0)


def write_run(run: Path, intervals: Sequence[Logged], **changed: object) -> Path:
    """A run folder as training leaves it, without checkpoints."""
    run.mkdir()
    how = {"method": "corte", "steps": STEPS, "refine": "arbitrate", "refine_from": 0.4} | changed
    (run / "run.json").write_text(json.dumps({"settings": how, "classes": NAMES}))
    log = RunLog(run)
    for i in intervals:
        log.write(
            {
                "step": i.step,
                "kept_per_class": i.kept_per_class,
                "answered_per_class": i.answered_per_class,
                "said_per_class": i.said,
                "agreed_per_class": i.agreed,
                "ema_per_class": i.ema,
                "ema_confidence": i.confidence,
            }
        )
    return run


def test_a_log_gives_the_warnings_of_the_run_again(tmp_path: Path) -> None:
    """What is read back is what was seen, so a resume knows what stood; a cut line is no line."""
    intervals = series(np.random.default_rng(5), gone_from(40, 3))
    live = Monitor(NAMES, STEPS, REFINES_AT)
    assert told(intervals, live)
    run = write_run(tmp_path / "run", intervals)
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 99')
    read = Recorded.read(run)
    assert read.intervals == intervals
    assert read.monitor().standing() == live.standing() != []


def test_drift_is_counted_from_before_refinement(tmp_path: Path) -> None:
    """The last full window that ends by its first step; without refinement, by the end of the warm-up."""
    intervals = series(np.random.default_rng(6))
    found = overview(Recorded.read(write_run(tmp_path / "a", intervals)))
    assert found is not None
    assert (found.step, found.since, found.refines_at) == (STEPS, REFINES_AT, REFINES_AT)
    reference, last = before(windows(intervals), REFINES_AT), windows(intervals)[-1]
    assert reference is not None
    assert found.kept.drift == pytest.approx(last.kept_share - reference.kept_share)
    assert found.kept.drift == pytest.approx(-0.3, abs=0.03)
    assert [c.name for c in found.classes] == list(NAMES)
    for off in ({"refine": "none"}, {"refine_from": 1.0}, {"method": "naive"}):
        plain = overview(Recorded.read(write_run(tmp_path / "-".join(off), intervals, **off)))
        assert plain is not None
        assert (plain.refines_at, plain.since) == (None, STEPS // 5)


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    """Missing or damaged files are a CheckpointError; a log of an older version has no signals to show."""
    with pytest.raises(CheckpointError, match="no run folder"):
        Recorded.read(tmp_path)
    run = write_run(tmp_path / "run", [])
    RunLog(run).write({"step": 20, "kept_per_class": [1], "answered_per_class": [2]})
    assert overview(Recorded.read(run)) is None
    (run / "log.jsonl").write_text("{}\n")
    with pytest.raises(CheckpointError, match="damaged"):
        Recorded.read(run)
