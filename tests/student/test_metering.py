"""The meter of a question: what the books say of it, cent by cent."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from corte_student.errors import BudgetExhausted
from corte_student.ledger import Ledger
from corte_student.metering import LedgerMeter, Purse
from corte_student.money import Cap, Price


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(tmp_path / "ledger.sqlite")
    yield opened
    opened.close()


async def test_what_is_given_back_is_in_no_book(ledger: Ledger) -> None:
    """A refused try costs nothing, the next stands with its price, and only the last can be committed."""
    meter = LedgerMeter(ledger, "t", Purse(Price.of("1.5", "usd")), 100)
    first = await meter.reserve()
    assert meter.spent == 1500
    await first.give_back()
    assert (meter.spent, meter.reservation) == (0, None)
    await meter.reserve()
    await meter.reserve()
    assert meter.spent == 3000 and meter.reservation is not None
    assert ledger.spending("t").money() == "0.003 usd"
    assert ledger.spending("t").requests == 2


async def test_free_requests_cost_nothing_and_are_counted(ledger: Ledger) -> None:
    """The first ones of a free quota are in the books at no cost; the next is paid."""
    purse = Purse(Price.of("1.5", "usd", free=2))
    spent = []
    for _ in range(3):
        meter = LedgerMeter(ledger, "t", purse, 100)
        await meter.reserve()
        spent.append(meter.spent)
    assert spent == [0, 0, 1500]
    assert ledger.spending("t").requests == 3


async def test_a_price_by_size_counts_pixels(ledger: Ledger) -> None:
    """Megapixels are charged for the image that is sent, rounded up to a micro."""
    price = Price.of(0, "usd", per_megapixel="2")
    meter = LedgerMeter(ledger, "t", Purse(price), 1_500_001)
    await meter.reserve()
    assert meter.spent == price.cost(1_500_001) == 3001


async def test_the_cap_stops_before_the_request(ledger: Ledger) -> None:
    """What would pass it is not in the books afterwards."""
    purse = Purse(Price.of("1000", "usd"), Cap(2_000_000, "usd"))
    for _ in range(2):
        await LedgerMeter(ledger, "t", purse, 1).reserve()
    late = LedgerMeter(ledger, "t", purse, 1)
    with pytest.raises(BudgetExhausted, match="--budget"):
        await late.reserve()
    assert late.spent == 0 and late.reservation is None
    assert ledger.spending("t").requests == 2


async def test_a_cancelled_reservation_that_was_never_sent_is_given_back(ledger: Ledger) -> None:
    """Cancelled while the books are written: they end as if nothing had been asked."""
    for _ in range(20):
        meter = LedgerMeter(ledger, "t", Purse(), 1)
        task = asyncio.create_task(meter.reserve())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert meter.spent == 0
    assert ledger.spending("t").requests == 0
