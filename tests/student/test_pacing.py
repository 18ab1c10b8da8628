"""The pacer, in simulated time: limits that nobody tells, outages, pauses, places, probes and retries.

Every time here is that of a loop whose clock jumps (virtual_time): nothing waits, nothing is measured.
"""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import virtual_time
from corte_student.endpoints.hints import RateHint
from corte_student.endpoints.pacing import Outcome, Pacer
from pictures import until
from simulated_teacher import Limiter, Simulated
from speed.limited_teacher import Bucket, Fixed

ANSWERED, LOST, OVERLOADED = Outcome("answered"), Outcome("lost"), Outcome("overloaded")
CANCELLED = Outcome("cancelled")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Jitter comes from `random`: the same in every run."""
    state = random.getstate()
    random.seed(7)
    yield
    random.setstate(state)


def limiter(kind: str, limit: int, offset_s: float = 0.0) -> Limiter:
    return Bucket(limit, limit / 10) if kind == "bucket" else Fixed(limit, offset_s)


CASES = [("bucket", 20, 0.0), ("bucket", 100, 0.0)] + [
    ("fixed", limit, offset) for limit in (20, 100) for offset in (0.0, 0.3, 0.55, 0.8)
]


def most_in_a_second(times: Sequence[float]) -> int:
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.parametrize(("kind", "limit", "offset"), CASES)
def test_a_hidden_limit_is_found_kept_and_hardly_ever_passed(kind: str, limit: int, offset: float) -> None:
    """From a cold start: 95 % of it in seconds 10 to 20 and on, below 2 % refused, no second above 1.2 of it.

    For a limit that counts by the clock's second, that second is meant: two of them may each hold what is
    allowed, and the span across both more, before any refusal tells.
    """
    teacher = Simulated(limiter(kind, limit, offset))
    virtual_time.run(teacher.asked(Pacer(64), 50.0))
    assert teacher.rate(10, 20) >= 0.95 * limit
    assert teacher.rate(10, 50) >= 0.95 * limit
    assert teacher.refused < 0.02 * len(teacher.arrived)
    if kind == "bucket":
        assert most_in_a_second(teacher.arrived) <= 1.2 * limit
    else:
        assert max(Counter(math.floor(at - offset) for at in teacher.arrived).values()) <= 1.2 * limit


@pytest.mark.parametrize(("kind", "limit", "offset"), CASES[:4])
def test_an_outage_forgets_nothing(kind: str, limit: int, offset: float) -> None:
    """After 30 s without a teacher 90 % of its limit are back within 5 s, and nothing learned is lost."""
    teacher = Simulated(limiter(kind, limit, offset), away=(30.0, 60.0))
    pacer = Pacer(64)
    seen: dict[float, tuple[float, int, bool]] = {}

    async def look(*times: float) -> None:
        for at in times:
            await asyncio.sleep(at - asyncio.get_running_loop().time())
            seen[at] = (pacer.rate, pacer.limit, pacer.open)

    async def both() -> None:
        await asyncio.gather(teacher.asked(pacer, 70.0), look(29.9, 45.0, 64.0))

    virtual_time.run(both())
    assert [seen[at][2] for at in (29.9, 45.0, 64.0)] == [False, True, False]
    assert seen[64.0][0] == pytest.approx(seen[29.9][0], rel=0.02)
    assert seen[64.0][1] >= seen[29.9][1]
    assert teacher.rate(64, 65) >= 0.9 * limit
    assert most_in_a_second([at for at in teacher.arrived if at > 60.0]) <= 1.2 * limit
    probes = [at for at in teacher.lost if at > 31.0]
    assert 0 < max(late - early for early, late in pairwise(probes)) <= 2.1


def test_a_limit_by_the_minute_without_headers_is_spread_over_the_minute() -> None:
    """600 a minute: once they are used up and a long wait is told, about ten a second."""

    class Minute:
        used = 0

        def allows(self, now: float) -> bool:
            self.used = self.used + 1 if now % 60 >= self.last else 1
            self.last = now % 60
            teacher.retry_after_s = 60 - now % 60
            return self.used <= 600

        last = 0.0

    teacher = Simulated(Minute())
    virtual_time.run(teacher.asked(Pacer(64), 600.0))
    assert teacher.rate(60, 600) >= 0.95 * 10
    assert teacher.refused < 0.02 * len(teacher.arrived)


def test_strict_spacing_is_found_too() -> None:
    """A teacher that keeps no burst at all is asked as fast as its own spacing allows."""
    teacher = Simulated(Bucket(20, 1), jitter_s=0.0)
    virtual_time.run(teacher.asked(Pacer(64), 60.0))
    assert teacher.rate(20, 60) >= 0.9 * 20
    assert teacher.refused < 0.02 * len(teacher.arrived)


@pytest.mark.parametrize("ramp", [True, False])
def test_where_places_are_the_limit_the_rate_holds_nothing_back(ramp: bool) -> None:
    """Four places of one second each give four answers a second."""
    teacher = Simulated(latency_s=1.0, jitter_s=0.0)
    virtual_time.run(teacher.asked(Pacer(4, ramp=ramp), 60.0))
    assert teacher.rate(10, 60) == pytest.approx(4.0, rel=0.01)


def test_a_teacher_that_answers_in_batches_gets_whole_batches() -> None:
    """Sixteen that are answered together are asked together again, once nothing speaks against it."""

    class Batching(Simulated):
        async def ask(self) -> tuple[Outcome, RateHint | None]:
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(1.0 - now % 1.0)
            self.answered.append(now)
            return ANSWERED, None

    teacher = Batching()
    virtual_time.run(teacher.asked(Pacer(16), 60.0))
    assert teacher.rate(30, 60) == pytest.approx(16.0, rel=0.05)


def test_a_trickle_of_requests_does_not_raise_the_rate() -> None:
    """Three a second for ten minutes prove nothing about more."""
    pacer = Pacer(64)

    async def trickle() -> None:
        for _ in range(600):
            await asyncio.gather(*(_once(pacer, ANSWERED, 0.01) for _ in range(3)))
            await asyncio.sleep(1.0)

    virtual_time.run(trickle())
    assert pacer.rate < 15


def test_requests_leave_evenly_spaced() -> None:
    """At a found limit the spaces between two requests are all alike, but around a pause."""
    teacher = Simulated(Bucket(20, 2), jitter_s=0.0)
    virtual_time.run(teacher.asked(Pacer(64), 30.0))
    late = [at for at in teacher.arrived if at > 10.0]
    spaces = [after - before for before, after in pairwise(late)]
    assert min(spaces) > 0.9 / 20
    assert max(spaces) < 1.1 / 19


def test_without_ramp_all_places_are_taken_at_once() -> None:
    """Our own service is not felt for."""
    teacher = Simulated(jitter_s=0.0)
    virtual_time.run(teacher.asked(Pacer(32, ramp=False), 0.2))
    assert teacher.arrived[:32] == [teacher.arrived[0]] * 32


async def _once(pacer: Pacer, outcome: Outcome, seconds: float = 0.0, until: float = 1e6) -> float:
    """One request with a known outcome; the time at which it left."""
    await pacer.enter(until)
    at = asyncio.get_running_loop().time()
    told = CANCELLED
    try:
        await asyncio.sleep(seconds)
        told = outcome
    finally:
        pacer.leave(told)
    return at


@pytest.mark.parametrize("kind", ["refused", "overloaded"])
def test_a_wait_holds_for_all_and_ends_without_a_herd(kind: str) -> None:
    """Nobody leaves during it; afterwards the places fill up over a round trip, not all at once."""
    pacer = Pacer(16, ramp=False)

    async def main() -> list[float]:
        await asyncio.gather(*(_once(pacer, ANSWERED, 0.5) for _ in range(16)))
        await _once(pacer, Outcome(kind, wait_s=7.0))  # type: ignore[arg-type]
        assert pacer.state == "paused"
        began = asyncio.get_running_loop().time()
        times = await asyncio.gather(*(_once(pacer, ANSWERED, 0.5) for _ in range(16)))
        return [at - began for at in times]

    times = sorted(virtual_time.run(main()))
    assert 7.0 <= times[0] <= 8.0
    assert len(set(times)) == 16
    assert times[10] - times[0] >= 0.1


def test_a_wait_that_is_known_to_be_too_long_is_told_at_once() -> None:
    """Who cannot start in time learns it immediately; who can, waits."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        pacer = Pacer(4)
        await _once(pacer, Outcome("refused", wait_s=100.0))
        began = loop.time()
        with pytest.raises(TimeoutError):
            await pacer.enter(began + 50.0)
        assert loop.time() == began
        assert await _once(pacer, ANSWERED, until=began + 200.0) >= began + 100.0

    virtual_time.run(main())


def test_who_finds_no_place_in_time_is_told_so() -> None:
    """A place that nobody gives back is waited for until the given time, not longer."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        pacer = Pacer(1, ramp=False)
        holder = loop.create_task(_once(pacer, ANSWERED, 60.0))
        await asyncio.sleep(1.0)
        with pytest.raises(TimeoutError):
            await pacer.enter(11.0)
        assert loop.time() == pytest.approx(11.0)
        assert pacer.in_flight == 1
        await holder

    virtual_time.run(main())


def test_refusals_that_name_no_wait_are_waited_out_longer_each_time() -> None:
    """And after the second in a row one request alone tries."""
    pacer = Pacer(8, ramp=False)
    refused = Outcome("refused")

    async def main() -> list[float]:
        times = [await _once(pacer, refused) for _ in range(6)]
        assert pacer.limit == 1
        await _once(pacer, ANSWERED)
        assert pacer.limit == 8
        return [late - early for early, late in pairwise(times)]

    spaces = virtual_time.run(main())
    assert all(0.5 * 2.0**n <= space <= 1.1 * 2.0**n + 1.0 for n, space in enumerate(spaces, 1))


def test_nothing_remaining_pauses_all_and_more_is_spread_until_the_reset() -> None:
    """RateLimit before guesses: 30 in 60 s are one every two seconds, none means wait."""

    async def main() -> list[float]:
        pacer = Pacer(8)
        await pacer.enter(1e6)
        pacer.hint(RateHint(30, 60.0))
        pacer.leave(ANSWERED)
        times = [await _once(pacer, ANSWERED) for _ in range(4)]
        await pacer.enter(1e6)
        pacer.hint(RateHint(0, 55.0))
        pacer.leave(ANSWERED)
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await pacer.enter(began + 50.0)
        assert await _once(pacer, ANSWERED) >= began + 55.0
        return [late - early for early, late in pairwise(times)]

    assert virtual_time.run(main()) == pytest.approx([2.0] * 3)


@pytest.mark.parametrize(("quota", "window"), [(600, 60.0), (20, 1.0), (200, 10.0)])
def test_headers_that_state_the_policy_spare_every_refusal(quota: int, window: float) -> None:
    """Nine tenths of what is allowed, and nothing refused, from the first second on."""

    class Stated:
        used, current = 0, -1.0

        def allows(self, now: float) -> bool:
            if now // window != self.current:
                self.current, self.used = now // window, 0
            self.used += 1
            return self.used <= quota

        def headers(self, now: float) -> RateHint:
            return RateHint(max(0, quota - self.used), math.ceil(window - now % window), quota, window)

    limits = Stated()
    teacher = Simulated(limits, headers=limits.headers)
    virtual_time.run(teacher.asked(Pacer(64), 240.0))
    assert teacher.refused == 0
    assert teacher.rate(60, 240) >= 0.9 * quota / window


def _many(pacer: Pacer, outcomes: Sequence[Outcome], at_once: int) -> Callable[[], Awaitable[None]]:
    async def main() -> None:
        gate = asyncio.Semaphore(at_once)

        async def one(outcome: Outcome) -> None:
            async with gate:
                await _once(pacer, outcome, 1.0)

        await asyncio.gather(*(one(outcome) for outcome in outcomes))

    return main


def test_places_fall_once_a_round_trip_and_rise_one_a_round() -> None:
    """x0.7 for all that were in flight together, +1 for a window of answers at full use; never below one."""
    pacer = Pacer(10, ramp=False)
    rounds: list[int] = []

    async def main() -> None:
        for outcomes in ([OVERLOADED] * 4 + [ANSWERED] * 6, [OVERLOADED] * 4 + [ANSWERED] * 3):
            await _many(pacer, outcomes, len(outcomes))()
            rounds.append(pacer.limit)
        for _ in range(12):
            await _many(pacer, [ANSWERED] * pacer.limit, 64)()
            rounds.append(pacer.limit)
        for _ in range(40):
            await _once(pacer, OVERLOADED, 1.0)
            await _once(pacer, ANSWERED, 1.0)
        rounds.append(pacer.limit)

    virtual_time.run(main())
    assert rounds[:2] == [7, 5]
    assert all(0 <= after - before <= 1 for before, after in pairwise(rounds[1:14]))
    assert rounds[8] >= 8
    assert max(rounds) == 10
    assert rounds[-1] == 1


def test_answers_to_a_few_do_not_raise_the_places() -> None:
    """Only full use proves that more would be of use."""
    pacer = Pacer(10, ramp=False)

    async def main() -> None:
        await _once(pacer, OVERLOADED, 1.0)
        for _ in range(50):
            await _many(pacer, [ANSWERED] * 3, 3)()

    virtual_time.run(main())
    assert pacer.limit == 7


@pytest.mark.parametrize("kind", ["lost", "overloaded"])
def test_five_failures_in_a_row_open_the_breaker_and_one_answer_closes_it(kind: str) -> None:
    """Four do not, nor five with an answer between; a refusal is a sign of life as well."""
    failed = Outcome(kind)  # type: ignore[arg-type]

    async def main() -> None:
        pacer = Pacer(8)
        for outcome in (failed, failed, failed, failed, ANSWERED, failed, failed, failed, failed):
            await _once(pacer, outcome)
            assert not pacer.open
        await _once(pacer, failed)
        assert pacer.open
        assert pacer.state == "away"
        await _once(pacer, Outcome("refused", wait_s=0.0))
        assert not pacer.open

    virtual_time.run(main())


def test_one_probe_at_a_time_while_the_teacher_is_away() -> None:
    """With at most 2 s between two; one that our own side cancels makes way for the next."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        pacer = Pacer(8)
        for _ in range(5):
            await _once(pacer, LOST)
        waiting = [loop.create_task(_once(pacer, LOST, 3.0)) for _ in range(10)]
        ended = loop.time()
        for _ in range(10):
            await until(lambda: pacer.in_flight)
            assert pacer.in_flight == 1
            assert loop.time() - ended <= 2.02
            await until(lambda: not pacer.in_flight)
            ended = loop.time()
        await asyncio.gather(*waiting)
        assert pacer.open
        slow = loop.create_task(_once(pacer, ANSWERED, 1000.0))
        await until(lambda: pacer.in_flight)
        slow.cancel()
        await _once(pacer, ANSWERED, until=loop.time() + 2.1)
        assert not pacer.open

    virtual_time.run(main())


def test_waiting_tasks_outlast_an_outage_as_long_as_they_may() -> None:
    """Each waits until its own time, and the patient ones are served when the teacher is back."""
    teacher = Simulated(away=(0.0, 20.0))
    pacer = Pacer(8)

    async def one(until: float) -> bool:
        while True:
            try:
                await pacer.enter(until)
            except TimeoutError:
                return False
            told, _ = await teacher.ask()
            pacer.leave(told)
            if told.kind == "answered":
                return True

    async def main() -> list[bool]:
        return await asyncio.gather(*(one(until) for until in [10.0] * 6 + [30.0] * 6))

    assert virtual_time.run(main()) == [False] * 6 + [True] * 6


def test_the_retry_budget_has_a_floor_of_ten_and_a_fifth_of_the_answers() -> None:
    """What is spent comes back with answers, and slowly with time, never beyond its bounds."""

    def spent(pacer: Pacer) -> int:
        return next(n for n in range(1000) if not pacer.may_retry())

    async def main() -> None:
        pacer = Pacer(64, ramp=False)
        assert spent(pacer) == 10
        for _ in range(100):
            await _once(pacer, ANSWERED)
        assert spent(pacer) in (19, 20)
        await asyncio.sleep(24.0)
        assert spent(pacer) in (4, 5)
        await asyncio.sleep(100_000.0)
        assert spent(pacer) == 10
        for _ in range(3000):
            await _once(pacer, ANSWERED)
        assert spent(pacer) in (109, 110)

    virtual_time.run(main())


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_is_cancelled_leaks_no_place(data: st.DataObject) -> None:
    """Tasks cancelled at any time, waiting or in flight, leave all places to the others."""
    times = data.draw(st.lists(st.floats(0.0, 3.0), min_size=1, max_size=20))
    kinds = data.draw(st.lists(st.sampled_from([ANSWERED, LOST, Outcome("refused", 0.5)]), min_size=1))
    pacer = Pacer(3)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number, at in enumerate(times):
            task = loop.create_task(_once(pacer, kinds[number % len(kinds)], 0.3))
            loop.call_at(at, task.cancel)
        await asyncio.sleep(3.1)
        assert pacer.in_flight == 0
        await _once(pacer, ANSWERED, until=loop.time() + 60.0)

    virtual_time.run(main())


def test_first_come_first_served() -> None:
    """Tasks leave in the order in which they came."""
    left: list[int] = []

    async def one(pacer: Pacer, number: int) -> None:
        await pacer.enter(1e6)
        left.append(number)
        await asyncio.sleep(0.1)
        pacer.leave(ANSWERED)

    async def main() -> None:
        pacer = Pacer(3)
        await asyncio.gather(*(one(pacer, number) for number in range(30)))

    virtual_time.run(main())
    assert left == list(range(30))


def test_a_place_is_taken_once_and_given_back_once() -> None:
    """Misuse is an error of the program, not a silent leak."""

    async def main() -> None:
        pacer = Pacer(3)
        with pytest.raises(RuntimeError, match="holds no place"):
            pacer.leave(ANSWERED)
        await pacer.enter(1e6)
        with pytest.raises(RuntimeError, match="holds a place already"):
            await pacer.enter(1e6)
        pacer.leave(ANSWERED)
        with pytest.raises(RuntimeError, match="holds no place"):
            pacer.leave(ANSWERED)
        assert pacer.in_flight == 0

    virtual_time.run(main())
    with pytest.raises(ValueError, match="at least one"):
        Pacer(0)


def test_any_clock_and_sleep_will_do() -> None:
    """Both can be given: then the running loop's clock is not looked at."""
    now = 1000.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        await asyncio.sleep(0)

    async def main() -> list[float]:
        pacer = Pacer(4, clock=lambda: now, sleep=sleep)
        times = []
        for _ in range(3):
            await pacer.enter(now + 10.0)
            times.append(now)
            pacer.leave(ANSWERED)
        return times

    times = asyncio.run(main())
    assert [round(at - times[0], 2) for at in times] == [0.0, 0.1, 0.2]
