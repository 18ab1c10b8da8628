"""The pacer's rules, in simulated time: pauses, places, probes, retries, and who goes first.

Every time here is that of a loop whose clock jumps (virtual_time): nothing waits, nothing is measured.
"""

import asyncio
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import virtual_time
from corte_student.endpoints.hints import RateHint
from corte_student.endpoints.pacing import Outcome, Pacer
from pictures import until
from simulated_teacher import ANSWERED, Simulated, once
from speed.limited_teacher import Bucket

LOST, OVERLOADED = Outcome("lost"), Outcome("overloaded")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Jitter comes from `random`: the same in every run."""
    state = random.getstate()
    random.seed(7)
    yield
    random.setstate(state)


@pytest.mark.parametrize("kind", ["refused", "overloaded"])
def test_a_wait_holds_for_all_and_ends_without_a_herd(kind: str) -> None:
    """Nobody leaves during it; afterwards the places fill up over a round trip, not all at once."""
    pacer = Pacer(16, ramp=False)

    async def main() -> list[float]:
        await asyncio.gather(*(once(pacer, ANSWERED, 0.5) for _ in range(16)))
        await once(pacer, Outcome(kind, wait_s=7.0))  # type: ignore[arg-type]
        assert pacer.state == "paused"
        began = asyncio.get_running_loop().time()
        times = await asyncio.gather(*(once(pacer, ANSWERED, 0.5) for _ in range(16)))
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
        await once(pacer, Outcome("refused", wait_s=100.0))
        began = loop.time()
        patient = loop.create_task(once(pacer, ANSWERED, until=began + 200.0))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await pacer.enter(began + 50.0)
        assert loop.time() == began
        assert await patient >= began + 100.0

    virtual_time.run(main())


def test_who_finds_no_place_in_time_is_told_so() -> None:
    """A place that nobody gives back is waited for until the given time, not longer."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        pacer = Pacer(1, ramp=False)
        holder = loop.create_task(once(pacer, ANSWERED, 60.0))
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
        times = [await once(pacer, refused) for _ in range(6)]
        assert pacer.limit == 1
        await once(pacer, ANSWERED)
        assert pacer.limit == 8
        return [late - early for early, late in pairwise(times)]

    spaces = virtual_time.run(main())
    assert all(0.5 * 2.0**n <= space <= 1.1 * 2.0**n + 1.0 for n, space in enumerate(spaces, 1))


class Closed:
    """Refuses everything."""

    def allows(self, now: float) -> bool:
        return False


@pytest.mark.parametrize(("ramp", "most_refused"), [(True, 12), (False, 76)])
def test_who_lets_nothing_through_tells_nothing_about_the_rate(ramp: bool, most_refused: int) -> None:
    """Refused from the first request on, for minutes: hardly asked, and then as at every beginning."""
    teacher, pacer = Simulated(Closed()), Pacer(64, ramp=ramp)
    virtual_time.run(teacher.asked(pacer, 180.0))
    assert 0 < teacher.refused <= most_refused
    assert pacer.rate == 10.0


def test_a_refusal_after_idleness_does_not_count_the_idle_time() -> None:
    """Others used the limit up meanwhile: what was learned still holds."""
    teacher, pacer = Simulated(Bucket(20, 2)), Pacer(64)

    async def main() -> tuple[float, float]:
        await teacher.asked(pacer, 40.0)
        learned = pacer.rate
        await asyncio.sleep(600.0)
        await once(pacer, Outcome("refused", wait_s=3.0))
        await once(pacer, ANSWERED)
        return learned, pacer.rate

    learned, after = virtual_time.run(main())
    assert after == pytest.approx(learned, rel=0.05)


def test_nothing_remaining_pauses_all_and_more_is_spread_until_the_reset() -> None:
    """RateLimit before guesses: 30 in 60 s are one every two seconds, none means wait."""

    async def main() -> list[float]:
        pacer = Pacer(8)
        await pacer.enter(1e6)
        pacer.hint(RateHint(30, 60.0))
        pacer.leave(ANSWERED)
        times = [await once(pacer, ANSWERED) for _ in range(4)]
        await pacer.enter(1e6)
        pacer.hint(RateHint(0, 55.0))
        pacer.leave(ANSWERED)
        began = asyncio.get_running_loop().time()
        assert pacer.state == "paused"
        with pytest.raises(TimeoutError):
            await pacer.enter(began + 50.0)
        assert await once(pacer, ANSWERED) >= began + 55.0
        return [late - early for early, late in pairwise(times)]

    assert virtual_time.run(main()) == pytest.approx([2.0] * 3)


async def _round(pacer: Pacer, outcomes: Sequence[Outcome]) -> None:
    await asyncio.gather(*(once(pacer, outcome, 1.0) for outcome in outcomes))


def test_places_fall_once_a_round_trip_and_rise_one_a_round() -> None:
    """x0.7 for all that were in flight together, +1 for a window of answers at full use; never below one."""
    pacer = Pacer(10, ramp=False)
    rounds: list[int] = []

    async def main() -> None:
        for _ in range(2):
            await _round(pacer, [ANSWERED] * (pacer.limit - 4) + [OVERLOADED] * 4)
            rounds.append(pacer.limit)
        for _ in range(12):
            await _round(pacer, [ANSWERED] * pacer.limit)
            rounds.append(pacer.limit)
        for _ in range(40):
            await once(pacer, ANSWERED, 1.0)
            await once(pacer, OVERLOADED, 1.0)
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
        await once(pacer, OVERLOADED, 1.0)
        for _ in range(50):
            await _round(pacer, [ANSWERED] * 3)

    virtual_time.run(main())
    assert pacer.limit == 7


@pytest.mark.parametrize("kind", ["lost", "overloaded"])
def test_five_failures_in_a_row_open_the_breaker_and_one_answer_closes_it(kind: str) -> None:
    """Four do not, nor five with an answer between; a refusal is a sign of life as well."""
    failed = Outcome(kind)  # type: ignore[arg-type]

    async def main() -> None:
        pacer = Pacer(8)
        for outcome in (failed, failed, failed, failed, ANSWERED, failed, failed, failed, failed):
            await once(pacer, outcome)
            assert not pacer.open
        await once(pacer, failed)
        assert pacer.open
        assert pacer.state == "away"
        await once(pacer, Outcome("refused", wait_s=0.0))
        assert not pacer.open

    virtual_time.run(main())


def test_one_probe_at_a_time_while_the_teacher_is_away() -> None:
    """With at most 2 s between two; one that our own side cancels makes way for the next."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        pacer = Pacer(8)
        for _ in range(5):
            await once(pacer, LOST)
        waiting = [loop.create_task(once(pacer, LOST, 3.0)) for _ in range(10)]
        ended = loop.time()
        for _ in range(10):
            await until(lambda: pacer.in_flight)
            assert pacer.in_flight == 1
            assert loop.time() - ended <= 2.02
            await until(lambda: not pacer.in_flight)
            ended = loop.time()
        await asyncio.gather(*waiting)
        assert pacer.open
        slow = loop.create_task(once(pacer, ANSWERED, 1000.0))
        await until(lambda: pacer.in_flight)
        slow.cancel()
        await once(pacer, ANSWERED, until=loop.time() + 2.1)
        assert not pacer.open

    virtual_time.run(main())


def test_a_refusal_from_before_an_outage_says_nothing_after_it() -> None:
    """The teacher may be another one: only the wait still holds."""

    async def main() -> float:
        pacer = Pacer(8, ramp=False)
        late = asyncio.create_task(once(pacer, Outcome("refused", wait_s=1.0), 9.0))
        await asyncio.gather(*(once(pacer, LOST, 0.1) for _ in range(5)))
        assert pacer.open
        await once(pacer, ANSWERED)
        assert not pacer.open
        await late
        assert pacer.state == "paused"
        await once(pacer, ANSWERED)
        return pacer.rate

    assert virtual_time.run(main()) == float("inf")


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
            await once(pacer, ANSWERED)
        assert spent(pacer) in (19, 20)
        await asyncio.sleep(24.0)
        assert spent(pacer) in (4, 5)
        await asyncio.sleep(100_000.0)
        assert spent(pacer) == 10
        for _ in range(3000):
            await once(pacer, ANSWERED)
        assert spent(pacer) in (109, 110)

    virtual_time.run(main())


@settings(max_examples=40)
@given(st.data())
def test_whatever_is_cancelled_leaks_no_place(data: st.DataObject) -> None:
    """Tasks cancelled at any time, waiting or in flight, leave all places to the others."""
    times = data.draw(st.lists(st.floats(0.0, 3.0), min_size=1, max_size=20))
    kinds = data.draw(st.lists(st.sampled_from([ANSWERED, LOST, Outcome("refused", 0.5)]), min_size=1))
    pacer = Pacer(3)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number, at in enumerate(times):
            task = loop.create_task(once(pacer, kinds[number % len(kinds)], 0.3))
            loop.call_at(at, task.cancel)
        await asyncio.sleep(3.1)
        assert pacer.in_flight == 0
        await once(pacer, ANSWERED, until=loop.time() + 60.0)

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


def test_a_place_is_taken_once_and_given_backonce() -> None:
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
