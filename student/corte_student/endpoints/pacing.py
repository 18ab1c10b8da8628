"""When the next request to a teacher may leave: shared by all tasks that ask it. No I/O.

Strategy: tasks pass one turnstile in the order they came. The first of them waits until a place is free (how
many at once: concurrency.py), its turn has come (how many a second: rate.py), no pause holds (Retry-After
and RateLimit hold for all tasks alike) and the teacher is not away (breaker.py); then it goes, and the next
one looks.

Rule 1: requests leave evenly spaced; of a delay at most one space, and 20 ms, is made up for. Rule 2: after a
pause or an outage the places fill up over one round trip, with jitter. Rule 3: `enter` and `leave` are called
by the same task, so that each outcome belongs to a request whose time and rate are known.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from corte_student.endpoints.breaker import Breaker, RetryBudget
from corte_student.endpoints.concurrency import Concurrency
from corte_student.endpoints.hints import RateHint
from corte_student.endpoints.rate import LONG_WAIT_S, Phase, Rate

State = Phase | Literal["paused", "away"]

_CATCH_UP_S = 0.02
_SOON_S = 1e-6
_LONGEST_PAUSE_S = 30.0
_JITTER = 0.1
_LONGEST_JITTER_S = 1.0
_LONGEST_FILL_S = 1.0
_LONGEST_NAP_S = 1.0
_SMOOTH = 0.2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request.

        answered    any real answer, also one that finds fault with one image
        refused     429: too many requests
        overloaded  503, 529 or 408
        lost        no connection, or it broke, or time ran out; 502 and 504
        cancelled   our own side gave up: says nothing about the teacher

    `wait_s`: seconds that the teacher asks to wait. `latency_s`: from sending to the answer, where that is
    not the time between `enter` and `leave`.
    """

    kind: Literal["answered", "refused", "overloaded", "lost", "cancelled"]
    wait_s: float | None = None
    latency_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """A request in flight: when it left and at which rate, whether after waiting for its turn, as a probe."""

    at: float
    rate: float
    waited: bool
    probe: bool


class Pacer:
    """Says when a request may leave, and learns from what becomes of it."""

    def __init__(
        self,
        most: int,
        *,
        ramp: bool = True,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """At most `most` requests in flight. `ramp`: begin slowly, for a teacher whose limit nobody knows.

        `clock` is that of the running loop unless another is given; no loop need run yet.
        """
        if most < 1:
            raise ValueError("at least one request must be able to be in flight")
        self._clock = clock
        self._sleep = sleep
        self._places: dict[asyncio.Task[object], _Place] = {}
        self._concurrency = Concurrency(most, ramp=ramp)
        self._rate = Rate(ramp=ramp)
        self._breaker = Breaker()
        self._budget = RetryBudget()
        self._turnstile = asyncio.Lock()
        self._changed = asyncio.Event()
        self._not_before = float("-inf")
        self._last = float("-inf")
        self._full_at = float("-inf")
        self._spread_s = 0.0
        self._to_fill = 0
        self._probing = False
        self._refused_in_a_row = 0
        self._latency_s = 0.0

    @property
    def rate(self) -> float:
        """Requests a second that may leave; infinite where nothing is known to bound them."""
        return self._rate.per_s

    @property
    def in_flight(self) -> int:
        """Requests that entered and did not leave yet."""
        return len(self._places)

    @property
    def limit(self) -> int:
        """Requests that may be in flight; one, while it is unknown whether a pause has been long enough."""
        return 1 if self._refused_in_a_row > 1 else self._concurrency.limit

    @property
    def open(self) -> bool:
        """Whether the breaker is open: the teacher failed so often in a row that only a probe is sent."""
        return self._breaker.open

    @property
    def state(self) -> State:
        """In one word what decides when the next request leaves."""
        if self._breaker.open:
            return "away"
        return "paused" if self._now() < self._not_before else self._rate.phase

    async def enter(self, until: float) -> None:
        """Wait for a place, which `leave` gives back. Raises TimeoutError if there is none by `until`.

        `until` is a time of the loop. Where it is known beforehand that nothing can leave by then, the error
        comes at once.
        """
        self._check(until, self._not_before)
        async with asyncio.timeout(until - self._now()), self._turnstile:
            waited = await self._turn(until)
            # no await from here on: a task that is cancelled has no place, and one with a place goes on
            self._take(waited=waited)

    def leave(self, outcome: Outcome) -> None:
        """Give the place of this task back and say what became of its request: once for each `enter`."""
        place = self._places.pop(_this_task(), None)
        if place is None:
            raise RuntimeError("this task holds no place: leave is called once, by the task that entered")
        now = self._now()
        self._probing = self._probing and not place.probe
        self._changed.set()
        if outcome.kind == "answered":
            self._alive()
            self._answered(place, now - place.at if outcome.latency_s is None else outcome.latency_s)
        elif outcome.kind == "refused":
            self._alive()
            self._refused(place, now, self._wait_s(now, outcome.wait_s), outcome.wait_s or 0.0)
        elif outcome.kind != "cancelled":
            self._failed(place, now, lost=outcome.kind == "lost")
            if outcome.wait_s is not None:
                self._pause(now, outcome.wait_s)

    def hint(self, hint: RateHint) -> None:
        """What an answer's headers state; told before `leave`, by the task that got the answer."""
        now = self._now()
        self._rate.hint(hint, self.in_flight - 1)
        if hint.remaining > 0:
            return
        place = self._places.get(_this_task())
        if place is not None and hint.quota is None and hint.reset_s <= LONG_WAIT_S:
            # what is used up by the second is learned as from a refusal, less the one that was one too many
            self._refused(place, now, hint.reset_s, hint.reset_s)
        else:
            self._pause(now, hint.reset_s)

    def may_retry(self) -> bool:
        """Spend one retry, or say that too many were spent lately."""
        return self._budget.spend(self._now())

    def _now(self) -> float:
        return asyncio.get_running_loop().time() if self._clock is None else self._clock()

    def _check(self, until: float, due: float) -> None:
        if max(due, self._now()) > until:
            raise TimeoutError

    async def _turn(self, until: float) -> bool:
        """Wait, as the first in the queue, until a request may leave. Whether it had to wait for its turn."""
        waited = False
        while True:
            if self.in_flight >= self.limit or self._probing:
                self._changed.clear()
                await self._changed.wait()
                continue
            now, slot = self._now(), self._slot()
            due = max(slot, self._not_before, self._breaker.next_probe if self.open else slot)
            if due <= now + _SOON_S:
                return waited
            self._check(until, due)
            waited = waited or due == slot
            # in naps: what is learned meanwhile may bring the turn forward
            await self._sleep(min(due - now, _LONGEST_NAP_S))

    def _slot(self) -> float:
        """The time of the next turn."""
        return self._last + max(1.0 / self.rate, self._spread_s)

    def _take(self, *, waited: bool) -> None:
        task = _this_task()
        if task in self._places:
            raise RuntimeError("this task holds a place already: leave comes before the next enter")
        now, slot, probe = self._now(), self._slot(), self.open
        if self.in_flight + 1 >= self.limit:
            self._full_at = now
        rate = self._rate.sent(now, waited=waited, bound=self._full_at == now and self._concurrency.settled)
        self._places[task] = _Place(now, rate, waited, probe)
        self._probing = probe
        # a little late is made up for, so that the rate holds; what nobody asked for in time is not
        self._last = slot if now - slot < min(1.0 / rate, _CATCH_UP_S) else now
        self._spread_s = 0.0
        if self._to_fill > 0:
            self._to_fill -= 1
            round_trip = min(self._latency_s, _LONGEST_FILL_S)
            self._spread_s = random.uniform(0.0, 2.0) * round_trip / self.limit

    def _alive(self) -> None:
        if self._breaker.alive():
            self._rate.interrupted()
            self._to_fill = self.limit

    def _answered(self, place: _Place, latency_s: float) -> None:
        self._latency_s += (latency_s - self._latency_s) * (_SMOOTH if self._latency_s else 1.0)
        self._refused_in_a_row = 0
        self._budget.answered()
        full = place.at <= self._full_at
        bound = full and self._concurrency.settled
        self._concurrency.answered(place.at, full=full)
        self._rate.answered(place.at, place.rate, waited=place.waited, bound=bound)

    def _refused(self, place: _Place, now: float, wait_s: float, said_s: float) -> None:
        self._pause(now, wait_s)
        self._not_before = self._rate.refused(place.at, place.rate, self._not_before, said_s)

    def _failed(self, place: _Place, now: float, *, lost: bool) -> None:
        if not self.open:
            (self._concurrency.lost if lost else self._concurrency.overloaded)(place.at, now)
        if self._breaker.failed(now, probe=place.probe):
            self._concurrency.outage()

    def _wait_s(self, now: float, said_s: float | None) -> float:
        """How long to wait after a refusal: as it says, and longer if nothing was answered since the last."""
        if now < self._not_before:
            return said_s or 0.0
        self._refused_in_a_row += 1
        if said_s is not None and self._refused_in_a_row == 1:
            return said_s
        longest = min(2.0 ** min(self._refused_in_a_row, 16), _LONGEST_PAUSE_S)
        return max(said_s or 0.0, random.uniform(longest / 2, longest))

    def _pause(self, now: float, wait_s: float) -> None:
        """Nobody leaves for so long. Others were told to wait as well: jitter, drawn once a pause."""
        if now >= self._not_before:
            wait_s += random.uniform(0.0, min(_JITTER * wait_s, _LONGEST_JITTER_S))
        self._not_before = max(self._not_before, now + wait_s)
        self._to_fill = self.limit


def _this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a pacer is used by tasks")
    return task
