"""Sending: what is retried, what is paid, and what becomes of a request whose answer never came."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import pytest
from starlette.requests import Request
from starlette.responses import Response

from corte_student.endpoints.dialect import Call, Reply, Verdict
from corte_student.endpoints.http import Http
from corte_student.endpoints.pacing import Pacer
from corte_student.endpoints.sending import Manners, Sender
from corte_student.endpoints.signing import Anonymous
from corte_student.endpoints.verdicts import ordinary
from corte_student.errors import (
    AnswerLost,
    BrokeContract,
    BudgetExhausted,
    ImageRefused,
    Refused,
    TeacherError,
    Unavailable,
)
from replaying import Replay, replay


class Books:
    """A meter that notes what was reserved and given back; refuses beyond `cap`."""

    def __init__(self, cap: int = 1000) -> None:
        self.reserved = self.returned = 0
        self._cap = cap

    @property
    def spent(self) -> int:
        return self.reserved - self.returned

    async def reserve(self) -> "Books":
        if self.spent >= self._cap:
            raise BudgetExhausted("the next request would pass the budget")
        self.reserved += 1
        return self

    async def give_back(self) -> None:
        self.returned += 1


async def fine(request: Request, body: bytes) -> Response:
    return Response(b"fine")


@pytest.fixture
def vendor() -> Iterator[Replay]:
    with replay(fine) as running:
        yield running


@asynccontextmanager
async def sending(url: str, *, paid: bool, deadline_s: float = 20.0) -> AsyncIterator[Sender]:
    sender = Sender(
        Http(url, Anonymous(), connections=2), Pacer(2, ramp=False), Manners(deadline_s, paid), sleep=awake
    )
    try:
        yield sender
    finally:
        await sender.aclose()


async def awake(seconds: float) -> None:
    """No pause of the sender's own; those that a teacher asks for are the pacer's."""


def judge(reply: Reply) -> Verdict | None:
    return ordinary(reply, has_key=False, one_image=True)


def call(vendor: Replay) -> Call:
    return Call("POST", vendor.url + "/ask", 1000, {"Content-Type": "image/png"}, b"image")


def cut() -> Response:
    """An answer that ends in the middle."""
    return Response(b"short", headers={"content-length": "100"})


@pytest.mark.parametrize("status", [408, 425, 429, 503, 529])
async def test_a_refusal_before_the_work_is_given_back_and_asked_again(vendor: Replay, status: int) -> None:
    """What was surely not computed costs nothing, paid or not, however often."""
    vendor.faults.extend([Response(b"", status, {"retry-after": "0"}) for _ in range(2)])
    books = Books()
    async with sending(vendor.url, paid=True) as sender:
        assert (await sender.send(call(vendor), judge, books)).body == b"fine"
    assert (books.reserved, books.spent, vendor.images) == (3, 1, 3)


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_a_failure_that_may_have_been_billed_is_not_sent_again_where_it_is_paid(
    vendor: Replay, status: int
) -> None:
    """The image is set aside and the request stays on the bill; without a price it is tried again."""
    vendor.faults.append(Response(b"", status))
    books = Books()
    async with sending(vendor.url, paid=True) as sender:
        with pytest.raises(AnswerLost, match="run again"):
            await sender.send(call(vendor), judge, books)
    assert (books.spent, vendor.images) == (1, 1)
    vendor.faults.append(Response(b"", status))
    async with sending(vendor.url, paid=False) as sender:
        await sender.send(call(vendor), judge, books)
    assert vendor.images == 3


async def test_a_connection_that_breaks_after_sending_is_spent(vendor: Replay) -> None:
    """Nobody knows whether it was billed: it counts, and is not sent again where requests are paid for."""
    vendor.faults.append(cut())
    books = Books()
    async with sending(vendor.url, paid=True) as sender:
        with pytest.raises(AnswerLost):
            await sender.send(call(vendor), judge, books)
    assert (books.spent, vendor.images) == (1, 1)


async def test_where_nobody_listens_nothing_is_spent() -> None:
    """A refused connection was never sent: all of it comes back."""
    books = Books()
    async with sending("http://127.0.0.1:9", paid=True, deadline_s=0.5) as sender:
        with pytest.raises(Unavailable):
            await sender.send(Call("POST", "http://127.0.0.1:9/ask", 10, {}, b"image"), judge, books)
    assert books.reserved > 0 and books.spent == 0


async def test_an_answer_that_does_not_come_in_time_is_spent(vendor: Replay) -> None:
    """At the deadline a paid request under way is an answer lost, an unpaid one a teacher away."""

    async def hang(request: Request, body: bytes) -> Response:
        await request.receive()  # ends when the client goes
        return Response(b"")

    with replay(hang) as silent:
        books = Books()
        async with sending(silent.url, paid=True, deadline_s=0.3) as sender:
            with pytest.raises(AnswerLost, match=r"within 0\.3 s"):
                await sender.send(call(silent), judge, books)
        assert books.spent == 1
        async with sending(silent.url, paid=False, deadline_s=0.3) as sender:
            with pytest.raises(Unavailable):
                await sender.send(call(silent), judge, books)


async def test_an_image_on_which_the_service_fails_each_time_is_set_aside(vendor: Replay) -> None:
    """A 500 is tried again twice; then the image, not the service, is held to be at fault."""
    vendor.faults.extend([Response(b"", 500) for _ in range(5)])
    async with sending(vendor.url, paid=False) as sender:
        with pytest.raises(ImageRefused):
            await sender.send(call(vendor), judge)
    assert vendor.images == 3


async def test_an_exhausted_budget_stops_before_the_retry_that_would_pass_it(vendor: Replay) -> None:
    """Retries are reserved like first tries: the one beyond the cap is never sent."""
    vendor.faults.extend([Response(b"", 502) for _ in range(5)])
    books = Books(cap=2)
    async with sending(vendor.url, paid=False) as sender:
        with pytest.raises(BudgetExhausted):
            await sender.send(call(vendor), judge, books)
    assert vendor.images == 2


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (400, ImageRefused, "will not take this image"),
        (401, Refused, "CORTE_TEACHER_KEY"),
        (402, Refused, "out of credit"),
        (403, Refused, "rights"),
        (404, Refused, "--teacher-url"),
        (413, ImageRefused, "will not take this image"),
        (418, Refused, "refuses"),
        (302, Refused, "redirects"),
        (505, BrokeContract, "505"),
    ],
)
async def test_a_final_failure_is_told_once_and_given_back(
    vendor: Replay, status: int, kind: type[TeacherError], words: str
) -> None:
    """What no second try can mend is its own error at once, and nobody bills it."""
    vendor.faults.append(Response(b"", status))
    books = Books()
    async with sending(vendor.url, paid=True) as sender:
        with pytest.raises(kind, match=words) as failure:
            await sender.send(call(vendor), judge, books)
    assert type(failure.value) is kind
    assert (books.spent, vendor.images) == (0, 1)


async def test_no_request_leaves_the_teachers_own_origin(vendor: Replay) -> None:
    """A call to another host, port or scheme is refused before the key could go there."""
    async with sending(vendor.url, paid=False) as sender:
        for url in ("http://127.0.0.1:9/x", vendor.url.replace("http:", "https:"), "http://localhost/x"):
            with pytest.raises(BrokeContract, match="another host"):
                await sender.send(Call("GET", url, 10), judge)
    assert vendor.seen == []


async def test_the_breaker_opens_and_closes_by_itself() -> None:
    """After failures in a row the sender says that the teacher is down; the first answer ends it."""
    with replay(fine) as vendor:
        async with sending(vendor.url, paid=False) as sender:
            vendor.faults.extend([Response(b"", 503, {"retry-after": "0"}) for _ in range(5)])
            down = []

            def watch(reply: Reply) -> Verdict | None:
                down.append(sender.down)
                return judge(reply)

            await sender.send(call(vendor), watch)
            assert not sender.down
    assert down[0] is False and down[-1] is True


async def test_a_free_call_is_sent_again_even_where_others_are_paid(vendor: Replay) -> None:
    """Looking whether a paid answer is ready costs nothing: a gateway's failure there loses no answer."""
    vendor.faults.append(Response(b"", 502))
    async with sending(vendor.url, paid=True) as sender:
        assert (await sender.send(call(vendor), judge, free=True)).body == b"fine"
    assert vendor.images == 2


async def test_cookies_are_not_sent_back() -> None:
    """A vendor's session cookie is forgotten: no request is tied to another."""

    async def setting(request: Request, body: bytes) -> Response:
        return Response(b"fine", headers={"set-cookie": "session=1; Path=/"})

    with replay(setting) as vendor:
        async with sending(vendor.url, paid=False) as sender:
            for _ in range(2):
                await sender.send(call(vendor), judge)
    assert not any("cookie" in one.headers for one in vendor.seen)


class NoCredentials:
    """A signer that finds nothing to sign with."""

    has_key = True

    async def sign(self, call: Call) -> Mapping[str, str]:
        raise Refused("no credentials")


async def test_what_could_not_be_signed_was_never_sent_and_costs_nothing(vendor: Replay) -> None:
    """The reservation is given back."""
    books = Books()
    sender = Sender(Http(vendor.url, NoCredentials(), connections=1), Pacer(1, ramp=False), Manners(5, True))
    with pytest.raises(Refused, match="no credentials"):
        await sender.send(call(vendor), judge, books)
    await sender.aclose()
    assert (books.reserved, books.spent, vendor.images) == (1, 0, 0)
