"""What is not disclosed is bounded, averaged and spread: against slow loops and every completion of it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_protocol import VOID, Disclosure, Prediction, on_grid
from corte_student.classmap import ClassMap
from student.test_classmap import full_answer, maps

SEEDS, PEAKS = st.integers(0, 10**6), st.sampled_from([0.2, 1.0, 5.0])


def slots_of(classmap: ClassMap) -> list[int]:
    """The student class of each teacher class, void as one more than there are."""
    return [len(classmap.names) if slot == VOID else int(slot) for slot in classmap.table]


def planes(answer: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """Classes and scores as `bounds` takes them."""
    assert answer.probs is not None
    return answer.classes, on_grid(answer.probs).astype(np.int16)


def random_completion(rng: np.random.Generator, ranked: list[tuple[int, int]], total: int) -> list[int]:
    """Scores of all teacher classes that the answer `ranked` may have left unsaid, in 1/255.

    The hidden mass goes to undisclosed classes, no one of them above the smallest disclosed score; what no
    class can hold was lost to rounding down.
    """
    scores = [0] * total
    for teacher, score in ranked:
        scores[teacher] = score
    rest, cap = 255 - sum(scores), ranked[-1][1]
    hidden = [k for k in range(total) if k not in {teacher for teacher, _ in ranked}]
    rng.shuffle(hidden)
    for k in hidden:
        scores[k] = min(cap, rest, int(rng.choice([cap, int(rng.integers(0, cap + 1))])))
        rest -= scores[k]
    return scores


@given(maps(), SEEDS, PEAKS)
@settings(max_examples=60)
def test_bounds_equal_a_loop(case: tuple[int, ClassMap], seed: int, peaked: float) -> None:
    """L is the sum of the disclosed members, U is L + min(r, n p_K); both equal where all is disclosed."""
    classes, classmap = case
    answer = full_answer(np.random.default_rng(seed), classes, (2, 3), peaked)
    slots = slots_of(classmap)
    for k in range(1, classes + 1):
        ids, probs = planes(answer.narrow(Disclosure(k, 8)))
        lower, upper = classmap.bounds(ids, probs)
        assert lower.shape == upper.shape == (len(classmap.names) + 1, 2, 3)
        for y, x in np.ndindex(2, 3):
            said = {int(c): int(p) for c, p in zip(ids[:, y, x], probs[:, y, x], strict=True)}
            rest, least = 255 - sum(said.values()), int(probs[-1, y, x])
            for slot in range(len(classmap.names) + 1):
                members = [t for t, s in enumerate(slots) if s == slot]
                low = sum(said.get(t, 0) for t in members)
                unsaid = sum(t not in said for t in members)
                assert lower[slot, y, x] == low
                assert upper[slot, y, x] == low + min(rest, unsaid * least)
        if k == classes:
            np.testing.assert_array_equal(lower, upper)


def test_bounds_of_labels_alone_are_one_vote() -> None:
    """The label's class has all 255, every other none, void like the rest."""
    classmap = ClassMap(("a", "b"), ((0, 0, 0), (1, 1, 1)), np.array([1, 0, VOID, 0], np.uint8))
    lower, upper = classmap.bounds(np.array([[[0, 1, 2, 3]]], np.uint8), None)
    assert lower[:, 0].tolist() == [[0, 255, 0, 255], [255, 0, 0, 0], [0, 0, 255, 0]]
    np.testing.assert_array_equal(lower, upper)


def test_bounds_hold_for_as_many_classes_as_there_can_be() -> None:
    """255 teacher classes, 254 of them one class: 254 times a score of 200 is a bound as well."""
    table = np.ones(255, np.uint8)
    table[0] = 0
    classmap = ClassMap(("one", "rest"), ((0, 0, 0), (1, 1, 1)), table)
    best = np.array([[[200, 255, 130, 2]]], np.uint8)
    mapped = classmap.apply(Prediction(np.zeros((1, 1, 4), np.uint8), best, "r"))
    assert mapped.margin is not None and mapped.margin.tolist() == [[145, 255, 5, 0]]
    spread = classmap.spread(np.zeros((1, 1, 4), np.uint8), best.astype(np.int16))
    assert spread[:, 0].tolist() == [[200, 255, 130, 2], [55, 0, 125, 253]]


@given(maps(), SEEDS, PEAKS)
@settings(max_examples=60)
def test_the_margin_is_a_lower_bound_of_every_completion(
    case: tuple[int, ClassMap], seed: int, peaked: float
) -> None:
    """Whatever the undisclosed classes had, a positive margin's label wins by at least that margin."""
    classes, classmap = case
    rng = np.random.default_rng(seed)
    answer = full_answer(rng, classes, (2, 2), peaked)
    slots = slots_of(classmap)
    for k in range(1, classes + 1):
        partial = answer.narrow(Disclosure(k, 8))
        ids, probs = planes(partial)
        mapped = classmap.apply(partial)
        assert mapped.margin is not None and mapped.confidence is not None
        for y, x in np.ndindex(2, 2):
            ranked = [(int(c), int(p)) for c, p in zip(ids[:, y, x], probs[:, y, x], strict=True)]
            if mapped.labels[y, x] == VOID:
                assert mapped.margin[y, x] == mapped.confidence[y, x] == 0
                continue
            for _ in range(6):
                scores = random_completion(rng, ranked, classes)
                whole = [
                    sum(v for v, s in zip(scores, slots, strict=True) if s == slot)
                    for slot in range(len(classmap.names) + 1)
                ]
                mine = whole.pop(int(mapped.labels[y, x]))
                assert mine >= mapped.confidence[y, x]
                if mapped.margin[y, x] > 0:
                    assert mine - max(whole) >= mapped.margin[y, x]


@given(maps(), SEEDS)
@settings(max_examples=60)
def test_what_is_decided_equals_a_loop(case: tuple[int, ClassMap], seed: int) -> None:
    """The largest lower bound is the label, ties to the lower id, void last; rivals have their upper one."""
    _, classmap = case
    students, rng = len(classmap.names), np.random.default_rng(seed)
    lower = rng.choice([0, 10, 60, 61, 127], (students + 1, 3, 3)).astype(np.int16)
    upper = lower + rng.choice([0, 1, 90], lower.shape).astype(np.int16)
    mapped = classmap.decided(lower, upper)
    assert mapped.margin is not None and mapped.confidence is not None
    for y, x in np.ndindex(3, 3):
        low, high = lower[:, y, x].tolist(), upper[:, y, x].tolist()
        best = max(range(students + 1), key=lambda k: (low[k], -k))
        if best == students:
            assert mapped.labels[y, x] == VOID and mapped.margin[y, x] == mapped.confidence[y, x] == 0
            continue
        rival = max(high[k] for k in range(students + 1) if k != best)
        assert mapped.labels[y, x] == best and mapped.confidence[y, x] == low[best]
        assert mapped.margin[y, x] == max(0, low[best] - rival)


@given(maps(), SEEDS, PEAKS)
@settings(max_examples=60)
def test_spread_scores_equal_a_loop(case: tuple[int, ClassMap], seed: int, peaked: float) -> None:
    """Undisclosed mass in equal parts to the undisclosed teacher classes, mapped, rounded down, void out.

    So the scores never exceed 255 together, and are the full ones where all is disclosed.
    """
    classes, classmap = case
    answer = full_answer(np.random.default_rng(seed), classes, (2, 3), peaked)
    slots, students = slots_of(classmap), len(classmap.names)
    for k in range(1, classes + 1):
        ids, probs = planes(answer.narrow(Disclosure(k, 8)))
        scores = classmap.spread(ids, probs)
        assert scores.shape == (students, 2, 3) and scores.dtype == np.uint8
        assert (scores.sum(axis=0, dtype=int) <= 255).all()
        for y, x in np.ndindex(2, 3):
            said = {int(c): int(p) for c, p in zip(ids[:, y, x], probs[:, y, x], strict=True)}
            rest = 255 - sum(said.values())
            for slot in range(students):
                members = [t for t, s in enumerate(slots) if s == slot]
                low, unsaid = sum(said.get(t, 0) for t in members), sum(t not in said for t in members)
                wanted = low + (unsaid * rest // (classes - k) if k < classes else 0)
                assert scores[slot, y, x] == wanted
        if k == classes:
            np.testing.assert_array_equal(scores, classmap.bounds(ids, probs)[0][:students])


def test_spread_labels_are_certain() -> None:
    """Without scores the label has all, and a void one leaves nothing."""
    classmap = ClassMap(("a", "b"), ((0, 0, 0), (1, 1, 1)), np.array([1, 0, VOID], np.uint8))
    assert classmap.spread(np.array([[[0, 1, 2]]], np.uint8), None)[:, 0].tolist() == [
        [0, 255, 0],
        [255, 0, 0],
    ]
