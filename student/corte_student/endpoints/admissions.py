"""What a teacher let through and what it refused, by the second: which limit explains that?

Strategy: two kinds of limiters are common, and both are read off the log. One counts by the clock's second:
for each of 50 places where its seconds might begin, the requests it let through in a second with a refusal
ARE its limit, and it fits only if all such seconds agree and no other second held more. The other is a
bucket that refills steadily: what it let through, over the time that took and the time that fills its bucket.
This is this project's choice; no header or standard says which of them a teacher uses.
"""

import math
from bisect import bisect_left, insort

_KEPT_S = 12.0
_FEW = 256
"""So many are kept however old they are."""
_PLACES = 50
_JUST_AFTER_S = 0.001
_OUT_OF_ORDER_S = 0.01
"""Two requests that left closer together may have arrived in the other order."""


class Admissions:
    """Times of requests, in seconds of one clock: all that were sent, and those of them that were refused."""

    def __init__(self) -> None:
        self._sent: list[float] = []
        self._refused: list[float] = []

    def sent(self, at: float) -> None:
        """A request leaves. Times never decrease."""
        self._sent.append(at)
        if len(self._sent) > _FEW and self._sent[len(self._sent) // 2] < at - _KEPT_S:
            del self._sent[: bisect_left(self._sent, at - _KEPT_S)]
            del self._refused[: bisect_left(self._refused, at - _KEPT_S)]

    def refused(self, at: float) -> None:
        """The request that left at `at` was refused."""
        if self._sent and at >= self._sent[0]:
            insort(self._refused, at)

    def forget(self) -> None:
        """Begin anew: the teacher may be another one now."""
        self._sent.clear()
        self._refused.clear()

    def asked(self, begin: float, end: float) -> int:
        """Requests sent in [begin, end)."""
        return bisect_left(self._sent, end) - bisect_left(self._sent, begin)

    def let_through(self, begin: float, end: float) -> int:
        """Of those sent in [begin, end) the ones that were not refused, or not yet."""
        refused = bisect_left(self._refused, end) - bisect_left(self._refused, begin)
        return self.asked(begin, end) - refused

    def by_a_bucket(self, begin: float, end: float, burst_s: float) -> float:
        """The limit a second, if a bucket was full at `begin` and empty at `end`.

        It holds what refills it in `burst_s`, and was full until requests came faster than that: from there
        to `end` this is largest. Half a request, because on average so much was in it when it refused one.
        """
        spans = [span for tenths in range(3, 21) if (span := tenths / 10) < end - begin]
        spans.append(end - begin)
        return max((self.let_through(end - span, end) + 0.5) / (span + burst_s) for span in spans)

    def by_the_second(self) -> list[int]:
        """The limits a second, one for each place where the teacher's seconds might begin, that explain all.

        Empty where none does: it does not count by the second.
        """
        if not self._refused:
            return []
        places = [place / _PLACES for place in range(_PLACES)]
        # a second that begins between a request refused and the next one may lie between two of those places
        places += [at % 1.0 + _JUST_AFTER_S for at in self._refused]
        return [limit for place in places if (limit := self._explains(place)) is not None]

    def _explains(self, offset: float) -> int | None:
        limits: list[int] = []
        most = 0
        begin = math.floor(max(self._sent[0], self._refused[-1] - _KEPT_S) - offset) + offset
        while begin <= self._refused[-1]:
            end = begin + 1.0
            through = self.let_through(begin, end)
            index = bisect_left(self._refused, begin)
            if index < len(self._refused) and self._refused[index] < end:
                if self.let_through(self._refused[index] + _OUT_OF_ORDER_S, end) > 0:
                    return None  # let through again within the second that was used up
                limits.append(through)
            else:
                most = max(most, through)
            begin = end
        least = min(limits)
        # a request on the border may have been counted on its other side
        slack = 1 + least // 50
        return least if least > 0 and max(*limits, most) <= least + slack else None
