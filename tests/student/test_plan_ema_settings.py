"""The plan, the moving average and the settings."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_student.ema import Ema
from corte_student.errors import SettingsError
from corte_student.models import build_student
from corte_student.plan import Plan, Rarity
from corte_student.pseudo_labels import Refinement, Selection
from corte_student.pseudo_labels.baselines import Threshold
from corte_student.pseudo_labels.relative import Corte
from corte_student.settings import TrainSettings, differences, find_recipe, load_settings, shipped_recipes
from corte_student.training import labeller_of


@given(st.integers(1, 40), st.integers(2, 9), st.integers(0, 1000))
@settings(max_examples=50)
def test_every_epoch_sees_every_image_once(images: int, batch: int, seed: int) -> None:
    """Each run of `images` positions is a permutation, as long as no classes are drawn."""
    plan = Plan(images, batch, 20, seed)
    sequence = [plan.image_at(position) for position in range(20 * batch)]
    for start in range(0, len(sequence) - images + 1, images):
        assert sorted(sequence[start : start + images]) == list(range(images))


def test_another_seed_is_another_order() -> None:
    """The seed decides the order."""
    first, second = ([Plan(50, 8, 5, seed).image_at(p) for p in range(50)] for seed in (0, 1))
    assert first != second
    assert Plan(50, 8, 5, 0).step_rng(3).random() != Plan(50, 8, 5, 1).step_rng(3).random()


AREAS = np.array(
    [[900, 0, 0, 0], [800, 100, 0, 0], [500, 25, 75, 0], [0, 0, 0, 0], [700, 0, 4, 0], [900, 0, 1, 0]]
)
"""Six images: class 0 is everywhere, 1 and 2 are rare, 3 nowhere; image 3 was set aside."""


def slow_chances(areas: list[list[int]], temperature: float) -> list[float]:
    """How likely each image is to be drawn: a class by softmax((1 - f) / T), an image by root of area."""
    pixels = [sum(row[k] for row in areas) for k in range(len(areas[0]))]
    powers = [
        math.exp((1 - n / sum(pixels)) / temperature) if n else 0.0 for n in pixels
    ]  # a class that no image has is never drawn
    chances = [0.0] * len(areas)
    for k, power in enumerate(powers):
        roots = [math.sqrt(row[k]) for row in areas]
        for image, root in enumerate(roots):
            chances[image] += power / sum(powers) * root / sum(roots) if power else 0.0
    return chances


@given(st.integers(1, 30), st.integers(0, 1000), st.sampled_from([0.1, 1.0]))
@settings(max_examples=40)
def test_the_first_epoch_is_a_permutation_whatever_is_drawn_later(
    images: int, seed: int, rare: float
) -> None:
    """Everything is asked once before classes decide; what comes after is known once all is answered."""
    plan = Plan(images, 2, 100, seed, rare=rare)
    assert sorted(plan.image_at(position) for position in range(images)) == list(range(images))
    assert [plan.known(position, False) for position in (0, images - 1, images)] == [True, True, False]
    assert plan.known(images, True) and Plan(images, 2, 100, seed).known(images, False)
    if rare == 1.0:
        with pytest.raises(ValueError, match="answers of the first epoch"):
            plan.image_at(images)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("rare", [1.0, 0.4])
def test_later_draws_follow_the_formula(rare: float, temperature: float) -> None:
    """Over many positions each image comes as often as its chance says, within four deviations.

    The share that is not drawn by class is the permutation's, in which each image has its turn.
    """
    plan, draws = Plan(len(AREAS), 2, 10**6, 3, rare=rare, temperature=temperature), 6000
    rarity = Rarity(AREAS)
    got = np.bincount([plan.image_at(len(AREAS) + p, rarity) for p in range(draws)], minlength=len(AREAS))
    for image, chance in enumerate(slow_chances(AREAS.tolist(), temperature)):
        wanted = rare * chance + (1 - rare) / len(AREAS)
        assert abs(got[image] / draws - wanted) <= 4 * math.sqrt(wanted * (1 - wanted) / draws)
    assert rare < 1 or got[3] == 0  # what is set aside has no area


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    """Whatever was drawn before it; that makes a resumed run the same run."""
    plan, rarity = Plan(6, 2, 100, 3, rare=0.7), Rarity(AREAS)
    forth = [plan.image_at(p, rarity) for p in range(6, 60)]
    assert forth == [plan.image_at(p, rarity) for p in reversed(range(6, 60))][::-1]
    other = Plan(6, 2, 100, 4, rare=0.7)
    assert forth != [other.image_at(p, rarity) for p in range(6, 60)]


def test_without_any_class_every_image_may_be_drawn() -> None:
    """Answers of nothing but void leave no class to draw: then all images are alike."""
    nothing = Rarity(np.zeros((5, 3), np.int64))
    rng = np.random.default_rng(0)
    assert {nothing.draw(0.1, rng) for _ in range(100)} == set(range(5))


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


@pytest.mark.parametrize(
    ("step", "steps", "span", "rate"),
    [
        *((999, 1000, 0.05, 0.98), (999, 1000, 0.01, 0.9), (999, 1000, 1.0, 0.999), (9, 1000, 1.0, 0.9)),
        *((50, 100, 0.01, 0.0), (50, 100, 0.001, 0.0)),
    ],
)
def test_the_span_is_the_share_of_the_run_that_is_averaged(
    step: int, steps: int, span: float, rate: float
) -> None:
    """1 - 1/(span N) where that is the least; a span of a step or less is the student itself."""
    assert Ema.rate(step, steps, span) == pytest.approx(rate)
    student = build_student("test_byobnet", 3, width=8)
    ema = Ema(student, steps, span)
    before = {name: value.clone() for name, value in ema.model.state_dict().items()}
    with torch.no_grad():
        for value in student.state_dict().values():
            value.add_(1)
    ema.update(student, step)
    for name, value in ema.model.state_dict().items():
        moved = before[name] + (1 - rate if value.is_floating_point() else 1)
        torch.testing.assert_close(value, moved.to(value.dtype), atol=1e-5, rtol=1e-5)


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
        ("loss = 'l1'", [], "loss: .*'ce', 'sce' or 'gce'"),
        ("refine = 'vote'", [], "refine: .*'none', 'arbitrate', 'mix' or 'product'"),
        ("", ["views=flip"], "views: .*list"),
        ("ema_span = 0.0", [], "ema_span: .*greater than 0"),
        ("class_mix = 0.6\ncut_mix = 0.6", [], "at most 1 together"),
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


def test_a_method_that_does_not_exist_is_named_with_those_that_do() -> None:
    """Settings take any name, since there are methods from outside; the labeller is looked up at once."""
    asked = load_settings(None, {}, ["method=magic"])
    with pytest.raises(SettingsError, match="unknown method 'magic': choose corte, naive"):
        labeller_of(asked, 3)


def test_a_recipe_names_no_code_to_run(tmp_path: Path) -> None:
    """`package.module:factory` is refused from a file that came from somewhere, whatever flags say beside it.

    From `--method` or `--set` it is taken, since who runs it wrote it.
    """
    recipe = tmp_path / "r.toml"
    recipe.write_text('method = "evil.module:run"\n')
    for flags in ({}, {"method": "naive"}):
        with pytest.raises(SettingsError, match=r"names code to run .'evil.module:run'.*--method"):
            load_settings(recipe, flags, [])
    assert load_settings(None, {"method": "mine.module:build"}, []).method == "mine.module:build"
    assert load_settings(None, {}, ["method=mine.module:build"]).method == "mine.module:build"


def test_settings_reach_the_labeller() -> None:
    """Threshold, quantile, scope, rule and the rest decide how the labeller of the run is built."""
    told = ["threshold_kind=quantile", "threshold_quantile=0.2", "threshold_scope=image", "refine=product"]
    told += ["refine_power=0.5", "refine_from=0.3", "refine_decay=0.5", "rank_weights=true"]
    labeller = labeller_of(load_settings(None, {}, [*told, "refine_agreed=false"]), 3)
    assert isinstance(labeller, Corte)
    assert labeller._select == Selection("quantile", 0.2, "image")
    assert labeller._how == Refinement("product", 0.3, 0.5, True, False, 0.5, True)
    fixed = labeller_of(load_settings(None, {}, ["threshold_kind=fixed", "threshold=0.3"]), 3)
    assert isinstance(fixed, Corte) and fixed._select == Selection("fixed", 0.3)
    absolute = labeller_of(load_settings(None, {}, ["method=threshold", "threshold=0.3"]), 3)
    assert isinstance(absolute, Threshold) and absolute.least == round(0.3 * 255)


def test_differences_name_old_and_new() -> None:
    """A resume can say what would change."""
    now = TrainSettings(steps=20)
    assert differences(TrainSettings(steps=10).model_dump(), now) == ["steps: 10 -> 20"]


def test_the_defaults_are_the_best_recipe() -> None:
    """`corte-plus` is what `train` does unasked; `corte` differs from it in class mixing alone."""
    shipped = shipped_recipes()
    assert set(shipped) == {"corte", "corte-plus"}
    best, plain = (load_settings(shipped[name], {}, []) for name in ("corte-plus", "corte"))
    assert best == TrainSettings()
    assert plain == best.model_copy(update={"class_mix": 0.0})


def test_later_recipes_win_and_names_are_found(tmp_path: Path) -> None:
    """Recipes are read in order; a name that ships needs no path; an unknown one lists what ships."""
    mine = tmp_path / "mine.toml"
    mine.write_text("class_mix = 0.75\nsteps = 7\n")
    both = load_settings([find_recipe("corte"), find_recipe(str(mine))], {}, [])
    assert (both.class_mix, both.steps, both.method) == (0.75, 7, "corte")
    with pytest.raises(SettingsError, match="one of corte, corte-plus"):
        find_recipe("magic")
