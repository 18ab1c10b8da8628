"""The plan, the moving average and the settings."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_student.ema import Ema
from corte_student.errors import SettingsError
from corte_student.models import build_student
from corte_student.plan import Plan
from corte_student.settings import TrainSettings, differences, load_settings


@given(st.integers(1, 40), st.integers(2, 9), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_every_epoch_sees_every_image_once(images: int, batch: int, seed: int) -> None:
    """Each run of `images` positions is a permutation, and steps cut the sequence without gap."""
    plan = Plan(images, batch, 20, seed)
    sequence = [image for step in range(20) for image in plan.batch_at(step)]
    for start in range(0, len(sequence) - images + 1, images):
        assert sorted(sequence[start : start + images]) == list(range(images))
    assert sequence == [plan.image_at(p) for p in range(len(sequence))]


def test_another_seed_is_another_order() -> None:
    """The seed decides the order."""
    assert Plan(50, 8, 5, 0).batch_at(0) != Plan(50, 8, 5, 1).batch_at(0)


def test_the_ema_pairs_by_name_and_copies_counters() -> None:
    """Floats move by the rate, integer buffers are copied, the first step forgets the random start."""
    student = build_student("test_byobnet", 3, width=8)
    ema = Ema(student, steps=1000)
    with torch.no_grad():
        for value in student.state_dict().values():
            value.add_(1)
    ema.update(student, 0)
    for name, value in ema.model.state_dict().items():
        assert torch.equal(value, student.state_dict()[name]), name
    before = {n: v.clone() for n, v in ema.model.state_dict().items()}
    with torch.no_grad():
        for value in student.state_dict().values():
            value.add_(2)
    ema.update(student, 9)
    for name, value in ema.model.state_dict().items():
        moved = before[name] + (0.2 if value.is_floating_point() else 2)
        torch.testing.assert_close(value, moved.to(value.dtype))


@pytest.mark.parametrize(
    ("step", "steps", "rate"), [(0, 100, 0.0), (9, 1000, 0.9), (99, 100, 0.8), (9999, 10**5, 0.999)]
)
def test_the_ema_rate_forgets_in_short_runs(step: int, steps: int, rate: float) -> None:
    """min(1 - 1/(n+1), 1 - 20/N, 0.999)."""
    assert Ema.rate(step, steps) == pytest.approx(rate)


def test_flags_win_over_assignments_over_recipe(tmp_path: Path) -> None:
    """Later sources override earlier ones; a flag that is not given overrides nothing."""
    recipe = tmp_path / "r.toml"
    recipe.write_text('steps = 10\nlr = 0.5\nmethod = "soft"\n')
    got = load_settings(recipe, {"steps": 30, "seed": None}, ["steps=20", "method=naive"])
    assert (got.steps, got.lr, got.method, got.seed) == (30, 0.5, "naive", 0)


@pytest.mark.parametrize(
    ("recipe", "assignments", "message"),
    [
        ("stepz = 10", [], "unknown setting 'stepz'; known are method, seed"),
        ("steps = 0", [], "steps: .*greater than or equal to 1"),
        ("steps = '10'", [], "steps: .*integer"),
        ("", ["steps"], "key=value"),
        ("", ["method=magic"], "method: .*'corte', 'naive'"),
        ("steps = ", [], "not TOML"),
        ("scale_min = 2.0", [], "scale_min is above scale_max"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, recipe: str, assignments: list[str], message: str) -> None:
    """Each mistake gives one error that names the key and what it may be."""
    path = tmp_path / "r.toml"
    path.write_text(recipe)
    with pytest.raises(SettingsError, match=message):
        load_settings(path, {}, assignments)


def test_differences_name_old_and_new() -> None:
    """A resume can say what would change."""
    now = TrainSettings(steps=20)
    assert differences(TrainSettings(steps=10).model_dump(), now) == ["steps: 10 -> 20"]
