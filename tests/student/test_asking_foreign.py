"""Asking someone else's service: answers are kept as received, so mending how they are read costs no
question.
"""

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corte_protocol import Disclosure, InvalidValue
from corte_student.asking import Asker
from corte_student.endpoints import UNSTATED, Access, connect
from corte_student.endpoints.config import config_from
from corte_student.endpoints.foreign import ForeignEndpoint
from corte_student.errors import BrokeContract, Changed, ImageRefused, Refused
from corte_student.ledger import Ledger
from corte_student.session import Session
from pictures import make_picture
from replaying import Replay, replay

LABELS = Disclosure(1, 0)
CLASSES = ["road", "car", "sky"]


class Vendor:
    """Answers an id PNG in JSON, red modulo three, and states its model's version."""

    def __init__(self) -> None:
        self.version: str | None = "7"

    async def __call__(self, request: Request, body: bytes) -> Response:
        with Pillow.open(io.BytesIO(body)) as picture:
            ids = np.asarray(picture.convert("RGB"))[:, :, 0] % 3
        out = io.BytesIO()
        Pillow.fromarray(ids.astype(np.uint8)).save(out, "PNG")
        answer: dict[str, Any] = {"result": {"mask": base64.b64encode(out.getvalue()).decode()}}
        if self.version is not None:
            answer["model"] = {"version": self.version}
        return JSONResponse(answer)


def described(mask: str = "result.mask", **more: object) -> dict[str, Any]:
    """The vendor in TOML, parsed."""
    answer = {"format": "json", "mask": mask, "encoding": "id-png", "transport": "base64"}
    answer |= {"version": "model.version"}
    return {"classes": CLASSES, "custom": {"request": {"body": "image"}, "answer": answer}, **more}


@pytest.fixture
def rules() -> Vendor:
    return Vendor()


@pytest.fixture
def vendor(rules: Vendor) -> Iterator[Replay]:
    with replay(rules) as running:
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@asynccontextmanager
async def asking(
    vendor: Replay, path: Path, config: Mapping[str, Any] | None = None, *, offline: bool = False
) -> AsyncIterator[Asker]:
    """An asker as every verb opens it."""
    access = Access(vendor.url, config=config_from(config or described(), "t.toml"))
    async with Session(access, ledger=path, deadline_s=20, in_flight=2, offline=offline).open() as opened:
        yield opened.asker(LABELS)


async def test_a_mended_description_reads_what_was_paid_for(vendor: Replay, path: Path) -> None:
    """Read with a wrong path the answer is set aside and kept; with the right one nothing is sent again."""
    picture = make_picture(1)
    async with asking(vendor, path, described(mask="result.segmentation || ''")) as asker:
        with pytest.raises(ImageRefused, match="--teacher-config"):
            await asker.answer(picture)
    async with asking(vendor, path) as asker:
        answer = await asker.answer(picture)
        assert asker.tally.sent == 0
    assert np.array_equal(answer.labels, picture.pixels[:, :, 0] % 3)
    assert vendor.images == 1


async def test_a_corrected_list_of_classes_costs_nothing(vendor: Replay, path: Path) -> None:
    """Names are the reader's, not the answer's: another name for an id needs no new answer."""
    picture = make_picture(1)
    async with asking(vendor, path) as asker:
        await asker.answer(picture)
    async with asking(vendor, path, described() | {"classes": ["street", "car", "sky"]}) as asker:
        await asker.answer(picture)
        assert asker.tally.sent == 0


async def test_the_first_answers_version_becomes_the_revision(vendor: Replay, path: Path) -> None:
    """A teacher that states its model only in answers is pinned by the first, also for the next run, offline
    too.
    """
    picture = make_picture(1)
    async with asking(vendor, path) as asker:
        first = (await asker.answer(picture)).revision
        assert first != UNSTATED
        assert (await asker.answer(make_picture(2))).revision == first
    async with asking(vendor, path, offline=True) as asker:
        assert (await asker.answer(picture)).revision == first
    assert vendor.images == 2


async def test_a_change_of_model_stops_with_the_choices_and_keeps_the_answer(
    vendor: Replay, rules: Vendor, path: Path
) -> None:
    """The new model's answer is not lost: the next run, of the new revision, finds it and asks the rest
    anew.
    """
    async with asking(vendor, path) as asker:
        old = (await asker.answer(make_picture(1))).revision
        rules.version = "8"
        with pytest.raises(Changed, match=r"--out.*--offline --resume"):
            await asker.answer(make_picture(2))
    async with asking(vendor, path) as asker:
        new = (await asker.answer(make_picture(2))).revision
        assert new != old and asker.tally.sent == 0
        await asker.answer(make_picture(1))
        assert asker.tally.sent == 1


async def test_a_teacher_without_versions_has_one_revision(vendor: Replay, rules: Vendor, path: Path) -> None:
    """What is never stated is `unstated`, and the ledger serves it."""
    rules.version = None
    async with asking(vendor, path) as asker:
        assert (await asker.answer(make_picture(1))).revision == UNSTATED
    async with asking(vendor, path) as asker:
        await asker.answer(make_picture(1))
        assert asker.tally.sent == 0


async def test_no_image_taken_at_first_ends_the_asking(vendor: Replay, path: Path) -> None:
    """Five refusals before the first answer, and nothing more is sent: the description is wrong, not the
    images.
    """
    vendor.faults.extend([Response(b"", 400) for _ in range(20)])
    async with asking(vendor, path) as asker:
        for seed in range(5):
            with pytest.raises(ImageRefused):
                await asker.answer(make_picture(seed))
        with pytest.raises(Refused, match="doctor"):
            await asker.answer(make_picture(5))
    assert vendor.images == 5


async def test_unreadable_answers_at_first_end_the_asking(vendor: Replay, path: Path) -> None:
    """Nor are thousands of answers bought that nobody can read."""
    async with asking(vendor, path, described(mask="model.version")) as asker:
        for seed in range(5):
            with pytest.raises(ImageRefused):
                await asker.answer(make_picture(seed))
        with pytest.raises(Refused, match="doctor"):
            await asker.answer(make_picture(5))
    assert vendor.images == 5


async def test_one_bad_image_among_good_ones_is_set_aside(vendor: Replay, path: Path) -> None:
    """After a good answer it takes many bad ones in a row to give up."""
    async with asking(vendor, path) as asker:
        for seed in range(12):
            await asker.answer(make_picture(seed))
            vendor.faults.append(Response(b"", 422))
            with pytest.raises(ImageRefused):
                await asker.answer(make_picture(100 + seed))


async def test_what_is_no_answer_is_spent_and_not_stored(vendor: Replay, path: Path) -> None:
    """A page with the status 200 ends the asking; the request counts as spent, the ledger holds no answer."""
    vendor.faults.append(Response(b"<html>", 200, media_type="text/html"))
    async with asking(vendor, path) as asker:
        with pytest.raises(BrokeContract):
            await asker.answer(make_picture(1))
    ledger = Ledger.open(path)
    assert ledger.counts().answers == 0
    assert (ledger.spending().requests, ledger.spending().unanswered) == (1, 1)
    ledger.close()


async def test_a_very_large_answer_is_stored_decoded(vendor: Replay, path: Path) -> None:
    """Above the size only the prediction is kept, with the classes that its ids count."""
    config = config_from(described(), "t.toml")
    opened = connect(Access(vendor.url, config=config), deadline_s=20, connections=1)
    assert isinstance(opened, ForeignEndpoint)
    opened._keep_bytes = 10
    picture = make_picture(1)
    height, width = picture.pixels.shape[:2]
    stored = await opened.predict(picture.body, picture.media_type, LABELS)
    await opened.aclose()
    assert np.array_equal(opened.read(stored.blob, height, width, LABELS).labels, picture.pixels[:, :, 0] % 3)
    renamed = config_from(described() | {"classes": ["street", "car", "sky"]}, "t.toml")
    other = connect(Access(vendor.url, config=renamed), deadline_s=20, connections=1)
    with pytest.raises(InvalidValue, match="another list of classes"):
        other.read(stored.blob, height, width, LABELS)
    await other.aclose()


async def test_several_first_answers_at_once_are_one_revision(vendor: Replay, path: Path) -> None:
    """Whichever comes first pins it; the others are no change, and no claim is left behind."""
    async with asking(vendor, path) as asker:
        answers = await asyncio.gather(*(asker.answer(make_picture(seed)) for seed in range(8)))
    assert len({answer.revision for answer in answers}) == 1
    ledger = Ledger.open(path)
    assert (ledger.counts().answers, ledger.counts().claims) == (8, 0)
    ledger.close()


async def test_a_version_learned_by_another_process_is_taken_on(vendor: Replay, path: Path) -> None:
    """Two that began before any answer: what the one has bought under the new name, the other finds."""
    async with asking(vendor, path) as first, asking(vendor, path) as second:
        bought = await first.answer(make_picture(1))
        found = await second.answer(make_picture(1))
        assert found.revision == bought.revision
        assert (second.tally.sent, second.tally.saved) == (0, 1)
    assert vendor.images == 1
