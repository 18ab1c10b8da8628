"""Several views of a picture: which questions, the way back, and what their answers say together."""

import io
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from corte_protocol import VOID, Disclosure, Prediction, on_grid
from corte_student.classmap import ClassMap
from corte_student.errors import SettingsError
from corte_student.queries import IDENTITY, LABEL_VIEWS, Query, parse_views
from corte_student.views import combine, purity
from pictures import make_picture
from student.test_classmap import full_answer, info_of, maps, slow_apply
from student.test_classmap_bounds import slots_of

VIEWS = ["identity", "flip", "scale:0.5", "scale:1.7", "columns:2", "columns:3+flip", "columns:8"]
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
LEVELS = [(1, 8), (2, 8), (8, 8)]


def answers_to(
    rng: np.random.Generator,
    queries: tuple[Query, ...],
    size: tuple[int, int],
    classes: int,
    level: Disclosure,
) -> list[Prediction]:
    """A random answer of that level to each query, of the size that the query sends."""
    full = [full_answer(rng, classes, query.size(*size), 0.5) for query in queries]
    return [answer.narrow(level) for answer in full]


def views(seed: int) -> tuple[Query, ...]:
    """A few of the views above."""
    rng = np.random.default_rng(seed)
    return parse_views([VIEWS[i] for i in rng.choice(len(VIEWS), rng.integers(1, 4), replace=False)])


def test_each_query_has_a_name_of_its_own() -> None:
    """Of all views together, so that the ledger never takes one for another."""
    every = parse_views([*VIEWS, "scale:0.75", "columns:3", "columns:4", "columns:8+flip"])
    assert len({query.name for query in every}) == len(every) == 1 + 1 + 3 + 2 + 3 + 3 + 4 + 8 + 8
    assert parse_views(["identity"]) == (IDENTITY,)
    assert parse_views(LABEL_VIEWS)[0] == IDENTITY


@pytest.mark.parametrize("flip", ["", "+flip"])
@given(st.integers(1, 400), st.integers(2, 8))
@settings(max_examples=60)
def test_windows_cover_the_picture(flip: str, width: int, parts: int) -> None:
    """Every column is in a window, none in more than two, as wide as two of N + 1 parts to a pixel."""
    queries = parse_views([f"columns:{parts}{flip}"])
    seen = np.zeros(width, int)
    for query in queries:
        window = query.window(width)
        assert 0 <= window.start < window.stop <= width
        seen[window] += 1
        if width > parts:
            assert abs((window.stop - window.start) - 2 * width / (parts + 1)) <= 1
    assert seen.min() >= 1
    assert width <= parts or seen.max() <= 2
    assert all(query.flip == bool(flip) for query in queries)


@pytest.mark.parametrize(
    "names",
    [
        *(["mirror"], ["scale:0.2"], ["scale:2.5"], ["scale:x"], ["scale:nan"], ["scale:0.5+flip"]),
        *(["columns:1"], ["columns:9"], ["columns"], ["identity+flip"], ["columns:2.5"], [""]),
    ],
)
def test_an_unknown_view_lists_the_choices(names: list[str]) -> None:
    """Wrong words, numbers out of range, and mirrored views that are not offered."""
    with pytest.raises(SettingsError, match=r"choose identity, flip, scale:F .* columns:N"):
        parse_views(names)


@pytest.mark.parametrize("names", [[], ["flip", "flip"], ["columns:2", "identity", "columns:2"]])
def test_views_are_named_once_each(names: list[str]) -> None:
    """Nothing to ask, and one question twice, are both mistakes."""
    with pytest.raises(SettingsError, match="at least one view, each once"):
        parse_views(names)


@given(SIZES, st.sampled_from(VIEWS))
@settings(max_examples=80)
def test_what_is_shown_is_sent_and_comes_back(size: tuple[int, int], name: str) -> None:
    """The body decodes to the pixels shown, which have the size foretold; the digests stay the picture's.

    Put back, pixels that were not resized lie where they were.
    """
    picture = make_picture(7, height=size[0], width=size[1])
    for query in parse_views([name]):
        shown = query.shown(picture)
        assert shown.pixels.shape == (*query.size(*size), 3)
        assert (shown.digest, shown.pixel_digest) == (picture.digest, picture.pixel_digest)
        with Pillow.open(io.BytesIO(shown.body)) as sent:
            assert np.array_equal(np.asarray(sent.convert("RGB")), shown.pixels)
        back = query.back(shown.pixels.transpose(2, 0, 1), *size)
        window = picture.pixels[:, query.window(size[1])]
        assert back.shape == (3, *window.shape[:2])
        if query.scale == 1.0:
            assert np.array_equal(back.transpose(1, 2, 0), window)


@given(SIZES, st.floats(0.25, 2.0))
@settings(max_examples=80)
def test_a_scaled_answer_comes_back_by_the_nearest_pixel(size: tuple[int, int], scale: float) -> None:
    """A map that holds its own row or column shows, at each pixel, the one whose centre is nearest."""
    query = Query("scaled", scale=scale)
    height, width = query.size(*size)
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    back = query.back(np.stack([rows, columns]), *size)
    for plane, axis, (many, few) in zip(back, (0, 1), zip((height, width), size, strict=True), strict=True):
        place = (np.arange(few) + 0.5) * many / few - 0.5
        away = np.abs(plane - (place[:, None] if axis == 0 else place[None]))
        assert away.max() <= 0.5 + 1e-4


def test_what_is_scaled_shows_the_same_scene() -> None:
    """A picture half dark, half bright stays so at every scale."""
    picture = make_picture(1, height=40, width=60)
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 240
    object.__setattr__(picture, "pixels", pixels)
    for name in ("scale:0.5", "scale:1.5"):
        (query,) = parse_views([name])
        seen = query.shown(picture).pixels
        middle = seen.shape[1] // 2
        assert seen[:, : middle - 2].max() == 0 and seen[:, middle + 2 :].min() == 240


@given(maps(), st.integers(0, 10**6), st.sampled_from(LEVELS), st.booleans())
@settings(max_examples=60)
def test_identity_alone_is_the_class_map(
    case: tuple[int, ClassMap], seed: int, level: tuple[int, int], scores: bool
) -> None:
    """One question about the whole picture is mapped bit for bit as without views."""
    classes, classmap = case
    answer = full_answer(np.random.default_rng(seed), classes, (4, 5), 0.5)
    answer = answer.narrow(Disclosure(min(level[0], classes), level[1]))
    one, plain = combine(classmap, [answer], [IDENTITY], (4, 5), scores=scores), classmap.apply(answer)
    for name in ("labels", "margin", "confidence"):
        assert np.array_equal(getattr(one, name), getattr(plain, name))
    assert (one.scores is not None) == scores
    if one.scores is not None:
        assert answer.probs is not None
        wanted = classmap.spread(answer.classes, on_grid(answer.probs).astype(np.int16))
        assert np.array_equal(one.scores, wanted)


@given(maps(), st.integers(0, 10**6), st.sampled_from(["flip", "scale:0.5", "scale:1.7"]))
@settings(max_examples=30)
def test_one_other_view_is_mapped_where_it_belongs(case: tuple[int, ClassMap], seed: int, name: str) -> None:
    """A single query that is not the identity: the class map of its answer, put back."""
    classes, classmap = case
    (query,) = parse_views([name])
    (answer,) = answers_to(np.random.default_rng(seed), (query,), (6, 8), classes, Disclosure(2, 8))
    got = combine(classmap, [answer], [query], (6, 8))
    there = classmap.apply(answer)
    for name in ("labels", "margin", "confidence"):
        assert np.array_equal(getattr(got, name), query.back(getattr(there, name)[None], 6, 8)[0])


def upright(answer: Prediction, query: Query, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Classes and scores of an answer on the picture's window."""
    assert answer.probs is not None
    return query.back(answer.classes, *size), query.back(on_grid(answer.probs), *size)


@given(maps(), st.integers(0, 10**6), st.sampled_from(LEVELS), st.integers(0, 10**6))
@settings(max_examples=60)
def test_an_average_of_views_equals_a_loop(
    case: tuple[int, ClassMap], seed: int, level: tuple[int, int], chosen: int
) -> None:
    """Pixel by pixel: bounds averaged over the queries that saw it, the lower down and the upper up.

    So the margin is at most that of the average of what every view would have said in full.
    """
    (classes, classmap), size, queries = case, (5, 9), views(chosen)
    rng = np.random.default_rng(seed)
    full = answers_to(rng, queries, size, classes, Disclosure(classes, 16))
    held = Disclosure(min(level[0], classes), level[1])
    got = combine(classmap, [a.narrow(held) for a in full], queries, size)
    if len(queries) == 1:
        return
    assert got.margin is not None and got.confidence is not None
    students = len(classmap.names)
    low, high, true = (np.zeros((students + 1, *size), int) for _ in range(3))
    count = np.zeros(size, int)
    for answer, query in zip(full, queries, strict=True):
        window = query.window(size[1])
        part = answer.narrow(held)
        lower, upper = classmap.bounds(*(p.astype(np.int16) for p in upright(part, query, size)))  # type: ignore[arg-type]
        whole, _ = classmap.bounds(*(p.astype(np.int16) for p in upright(answer, query, size)))  # type: ignore[arg-type]
        low[:, :, window] += lower
        high[:, :, window] += upper
        true[:, :, window] += whole
        count[:, window] += 1
    for y, x in np.ndindex(*size):
        n = int(count[y, x])
        lows = [math.floor(Fraction(int(v), n)) for v in low[:, y, x]]
        highs = [math.ceil(Fraction(int(v), n)) for v in high[:, y, x]]
        best = max(range(students + 1), key=lambda k: (lows[k], -k))
        assert got.labels[y, x] == (VOID if best == students else best)
        rival = max(v for k, v in enumerate(highs) if k != best)
        margin = 0 if best == students else max(0, lows[best] - rival)
        assert got.margin[y, x] == margin
        if margin > 0:
            others = max(Fraction(int(v), n) for k, v in enumerate(true[:, y, x]) if k != best)
            assert Fraction(int(true[best, y, x]), n) - others >= margin


@given(maps(), st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=30)
def test_averaged_scores_equal_a_loop(case: tuple[int, ClassMap], seed: int, chosen: int) -> None:
    """The spread scores of the queries that saw a pixel, averaged and rounded down: at most 255 together."""
    (classes, classmap), size, queries = case, (4, 7), views(chosen)
    answers = answers_to(np.random.default_rng(seed), queries, size, classes, Disclosure(2, 8))
    got = combine(classmap, answers, queries, size, scores=True).scores
    assert got is not None and (got.sum(axis=0, dtype=int) <= 255).all()
    for y, x in np.ndindex(*size):
        said = []
        for answer, query in zip(answers, queries, strict=True):
            window = query.window(size[1])
            if window.start <= x < window.stop:
                ids, probs = upright(answer, query, size)
                here = (slice(None), slice(y, y + 1), slice(x - window.start, x - window.start + 1))
                said.append(classmap.spread(ids[here], probs[here].astype(np.int16))[:, 0, 0].tolist())
        wanted = [sum(column) // len(said) for column in zip(*said, strict=True)]
        assert got[:, y, x].tolist() == wanted


def slow_purity(labels: np.ndarray, window: int = 15) -> np.ndarray:
    """The share of each pixel's neighbourhood that has its label, edges repeated, in 1/255, rounded down."""
    height, width = labels.shape
    out = np.zeros((height, width), np.uint8)
    reach = window // 2
    for y, x in np.ndindex(height, width):
        if labels[y, x] == VOID:
            continue
        rows = np.clip(np.arange(y - reach, y + reach + 1), 0, height - 1)
        columns = np.clip(np.arange(x - reach, x + reach + 1), 0, width - 1)
        same = int((labels[np.ix_(rows, columns)] == labels[y, x]).sum())
        out[y, x] = same * 255 // window**2
    return out


@given(SIZES, st.integers(0, 10**6), st.sampled_from([2, 3, 255]))
@settings(max_examples=40)
def test_purity_equals_a_loop(size: tuple[int, int], seed: int, classes: int) -> None:
    """Also for pictures smaller than the window, one label alone, and void, whose purity is 0."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, classes - 1, VOID][: 1 + seed % 3], size).astype(np.uint8)
    np.testing.assert_array_equal(purity(labels, classes), slow_purity(labels))


@given(maps(), st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=40)
def test_labels_alone_become_votes_times_purity(case: tuple[int, ClassMap], seed: int, chosen: int) -> None:
    """Each query that saw a pixel has one vote; margin and confidence are vote shares times local purity.

    With a single view there is no vote, and purity stands alone. Nothing is invented unless it is asked for.
    """
    (classes, classmap), size, queries = case, (5, 9), views(chosen)
    answers = answers_to(np.random.default_rng(seed), queries, size, classes, Disclosure(1, 0))
    plain = combine(classmap, answers, queries, size)
    assert plain.margin is None and plain.confidence is None
    got = combine(classmap, answers, queries, size, surrogate=True)
    assert got.margin is not None and got.confidence is not None
    assert np.array_equal(got.labels, plain.labels)
    slots, students, pure = slots_of(classmap), len(classmap.names), slow_purity(got.labels)
    for y, x in np.ndindex(*size):
        votes = [0] * (students + 1)
        for answer, query in zip(answers, queries, strict=True):
            window = query.window(size[1])
            if window.start <= x < window.stop:
                label = query.back(answer.classes, *size)[0, y, x - window.start]
                votes[slots[int(label)]] += 1
        total = sum(votes)
        shares = [255 * v // total for v in votes]
        best = max(range(students + 1), key=lambda k: (shares[k], -k))
        assert got.labels[y, x] == (VOID if best == students else best)
        up = [-(-255 * v // total) for v in votes]
        margin = max(0, shares[best] - max(v for k, v in enumerate(up) if k != best))
        own = int(pure[y, x])
        times = [own, own] if len(queries) == 1 else [round(v * own / 255) for v in (margin, shares[best])]
        assert [int(got.margin[y, x]), int(got.confidence[y, x])] == times


def test_an_identity_answer_is_what_slow_counting_says() -> None:
    """The slow class map and the slow average agree on one identity view asked twice under two names."""
    classmap = ClassMap.identity(info_of(4))
    answer = full_answer(np.random.default_rng(3), 4, (4, 6), 0.3).narrow(Disclosure(2, 8))
    twice = combine(classmap, [answer, answer], [IDENTITY, Query("again")], (4, 6))
    slow = slow_apply(answer, classmap.table, 4)
    sure = slow.margin > 0  # type: ignore[operator]
    assert np.array_equal(twice.labels[sure], slow.labels[sure])
    assert np.array_equal(twice.margin, slow.margin)  # type: ignore[arg-type]
