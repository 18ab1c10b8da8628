"""Views asked of a real service: once each, kept under names of their own, mirrored as they should be."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corte_protocol import Disclosure, Image, Limits
from corte_student.asking import Asker, ask_info
from corte_student.classmap import ClassMap
from corte_student.data.folder import Picture
from corte_student.endpoints import connect
from corte_student.errors import ImageRefused, Unavailable
from corte_student.ledger import Ledger
from corte_student.queries import IDENTITY, Query, parse_views
from corte_student.views import ask_views, combine
from faulty_teacher import faulty_teacher, problem, teacher_info
from pictures import make_picture
from serving import running_teacher

MARGIN = Disclosure(2, 8)
SIZE = (40, 56)


@pytest.fixture(scope="module")
def street() -> Iterator[str]:
    """The street model, whose answer depends on where a thing is in the picture."""
    with running_teacher(["--open", "--disclosure", "margin", "--threads", "1"]) as url:
        yield url


@asynccontextmanager
async def asking(
    url: str, path: Path, *, max_pixels: int | None = None
) -> AsyncIterator[tuple[Asker, ClassMap]]:
    """An asker at margin, and the teacher's own classes; `max_pixels` in place of the teacher's limit."""
    ledger = Ledger.open(path)
    endpoint = connect(url, key=None, insecure_http=False, deadline_s=30, connections=4)
    info, offline = await ask_info(endpoint, ledger, url)
    if max_pixels is not None:
        info = replace(info, limits=Limits(info.limits.max_body_bytes, max_pixels))
    try:
        yield Asker(None if offline else endpoint, ledger, info, MARGIN, 4), ClassMap.identity(info)
    finally:
        await endpoint.aclose()
        ledger.close()


def scene(seed: int) -> Picture:
    """A picture with structure, not the same mirrored."""
    picture = make_picture(seed, height=SIZE[0], width=SIZE[1])
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    pixels = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
    return replace(picture, pixels=pixels, pixel_digest=Image(pixels).digest, digest=f"scene{seed}")


def as_file(picture: Picture, query: Query) -> Picture:
    """What `query` shows, as if it were a picture of its own."""
    shown = query.shown(picture)
    digest = Image(shown.pixels).digest
    return replace(shown, digest=f"shown {digest}", pixel_digest=digest)


async def test_the_answer_to_the_flip_is_the_teachers_on_the_mirrored_picture(
    street: str, tmp_path: Path
) -> None:
    """Bit for bit, and not the mirrored answer to the picture itself: it is a second opinion."""
    picture, (flip,) = scene(1), parse_views(["flip"])
    mirrored = np.ascontiguousarray(picture.pixels[:, ::-1])
    assert np.array_equal(flip.shown(picture).pixels, mirrored)
    async with asking(street, tmp_path / "one") as (asker, _):
        said = await asker.answer(picture, flip)
        plain = await asker.answer(picture)
    async with asking(street, tmp_path / "two") as (asker, _):
        alone = await asker.answer(as_file(picture, flip))
    assert said.probs is not None and alone.probs is not None and plain.probs is not None
    assert np.array_equal(said.classes, alone.classes) and np.array_equal(said.probs, alone.probs)
    assert not np.array_equal(said.probs[:, :, ::-1], plain.probs)


async def test_views_are_asked_once_each(street: str, tmp_path: Path) -> None:
    """Flip and columns: four requests, in the ledger under four names; asked again nothing is sent.

    Not even by the same views of the picture in another order, nor when one more view is asked with them:
    that one alone is sent.
    """
    picture, queries = scene(2), parse_views(["flip", "columns:3+flip"])
    path = tmp_path / "ledger"
    async with asking(street, path) as (asker, classmap):
        first = await ask_views(asker, classmap, picture, queries)
        assert (asker.tally.sent, asker.tally.saved) == (4, 0)
        sent = sum(len(query.shown(picture).body) for query in queries)
        assert asker.tally.bytes_up == sent
    async with asking(street, path) as (asker, classmap):
        again = await ask_views(asker, classmap, picture, queries[::-1])
        assert (asker.tally.sent, asker.tally.saved) == (0, 4)
        await ask_views(asker, classmap, picture, (*queries, IDENTITY))
        assert (asker.tally.sent, asker.tally.saved) == (1, 8)
    for name in ("labels", "margin", "confidence"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    ledger = Ledger.open(path)
    assert ledger.counts().answers == 5
    ledger.close()


async def test_views_together_are_the_combination_of_each_alone(street: str, tmp_path: Path) -> None:
    """Identity, a scale and windows: what is learned from is what the answers to each one say together."""
    picture, queries = scene(3), parse_views(["identity", "scale:0.75", "columns:2"])
    async with asking(street, tmp_path / "ledger") as (asker, classmap):
        together = await ask_views(asker, classmap, picture, queries, scores=True)
        answers = [await asker.answer(as_file(picture, query)) for query in queries]
        wanted = combine(classmap, answers, queries, SIZE, scores=True)
    for name in ("labels", "margin", "confidence", "scores"):
        assert np.array_equal(getattr(together, name), getattr(wanted, name))


async def test_an_image_that_a_view_makes_too_large_is_refused_as_one(street: str, tmp_path: Path) -> None:
    """The reason comes as it would for a single question, not as a group, so the image can be set aside."""
    async with asking(street, tmp_path / "ledger", max_pixels=SIZE[0] * SIZE[1]) as (asker, classmap):
        await ask_views(asker, classmap, scene(4), parse_views(["identity", "flip"]))
        with pytest.raises(ImageRefused, match="above the teacher's limit"):
            await ask_views(asker, classmap, scene(4), parse_views(["identity", "scale:1.25", "scale:1.5"]))


async def test_what_is_no_fault_of_the_image_is_told_as_it_is(tmp_path: Path) -> None:
    """A teacher that refuses a picture costs that picture; one that goes away ends the run."""
    with faulty_teacher() as teacher:
        ledger = Ledger.open(tmp_path / "ledger")
        endpoint = connect(teacher.url, key=None, insecure_http=False, deadline_s=10, connections=2)
        asker, classmap = (
            Asker(endpoint, ledger, teacher_info(), MARGIN, 2),
            ClassMap.identity(teacher_info()),
        )
        teacher.faults.append(problem("invalid"))
        with pytest.raises(ImageRefused):
            await ask_views(asker, classmap, make_picture(1), (IDENTITY,))
        offline = Asker(None, ledger, teacher_info(), MARGIN, 2)
        with pytest.raises(Unavailable):  # plain, as if asked once: the stream waits for it to come back
            await ask_views(offline, classmap, make_picture(2), parse_views(["identity", "flip"]))
        await endpoint.aclose()
        ledger.close()
