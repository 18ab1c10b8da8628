"""The meter of a run: each request that costs something is in the ledger before it is sent.

What was never answered stays there as spent (a kill, a lost connection): better one request too many in the
books than one too many on the bill.
"""

import asyncio
from dataclasses import dataclass, field

from corte_student.ledger import Ledger
from corte_student.money import Cap, Price
from corte_student.threads import finished


@dataclass(frozen=True, slots=True)
class Purse:
    """What a request costs, and what may be spent on this teacher in all."""

    price: Price | None = None
    cap: Cap = field(default_factory=Cap)

    @property
    def paid(self) -> bool:
        """Whether requests cost money."""
        return self.price is not None

    @property
    def free(self) -> int:
        """So many requests in all cost nothing."""
        return 0 if self.price is None else self.price.free


class LedgerMeter:
    """Reserves the requests of one question. `spent` micros stand in the books for it."""

    def __init__(self, ledger: Ledger, teacher: str, purse: Purse, pixels: int) -> None:
        self._ledger, self._teacher, self._purse, self._pixels = ledger, teacher, purse, pixels
        self.reservation: int | None = None  # the last one that is not given back
        self.spent = self._charged = 0

    async def reserve(self) -> "_Reserved":
        """One request more. Raises BudgetExhausted before it is sent."""
        self.reservation = None
        price = self._purse.price
        cost = 0 if price is None else price.cost(self._pixels)
        currency = "" if price is None else price.currency
        try:
            await finished(self._book, cost, currency)
        except asyncio.CancelledError:
            if self.reservation is not None:  # never sent
                await asyncio.shield(self._give_back(self.reservation, self._charged))
            raise
        assert self.reservation is not None
        return _Reserved(self, self.reservation, self._charged)

    def _book(self, cost: int, currency: str) -> None:
        # noted here, in the thread, so that a cancellation meanwhile cannot make us forget it
        self.reservation = self._ledger.reserve(
            self._teacher, cost, currency, self._purse.cap, free=self._purse.free
        )
        self._charged = cost if not self._purse.free else self._ledger.charged(self.reservation)
        self.spent += self._charged

    async def _give_back(self, reservation: int, cost: int) -> None:
        await asyncio.to_thread(self._ledger.settle, reservation, billed=False)
        self.spent -= cost
        self.reservation = None


@dataclass(frozen=True, slots=True)
class _Reserved:
    meter: LedgerMeter
    reservation: int
    cost: int

    async def give_back(self) -> None:
        """Take it off the books."""
        await self.meter._give_back(self.reservation, self.cost)
