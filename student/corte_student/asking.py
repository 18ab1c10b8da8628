"""One question an image, asked once: ledger, claim, request, commit, and only then the answer.

Rule 1: an answer is committed before it is returned. Rule 2: of all who ask about the same pixels, in this
process or another, one sends. Rule 3: who stops waits a little for requests under way, because they are
being paid for; a question that was not sent is given back. Rule 4: what a service answered is committed
before anybody tries to read it; where the first answers cannot be read, or no image is taken, the asking
ends before more is paid.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace

from corte_protocol import Disclosure, InvalidValue, Prediction, ProtocolError, TeacherInfo
from corte_protocol.codec import FRAME_MAGIC
from corte_student.data.folder import Picture
from corte_student.endpoints import UNSTATED, Endpoint, Stored, read_frame
from corte_student.errors import Changed, ImageRefused, LedgerError, Refused, Unavailable
from corte_student.ledger import Ledger, Question
from corte_student.metering import LedgerMeter, Purse
from corte_student.queries import IDENTITY, Query
from corte_student.threads import finished, seen

_FIRST_LOOK_S = 0.02
_LONGEST_LOOK_S = 1.0
_DOUBT_AT_FIRST = 5
"""So many images refused or answers unreadable before the first good one, and nothing more is asked."""
_DOUBT_LATER = 25
"""So many in a row later on."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What the asking cost so far: questions sent, answers the ledger saved, bytes of images and answers.

    `spent` is in micros of the price's currency, retries that may have been billed included.
    """

    sent: int = 0
    saved: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    spent: int = 0


class _Flight:
    """One question that is being answered, and how many wait for it."""

    def __init__(self, obtain: Callable[["_Flight"], Coroutine[None, None, Prediction]]) -> None:
        self.waiting = 0
        self.claimed = False
        self.sent = False
        self.task = asyncio.create_task(obtain(self))
        self.task.add_done_callback(seen)


class Asker:
    """Answers questions about pictures of one run: one teacher, one revision, one level of disclosure.

    Offline, or without an endpoint, what the ledger does not hold is `Unavailable`. `url` is the name under
    which the ledger remembers a revision that only the answers state.
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
        offline: bool = False,
        purse: Purse | None = None,
        url: str | None = None,
    ) -> None:
        if not info.disclosure.allows(need):
            raise Refused(
                f"the teacher discloses {info.disclosure} and this run needs {need}: "
                "choose a method that needs less, or ask the teacher's owner for more"
            )
        self._endpoint = None if offline else endpoint
        self._read = read_frame if endpoint is None else endpoint.read
        self._purse = purse or Purse()
        self._url = url
        self._good, self._bad = 0, 0
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

    @property
    def revision(self) -> str:
        """The teacher's, as far as it is known: a first answer may state it."""
        return self._info.revision

    @property
    def down(self) -> bool:
        """Whether the teacher fails so steadily just now that it is only probed."""
        return self._endpoint is not None and self._endpoint.down

    async def knows(self, picture: Picture, query: Query = IDENTITY) -> bool:
        """Whether the ledger holds the answer; nothing is asked."""
        return await finished(self._ledger.find, self._question(picture, query), self._need) is not None

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
        key = (picture.pixel_digest, query.name)
        flight = self._flights[key] = _Flight(lambda flight: self._obtain(query, picture, flight))
        return flight

    def _question(self, picture: Picture, query: Query) -> Question:
        teacher = self._info
        return Question(picture.digest, picture.pixel_digest, teacher.teacher, teacher.revision, query.name)

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

    async def _obtain(self, query: Query, whole: Picture, flight: _Flight) -> Prediction:
        look_again_s = _FIRST_LOOK_S
        picture: Picture | None = None
        while True:
            await self._catch_up()
            q = self._question(whole, query)
            frame = await finished(self._ledger.find, q, self._need)
            if frame is not None:
                self._count(saved=1)
                size = query.size(*whole.pixels.shape[:2])
                return await finished(self._understood, frame, size)
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
        pixels = picture.pixels.shape[0] * picture.pixels.shape[1]
        async with self._slots:
            self._ensure_trusted()
            meter = LedgerMeter(self._ledger, self._info.teacher, self._purse, pixels)
            try:
                await finished(self._claim, q, flight)
                if not flight.claimed:
                    return None
                await self._catch_up()
                if self.revision != q.revision:  # stated meanwhile: look again before anything is sent
                    await finished(self._ledger.release, q)
                    return None
                flight.sent = True
                self._count(sent=1, bytes_up=len(picture.body))
                stored = await endpoint.predict(picture.body, picture.media_type, self._need, meter)
                self._count(bytes_down=len(stored.blob))
                await finished(self._commit, q, stored, meter)
                await self._adopt(stored.revision)
                if stored.revision != q.revision:
                    await finished(self._ledger.release, q)
                return await finished(self._understood, stored.blob, picture.pixels.shape[:2])
            except BaseException as exc:
                self._bad += isinstance(exc, ImageRefused)
                if flight.claimed:
                    with contextlib.suppress(LedgerError):  # the first failure is the one to tell
                        await finished(self._ledger.release, q)
                raise
            finally:
                self._count(spent=meter.spent)

    def _claim(self, q: Question, flight: _Flight) -> None:
        # noted here, in the thread, so that a cancellation meanwhile cannot make us forget it
        flight.claimed = self._ledger.claim(q, self._need)

    def _commit(self, q: Question, stored: Stored, meter: LedgerMeter) -> None:
        """Store a fresh answer under the revision that gave it, even where this run cannot use it."""
        self._ledger.commit(
            replace(q, revision=stored.revision), stored.blob, stored.level, reservation=meter.reservation
        )

    async def _catch_up(self) -> None:
        """Take on a revision that another process has learned from an answer."""
        if self._url is None or self.revision != UNSTATED:
            return
        known = await finished(self._ledger.recall, self._url)
        if known is not None and known.teacher == self._info.teacher and self.revision == UNSTATED:
            self._info = replace(self._info, revision=known.revision)

    async def _adopt(self, revision: str) -> None:
        """A revision that nobody stated before is taken on; any other is another teacher.

        In the event loop, so that of several first answers one is the first.
        """
        before = self.revision
        if revision == before:
            return
        changed = replace(self._info, revision=revision)
        if before == UNSTATED:
            self._info = changed
        if self._url is not None:  # who starts anew begins with this one
            await finished(self._ledger.remember, self._url, changed)
        if before != UNSTATED:
            raise Changed(
                f"the teacher changed from revision {before} to {revision} while it was asked. Choose: a new "
                "run with another --out, which asks the new revision about every image; or "
                f"`--offline --resume`, which goes on with what {before} answered. All answers are kept"
            )

    def _understood(self, blob: bytes, size: tuple[int, int]) -> Prediction:
        """The prediction in an answer that the ledger holds."""
        try:
            answer = self._read(blob, *size, self._need)
            if answer.classes.shape[1:] != size:
                raise InvalidValue(f"an answer of {answer.classes.shape[1:]} pixels to {size[0]} x {size[1]}")
            answer = answer.narrow(self._need)
        except ProtocolError as exc:
            if blob.startswith(FRAME_MAGIC):
                raise LedgerError(f"a stored answer cannot be read ({exc}): use another --ledger") from exc
            raise ImageRefused(
                f"its stored answer cannot be read ({exc}): mend --teacher-config, which costs no question"
            ) from exc
        self._good, self._bad = self._good + 1, 0
        return answer

    def _ensure_trusted(self) -> None:
        """Stop before more is paid where nothing comes of it."""
        if self._bad >= (_DOUBT_LATER if self._good else _DOUBT_AT_FIRST):
            raise Refused(
                f"the last {self._bad} images were all refused, or their answers could not be read: "
                "nothing more is asked. Look into it with `corte-student doctor`, then run again"
            )

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

    def _count(self, **more: int) -> None:
        self._tally = replace(self._tally, **{k: getattr(self._tally, k) + v for k, v in more.items()})


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
    if info.revision == UNSTATED:  # its answers may have stated one before
        known = await asyncio.to_thread(ledger.recall, url)
        if known is not None and known.teacher == info.teacher:
            info = replace(info, revision=known.revision)
    await asyncio.to_thread(ledger.remember, url, info)
    return info, False
