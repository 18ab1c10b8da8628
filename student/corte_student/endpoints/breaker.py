"""When a teacher is held to be away, and how many retries it gets.

Breaker       opens after five failures in a row; then one probe at a time, with full jitter up to 2 s
              between two; the first answer closes it
RetryBudget   retries at most a fifth of the requests that were answered lately, and a floor of ten
"""

import random

_IN_A_ROW = 5
_FIRST_BACK_OFF_S = 0.25
_LONGEST_BACK_OFF_S = 2.0
_FLOOR = 10.0
_SHARE = 0.2
_MOST = 110.0
"""The budget remembers this much: the floor and a fifth of the last 500 answers."""
_REFILL_S = 6.0
"""Up to the floor, one retry comes back in so many seconds."""


class Breaker:
    """Counts failures in a row. Times are seconds of one clock."""

    def __init__(self) -> None:
        self.open = False
        self.next_probe = 0.0
        self._failures = 0
        self._back_off_s = _FIRST_BACK_OFF_S

    def failed(self, now: float, *, probe: bool) -> bool:
        """A request was lost, or the teacher was overloaded. Whether that has just opened the breaker."""
        if self.open:
            if probe:
                self._back_off_s = min(2 * self._back_off_s, _LONGEST_BACK_OFF_S)
                self.next_probe = now + random.uniform(0.0, self._back_off_s)
            return False
        self._failures += 1
        if self._failures < _IN_A_ROW:
            return False
        self.open = True
        self._back_off_s = _FIRST_BACK_OFF_S
        self.next_probe = now + random.uniform(0.0, self._back_off_s)
        return True

    def alive(self) -> bool:
        """The teacher said something. Whether that has just closed the breaker."""
        was_open, self.open, self._failures = self.open, False, 0
        return was_open


class RetryBudget:
    """Retries that may still be spent. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._units = _FLOOR
        self._at = 0.0

    def answered(self) -> None:
        """Five answers pay for one retry."""
        self._units = min(self._units + _SHARE, _MOST)

    def spend(self, now: float) -> bool:
        """Take one retry, or say that there is none."""
        if self._units < _FLOOR:
            self._units = min(self._units + (now - self._at) / _REFILL_S, _FLOOR)
        self._at = now
        if self._units < 1.0:
            return False
        self._units -= 1.0
        return True
