"""One request until it succeeds, fails for good or its deadline passes: pacing, payment, judgement, retries.

Rule 1: what costs something is reserved before it is sent; what was surely not computed is given back.
Rule 2: a failure that may have been billed is not sent again where requests are paid for. Rule 3: while the
breaker is open nobody sends but its one probe, so waiting there spends no retries.
"""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from corte_student.endpoints.answers import FREE, Meter
from corte_student.endpoints.dialect import Call, Reply, Verdict
from corte_student.endpoints.hints import hint_of
from corte_student.endpoints.http import Broken, Http
from corte_student.endpoints.pacing import Outcome, Pacer
from corte_student.errors import (
    AnswerLost,
    BrokeContract,
    ImageRefused,
    StudentError,
    TeacherError,
    Unavailable,
)

Sleep = Callable[[float], Awaitable[None]]
Judge = Callable[[Reply], Verdict | None]

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 10.0
_NOBODY = "nobody listens"


@dataclass(frozen=True, slots=True)
class Manners:
    """How a teacher is asked: `deadline_s` a request with its retries; `paid`: requests cost money.

    `remedy` is what to do where nobody answers; `deadline_header` tells the teacher how many milliseconds of
    the deadline are left, so that it does not work for nobody.
    """

    deadline_s: float
    paid: bool = False
    remedy: str = "check --teacher-url"
    deadline_header: str | None = None


@dataclass(slots=True)
class _Attempts:
    """What became of one request so far."""

    setback: Verdict | None = None
    under_way: bool = False
    count: int = 0


class Sender:
    """Sends calls to one teacher, however many tasks ask."""

    def __init__(self, http: Http, pacer: Pacer, manners: Manners, *, sleep: Sleep = asyncio.sleep) -> None:
        if manners.deadline_s <= 0:
            raise ValueError("the deadline must be positive")
        self._http, self._pacer, self._manners, self._sleep = http, pacer, manners, sleep

    @property
    def url(self) -> str:
        """The teacher's address, for messages."""
        return self._http.url

    @property
    def deadline_s(self) -> float:
        """Seconds for one request with its retries."""
        return self._manners.deadline_s

    @property
    def down(self) -> bool:
        """Whether the teacher has failed so often in a row that only a probe is sent now and then."""
        return self._pacer.open

    async def aclose(self) -> None:
        """Close the pool."""
        await self._http.aclose()

    async def send(
        self,
        call: Call,
        judge: Judge,
        meter: Meter = FREE,
        *,
        nobody_s: float | None = None,
        free: bool = False,
    ) -> Reply:
        """The reply that `judge` finds no fault with. Raises TeacherError.

        Where nobody listens at all, `nobody_s` is the deadline: a person is waiting. `free`: this call costs
        nothing where others do, so it may be sent again whatever became of it.
        """
        paid = self._manners.paid and not free
        began = asyncio.get_running_loop().time()
        so_far = _Attempts()
        try:
            async with asyncio.timeout(self._manners.deadline_s):
                for attempt in itertools.count():
                    outcome = await self._attempt(call, judge, meter, began, so_far, paid=paid)
                    if isinstance(outcome, Reply):
                        return outcome
                    if not await self._may_go_on(outcome, attempt, began, nobody_s):
                        break
        except TimeoutError:
            if so_far.under_way and paid:
                raise AnswerLost(_LOST.format(f"within {self._manners.deadline_s:g} s")) from None
        raise self._unavailable(so_far.setback)

    def _hurried(self, call: Call, left_s: float) -> Call:
        if self._manners.deadline_header is None:
            return call
        left = {self._manners.deadline_header: str(max(1, int(left_s * 1000)))}
        return replace(call, headers={**call.headers, **left})

    async def _attempt(
        self, call: Call, judge: Judge, meter: Meter, began: float, so_far: _Attempts, *, paid: bool
    ) -> Reply | Verdict:
        await self._pacer.enter(began + self._manners.deadline_s)
        told = Outcome("cancelled")
        try:
            receipt = await meter.reserve()
            so_far.under_way = True
            loop = asyncio.get_running_loop()
            sent_at = loop.time()
            try:
                result = await self._http.request(self._hurried(call, began + self.deadline_s - sent_at))
            except BrokeContract:
                raise  # an answer came
            except StudentError:  # no credentials, no trust: never sent
                await receipt.give_back()
                raise
            so_far.under_way = False
            verdict = _broken(result) if isinstance(result, Broken) else judge(result)
            told = Outcome(
                "answered" if verdict is None else verdict.pace,
                None if verdict is None else verdict.wait_s,
                loop.time() - sent_at,
            )
            if isinstance(result, Reply) and (hint := hint_of(result.headers, datetime.now(UTC))):
                self._pacer.hint(hint)
        finally:
            self._pacer.leave(told)
        if isinstance(result, Reply) and verdict is None:
            return result
        assert verdict is not None
        if not verdict.billed:
            await receipt.give_back()
        so_far.setback = verdict
        so_far.count += 1
        if not verdict.again or (verdict.tries is not None and so_far.count >= verdict.tries):
            raise self._failure(verdict)
        if verdict.billed and paid:
            raise AnswerLost(_LOST.format(f"({verdict.why})"))
        return verdict

    async def _may_go_on(self, verdict: Verdict, attempt: int, began: float, nobody_s: float | None) -> bool:
        """Wait before the next attempt, or say that there is none."""
        now = asyncio.get_running_loop().time()
        bound = self._manners.deadline_s
        if verdict.why == _NOBODY and nobody_s is not None:
            bound = nobody_s
        jitter = random.uniform(0.0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(attempt, 16)))
        # what the teacher asked for is kept by the pacer, for all tasks alike
        if now + (verdict.wait_s or 0.0) + jitter > began + bound:
            return False
        if not self._pacer.open and not self._pacer.may_retry():
            return False
        await self._sleep(jitter)
        return True

    def _failure(self, verdict: Verdict) -> TeacherError:
        if issubclass(verdict.error, ImageRefused):
            return verdict.error(verdict.why)
        return verdict.error(f"{self.url} {verdict.why}")

    def _unavailable(self, setback: Verdict | None) -> Unavailable:
        if setback is not None and setback.why == _NOBODY:
            return Unavailable(f"no teacher answers at {self.url}: {self._manners.remedy}")
        why = "no answer came" if setback is None else setback.why.rstrip(".")
        if setback is not None and setback.wait_s:
            why += f", to be asked again in {setback.wait_s:.0f} s"
        return Unavailable(
            f"{self.url} gave no prediction within {self._manners.deadline_s:g} s, {why}: "
            "what is paid for is kept, go on later with the same command (train: --resume)"
        )


_LOST = "it was sent, and may have been billed, but no answer came {}: run again to ask again"


def _broken(broken: Broken) -> Verdict:
    if not broken.sent:
        return Verdict(_NOBODY, Unavailable, again=True, pace="lost")
    return Verdict(f"the connection broke ({broken.kind})", Unavailable, again=True, billed=True, pace="lost")
