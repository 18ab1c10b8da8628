"""The picture of a run's signals: lines where the numbers are, names apart, round ticks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from corte_student.report.curves import charts, curves, readable, save_curves, spread, ticks
from corte_student.report.recorded import Recorded
from corte_student.report.signals import Logged

NAMES = ("road", "sky", "car")
COLORS = ((128, 64, 128), (70, 130, 180), (0, 0, 142))
WANTED = st.lists(st.integers(0, 300).map(float), min_size=1, max_size=8)


def run(intervals: int = 20, kept: int = 50, refine_from: float = 0.4) -> Recorded:
    """A run of 400 steps, logged every 10: of 100 pixels `kept` are, of sky half of that; no car agrees."""
    each = [
        Logged(10 * (n + 1), [kept, kept // 2, kept], [100] * 3, [10] * 3, [8, 8, 0], [15, 15, 0], 0.3)
        for n in range(intervals)
    ]
    return Recorded(NAMES, {"method": "corte", "steps": 400, "refine_from": refine_from}, each)


def near(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """Where a picture has a colour, bool [H, W]."""
    close: np.ndarray = np.abs(np.asarray(picture).astype(int) - color).max(axis=2) < 12
    return close


@given(WANTED, st.lists(st.floats(0, 30), min_size=8, max_size=8), st.floats(-200, 200))
def test_names_are_apart_in_order_and_as_close_as_can_be(
    wanted: list[float], gaps: list[float], start: float
) -> None:
    """No other placement with these gaps moves them less in sum of squares."""
    pitch = 19.0
    places = spread(wanted, pitch, -1e4, 1e4)
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(np.array(places)[order]) >= pitch - 1e-6).all()
    other = np.empty(len(wanted))
    other[order] = start + np.cumsum([pitch + gap for gap in gaps[: len(wanted)]])
    assert ((np.array(places) - wanted) ** 2).sum() <= ((other - np.array(wanted)) ** 2).sum() + 1e-6


@given(WANTED)
def test_names_stay_inside_where_there_is_room(wanted: list[float]) -> None:
    """From `low` to `high`; without room they begin at `low` and are still apart."""
    roomy, tight = spread(wanted, 19, 40, 260), spread(wanted, 19, 40, 60)
    assert min(roomy) >= 40
    assert max(roomy) <= 260
    assert min(tight) >= 40
    assert all(b - a >= 19 - 1e-6 for a, b in zip(sorted(tight), sorted(tight)[1:], strict=False))


def test_names_with_room_stay_where_they_are() -> None:
    """Nothing is moved for the sake of it."""
    assert spread([100, 20, 60], 19, 0, 200) == [100, 20, 60]


@given(st.floats(0.01, 1e6), st.integers(2, 10))
def test_ticks_are_round_and_few(top: float, most: int) -> None:
    """They begin at 0, are evenly apart, end within a step of the top, and have one or two digits."""
    found = ticks(top, most)
    assert found[0] == 0
    assert 2 <= len(found) <= most + 1
    step = found[1]
    assert np.diff(found) == pytest.approx(step, rel=1e-6)
    assert found[-1] <= top * (1 + 1e-6) < found[-1] + step * (1 + 1e-5)
    assert float(f"{step:.1e}") == pytest.approx(step, rel=1e-6)


@given(st.tuples(*(st.integers(0, 255) for _ in range(3))))
def test_a_light_colour_is_darkened_and_a_dark_one_kept(color: tuple[int, int, int]) -> None:
    """Luminance at most 150 after it, in the same proportions."""
    light = np.dot(color, [0.2126, 0.7152, 0.0722])
    drawn = readable(color)
    assert np.dot(drawn, [0.2126, 0.7152, 0.0722]) <= 151
    assert drawn == color if light <= 150 else drawn == tuple(round(c * 150 / light) for c in color)


def test_charts_hold_the_numbers_of_the_log() -> None:
    """Kept by interval, agreement by window from the fifth interval on, confidence beside it."""
    kept, agreement, confidence = charts(run(), COLORS)
    assert [line.name for line in kept.lines] == [*NAMES, "all classes"]
    assert list(kept.lines[0].points) == [(10 * n, 0.5) for n in range(1, 21)]
    assert list(kept.lines[1].points) == [(10 * n, 0.25) for n in range(1, 21)]
    assert kept.lines[3].points[7] == (80, 125 / 300)
    assert [line.points[0] for line in agreement.lines] == [
        (50, 0.8),
        (50, 0.8),
        (50, 0.0),
        (50, pytest.approx(16 / 30)),
    ]
    assert [(line.name, len(line.points)) for line in confidence.lines] == [
        ("confidence", 16),
        ("agreement", 16),
    ]


def test_a_line_is_drawn_in_its_colour_at_its_height() -> None:
    """Cars, on which nothing agrees, run along the foot of the middle chart; nothing else there is blue."""
    picture = curves(run(), COLORS)
    blue, dark = near(picture, COLORS[2])[340:640], (np.asarray(picture).max(axis=2) < 200)[340:640]
    foot = np.flatnonzero(blue[:, 300:800].mean(axis=1) > 0.9)
    axis = np.flatnonzero(dark[:, 80:250].mean(axis=1) > 0.9)
    assert abs(foot.mean() - axis.mean()) <= 1
    assert not blue[: foot.min() - 3, 80:890].any()


def test_where_refinement_begins_is_marked_once_the_run_is_there() -> None:
    """A dashed line; a run that has not come so far, or never refines, has none."""

    def dashed(picture: Image.Image) -> bool:
        dark = np.asarray(picture).max(axis=2) < 200
        share = dark[60:270, 80:880].mean(axis=0)
        return bool(((share > 0.3) & (share < 0.7)).any())

    assert dashed(curves(run(40), COLORS))
    assert not dashed(curves(run(10), COLORS))
    assert not dashed(curves(run(40, refine_from=1.0), COLORS))


def test_a_class_that_the_ema_multiplies_stays_within_the_plot(tmp_path: Path) -> None:
    """The axis ends at 200 %, and so does what lies above; the file is the picture, in a new folder."""
    many = run(kept=900)
    picture, full = curves(many, COLORS), curves(run(kept=400), COLORS)
    assert (np.asarray(picture)[:330, :890] == np.asarray(full)[:330, :890]).all()
    assert (np.asarray(picture) != np.asarray(full)).any()
    save_curves(tmp_path / "a/b.png", many, COLORS)
    with Image.open(tmp_path / "a/b.png") as file:
        assert (np.asarray(file) == np.asarray(picture)).all()


def test_many_classes_make_room_for_their_names() -> None:
    """Nineteen names need more height than three."""
    few = curves(run(), COLORS)
    wide = run()
    more = [Logged(i.step, [5] * 19, [9] * 19, [9] * 19, [5] * 19, [9] * 19, 0.5) for i in wide.intervals]
    many = curves(Recorded(tuple(f"class {c}" for c in range(19)), wide.settings, more), [(9, 9, 9)] * 19)
    assert many.height > few.height


def test_without_enough_intervals_there_is_no_picture() -> None:
    """It is the caller's mistake."""
    with pytest.raises(ValueError, match="5 intervals"):
        curves(run(4), COLORS)
