"""How many requests a second: felt for, found, held, and now and then put to the test.

    growing     nobody knows the limit: each answer to a request that had to wait for its turn raises the
                rate by 0.41 a second, which is x1.5 in every second
    measuring   the first refusal, by a teacher that may count by the clock's second (admissions.py): when all
                has been silent for so long that a new second has begun, ask too fast until it refuses again;
                what it let through is its limit
    seeking     the first refusal, of too few requests to count by: from what was let through in the last
                second slowly up to the next refusal
    known       the limit was read off the log: from just below it concave to a plateau, still below it, then
                convex beyond it, until it is refused again (CUBIC, RFC 9438 section 4.2)

Rule 1: only a rate in use is raised (RFC 7661): by a request that waited for its turn, in a second in which
as many left as the rate allows, or as many as may were in flight. Rule 2: what the teacher states goes before
what is guessed. Rule 3: refusals count once a pause, however many were in flight; where the first requests
after a pause are refused as well, it was one pause. Rule 4: after a wait of seconds the teacher counts by
minutes or hours: what it let through, over that time and the wait, is the rate.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from corte_student.endpoints.admissions import Admissions
from corte_student.endpoints.hints import RateHint

Phase = Literal["growing", "measuring", "seeking", "known"]

LONG_WAIT_S = 2.5
"""Beyond this a wait is no second rounded up: the teacher counts by more than seconds."""
_START = 10.0
_GROWTH = 0.41
"""The exponent: rates are a second's answers, so that e^0.41 = 1.5 a second."""
_SILENCE_S = 1.33
"""A second that was not used up before is used up only in its last 0.3 s: now the next one has begun."""
_JITTER_S = 0.1
_HASTE = 1.5
"""So much faster than was let through, a second is used up before it ends, even if 0.3 s of it are over."""
_FEW = 50
"""Of fewer, one more or less is over two hundredths: too coarse to end the search."""
_HANDFUL = 5
"""Of fewer, nothing follows but that the rate was too high."""
_SEEK_GROWTH = 0.03
_START_BELOW, _LEVEL_BELOW = 0.975, 0.985
_PLATEAU_S, _GUESSED_PLATEAU_S = 30.0, 15.0
"""From the start to the plateau, and as long again to the limit: sooner where one refusal is all evidence."""
_PLATEAU_REQUESTS = 60.0
"""And at least so many requests: the refusal at the end must be few in a hundred."""
_BURST_S = 0.1
"""A bucket is taken to hold what refills it in a tenth of a second."""
_EARLY_S = 5.0
"""A limit found in a bucket that is refused so soon again was too high by more than its burst."""
_MOST_DOWN = 0.7
_IDLE_S = 2.0
_LIVELY_S = 1.0
"""Who asks again only later than this after a pause was not stopped by that pause."""
_LEAST = 1.0 / 3600.0


@dataclass(slots=True)
class _Refusal:
    """The first since the last pause: when it left, at which rate; until when nothing may leave.

    `closed_s`: for how long from then on the teacher lets nobody through, as far as it said or showed.
    """

    at: float
    rate: float
    until: float
    closed_s: float


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Requests without a pause between them, from the first: how many were let through, in which phase.

    `since` is infinite where the first is still to come.
    """

    since: float
    through: int
    phase: Phase


class Rate:
    """Requests a second. Times are seconds of one clock."""

    def __init__(self, *, ramp: bool) -> None:
        self._guess = _START if ramp else math.inf
        self._hinted: float | None = None
        self._log = Admissions()
        self._stretch = _Stretch(math.inf, 0, "growing")
        self._refusal: _Refusal | None = None
        self._ended: tuple[_Stretch, _Refusal] | None = None
        """The stretch before this one, and what ended it."""
        self._last = -math.inf
        self._limit = math.inf
        self._last_second = 0.0
        self._age_s = 0.0
        self._plateau_s = _PLATEAU_S
        self._counted = False
        """Whether `_limit` is the count of one of the teacher's seconds."""

    @property
    def phase(self) -> Phase:
        """How much is known."""
        return self._stretch.phase

    @property
    def per_s(self) -> float:
        """Requests a second that may leave; infinite where nothing is known to bound them."""
        if self._hinted is None:
            return self._guess
        return self._hinted if self.phase == "growing" else min(self._hinted, self._guess)

    def sent(self, now: float, *, waited: bool, bound: bool) -> float:
        """A request leaves; it `waited` for its turn; no more can be in flight (`bound`).

        Returns the rate at which it leaves.
        """
        if self._refusal is not None:
            self._begin(now, self._judged(self._refusal))
        elif self._stretch.since == math.inf or now > self._last + max(_IDLE_S, 2.0 / self.per_s):
            self._begin(now, self.phase)
        self._last = now
        self._log.sent(now)
        self._stretch = replace(self._stretch, through=self._stretch.through + 1)
        if waited and self.phase != "growing" and self._in_use(now, bound=bound):
            self._age_s += 1.0 / self._guess
            self._guess = self._curve()
        return self.per_s

    def answered(self, sent_at: float, rate: float, *, waited: bool, bound: bool) -> None:
        """A request that left at `sent_at` at this rate was answered."""
        if self.phase != "growing" or self._refusal is not None:
            return
        if waited and self._in_use(sent_at, bound=bound):
            self._guess *= math.exp(_GROWTH / rate)

    def refused(self, sent_at: float, rate: float, until: float, said_s: float) -> float:
        """A request that left at `sent_at` at this rate was refused; nothing may leave before `until`.

        The teacher said to wait `said_s`. Returns until when nothing should leave.
        """
        self._log.refused(sent_at)
        if sent_at < self._stretch.since:
            return until
        self._stretch = replace(self._stretch, through=self._stretch.through - 1)
        if self._refusal is None:
            self._refusal = _Refusal(sent_at, rate, until, said_s)
        else:
            self._refusal.at = min(self._refusal.at, sent_at)
        if self.phase == "growing":
            # whole seconds after the least: it must not matter which of those in flight is told last
            begun = self._refusal.at + _SILENCE_S
            until = max(until, begun + max(0, math.ceil(until - begun - _JITTER_S)))
        self._refusal.until = max(self._refusal.until, until)
        return until

    def hint(self, hint: RateHint, in_flight: int) -> None:
        """The teacher states how many more it takes, and for how long."""
        if hint.reset_s > LONG_WAIT_S:
            # those in flight may not have been counted yet
            self._hinted = max(hint.remaining - in_flight, 1) / hint.reset_s
        elif hint.quota is not None and hint.window_s is not None:
            # so close to the reset whole seconds are too coarse to divide by; and where the last request of
            # a second is sent, the next second is waited for
            self._hinted = _LEVEL_BELOW * max(hint.quota - 1, 0.5) / hint.window_s

    def interrupted(self) -> None:
        """The teacher was away: the rate stays, the log of what it let through is of another time."""
        self._log.forget()
        self._refusal = self._ended = None
        self._stretch = replace(self._stretch, since=math.inf)
        self._age_s = min(self._age_s, self._plateau_s)

    def _begin(self, now: float, phase: Phase) -> None:
        self._stretch = _Stretch(now, 0, phase)
        self._refusal = None

    def _in_use(self, at: float, *, bound: bool) -> bool:
        lately = max(self._stretch.since, at - max(1.0, 3.0 / self._guess))
        if lately > at:
            return False
        return bound or self._log.asked(lately, at) >= 0.6 * self._guess * (at - lately)

    def _judged(self, refusal: _Refusal) -> Phase:
        """The phase after a refusal; sets the rate."""
        if self._ended is not None and self._stretch.through <= 0:
            stretch, ended = self._ended
            if self._stretch.since < ended.until + _LIVELY_S:
                closed_s = refusal.at - ended.at + refusal.closed_s
                self._stretch, refusal = stretch, replace(ended, until=refusal.until, closed_s=closed_s)
        self._ended = (self._stretch, refusal)
        if self._stretch.through <= 0:
            # nothing was let through: that says when to ask, and not how fast
            self._guess = self._guess if math.isfinite(self._guess) else _START
            return self._stretch.phase
        flowed_s = max(refusal.at - self._stretch.since, _BURST_S)
        if self._stretch.phase == "growing":
            phase = self._first_guess(refusal, flowed_s)
        elif self._stretch.phase == "measuring":
            phase = self._measured(flowed_s)
        else:
            phase = self._found_again(refusal, flowed_s)
        if refusal.closed_s > LONG_WAIT_S:
            overall = self._stretch.through / (refusal.at + refusal.closed_s - self._stretch.since)
            phase = self._found(min(self._limit, overall))
        self._limit = max(self._limit, _LEAST)
        self._age_s = 0.0
        self._guess = self._curve(phase)
        return phase

    def _first_guess(self, refusal: _Refusal, flowed_s: float) -> Phase:
        span = min(flowed_s, 1.0)
        last = max(self._log.let_through(refusal.at - span, refusal.at), 1)
        self._last_second = last / span
        limits = self._log.by_the_second()
        if limits and not _agree(limits):
            self._limit = _HASTE * self._last_second
            return "measuring"
        if last < _FEW:
            self._limit = self._last_second
            return "seeking"
        phase = self._found(min(self._by_what_is_seen(refusal, limits, _BURST_S), refusal.rate))
        self._plateau_s = _GUESSED_PLATEAU_S
        return phase

    def _measured(self, flowed_s: float) -> Phase:
        if self._stretch.through > 0.6 * self._last_second and flowed_s < 1.0:
            self._counted = True
            return self._found(float(self._stretch.through))
        self._limit = self._last_second
        return "seeking"

    def _found_again(self, refusal: _Refusal, flowed_s: float) -> Phase:
        limits = self._log.by_the_second()
        early = self.phase == "known" and flowed_s < _EARLY_S and not self._counted
        # a bucket that is empty so soon holds more than was taken for granted: what the pause refilled
        burst_s = refusal.until - refusal.at if early else _BURST_S
        found = self._by_what_is_seen(refusal, limits, burst_s)
        phase = self._found(max(min(found, refusal.rate), _MOST_DOWN * refusal.rate))
        if early and self._stretch.through < _HANDFUL:
            self._plateau_s = _GUESSED_PLATEAU_S
        return phase

    def _by_what_is_seen(self, refusal: _Refusal, limits: list[int], burst_s: float) -> float:
        self._counted = bool(limits) and _agree(limits)
        if self._counted:
            return float(max(limits))
        return self._log.by_a_bucket(self._stretch.since, refusal.at, burst_s)

    def _found(self, limit: float) -> Phase:
        self._limit, self._plateau_s = limit, max(_PLATEAU_S, _PLATEAU_REQUESTS / max(limit, _LEAST))
        return "known"

    def _curve(self, phase: Phase | None = None) -> float:
        phase = phase or self.phase
        if phase == "seeking":
            return self._limit * math.exp(_SEEK_GROWTH * self._age_s)
        if phase == "measuring":
            return self._limit
        x = (self._age_s - self._plateau_s) / self._plateau_s
        return self._limit * (_LEVEL_BELOW + (_LEVEL_BELOW - _START_BELOW) * x**3)


def _agree(limits: list[int]) -> bool:
    return max(limits) - min(limits) <= max(1.0, 0.08 * min(limits))


def slow_start_s(requests: int, most_per_s: float) -> float:
    """Seconds that the growing phase costs `requests` requests, against `most_per_s` from the first on.

    Each answered request raises the rate by `_GROWTH`, so the n-th leaves at _START + _GROWTH n.
    """
    if most_per_s <= _START:
        return 0.0
    growing = min(requests, (most_per_s - _START) / _GROWTH)
    return math.log1p(_GROWTH * growing / _START) / _GROWTH - growing / most_per_s
