"""How many requests may be in flight: additive increase, multiplicative decrease.

Strategy: as TCP does it (RFC 5681 section 3.1). While every place is taken, each answer adds a place until
the first setback, afterwards a round of answers adds one; a setback takes three tenths away, but once a round
trip: of those that were in flight together only the first counts. What an outage took away is given back.
"""

_FIRST = 2.0
_CUT = 0.7


class Concurrency:
    """The places. Times are seconds of one clock."""

    def __init__(self, most: int, *, ramp: bool) -> None:
        self._most = float(most)
        self._limit = min(_FIRST, self._most) if ramp else self._most
        self._doubling = ramp
        self._cut_at = float("-inf")
        self._before_loss: float | None = None
        self._lost_at = float("-inf")

    @property
    def limit(self) -> int:
        """Requests that may be in flight, at least one."""
        return int(self._limit)

    @property
    def settled(self) -> bool:
        """Whether the limit is no longer felt for: a setback was met, or the most that is allowed."""
        return not self._doubling or self._limit >= self._most

    def answered(self, sent_at: float, *, full: bool) -> None:
        """An answer came to what left at `sent_at`; since then, every place was taken once (`full`)."""
        if sent_at > self._lost_at:
            self._before_loss = None
        if full:
            self._limit = min(self._most, self._limit + (1.0 if self._doubling else 1.0 / self._limit))

    def overloaded(self, sent_at: float, now: float) -> None:
        """The teacher says that it has too much to do."""
        self._before_loss = None
        self._cut(sent_at, now)

    def lost(self, sent_at: float, now: float) -> None:
        """No answer came: overload, or an outage, which is known only later."""
        if self._before_loss is None:
            self._before_loss, self._lost_at = self._limit, now
        self._cut(sent_at, now)

    def outage(self) -> None:
        """It was an outage: nothing was learned from what was lost in it."""
        if self._before_loss is not None:
            self._limit, self._before_loss = self._before_loss, None

    def _cut(self, sent_at: float, now: float) -> None:
        if sent_at < self._cut_at:
            return
        self._limit = max(1.0, self._limit * _CUT)
        self._doubling = False
        self._cut_at = now
