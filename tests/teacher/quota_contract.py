"""What every keeper of quotas must do. A test class inherits these and says where to keep accounts.

As a program it is a process that spends: see `main`.
"""

import hashlib
import itertools
import math
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from corte_protocol import CorteError, InvalidValue
from corte_teacher.errors import Overloaded, QuotaExhausted, TooLarge
from corte_teacher.quotas import Quota, Quotas, Spending, Standing, open_quotas

DAY = 86_400
NOON = 1_700_000_000 // DAY * DAY + DAY / 2


class Place(NamedTuple):
    """Where accounts are kept: the arguments of `open_quotas`."""

    where: str
    namespace: str = "tests"

    def open(self) -> Quotas:
        """One more user of the same accounts."""
        return open_quotas(self.where, self.namespace)


class Drained(NamedTuple):
    """What one spender got before not even one pixel was left, and how often the accounts were busy."""

    pixels: int
    overloads: int


def content(name: object) -> bytes:
    """A digest like those of real requests."""
    return hashlib.sha256(repr(name).encode()).digest()


def spend(
    quotas: Quotas, owner: str, quota: Quota, pixels: int, what: bytes, now: float
) -> tuple[Standing, ...]:
    """What is left after one request alone. Raises why it is refused."""
    (outcome,) = quotas.spend_all([Spending(owner, quota, pixels, what)], now)
    if isinstance(outcome, CorteError):
        raise outcome
    return outcome


def drain(quotas: Quotas, quota: Quota, seed: int, tell: Callable[[int], object] | None = None) -> Drained:
    """Spend as `o` at noon, sizes at random, until one pixel is refused."""
    dice = random.Random(seed)
    most, total, overloads = 97, 0, 0
    for n in itertools.count():
        pixels = dice.randint(1, most)
        try:
            spend(quotas, "o", quota, pixels, content((seed, n)), NOON)
        except QuotaExhausted:
            if pixels == 1:
                return Drained(total, overloads)
            most = pixels - 1
        except Overloaded:
            overloads += 1
        else:
            total += pixels
            if tell is not None:
                tell(pixels)
    raise AssertionError("counting ended")


class Model:
    """The rules in slow exact form: all that was ever acknowledged, looked through at each question."""

    def __init__(self) -> None:
        self.spent: list[tuple[str, str, float, int]] = []  # owner, window, time, pixels
        self.bills: dict[tuple[str, bytes], list[float]] = {}  # when it was billed, then each use

    def total(self, owner: str, window: str, now: float) -> int:
        """Pixels of the window that holds `now`."""
        length = {"minute": 60, "day": DAY}[window]
        start = math.floor(now / length) * length
        return sum(
            pixels
            for who, name, at, pixels in self.spent
            if who == owner and name == window and start <= at < start + length
        )

    def standing(self, owner: str, quota: Quota, now: float) -> tuple[Standing, ...]:
        """What is left."""
        found = []
        for name, limit, length in (("minute", quota.per_minute, 60), ("day", quota.per_day, DAY)):
            if limit is not None:
                left = max(0, limit - self.total(owner, name, now))
                ends = math.ceil(math.floor(now / length) * length + length - now)
                found.append(Standing("minute" if length == 60 else "day", limit, left, ends))
        return tuple(found)

    def spend(
        self, owner: str, quota: Quota, pixels: int, what: bytes, now: float
    ) -> tuple[Standing, ...] | float | None:
        """What is left, or seconds to wait where it is refused, or None where it never could be."""
        before = self.standing(owner, quota, now)
        if any(pixels > s.quota for s in before):
            return None
        uses = self.bills.get((owner, what), [])
        free = quota.per_day is not None and 1 <= len(uses) <= 3 and uses[0] > now - 600
        counting = [s for s in before if not (free and s.window == "day")]
        waits = [s.reset_s for s in counting if pixels > s.remaining]
        if waits:
            return float(max(waits))
        self.spent += [(owner, s.window, now, pixels) for s in counting]
        if quota.per_day is not None:
            self.bills[owner, what] = [*uses, now] if free else [now]
        return self.standing(owner, quota, now)


QUOTAS = st.builds(
    Quota, st.sampled_from([None, 30, 100, 10**15 - 1]), st.sampled_from([None, 40, 150, 10**15 - 1])
)


def told(refusal: CorteError) -> float | None:
    """A refusal as the model has it."""
    assert isinstance(refusal, QuotaExhausted | TooLarge)
    return refusal.retry_after_s if isinstance(refusal, QuotaExhausted) else None


class Spenders(RuleBasedStateMachine):
    """Two users of the same accounts, at random times, against the model."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.users = [place.open(), place.open()]
        self.model = Model()
        self.now = self.latest = 0.0

    @initialize(now=st.floats(1e9, 2e9))
    def begin(self, now: float) -> None:
        """Some time in this century."""
        self.now = self.latest = now

    @rule(
        user=st.integers(0, 1),
        owner=st.sampled_from(["a", "b", "a:60", "ü" * 64]),
        quota=QUOTAS,
        pixels=st.sampled_from([1, 10, 20, 30, 31, 40, 41, 10**15 - 1]),
        what=st.sampled_from("xyz"),
    )
    def spend(self, user: int, owner: str, quota: Quota, pixels: int, what: str) -> None:
        """Each request ends as in the model."""
        expected = self.model.spend(owner, quota, pixels, content(what), self.now)
        got: tuple[Standing, ...] | float | None
        try:
            got = spend(self.users[user], owner, quota, pixels, content(what), self.now)
        except (QuotaExhausted, TooLarge) as exc:
            got = told(exc)
        assert got == expected

    @rule(
        user=st.integers(0, 1),
        requests=st.lists(
            st.tuples(st.sampled_from("ab"), QUOTAS, st.sampled_from([10, 20, 41]), st.sampled_from("xy")),
            max_size=9,
        ),
    )
    def spend_all(self, user: int, requests: list[tuple[str, Quota, int, str]]) -> None:
        """Requests that are accounted together end as one after the other."""
        spendings = [Spending(owner, quota, pixels, content(what)) for owner, quota, pixels, what in requests]
        expected = [self.model.spend(*spending, self.now) for spending in spendings]
        got = self.users[user].spend_all(spendings, self.now)
        assert [told(outcome) if isinstance(outcome, CorteError) else outcome for outcome in got] == expected

    @rule(user=st.integers(0, 1), owner=st.sampled_from("ab"))
    def look(self, user: int, owner: str) -> None:
        """What is left is what the model says."""
        quota = Quota(30, 150)
        assert self.users[user].standing(owner, quota, self.now) == self.model.standing(
            owner, quota, self.now
        )

    @rule(seconds=st.sampled_from([0.001, 1.0, 20.5, 59.9, 199.9, 600.0, 3600.0, 86_400.0]))
    def wait(self, seconds: float) -> None:
        """Time goes on."""
        self.now += seconds
        self.latest = max(self.latest, self.now)

    @rule(seconds=st.floats(0, 60))
    def set_back(self, seconds: float) -> None:
        """A replica's clock is up to a minute late."""
        self.now = max(self.now - seconds, self.latest - 60)

    @rule(user=st.integers(0, 1))
    def restart(self, user: int) -> None:
        """One of the users ends and comes back."""
        self.users[user].close()
        self.users[user] = self.place.open()

    def teardown(self) -> None:
        """Close both."""
        for user in self.users:
            user.close()


class QuotasContract:
    """Inherit as `TestSomething`, with a fixture `new_place`."""

    def test_every_request_ends_as_in_the_exact_model(self, new_place: Callable[[], Place]) -> None:
        """Any requests at any times by two users of one place are answered as the rules say."""

        class Here(Spenders):
            def __init__(self) -> None:
                super().__init__(new_place())

        run_state_machine_as_test(Here, settings=settings(max_examples=60, stateful_step_count=40))

    def test_eight_threads_spend_the_quota_to_the_pixel(self, new_place: Callable[[], Place]) -> None:
        """Threads of two users together get exactly the quota, in both windows."""
        place, quota = new_place(), Quota(60_000, 60_000)
        users = [place.open(), place.open()]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: drain(users[n % 2], quota, n), range(8)))
        assert_spent(users[0], quota, found)
        for user in users:
            user.close()

    def test_two_processes_spend_the_quota_to_the_pixel(self, new_place: Callable[[], Place]) -> None:
        """Processes that share the place together get exactly the quota."""
        place, quota = new_place(), Quota(100_000, 100_000)
        workers = [spender(place, quota, seed) for seed in (1, 2)]
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        found = []
        for worker in workers:
            out, _ = worker.communicate(timeout=120)
            assert worker.returncode == 0
            found.append(Drained(*map(int, out.splitlines()[-1].split())))
        quotas = place.open()
        assert_spent(quotas, quota, found)
        quotas.close()

    def test_a_killed_process_loses_nothing_that_was_acknowledged(
        self, new_place: Callable[[], Place]
    ) -> None:
        """After kill -9 all that was acknowledged counts, and at most one request more."""
        place, quota = new_place(), Quota(None, 10**12)
        worker = spender(place, quota, 3)
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
        seen = [int(worker.stdout.readline()) for _ in range(300)]
        worker.kill()
        seen += [int(line) for line in worker.stdout if line.endswith("\n")]
        worker.wait()
        worker.stdin.close()
        worker.stdout.close()
        quotas = place.open()
        (left,) = quotas.standing("o", quota, NOON)
        assert 0 <= left.quota - left.remaining - sum(seen) <= 97
        quotas.close()

    def test_a_retry_is_billed_once_and_three_times_free(self, new_place: Callable[[], Place]) -> None:
        """The day counts the first, not the next three, then the fifth; the minute counts all of them."""
        quotas, quota = new_place().open(), Quota(100, 100)
        left = [tuple(s.remaining for s in spend(quotas, "o", quota, 10, b"x", NOON)) for _ in range(9)]
        assert left == [
            (90, 90), (80, 90), (70, 90), (60, 90),
            (50, 80), (40, 80), (30, 80), (20, 80),
            (10, 70),
        ]  # fmt: skip
        quotas.close()

    def test_a_lost_answer_can_be_asked_again_on_a_spent_day(self, new_place: Callable[[], Place]) -> None:
        """A free repeat passes where the day has nothing left, and a new content does not."""
        quotas, quota = new_place().open(), Quota(None, 10)
        spend(quotas, "o", quota, 10, b"x", NOON + 0.00004)
        (left,) = spend(quotas, "o", quota, 10, b"x", NOON + 600.00003)
        assert left.remaining == 0
        with pytest.raises(QuotaExhausted):
            spend(quotas, "o", quota, 1, b"y", NOON)
        with pytest.raises(QuotaExhausted):
            spend(quotas, "o", quota, 10, b"x", NOON + 600.00005)
        quotas.close()

    def test_a_refusal_says_when_the_last_refusing_window_ends(self, new_place: Callable[[], Place]) -> None:
        """The minute's end where it alone refuses, the day's end where both do; nothing is spent."""
        quotas, quota = new_place().open(), Quota(10, 15)
        spend(quotas, "o", quota, 10, b"x", NOON + 0.5)
        with pytest.raises(QuotaExhausted) as minute:
            spend(quotas, "o", quota, 5, b"y", NOON + 59.5)
        assert minute.value.retry_after_s == 1
        with pytest.raises(QuotaExhausted) as both:
            spend(quotas, "o", quota, 6, b"y", NOON + 59.5)
        assert both.value.retry_after_s == DAY / 2 - 59
        assert [s.remaining for s in quotas.standing("o", quota, NOON + 59.5)] == [0, 5]
        assert [s.remaining for s in spend(quotas, "o", quota, 5, b"y", NOON + 60)] == [5, 0]
        quotas.close()

    def test_a_replica_whose_clock_is_a_minute_late_changes_nothing(
        self, new_place: Callable[[], Place]
    ) -> None:
        """What it asks about a window that has ended for the others still counts in that window."""
        quotas, quota = new_place().open(), Quota(10, 100)
        spend(quotas, "o", quota, 10, b"x", NOON + 59)
        spend(quotas, "other", quota, 1, b"y", NOON + 119)
        with pytest.raises(QuotaExhausted):
            spend(quotas, "o", quota, 1, b"z", NOON + 59)
        spend(quotas, "other", quota, 1, b"z", NOON + 718)
        assert [s.remaining for s in spend(quotas, "o", quota, 10, b"x", NOON + 658)] == [0, 90]
        quotas.close()

    def test_what_never_fits_is_too_large(self, new_place: Callable[[], Place]) -> None:
        """More than a whole window is no matter of waiting, and less than a pixel is no request."""
        quotas = new_place().open()
        for quota in (Quota(10, None), Quota(None, 10), Quota(10, 100), Quota(100, 10)):
            with pytest.raises(TooLarge):
                spend(quotas, "o", quota, 11, b"x", NOON)
            with pytest.raises(InvalidValue):
                spend(quotas, "o", quota, 0, b"x", NOON)
            assert all(s.remaining == s.quota for s in quotas.standing("o", quota, NOON))
        quotas.close()


def assert_spent(quotas: Quotas, quota: Quota, found: list[Drained]) -> None:
    """Never a pixel more than the quota; not one less, unless the machine was too slow for somebody."""
    total = sum(one.pixels for one in found)
    assert total == quota.per_day or (any(one.overloads for one in found) and total < (quota.per_day or 0))
    assert [s.remaining for s in quotas.standing("o", quota, NOON)] == [0, 0]


def spender(place: Place, quota: Quota, seed: int) -> subprocess.Popen[str]:
    """A process that has opened the accounts and waits for a line."""
    args = [*place, quota.per_minute or 0, quota.per_day, seed]
    worker = subprocess.Popen(
        [sys.executable, str(Path(__file__)), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    return worker


def main(where: str, namespace: str, per_minute: str, per_day: str, seed: str) -> None:
    """Open, say so, wait for a line, drain; a line for each acknowledged request, at last what was got."""
    quotas = open_quotas(where, namespace)
    print("ready", flush=True)
    sys.stdin.readline()
    quota = Quota(int(per_minute) or None, int(per_day))
    print(*drain(quotas, quota, int(seed), lambda pixels: print(pixels, flush=True)))
    quotas.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
