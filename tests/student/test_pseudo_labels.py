"""Every labeller against the contract, the names under which they are built, and labellers from outside."""

from itertools import product
from pathlib import Path

import pytest

from corte_protocol import Disclosure
from corte_student.errors import SettingsError
from corte_student.pseudo_labels import METHODS, PseudoLabeller, Refinement, Selection, build_labeller
from corte_student.pseudo_labels.relative import Corte
from student.labeller_contract import LabellerContract

RULES, KINDS, SCOPES = (
    ("none", "arbitrate", "mix", "product"),
    ("mean", "quantile", "fixed"),
    ("set", "image"),
)


def build(method: str, classes: int) -> PseudoLabeller:
    """A labeller by name, with the refinement in the middle of the run."""
    return build_labeller(
        method,
        classes,
        selection=Selection(),
        refinement=Refinement(start=0.3, decay=0.9),
        least=0.5,
        seed=3,
    )


class TestEveryMethodContract(LabellerContract):
    """Each name that `--method` takes keeps the contract."""

    @pytest.fixture(params=METHODS, autouse=True)
    def method(self, request: pytest.FixtureRequest) -> None:
        """One of the names."""
        self._method: str = request.param

    def make(self, classes: int) -> PseudoLabeller:
        """The labeller of that name."""
        return build(self._method, classes)


class TestEveryRuleContract(LabellerContract):
    """CoRTe keeps it with every rule of refinement, threshold, scope and weight."""

    @pytest.fixture(params=list(enumerate(product(RULES, KINDS, SCOPES))), autouse=True)
    def variant(self, request: pytest.FixtureRequest) -> None:
        """One combination; the switches of the refinement change from one to the next."""
        number, (rule, kind, scope) = request.param
        self._selection = Selection(kind, 0.5, scope)
        self._refinement = Refinement(
            rule,
            start=0.3,
            decay=0.9,
            all_before=number % 2 == 0,
            agreed=number % 3 == 0,
            power=0.5,
            ranked=number % 5 < 2,
        )

    def make(self, classes: int) -> PseudoLabeller:
        """The labeller of that combination."""
        return Corte(classes, self._selection, self._refinement)


@pytest.mark.parametrize("rule", RULES)
def test_a_start_of_one_is_no_refinement(rule: str) -> None:
    """Then neither the ema nor scores are ever wanted; nor are scores by the rules that need none."""
    never = Corte(3, Selection(), Refinement(rule, start=1.0))  # type: ignore[arg-type]
    assert not never.wants_scores and not never.wants_ema(1.0)
    some = Corte(3, Selection(), Refinement(rule, start=0.5))  # type: ignore[arg-type]
    assert some.wants_scores == (rule in ("mix", "product"))
    assert some.wants_ema(0.5) == some.wants_ema(0.46) == (rule != "none")
    assert not some.wants_ema(0.44)


def test_what_each_method_needs() -> None:
    """Labels do for naive alone; votes and purity stand in for a margin, never for scores."""
    needs = {name: build(name, 3).needs for name in METHODS}
    assert needs.pop("naive") == Disclosure(1, 0)
    assert set(needs.values()) == {Disclosure(1, 8)}
    assert {name for name in METHODS if build(name, 3).surrogate} == {"corte", "random", "soft"}
    assert {name for name in METHODS if build(name, 3).wants_scores} == {"distil"}
    assert {name for name in METHODS if build(name, 3).tests == "confidence"} == {"threshold", "class-mean"}


def test_an_unknown_method_lists_the_choices() -> None:
    """The error names the methods that exist, and the way to one's own."""
    with pytest.raises(SettingsError, match=f"choose {', '.join(METHODS)}, or package.module:factory"):
        build("magic", 3)


@pytest.mark.parametrize("path", ["nowhere_at_all:build", "corte_student.errors:nothing", ":build", "a:"])
def test_a_labeller_that_cannot_be_imported_says_where_to_put_it(path: str) -> None:
    """One line with the remedy, for a module, a name or a spelling that is wrong."""
    with pytest.raises(SettingsError, match="PYTHONPATH or installed"):
        build(path, 3)


def test_a_labeller_from_outside_gets_the_classes_and_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`package.module:factory` is called with the number of classes; what is no labeller is refused."""
    (tmp_path / "outside_labellers.py").write_text(
        "from corte_student.pseudo_labels import Plain, masked\n"
        "class Own(Plain):\n"
        "    def __init__(self, classes):\n"
        "        self.classes = classes\n"
        "    def __call__(self, answers, ema_logits, progress):\n"
        "        return masked(answers.labels, answers.labels == 0)\n"
        "class Half:\n"
        "    def __init__(self, classes):\n"
        "        self.needs = None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = build("outside_labellers:Own", 7)
    assert vars(own) == {"classes": 7} and not own.wants_ema(1.0)
    with pytest.raises(SettingsError, match=r"lacks surrogate, .*state, restore: derive it from Plain"):
        build("outside_labellers:Half", 7)
