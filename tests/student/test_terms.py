"""What a run asks of its teacher: the level, the views, what they cost, and what cannot be had."""

import numpy as np
import pytest

from corte_protocol import Disclosure, Limits, TeacherInfo
from corte_student.errors import SettingsError
from corte_student.pseudo_labels import METHODS
from corte_student.queries import IDENTITY
from corte_student.settings import TrainSettings
from corte_student.terms import Terms, settle
from corte_student.training import labeller_of

CLASSES = 5


def info_of(level: str) -> TeacherInfo:
    """A teacher of five classes that discloses `level`."""
    names = tuple(f"c{i}" for i in range(CLASSES))
    colors = tuple((i, i, i) for i in range(CLASSES))
    return TeacherInfo(1, "t", "r", names, colors, Disclosure.parse(level, CLASSES), Limits(10**6, 10**6))


def terms_of(level: str, **values: object) -> Terms:
    """The terms of a run with those settings, with the method's own labeller."""
    settings = TrainSettings.model_validate(values)
    return settle(info_of(level), settings, labeller_of(settings, CLASSES))


def names_of(terms: Terms) -> list[str]:
    """The queries by name."""
    return [query.name for query in terms.queries]


@pytest.mark.parametrize("offered", ["margin", "topk:3", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_the_margin_is_asked_for_wherever_it_is_offered(offered: str, method: str) -> None:
    """Whatever the method, one question an image, so that one paid answer serves them all."""
    assert terms_of(offered, method=method) == Terms(Disclosure(2, 8), (IDENTITY,), False)


def test_less_than_a_margin_is_asked_for_as_it_is() -> None:
    """Confidence gives a bound; naive is content with labels, and needs no more than one view."""
    assert terms_of("confidence") == Terms(Disclosure(1, 8), (IDENTITY,), False)
    assert terms_of("labels", method="naive") == Terms(Disclosure(1, 0), (IDENTITY,), False)


@pytest.mark.parametrize("method", ["corte", "random", "soft"])
def test_labels_alone_get_a_surrogate_of_two_views(method: str) -> None:
    """Votes stand in for the margin; the sentence says so, what is asked, and what it costs at most."""
    terms = terms_of("labels", method=method)
    assert terms.level == Disclosure(1, 0) and terms.surrogate
    assert names_of(terms) == ["identity", "flip"]
    assert terms.cost(100) == (
        "asks for labels, 2 queries an image (identity, flip): "
        "at most 200 requests for 100 images; labels only, so votes and local purity stand in for the margin"
    )


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 9])
def test_the_budget_says_how_many_of_them(budget: int) -> None:
    """A smaller budget takes the first of the two, a larger one invents none."""
    terms = terms_of("labels", max_queries=budget)
    assert names_of(terms) == ["identity", "flip"][:budget]
    assert f"at most {7 * min(2, budget)} requests for 7 images" in terms.cost(7)


def test_labels_may_be_chosen_where_more_is_offered() -> None:
    """The level that is asked for counts, not the one that is offered."""
    assert terms_of("margin", disclosure="labels").surrogate
    assert terms_of("full", disclosure="topk:3").level == Disclosure(3, 8)


def test_one_view_is_told_as_one() -> None:
    """The sentence names the level and the question."""
    assert terms_of("full").cost(12) == (
        "asks for margin, one query an image (identity): at most 12 requests for 12 images"
    )


def test_views_are_asked_as_they_are_named() -> None:
    """In order, with scores or without; each window counts as a question."""
    asked = ["flip", "columns:3"]
    terms = terms_of("margin", views=asked)
    assert names_of(terms) == ["flip", "columns:3/0", "columns:3/1", "columns:3/2"]
    assert not terms.surrogate
    assert names_of(terms_of("labels", views=["flip"])) == ["flip"]


def test_views_above_the_budget_are_refused_with_the_remedy() -> None:
    """How many they are, what is allowed, and both ways out."""
    with pytest.raises(
        SettingsError,
        match=r"flip, columns:4 are 5 queries an image, max_queries allows 4: .* raise max_queries",
    ):
        terms_of("margin", views=["flip", "columns:4"])
    assert len(terms_of("margin", views=["flip", "columns:4"], max_queries=5).queries) == 5


@pytest.mark.parametrize("method", ["threshold", "class-mean", "distil", "dine"])
def test_scores_cannot_be_made_of_labels(method: str) -> None:
    """A method that compares scores is refused where only labels are disclosed, with what would do."""
    with pytest.raises(SettingsError, match=f"'{method}' needs scores: use --method corte or naive"):
        terms_of("labels", method=method)
    with pytest.raises(SettingsError, match="needs scores"):
        terms_of("full", method=method, disclosure="labels")


def test_a_level_beyond_the_teachers_is_refused() -> None:
    """Too much, and no level at all."""
    with pytest.raises(SettingsError, match="discloses margin, not full: choose at most that"):
        terms_of("margin", disclosure="full")
    with pytest.raises(SettingsError, match="disclosure: unknown disclosure 'everything'"):
        terms_of("margin", disclosure="everything")
    with pytest.raises(SettingsError, match="unknown view 'mirror'"):
        terms_of("margin", views=["mirror"])


def test_a_labeller_that_needs_more_than_a_margin_is_told_so() -> None:
    """One from outside may need three classes a pixel; where the run asks for two it cannot begin."""
    settings = TrainSettings()
    labeller = labeller_of(settings, CLASSES)
    labeller.needs = Disclosure(3, 8)
    with pytest.raises(SettingsError, match="asks for margin and the method 'corte' needs topk:3"):
        settle(info_of("full"), settings, labeller)
    wider = TrainSettings(disclosure="topk:3")
    assert settle(info_of("full"), wider, labeller).level == Disclosure(3, 8)


def test_the_sum_of_the_sentence_is_exact() -> None:
    """For any number of images and views."""
    for images, count in np.ndindex(3, 5):
        if count >= 2:
            terms = terms_of("margin", views=[f"columns:{count}"], max_queries=8)
            assert f"at most {count * images} requests for {images} images" in terms.cost(images)
