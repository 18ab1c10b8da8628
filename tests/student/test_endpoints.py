"""Endpoints: what any of them owes the student, and how the one for CoRTe's service meets trouble."""

import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from corte_protocol import Disclosure, encode_prediction
from corte_protocol.routes import DISCLOSURE_QUERY
from corte_student.data.folder import Picture
from corte_student.endpoints import Endpoint, Stored, connect
from corte_student.endpoints.address import checked_key
from corte_student.endpoints.corte import CorteEndpoint
from corte_student.endpoints.http import Http
from corte_student.endpoints.pacing import Pacer
from corte_student.endpoints.sending import Manners, Sender
from corte_student.endpoints.signing import Anonymous, HeaderKey
from corte_student.errors import (
    BrokeContract,
    ImageRefused,
    Refused,
    SettingsError,
    StudentError,
    TeacherError,
    Unavailable,
)
from faulty_teacher import CLASSES, FaultyTeacher, expected, faulty_teacher, problem, raw, teacher_info
from pictures import make_picture

LABELS = Disclosure(1, 0)
MARGIN = Disclosure(2, 8)
KEY = "crt_Sup3rS3cret"
START = "start it with `corte-teacher serve` or check --teacher-url"


class EndpointContract:
    """What every endpoint owes. A subclass gives `endpoint`, in front of the teacher of `faulty_teacher`."""

    @pytest.fixture
    async def endpoint(self) -> AsyncIterator[Endpoint]:
        raise NotImplementedError
        yield

    async def test_it_tells_what_the_teacher_is(self, endpoint: Endpoint) -> None:
        """The info names classes, revision and level, the same at every call."""
        first, second = await endpoint.info(), await endpoint.info()
        assert first == second
        assert first.classes == CLASSES

    @pytest.mark.parametrize("level", [LABELS, Disclosure(1, 8), MARGIN])
    async def test_an_answer_is_a_valid_frame_of_the_level_and_size_asked_for(
        self, endpoint: Endpoint, level: Disclosure
    ) -> None:
        """What comes back decodes to exactly the prediction for these pixels."""
        picture = make_picture(1)
        stored = await endpoint.predict(picture.body, picture.media_type, level)
        height, width, _ = picture.pixels.shape
        answer = endpoint.read(stored.blob, height, width, level)
        truth = expected(picture.pixels, level)
        assert answer.disclosure == stored.level == level
        assert answer.revision == stored.revision == (await endpoint.info()).revision
        assert np.array_equal(answer.classes, truth.classes)

    async def test_what_is_no_image_is_set_aside(self, endpoint: Endpoint) -> None:
        """A body that is no picture concerns this body alone."""
        with pytest.raises(ImageRefused):
            await endpoint.predict(b"no image", "image/png", LABELS)

    async def test_closing_twice_is_harmless(self, endpoint: Endpoint) -> None:
        """`aclose` may be called again."""
        await endpoint.aclose()
        await endpoint.aclose()


@pytest.fixture
def teacher() -> Iterator[FaultyTeacher]:
    with faulty_teacher() as running:
        yield running


class TestCorte(EndpointContract):
    """The endpoint for CoRTe's own service."""

    @pytest.fixture
    async def endpoint(self, teacher: FaultyTeacher) -> AsyncIterator[Endpoint]:
        endpoint = connect(teacher.url, deadline_s=20, connections=4)
        yield endpoint
        await endpoint.aclose()


class Naps:
    """A sleep that only notes how long it should have been."""

    def __init__(self) -> None:
        self.lengths: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.lengths.append(seconds)


@asynccontextmanager
async def corte(
    url: str, naps: Naps | None = None, *, key: str | None = None, deadline_s: float = 20.0
) -> AsyncIterator[CorteEndpoint]:
    secret = checked_key(None if key is None else SecretStr(key))
    signer = Anonymous() if secret is None else HeaderKey(secret)
    pacer = Pacer(4, ramp=False)
    sender = Sender(
        Http(url, signer, connections=4), pacer, Manners(deadline_s, remedy=START), sleep=naps or Naps()
    )
    endpoint = CorteEndpoint(sender, has_key=signer.has_key)
    try:
        yield endpoint
    finally:
        await endpoint.aclose()


async def ask(endpoint: Endpoint, picture: Picture | None = None, level: Disclosure = LABELS) -> Stored:
    picture = picture or make_picture(1)
    return await endpoint.predict(picture.body, picture.media_type, level)


@pytest.mark.parametrize("code", ["overloaded", "quota", "internal", "not-ready", "timeout"])
async def test_a_passing_failure_is_asked_again(teacher: FaultyTeacher, code: str) -> None:
    """Failures that the wire's table calls retryable cost attempts, not the run."""
    teacher.faults.extend([problem(code), problem(code)])
    naps = Naps()
    async with corte(teacher.url, naps) as endpoint:
        await ask(endpoint)
    assert teacher.attempts == 3
    assert len(naps.lengths) == 2


async def test_a_wait_beyond_the_deadline_ends_at_once(teacher: FaultyTeacher) -> None:
    """Nobody sleeps towards a deadline that cannot be met."""
    teacher.faults.append(problem("quota", headers={"Retry-After": "86400"}))
    naps = Naps()
    async with corte(teacher.url, naps) as endpoint:
        with pytest.raises(Unavailable, match=r"86400 s.*--resume"):
            await ask(endpoint)
    assert naps.lengths == []


async def test_a_lasting_failure_ends_at_the_deadline() -> None:
    """A teacher that holds its answer for ever is unavailable after the deadline."""
    with faulty_teacher(hold_after=0) as teacher:
        async with corte(teacher.url, deadline_s=0.3) as endpoint:
            with pytest.raises(Unavailable, match=r"within 0\.3 s"):
                await ask(endpoint)


async def test_a_broken_connection_is_tried_again(teacher: FaultyTeacher) -> None:
    """A service that dies in the middle of an answer is asked again."""
    teacher.faults.append(raw(b"short", headers={"content-length": "100"}))
    async with corte(teacher.url) as endpoint:
        await ask(endpoint)
    assert teacher.attempts == 2


async def test_where_nobody_listens_the_message_says_how_to_start_one() -> None:
    """A refused connection names the URL, the command and the flag."""
    async with corte("http://127.0.0.1:9", deadline_s=0.5) as endpoint:
        with pytest.raises(Unavailable) as failure:
            await endpoint.info()
    assert str(failure.value) == (
        "no teacher answers at http://127.0.0.1:9: start it with `corte-teacher serve` or check --teacher-url"
    )


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("unauthorized", Refused, "CORTE_TEACHER_KEY"),
        ("forbidden", Refused, "--disclosure"),
        ("not-found", Refused, "--teacher-url"),
        ("method", Refused, "--teacher-url"),
        ("version", BrokeContract, "update"),
        ("malformed", ImageRefused, "not an image"),
        ("too-large", ImageRefused, "limits"),
        ("media-type", ImageRefused, "image/jpeg"),
        ("invalid", ImageRefused, "not valid"),
    ],
)
async def test_each_refusal_is_its_own_error_and_names_the_remedy(
    teacher: FaultyTeacher, code: str, kind: type[TeacherError], words: str
) -> None:
    """What concerns one image sets it aside, all else ends the run; neither is asked again."""
    teacher.faults.append(problem(code))
    async with corte(teacher.url) as endpoint:
        with pytest.raises(kind, match=words) as failure:
            await ask(endpoint)
    assert type(failure.value) is kind
    assert "\n" not in str(failure.value)
    assert teacher.attempts == 1


async def test_a_missing_key_and_a_wrong_key_are_told_apart() -> None:
    """Without a key the message says to set it, with one to check it."""
    with faulty_teacher(key=KEY) as teacher:
        async with corte(teacher.url) as endpoint:
            with pytest.raises(Refused, match=r"needs a key .*set CORTE_TEACHER_KEY"):
                await endpoint.info()
        async with corte(teacher.url, key="wrong") as endpoint:
            with pytest.raises(Refused, match=r"refuses the key .*check CORTE_TEACHER_KEY"):
                await endpoint.info()
        async with corte(teacher.url, key=KEY + "\n") as endpoint:
            assert await endpoint.info() == teacher_info()
            await ask(endpoint)


async def test_a_redirect_is_not_followed(teacher: FaultyTeacher) -> None:
    """An answer that points elsewhere is refused; nothing goes there."""
    teacher.info_faults.append(raw(b"", 307, headers={"location": "http://127.0.0.1:9/v1/info"}))
    async with corte(teacher.url) as endpoint:
        with pytest.raises(Refused, match="redirects"):
            await endpoint.info()


async def test_oversized_and_compressed_answers_are_not_read(teacher: FaultyTeacher) -> None:
    """An answer beyond what the image and level allow, or compressed unasked, breaks the contract."""
    teacher.faults.append(raw(b"x" * (1 << 20)))
    teacher.faults.append(raw(b"x", headers={"content-encoding": "gzip"}))
    teacher.info_faults.append(raw(b"x" * (3 << 20)))
    async with corte(teacher.url) as endpoint:
        with pytest.raises(BrokeContract, match="larger than"):
            await endpoint.info()
        with pytest.raises(BrokeContract, match="larger than"):
            await ask(endpoint)
        with pytest.raises(BrokeContract, match="compressed"):
            await ask(endpoint)


async def test_a_huge_error_body_is_cut(teacher: FaultyTeacher) -> None:
    """The body of an error is read only as far as a problem document goes."""
    teacher.faults.append(raw(b"x" * (4 << 20), 403))
    async with corte(teacher.url) as endpoint:
        with pytest.raises(Refused):
            await ask(endpoint)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"<html>", b'{"protocol": 9}', b'{"protocol": 1}'])
async def test_an_info_that_is_none_breaks_the_contract(teacher: FaultyTeacher, body: bytes) -> None:
    """Some other service at this URL is told as such."""
    teacher.info_faults.append(raw(body))
    async with corte(teacher.url) as endpoint:
        with pytest.raises(BrokeContract):
            await endpoint.info()


async def test_frames_that_break_the_contract_are_refused(teacher: FaultyTeacher) -> None:
    """Wrong bytes, size, level or media type never reach the ledger."""
    picture = make_picture(1)
    good = encode_prediction(expected(picture.pixels, LABELS))
    teacher.faults.extend(
        [
            raw(b"CRT?"),
            raw(good[:-1]),
            raw(encode_prediction(expected(picture.pixels[:-1], LABELS))),
            raw(encode_prediction(expected(np.tile(picture.pixels, (2, 2, 1)), LABELS))),
            raw(encode_prediction(expected(picture.pixels, MARGIN))),
            raw(good, media_type="text/html"),
        ]
    )
    async with corte(teacher.url) as endpoint:
        for _ in range(6):
            with pytest.raises(BrokeContract):
                await ask(endpoint, picture)
        assert (await ask(endpoint, picture)).blob == good


async def test_a_new_revision_is_told(teacher: FaultyTeacher) -> None:
    """What is stored carries the revision that answered, whatever the info said before."""
    async with corte(teacher.url) as endpoint:
        assert (await endpoint.info()).revision == "r1"
        teacher.revision = "r2"
        assert (await ask(endpoint)).revision == "r2"


async def test_the_url_carries_the_level_and_nothing_of_the_file(teacher: FaultyTeacher) -> None:
    """Only the path and the level are in the URL, only the image is in the body."""
    picture = make_picture(1)
    async with corte(teacher.url, key=KEY) as endpoint:
        await ask(endpoint, picture, MARGIN)
    assert teacher.targets[-1] == f"{teacher.url}/v1/predict?{DISCLOSURE_QUERY}=margin"
    assert teacher.bodies == [picture.body]


async def test_the_teacher_hears_how_long_its_answer_is_wanted(teacher: FaultyTeacher) -> None:
    """Each attempt names the milliseconds that are left of the request's deadline, so they only shrink."""
    teacher.faults.append(problem("overloaded", {"Retry-After": "1"}))
    endpoint = connect(teacher.url, deadline_s=20, connections=1)
    try:
        await ask(endpoint)
    finally:
        await endpoint.aclose()
    first, second = (int(told or 0) for told in teacher.deadlines)
    assert 0 < second <= first - 900 and first <= 20_000


def open_endpoint(url: str, key: str | None = None, insecure: bool = False) -> Endpoint:
    secret = None if key is None else SecretStr(key)
    return connect(url, key=secret, insecure_http=insecure, deadline_s=1, connections=1)


@pytest.mark.parametrize("url", ["http://teacher:8000", "http://10.0.0.1", "http://127.0.0.1.evil.org"])
def test_a_key_over_http_goes_to_loopback_only(url: str) -> None:
    """Elsewhere https is needed, or the user's word; without a key plain http is fine."""
    with pytest.raises(SettingsError, match="--insecure-http"):
        open_endpoint(url, KEY)
    open_endpoint(url, KEY, insecure=True)
    open_endpoint(url)
    open_endpoint(url.replace("http:", "https:"), KEY)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://localhost", "http://[::1]:80/x", "http://127.9.9.9"]
)
def test_loopback_takes_a_key(url: str) -> None:
    """What never leaves the machine may be plain."""
    open_endpoint(url, KEY)


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{KEY}@host",
        f"https://{KEY}@host",
        f"https://host/?key={KEY}",
        f"https://host/#{KEY}",
        f"ftp://host/{KEY}",
        f"http://[::1/{KEY}",
        f"http://host:port{KEY}",
        f"host/{KEY}",
        f"http:///{KEY}",
        f"http://ho st/{KEY}",
        "",
    ],
)
def test_a_url_with_secrets_or_without_a_host_is_refused(url: str) -> None:
    """The message says where the key belongs and repeats nothing."""
    with pytest.raises(SettingsError) as failure:
        open_endpoint(url)
    assert KEY not in str(failure.value) and KEY.lower() not in str(failure.value)


@given(st.text(min_size=1, max_size=40))
def test_a_key_that_no_header_carries_is_refused_without_being_told(key: str) -> None:
    """Any text either is a legal header value or gives an error without the key in it."""
    try:
        endpoint = open_endpoint("http://localhost", "needle" + key)
    except SettingsError as exc:
        assert "needle" not in str(exc)
    else:
        assert "needle" not in repr(endpoint)


@pytest.mark.parametrize(
    "fault", ["unauthorized", "forbidden", "malformed", "version", "internal", "echo", "reset"]
)
async def test_the_key_is_in_no_message_log_or_url(
    teacher: FaultyTeacher, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong, at every log level, and even if the service echoes the key."""
    echo = json.dumps({"title": KEY, "detail": KEY, "code": KEY}).encode()
    faults = {"echo": raw(echo, 418), "reset": raw(b"x", headers={"content-length": "9"})}
    for _ in range(40):
        teacher.faults.append(faults.get(fault) or problem(fault))
    caplog.set_level(logging.DEBUG)
    naps = Naps()
    async with corte(teacher.url, naps, key=KEY, deadline_s=0.5) as endpoint:
        with pytest.raises(StudentError) as failure:
            while True:
                await ask(endpoint)
        chain: BaseException | None = failure.value
        while chain is not None:
            assert KEY not in f"{chain!r} {chain}"
            chain = chain.__cause__ or chain.__context__
        assert KEY not in repr(endpoint) + repr(vars(endpoint)) + repr(vars(endpoint._sender))
    assert KEY not in caplog.text
    assert not any(KEY in target for target in teacher.targets)
