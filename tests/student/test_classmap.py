"""The class map's bounds, against slow and obvious counting."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_protocol import VOID, Disclosure, Limits, Prediction, TeacherInfo
from corte_student.classmap import ClassMap, Mapped, load_classmap
from corte_student.errors import DataError


def info_of(classes: int, level: str = "full") -> TeacherInfo:
    """A teacher of that many classes named c0, c1, ..."""
    names = tuple(f"c{i}" for i in range(classes))
    colors = tuple((i, i, i) for i in range(classes))
    return TeacherInfo(1, "t", "r", names, colors, Disclosure.parse(level, classes), Limits(10**6, 10**6))


def full_answer(rng: np.random.Generator, classes: int, shape: tuple[int, int], peaked: float) -> Prediction:
    """A full answer over random distributions, with ties now and then."""
    scores = rng.dirichlet(np.full(classes, peaked), size=shape).transpose(2, 0, 1)
    if rng.random() < 0.5:  # coarse values, so that classes tie
        scores = np.floor(scores * 4) / 4
    half = scores.astype(np.float16)
    order = np.argsort(-half, axis=0, kind="stable")
    return Prediction(order.astype(np.uint8), np.take_along_axis(half, order, 0), "r")


def slow_apply(answer: Prediction, table: np.ndarray, students: int) -> Mapped:
    """The bound, pixel by pixel, in Python integers."""
    assert answer.probs is not None
    _, height, width = answer.classes.shape
    labels = np.zeros((height, width), np.uint8)
    margin = np.zeros((height, width), np.uint8)
    confidence = np.zeros((height, width), np.uint8)
    probs = (
        np.floor(answer.probs.astype(np.float32) * 255) if answer.probs.dtype != np.uint8 else answer.probs
    )
    slots = [students if s == VOID else int(s) for s in table]
    for y in range(height):
        for x in range(width):
            ranked = [
                (slots[int(c)], int(p)) for c, p in zip(answer.classes[:, y, x], probs[:, y, x], strict=True)
            ]
            rest = 255 - sum(p for _, p in ranked)
            lower = [sum(p for s, p in ranked if s == k) for k in range(students + 1)]
            hidden = [slots.count(k) - sum(1 for s, _ in ranked if s == k) for k in range(students + 1)]
            upper = [low + min(rest, n * ranked[-1][1]) for low, n in zip(lower, hidden, strict=True)]
            best = ranked[0][0]
            for slot, _ in ranked:
                if lower[slot] > lower[best]:
                    best = slot
            rival = max(u for k, u in enumerate(upper) if k != best)
            void = best == students
            labels[y, x] = VOID if void else best
            margin[y, x] = 0 if void else max(0, lower[best] - rival)
            confidence[y, x] = 0 if void else lower[best]
    return Mapped(labels, margin, confidence)


@st.composite
def maps(draw: st.DrawFn) -> tuple[int, ClassMap]:
    """A teacher's class count and a map onto fewer classes, void included."""
    classes = draw(st.integers(2, 8))
    students = draw(st.integers(2, classes))
    table = draw(st.permutations(list(range(students)))) + draw(
        st.lists(
            st.sampled_from([*range(students), VOID]),
            min_size=classes - students,
            max_size=classes - students,
        )
    )
    names = tuple(f"s{i}" for i in range(students))
    return classes, ClassMap(names, tuple((0, 0, 0) for _ in names), np.array(table, np.uint8))


@given(maps(), st.integers(0, 10**6), st.sampled_from([0.2, 1.0, 5.0]))
@settings(max_examples=60)
def test_the_bound_equals_slow_counting_at_every_level(
    case: tuple[int, ClassMap], seed: int, peaked: float
) -> None:
    """Label, margin and confidence equal a pixel-by-pixel reimplementation, for every K."""
    classes, classmap = case
    answer = full_answer(np.random.default_rng(seed), classes, (3, 4), peaked)
    for k in range(1, classes + 1):
        narrow = answer.narrow(Disclosure(k, 8))
        fast, slow = classmap.apply(narrow), slow_apply(narrow, classmap.table, len(classmap.names))
        np.testing.assert_array_equal(fast.labels, slow.labels)
        np.testing.assert_array_equal(fast.margin, slow.margin)
        np.testing.assert_array_equal(fast.confidence, slow.confidence)


@given(maps(), st.integers(0, 10**6), st.sampled_from([0.2, 1.0, 5.0]))
@settings(max_examples=80)
def test_a_positive_margin_is_safe_under_merging(
    case: tuple[int, ClassMap], seed: int, peaked: float
) -> None:
    """Where the bound is above zero, full disclosure gives the same label and at least that margin."""
    classes, classmap = case
    answer = full_answer(np.random.default_rng(seed), classes, (4, 4), peaked)
    full = classmap.apply(answer)
    assert full.margin is not None
    for k in range(1, classes):
        partial = classmap.apply(answer.narrow(Disclosure(k, 8)))
        assert partial.margin is not None
        sure = partial.margin > 0
        np.testing.assert_array_equal(partial.labels[sure], full.labels[sure])
        assert (partial.margin[sure] <= full.margin[sure]).all()


@given(st.integers(2, 30), st.integers(0, 10**6))
@settings(max_examples=60)
def test_without_merging_top_2_is_as_good_as_full(classes: int, seed: int) -> None:
    """With a one-to-one map, labels and margins of margin and full disclosure are equal bit for bit."""
    rng = np.random.default_rng(seed)
    answer = full_answer(rng, classes, (5, 5), 0.5)
    names = tuple(f"s{i}" for i in range(classes))
    table = rng.permutation(classes).astype(np.uint8)
    classmap = ClassMap(names, tuple((0, 0, 0) for _ in names), table)
    top2, full = classmap.apply(answer.narrow(Disclosure(2, 8))), classmap.apply(answer)
    np.testing.assert_array_equal(top2.labels, full.labels)
    np.testing.assert_array_equal(top2.margin, full.margin)


def test_confidence_alone_bounds_the_margin_by_twice_itself_minus_one() -> None:
    """With K = 1 the margin is max(0, 2 p - 1) on the grid."""
    probs = np.array([[[255, 200, 128, 127, 40]]], np.uint8)
    answer = Prediction(np.zeros((1, 1, 5), np.uint8), probs, "r")
    mapped = ClassMap.identity(info_of(3)).apply(answer)
    assert mapped.margin is not None
    assert mapped.margin.tolist() == [[255, 145, 1, 0, 0]]


def test_labels_alone_have_no_margin() -> None:
    """Missing scores are missing, never invented."""
    mapped = ClassMap.identity(info_of(3)).apply(Prediction(np.ones((1, 2, 2), np.uint8), None, "r"))
    assert mapped.margin is None and mapped.confidence is None


def test_an_unknown_class_name_lists_the_choices(tmp_path: Path) -> None:
    """A typo in a class map is an error that names the teacher's classes."""
    path = tmp_path / "map.toml"
    path.write_text('[[classes]]\nname = "a"\nfrom = ["c0"]\n[[classes]]\nname = "b"\nfrom = ["sea"]\n')
    with pytest.raises(DataError, match="no class 'sea'; it has c0, c1, c2"):
        load_classmap(path, info_of(3))


def test_unmapped_classes_are_void(tmp_path: Path) -> None:
    """What no entry names is void, and void pixels have no margin."""
    path = tmp_path / "map.toml"
    path.write_text('[[classes]]\nname = "a"\nfrom = ["c0"]\n[[classes]]\nname = "b"\nfrom = ["c1"]\n')
    classmap = load_classmap(path, info_of(3))
    probs = np.array([[[250]], [[5]]], np.uint8)
    mapped = classmap.apply(Prediction(np.array([[[2]], [[0]]], np.uint8), probs, "r"))
    assert (
        mapped.labels.tolist() == [[VOID]] and mapped.margin is not None and mapped.margin.tolist() == [[0]]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes = 3", r"needs \[\[classes\]\]"),
        ('[[classes]]\nname = "a"\nfrom = ["c0", "c0"]', "mapped twice"),
        ('[[classes]]\nname = "a"\ncolour = [1, 2, 3]', "colour"),
        ('[[classes]]\nname = "a"\nfrom = ["c0"]', "at least two classes"),
        (
            '[[classes]]\nname = "a"\nfrom = ["c0"]\n[[classes]]\nname = "b"\nfrom = []',
            "no class of the teacher",
        ),
        ("[[", "not TOML"),
    ],
)
def test_a_broken_map_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    """Each way to get a class map wrong has its own message."""
    path = tmp_path / "map.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_classmap(path, info_of(3))
