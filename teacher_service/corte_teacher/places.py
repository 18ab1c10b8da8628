"""How much may be inside the service at once: requests and bytes, bounded from a request's first byte on.

Rule 1: beyond `places` requests or `max_bytes` of bodies the service is at its limit: 503.
Rule 2: a key with a limit of its own is refused beyond it: 429.
Rule 3: no key holds more places than are left free (the dynamic threshold of Choudhury and Hahne 1998,
doi:10.1109/90.664262, with alpha = 1): a flooding key fills half of the places, and there is room for others.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from corte_teacher.errors import BusyKey, Overloaded


class Places:
    """Counts of what is inside. Used by the event loop only."""

    def __init__(self, places: int, max_bytes: int) -> None:
        self._places = places
        self._max_bytes = max_bytes
        self._held: Counter[str] = Counter()
        self._bytes = 0
        self.taken = 0

    @contextmanager
    def take(self, owner: str | None, concurrency: int | None, wait_s: float) -> Iterator["Place"]:
        """Hold a place for a request of `owner`; None is everybody without a key, whom rule 3 spares.

        `wait_s` is told to whom is refused. Raises Overloaded or BusyKey at once.
        """
        name = owner or ""
        held = self._held[name]
        if concurrency is not None and held >= concurrency:
            raise BusyKey(f"{name} holds {held} places", wait_s / max(held, 1))
        free = self._places - self.taken
        if free <= 0 or (owner is not None and held >= free):
            raise Overloaded(f"{self.taken} of {self._places} places are taken, {held} by this key", wait_s)
        self.taken += 1
        self._held[name] += 1
        place = Place(self)
        try:
            yield place
        finally:
            place.drop()
            self.taken -= 1
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]

    def queue_of(self, owner: str) -> int:
        """An upper bound on the requests that are answered before a next one of `owner`.

        Fair queueing serves every other owner at most once for each of this owner's own.
        """
        return min(self.taken, (self._held[owner] + 1) * len(self._held.keys() | {owner}) - 1)

    def add(self, count: int) -> None:
        """Count bytes of a body that arrived. Raises Overloaded where they are too many in all."""
        if self._bytes + count > self._max_bytes:
            raise Overloaded(f"{self._bytes} bytes of bodies are held")
        self._bytes += count

    def remove(self, count: int) -> None:
        """Bytes that are no longer held."""
        self._bytes -= count


class Place:
    """One request's place, and the bytes of its body."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._bytes = 0

    def hold(self, count: int) -> None:
        """`count` more bytes of the body are held. Raises Overloaded."""
        self._places.add(count)
        self._bytes += count

    def drop(self) -> None:
        """The body is held no more."""
        self._places.remove(self._bytes)
        self._bytes = 0
