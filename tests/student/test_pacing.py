"""The pacer against teachers that tell nobody their limit, in simulated time.

Every time here is that of a loop whose clock jumps (virtual_time): nothing waits, nothing is measured.
"""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest

import virtual_time
from corte_student.endpoints.hints import RateHint
from corte_student.endpoints.pacing import Outcome, Pacer
from simulated_teacher import ANSWERED, Limiter, Simulated, once
from speed.limited_teacher import Bucket, Fixed


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
    ("fixed", limit, offset) for limit in (20, 100) for offset in (0.0, 0.2, 0.3, 0.55, 0.8)
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

    class ByTheMinute:
        used, minute = 0, -1.0

        def allows(self, now: float) -> bool:
            if now // 60 != self.minute:
                self.minute, self.used = now // 60, 0
            self.used += 1
            teacher.retry_after_s = 60 - now % 60
            return self.used <= 600

    teacher = Simulated(ByTheMinute())
    virtual_time.run(teacher.asked(Pacer(64), 600.0))
    assert teacher.rate(60, 600) >= 0.95 * 10
    assert teacher.rate(120, 150) <= 1.2 * 10
    assert teacher.refused < 0.02 * len(teacher.arrived)


@pytest.mark.parametrize("burst", [1, 20, 100])
def test_whatever_a_bucket_holds_its_limit_is_found(burst: int) -> None:
    """None at all, one second's worth, five: what comes in the long run is what counts."""
    teacher = Simulated(Bucket(20, burst), jitter_s=0.0)
    virtual_time.run(teacher.asked(Pacer(64), 60.0))
    assert teacher.rate(20, 60) >= 0.9 * 20
    assert teacher.refused < 0.015 * len(teacher.arrived)


@pytest.mark.parametrize("slow", [Bucket(1, 1), Bucket(1, 5), Fixed(1, 0.3), Fixed(2, 0.3)])
def test_a_slow_limit_is_found_too(slow: Bucket | Fixed) -> None:
    """One or two a second, over a quarter of an hour: few refusals although each is one of few requests."""
    teacher = Simulated(slow)
    virtual_time.run(teacher.asked(Pacer(8), 900.0))
    assert teacher.refused < 0.02 * len(teacher.arrived)
    assert teacher.rate(60, 900) >= 0.95 * slow.limit


@pytest.mark.parametrize("ramp", [True, False])
def test_where_places_are_the_limit_the_rate_holds_nothing_back(ramp: bool) -> None:
    """Four places of one second each give four answers a second."""
    teacher = Simulated(latency_s=1.0, jitter_s=0.0)
    virtual_time.run(teacher.asked(Pacer(4, ramp=ramp), 60.0))
    assert teacher.rate(10, 60) == pytest.approx(4.0, rel=0.01)


def test_a_teacher_that_answers_in_batches_gets_whole_batches() -> None:
    """It computes for 1 s once all that may ask have asked: the rate rises until that takes no time."""
    pacer = Pacer(16)

    class Batching(Simulated):
        async def ask(self) -> tuple[Outcome, RateHint | None]:
            loop = asyncio.get_running_loop()
            mine: asyncio.Future[None] = loop.create_future()
            waiting.append(mine)
            if len(waiting) >= pacer.limit:
                await asyncio.sleep(1.0)
                for one in waiting:
                    one.set_result(None)
                waiting.clear()
            await mine
            self.answered.append(loop.time())
            return ANSWERED, None

    waiting: list[asyncio.Future[None]] = []
    teacher = Batching()
    virtual_time.run(teacher.asked(pacer, 120.0))
    assert teacher.rate(60, 120) >= 0.9 * 16


def test_a_trickle_of_requests_does_not_raise_the_rate() -> None:
    """Three a second for ten minutes prove nothing about more."""
    pacer = Pacer(64)

    async def trickle() -> None:
        for _ in range(600):
            await asyncio.gather(*(once(pacer, ANSWERED, 0.01) for _ in range(3)))
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
