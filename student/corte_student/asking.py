"""One question an image, asked once: ledger, claim, request, commit, and only then the answer.

Rule 1: an answer is committed before it is returned. Rule 2: of all who ask about the same pixels, in this
process or another, one sends. Rule 3: who stops waits a little for requests under way, because they are
being paid for; a question that was not sent is given back.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from corte_protocol import (
    Disclosure,
    InvalidValue,
    Prediction,
    ProtocolError,
    TeacherInfo,
    decode_prediction,
)
from corte_student.data.folder import Picture
from corte_student.endpoints import Endpoint
from corte_student.errors import BrokeContract, Changed, ImageRefused, LedgerError, Refused, Unavailable
from corte_student.ledger import Ledger, Question
from corte_student.queries import IDENTITY, Query

P = ParamSpec("P")
T = TypeVar("T")

_FIRST_LOOK_S = 0.02
_LONGEST_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Tally:
    """What the asking cost so far: requests sent, answers the ledger saved, bytes of images and frames."""

    sent: int = 0
    saved: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class _Flight:
    """One question that is being answered, and how many wait for it."""

    def __init__(self, obtain: Callable[["_Flight"], Coroutine[None, None, Prediction]]) -> None:
        self.waiting = 0
        self.claimed = False
        self.sent = False
        self.task = asyncio.create_task(obtain(self))
        self.task.add_done_callback(_seen)


def _seen(done: asyncio.Future[T]) -> None:
    """Look at a failure, so that none is reported as forgotten where everyone who waited has gone."""
    if not done.cancelled():
        done.exception()


class Asker:
    """Answers questions about pictures of one run: one teacher, one revision, one level of disclosure.

    Without an endpoint it is offline: what the ledger does not hold is `Unavailable`.
    """

    def __init__(
        self,
        endpoint: Endpoint | None,
        ledger: Ledger,
        info: TeacherInfo,
        need: Disclosure,
        in_flight: int,
        *,
        grace_s: float = 10.0,
    ) -> None:
        if not info.disclosure.allows(need):
            raise Refused(
                f"the teacher discloses {info.disclosure} and this run needs {need}: "
                "choose a method that needs less, or ask the teacher's owner for more"
            )
        self._endpoint = endpoint
        self._ledger = ledger
        self._info = info
        self._need = need
        self._slots = asyncio.Semaphore(in_flight)
        self._grace_s = grace_s
        self._flights: dict[tuple[str, str], _Flight] = {}
        self._tally = Tally()

    @property
    def tally(self) -> Tally:
        """A snapshot."""
        return self._tally

    async def answer(self, picture: Picture, query: Query = IDENTITY) -> Prediction:
        """The answer to `query` about `picture`, of exactly the level that the run needs."""
        key = (picture.pixel_digest, query.name)
        flight = self._flights.get(key)
        if flight is None:
            flight = self._take_off(picture, query)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            await self._stop(flight, key)
            raise
        finally:
            flight.waiting -= 1
            if flight.task.done():
                self._forget(flight, key)

    def _take_off(self, picture: Picture, query: Query) -> _Flight:
        teacher = self._info
        question = Question(
            picture.digest, picture.pixel_digest, teacher.teacher, teacher.revision, query.name
        )
        key = (picture.pixel_digest, query.name)
        flight = self._flights[key] = _Flight(lambda flight: self._obtain(question, query, picture, flight))
        return flight

    def _forget(self, flight: _Flight, key: tuple[str, str]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _stop(self, flight: _Flight, key: tuple[str, str]) -> None:
        """The one who waits was cancelled: let a request under way come home, call any other back."""
        try:
            if flight.sent:
                await asyncio.wait([flight.task], timeout=self._grace_s)
        finally:
            if flight.waiting == 1 and not flight.task.done():
                self._forget(flight, key)  # who asks from now on asks anew
                flight.task.cancel()
                await asyncio.wait([flight.task])

    async def _obtain(self, q: Question, query: Query, whole: Picture, flight: _Flight) -> Prediction:
        look_again_s = _FIRST_LOOK_S
        picture: Picture | None = None
        while True:
            frame = await _finished(self._ledger.find, q, self._need)
            if frame is not None:
                self._count(saved=1)
                size = query.size(*whole.pixels.shape[:2])
                return await _finished(self._read_stored, frame, size)
            if picture is None:  # made only to be sent
                picture = await asyncio.to_thread(query.shown, whole)
            answer = await self._ask(q, picture, flight)
            if answer is not None:
                return answer
            await asyncio.sleep(look_again_s)  # another process asks just now
            look_again_s = min(2 * look_again_s, _LONGEST_LOOK_S)

    async def _ask(self, q: Question, picture: Picture, flight: _Flight) -> Prediction | None:
        """Claim, send and commit; None where someone else holds the claim."""
        endpoint = self._sendable(picture)
        async with self._slots:
            try:
                await _finished(self._claim, q, flight)
                if not flight.claimed:
                    return None
                flight.sent = True
                self._count(sent=1, bytes_up=len(picture.body))
                frame = await endpoint.predict(picture.body, picture.media_type, self._need)
                self._count(bytes_down=len(frame))
                return await _finished(self._commit, q, frame, picture)
            except BaseException:
                if flight.claimed:
                    with contextlib.suppress(LedgerError):  # the first failure is the one to tell
                        await _finished(self._ledger.release, q)
                raise

    def _claim(self, q: Question, flight: _Flight) -> None:
        # noted here, in the thread, so that a cancellation meanwhile cannot make us forget it
        flight.claimed = self._ledger.claim(q, self._need)

    def _commit(self, q: Question, frame: bytes, picture: Picture) -> Prediction:
        """Store a fresh answer under the revision that gave it, even where this run cannot use it."""
        try:
            answer = _decoded(frame, picture.pixels.shape[:2])
        except ProtocolError as exc:
            raise BrokeContract(f"the teacher's answer breaks the protocol: {exc}") from exc
        self._ledger.commit(replace(q, revision=answer.revision), frame, answer.disclosure)
        if answer.revision != q.revision:
            raise Changed(
                f"the teacher changed from revision {q.revision} to {answer.revision}: start a new run"
            )
        return answer.narrow(self._need)

    def _sendable(self, picture: Picture) -> Endpoint:
        if self._endpoint is None:
            raise Unavailable(
                "this image is not in the ledger and the teacher is offline: "
                "start it with `corte-teacher serve` or check --teacher-url, then --resume"
            )
        height, width, _ = picture.pixels.shape
        limits = self._info.limits
        if height * width > limits.max_pixels:
            raise ImageRefused(
                f"{width} x {height} pixels are above the teacher's limit of {limits.max_pixels}"
            )
        if len(picture.body) > limits.max_body_bytes:
            raise ImageRefused(
                f"{len(picture.body)} bytes are above the teacher's limit of {limits.max_body_bytes}"
            )
        return self._endpoint

    def _read_stored(self, frame: bytes, size: tuple[int, int]) -> Prediction:
        try:
            return _decoded(frame, size).narrow(self._need)
        except ProtocolError as exc:
            raise LedgerError(f"a stored answer cannot be read ({exc}): use another --ledger") from exc

    def _count(self, *, sent: int = 0, saved: int = 0, bytes_up: int = 0, bytes_down: int = 0) -> None:
        t = self._tally
        self._tally = Tally(t.sent + sent, t.saved + saved, t.bytes_up + bytes_up, t.bytes_down + bytes_down)


def _decoded(frame: bytes, size: tuple[int, int]) -> Prediction:
    height, width = size
    answer = decode_prediction(frame, max_pixels=height * width)
    if answer.classes.shape[1:] != (height, width):
        raise InvalidValue(f"an answer of {answer.classes.shape[1:]} pixels to {height} x {width}")
    return answer


async def ask_info(endpoint: Endpoint | None, ledger: Ledger, url: str) -> tuple[TeacherInfo, bool]:
    """What the teacher says of itself, and whether it is offline, when the ledger's last info stands in."""
    try:
        if endpoint is None:
            raise Unavailable("the teacher is offline and unknown to the ledger: start it once before")
        info = await endpoint.info()
    except Unavailable:
        known = await asyncio.to_thread(ledger.recall, url)
        if known is None:
            raise
        return known, True
    await asyncio.to_thread(ledger.remember, url, info)
    return info, False


async def _finished(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work` in a thread. A cancellation waits until it is through: nothing goes on behind our back."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    running.add_done_callback(_seen)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
