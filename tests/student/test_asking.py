"""Asking: each picture once, whatever runs at the same time or dies in between."""

import asyncio
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from corte_protocol import Disclosure, encode_prediction
from corte_student.asking import Asker, Tally, ask_info
from corte_student.data.folder import read_picture
from corte_student.endpoints import Endpoint, connect
from corte_student.errors import Changed, ImageRefused, LedgerError, Refused, Unavailable
from corte_student.ledger import Ledger, Question
from faulty_teacher import FaultyTeacher, expected, faulty_teacher, problem, teacher_info
from pictures import make_picture, until
from serving import running_teacher

TESTS = Path(__file__).parents[1]
CARD = """
name = "red"
[[classes]]
name = "road"
color = [0, 0, 0]
[[classes]]
name = "car"
color = [1, 1, 1]
[[classes]]
name = "sky"
color = [2, 2, 2]
"""
LABELS, MARGIN = Disclosure(1, 0), Disclosure(2, 8)


@pytest.fixture
def teacher() -> Iterator[FaultyTeacher]:
    with faulty_teacher() as running:
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@asynccontextmanager
async def asking(
    url: str | None, path: Path, need: Disclosure = MARGIN, *, revision: str = "r1", grace_s: float = 10.0
) -> AsyncIterator[Asker]:
    ledger = Ledger.open(path)
    endpoint: Endpoint | None = None
    if url is not None:
        endpoint = connect(url, deadline_s=30, connections=4)
    try:
        yield Asker(endpoint, ledger, teacher_info(revision), need, 4, grace_s=grace_s)
    finally:
        if endpoint is not None:
            await endpoint.aclose()
        ledger.close()


async def test_an_answer_is_bought_once_and_then_read(teacher: FaultyTeacher, path: Path) -> None:
    """The first time it is sent and stored, from then on the ledger serves it, offline as well."""
    picture = make_picture(1)
    truth = expected(picture.pixels, MARGIN)
    async with asking(teacher.url, path) as asker:
        answer = await asker.answer(picture)
        assert np.array_equal(answer.classes, truth.classes)
        bought = Tally(1, 0, len(picture.body), len(encode_prediction(truth)))
        assert asker.tally == bought
        await asker.answer(make_picture(1, file="a copy"))
        assert asker.tally == Tally(1, 1, bought.bytes_up, bought.bytes_down)
    async with asking(None, path, LABELS) as asker:
        answer = await asker.answer(picture)
        assert answer.disclosure == LABELS
        assert np.array_equal(answer.labels, truth.labels)
        assert asker.tally == Tally(saved=1)
    assert teacher.attempts == 1


async def test_offline_what_is_not_known_is_unavailable(path: Path) -> None:
    """Without an endpoint an unknown picture ends with the remedy."""
    async with asking(None, path) as asker:
        with pytest.raises(Unavailable, match="corte-teacher serve"):
            await asker.answer(make_picture(1))


async def test_a_narrow_answer_does_not_serve_a_wider_need(teacher: FaultyTeacher, path: Path) -> None:
    """What was bought as labels is asked again when margins are needed."""
    async with asking(teacher.url, path, LABELS) as asker:
        await asker.answer(make_picture(1))
    async with asking(teacher.url, path, MARGIN) as asker:
        answer = await asker.answer(make_picture(1))
    assert answer.margin is not None
    assert teacher.attempts == 2


async def test_tasks_that_ask_the_same_pixels_send_once(teacher: FaultyTeacher, path: Path) -> None:
    """Within a process the same pixels are one request, whatever files they come from."""
    async with asking(teacher.url, path) as asker:
        answers = await asyncio.gather(
            *(asker.answer(make_picture(seed % 3, file=str(seed))) for seed in range(24))
        )
        assert asker.tally.sent == 3
    assert len(answers) == 24
    assert set(teacher.asked.values()) == {1} and len(teacher.asked) == 3


async def test_no_more_than_allowed_are_in_flight(path: Path) -> None:
    """The semaphore bounds the requests under way."""
    with faulty_teacher(hold_after=0) as teacher:
        async with asking(teacher.url, path) as asker:
            tasks = [asyncio.create_task(asker.answer(make_picture(seed))) for seed in range(9)]
            await until(lambda: teacher.attempts >= 4)
            await asyncio.sleep(0.05)
            assert teacher.attempts == asker.tally.sent == 4
            teacher.go_on.set()
            await asyncio.gather(*tasks)
            assert asker.tally.sent == 9


async def test_what_the_teacher_cannot_take_is_set_aside_unsent(teacher: FaultyTeacher, path: Path) -> None:
    """A picture above the limits of the info costs no request; one that is refused frees its claim."""
    teacher.faults.append(problem("invalid"))
    async with asking(teacher.url, path) as asker:
        with pytest.raises(ImageRefused):
            await asker.answer(make_picture(1))
        await asker.answer(make_picture(1))
        with pytest.raises(ImageRefused, match="limit"):
            await asker.answer(make_picture(2, height=1100, width=1000))
        assert asker.tally.sent == 2
    assert teacher.attempts == 2


async def test_a_level_above_the_teachers_is_refused_at_once(path: Path) -> None:
    """A run that needs more than is disclosed does not begin."""
    ledger = Ledger.open(path)
    with pytest.raises(Refused, match="margin"):
        Asker(None, ledger, teacher_info(disclosure=LABELS), MARGIN, 1)
    ledger.close()


async def test_an_answer_of_another_revision_is_kept_under_its_own(
    teacher: FaultyTeacher, path: Path
) -> None:
    """A run of r1 ends when r2 answers, and a run of r2 finds that answer."""
    teacher.revision = "r2"
    picture = make_picture(1)
    async with asking(teacher.url, path) as asker:
        with pytest.raises(Changed, match="r1 to r2"):
            await asker.answer(picture)
    async with asking(None, path, revision="r2") as asker:
        assert (await asker.answer(picture)).revision == "r2"


async def test_a_request_under_way_is_awaited_when_its_asker_is_cancelled(path: Path) -> None:
    """Cancelled while the teacher works: the answer that then comes is committed."""
    with faulty_teacher(hold_after=0) as teacher:
        async with asking(teacher.url, path) as asker:
            task = asyncio.create_task(asker.answer(make_picture(1)))
            await until(lambda: teacher.asked)
            task.cancel()
            await asyncio.sleep(0.05)
            assert not task.done()
            teacher.go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with asking(None, path) as asker:
            await asker.answer(make_picture(1))


async def test_a_request_that_outlasts_the_grace_gives_its_claim_back(path: Path) -> None:
    """Cancelled and without an answer in time: the question is free for anyone."""
    with faulty_teacher(hold_after=0) as teacher:
        async with asking(teacher.url, path, grace_s=0.05) as asker:
            task = asyncio.create_task(asker.answer(make_picture(1)))
            await until(lambda: teacher.asked)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            teacher.go_on.set()
            await asker.answer(make_picture(1))
            assert asker.tally.sent == 2


async def test_a_question_not_yet_sent_is_called_back_at_once(path: Path) -> None:
    """Those that wait for a slot are not sent after a cancellation."""
    with faulty_teacher(hold_after=0) as teacher:
        async with asking(teacher.url, path) as asker:
            tasks = [asyncio.create_task(asker.answer(make_picture(seed))) for seed in range(7)]
            await until(lambda: teacher.attempts >= 4)
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
            teacher.go_on.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            assert asker.tally.sent == 4
        ledger = Ledger.open(path)
        counts = ledger.counts()
        ledger.close()
        assert (counts.answers, counts.claims) == (4, 0)


async def test_one_of_two_askers_may_leave(path: Path) -> None:
    """The other still gets the answer."""
    with faulty_teacher(hold_after=0) as teacher:
        async with asking(teacher.url, path, grace_s=0.0) as asker:
            first, second = (asyncio.create_task(asker.answer(make_picture(1))) for _ in range(2))
            await until(lambda: teacher.asked)
            first.cancel()
            with suppress(asyncio.CancelledError):
                await first
            teacher.go_on.set()
            assert (await second).disclosure == MARGIN
    assert teacher.attempts == 1


async def test_a_stored_answer_that_cannot_be_read_is_a_ledger_error(path: Path) -> None:
    """A frame whose checksum holds but whose content does not is told, not used."""
    picture = make_picture(1)
    ledger = Ledger.open(path)
    other = encode_prediction(expected(make_picture(2, height=3).pixels, MARGIN))
    ledger.commit(Question(picture.digest, picture.pixel_digest, "faulty", "r1"), other, MARGIN)
    ledger.close()
    async with asking(None, path) as asker:
        with pytest.raises(LedgerError, match="--ledger"):
            await asker.answer(picture)


async def test_the_last_info_stands_in_for_a_teacher_that_is_down(teacher: FaultyTeacher, path: Path) -> None:
    """Offline only where nobody answers: a refusal is never papered over."""
    ledger = Ledger.open(path)
    endpoint = connect(teacher.url, deadline_s=0.5, connections=1)
    dead = connect("http://127.0.0.1:9", deadline_s=0.1, connections=1)
    with pytest.raises(Unavailable):
        await ask_info(dead, ledger, teacher.url)
    with pytest.raises(Unavailable):
        await ask_info(None, ledger, teacher.url)
    assert await ask_info(endpoint, ledger, teacher.url) == (teacher_info(), False)
    assert await ask_info(dead, ledger, teacher.url) == (teacher_info(), True)
    assert await ask_info(None, ledger, teacher.url) == (teacher_info(), True)
    teacher.info_faults.append(problem("unauthorized"))
    with pytest.raises(Refused):
        await ask_info(endpoint, ledger, teacher.url)
    for each in (endpoint, dead):
        await each.aclose()
    ledger.close()


def worker(url: str, path: Path, *more: str, **options: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, str(TESTS / "asking_worker.py"), url, str(path), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_two_processes_ask_each_picture_once(teacher: FaultyTeacher, path: Path) -> None:
    """Two students that want the same thirty pictures at the same time pay for thirty, and both get all."""
    workers = [worker(teacher.url, path, "30") for _ in range(2)]
    for process in workers:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert len(set(out.split())) == 30
    assert len(teacher.asked) == 30
    assert set(teacher.asked.values()) == {1}


def test_after_a_kill_only_what_was_not_committed_is_asked(path: Path) -> None:
    """SIGKILL in the middle: what the student could use is never asked again, the rest is."""
    with faulty_teacher(hold_after=8) as teacher:
        process = worker(teacher.url, path, "20")
        assert process.stdout is not None
        used = {process.stdout.readline().strip() for _ in range(8)}
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        before = dict(teacher.asked)
        teacher.go_on.set()
        again = worker(teacher.url, path, "20")
        out, err = again.communicate(timeout=120)
        assert again.returncode == 0, err
        assert len(set(out.split())) == 20
    assert len(used) == 8 and used <= set(before)
    assert all(teacher.asked[digest] == 1 for digest in used)
    asked_again = {digest for digest, count in teacher.asked.items() if count > 1}
    assert asked_again <= set(before) - used
    assert len(teacher.asked) == 20


def test_a_full_disk_loses_no_paid_answer(teacher: FaultyTeacher, path: Path) -> None:
    """Under a file-size limit the student stops with one line; resumed, it pays for nothing twice."""
    Ledger.open(path).close()
    process = worker(
        teacher.url,
        path,
        "120",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000)),
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 4, err
    assert err.startswith("the disk is full") and err.count("\n") == 1 and "--resume" in err
    assert 0 < len(teacher.asked) < 120
    again = worker(teacher.url, path, "120")
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert len(set(out.split())) == 120
    assert set(teacher.asked.values()) == {1}


async def test_the_real_service_answers_what_the_student_reads(path: Path, tmp_path: Path) -> None:
    """A file, a real corte-teacher on a socket, an answer of its size; asked again, none is sent."""
    make = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Pillow.fromarray(make).save(tmp_path / "a.jpg", comment="private")
    picture = read_picture(tmp_path / "a.jpg")
    card = tmp_path / "card.toml"
    card.write_text(CARD)
    with running_teacher(
        ["--open", "--disclosure", "margin", "--backend", "red_backend:make", "--card", str(card)],
        {"PYTHONPATH": str(TESTS)},
    ) as url:
        endpoint = connect(url, deadline_s=30, connections=2)
        ledger = Ledger.open(path)
        info, offline = await ask_info(endpoint, ledger, url)
        assert not offline
        asker = Asker(endpoint, ledger, info, MARGIN, 2)
        answer = await asker.answer(picture)
        assert np.array_equal(answer.labels, picture.pixels[:, :, 0] % 3)
        assert answer.disclosure == MARGIN
        await asker.answer(picture)
        assert (asker.tally.sent, asker.tally.saved) == (1, 1)
        with pytest.raises(ImageRefused):
            await endpoint.predict(b"\xff\xd8 no image", "image/jpeg", MARGIN)
        await endpoint.aclose()
        ledger.close()
