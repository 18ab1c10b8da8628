"""Whose turn it is: fair queueing in pixels between the holders of keys.

Start-time fair queueing (Goyal, Vin, Cheng 1996, doi:10.1145/248156.248171) with equal weights: every owner
has a virtual clock of the pixels it was served; the owner with the earliest clock goes first; whoever was
idle starts at the clock of who is being served, so that idleness earns no credit and costs no delay.
"""

from collections.abc import Iterable


class Shares:
    """The virtual clocks. Not thread-safe: its user holds a lock."""

    def __init__(self) -> None:
        self._clocks: dict[str, float] = {}
        self._now = 0.0

    def first(self, owners: Iterable[str]) -> str | None:
        """The owner whose turn it is among `owners`, None without any; ties go to the first named."""
        return min(owners, key=self._clock, default=None)

    def charge(self, owner: str, pixels: int) -> None:
        """`owner` is served `pixels` now."""
        self._now = self._clock(owner)
        self._clocks[owner] = self._now + pixels

    def rest(self) -> None:
        """Nobody waits: the next to come start alike."""
        self._clocks.clear()

    def _clock(self, owner: str) -> float:
        return max(self._clocks.get(owner, 0.0), self._now)
