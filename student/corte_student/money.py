"""Money in whole millionths of a currency's unit ("micros"): what a request costs, what may be spent at most.

Rule 1: amounts are integers; a text or number becomes one exactly, by `decimal`, or is refused. Rule 2: a
cost is rounded up, so that what is counted is never below the bill. Rule 3: currencies are never converted.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Context, Decimal, Inexact, InvalidOperation, localcontext
from typing import Final, Self

from corte_student.errors import SettingsError

MICROS: Final = 10**6
"""Micros of one unit."""
Amount = str | int | float | Decimal
_MOST: Final = 10**9  # units; sums of many such amounts still fit SQLite's 64-bit integers
_PER_1K_MEGAPIXELS: Final = 10**9  # pixels
_SYMBOLS: Final = {"$": "usd", "€": "eur", "£": "gbp"}
_CURRENCY = re.compile(r"[a-z]{3}")
_NUMBER = re.compile(r"\d+(\.\d+)?|\.\d+", re.ASCII)
_BUDGET = re.compile(r"(?P<before>[$€£]?)\s*(?P<number>[\d.]+)\s*(?P<after>[A-Za-z]{3}|[$€£]|)", re.ASCII)
_KEYS: Final = ("currency", "per_1k", "per_megapixel_1k", "free")


@dataclass(frozen=True, slots=True)
class Price:
    """What one teacher charges: micros for 1000 requests, micros for 1000 megapixels, or both.

    The first `free` requests that a ledger ever sends to that teacher cost nothing.
    Raises SettingsError where it is no price.
    """

    currency: str
    micros_per_1k: int
    micros_per_1k_megapixels: int = 0
    free: int = 0

    def __post_init__(self) -> None:
        if not _CURRENCY.fullmatch(self.currency):
            raise SettingsError(f"a currency is three letters such as usd, not {self.currency!r}")
        if min(self.micros_per_1k, self.micros_per_1k_megapixels, self.free) < 0:
            raise SettingsError("a price and the number of free requests are not below zero")
        if not (self.micros_per_1k or self.micros_per_1k_megapixels):
            raise SettingsError("a price of nothing is no price: leave it out, or say what is charged")

    @classmethod
    def of(cls, per_1k: Amount, currency: str, *, per_megapixel: Amount = 0, free: int = 0) -> Self:
        """From units of `currency`: `per_1k` for 1000 requests, `per_megapixel` for 1000 megapixels."""
        return cls(
            currency.strip().lower(), _micros(per_1k, "per_1k"), _micros(per_megapixel, "per_megapixel"), free
        )

    @property
    def micros_per_request(self) -> int:
        """The part that does not depend on the image's size, rounded up."""
        return self.cost(0)

    def cost(self, pixels: int) -> int:
        """Micros that one request with an image of `pixels` (height x width) costs, rounded up."""
        exact = self.micros_per_1k * (_PER_1K_MEGAPIXELS // 1000) + pixels * self.micros_per_1k_megapixels
        return -(-exact // _PER_1K_MEGAPIXELS)


@dataclass(frozen=True, slots=True)
class Cap:
    """The most that may ever be spent on one teacher; None is no limit. 0 allows nothing that costs."""

    max_micros: int | None = None
    currency: str | None = None
    max_requests: int | None = None

    def __post_init__(self) -> None:
        if (self.max_micros is None) != (self.currency is None):
            raise SettingsError("a budget is an amount and a currency: say both, such as --budget 20usd")
        if self.currency is not None and not _CURRENCY.fullmatch(self.currency):
            raise SettingsError(f"a currency is three letters such as usd, not {self.currency!r}")
        if (self.max_micros or 0) < 0 or (self.max_requests or 0) < 0:
            raise SettingsError("--budget and --max-requests are not below zero")


def parse_budget(text: str) -> Cap:
    """A cap on money: "20usd", "20 USD", "0.5eur", "$20". Raises SettingsError."""
    micros, currency = _money(text, "a budget")
    return Cap(micros, currency)


def parse_price(text: str) -> Price:
    """A price of 1000 requests, written as a budget is: "1.50usd", "$1.50". Raises SettingsError."""
    micros, currency = _money(text, "a price")
    return Price(currency, micros)


def cap_from(budget: str | None, max_requests: int | None, price: Price | None) -> Cap:
    """The cap that --budget and --max-requests state, checked against the price. Raises SettingsError."""
    if budget is None:
        return Cap(max_requests=max_requests)
    cap = replace(parse_budget(budget), max_requests=max_requests)
    if price is None:
        raise SettingsError(
            "a budget in money needs a price: add --price-per-1k, or limit the number with --max-requests"
        )
    if price.currency != cap.currency:
        raise SettingsError(
            f"the budget is in {cap.currency} and the price in {price.currency}: state both in one currency"
        )
    return cap


def price_from(table: Mapping[str, object]) -> Price:
    """The table `[price]` of a TOML file: currency, per_1k, per_megapixel_1k, free. Raises SettingsError."""
    if unknown := [key for key in table if key not in _KEYS]:
        raise SettingsError(f"[price] knows no {', '.join(unknown)}: use {', '.join(_KEYS)}")
    currency, free = table.get("currency"), table.get("free", 0)
    if not isinstance(currency, str):
        raise SettingsError('[price] needs a currency: add a line such as currency = "usd"')
    if "per_1k" not in table and "per_megapixel_1k" not in table:
        raise SettingsError("[price] needs what is charged: add per_1k or per_megapixel_1k")
    if isinstance(free, bool) or not isinstance(free, int):
        raise SettingsError(f"[price] free is a whole number of requests, not {free!r}")
    per_1k, per_megapixel = table.get("per_1k", 0), table.get("per_megapixel_1k", 0)
    return Price(
        currency.strip().lower(), _micros(per_1k, "per_1k"), _micros(per_megapixel, "per_megapixel_1k"), free
    )


def show(micros: int, currency: str) -> str:
    """For a person, exact: "12.34 usd", "0.0015 usd"."""
    whole, part = divmod(micros, MICROS)
    return f"{whole}.{f'{part:06d}'.rstrip('0').ljust(2, '0')} {currency}".rstrip()


def _money(text: str, what: str) -> tuple[int, str]:
    match = _BUDGET.fullmatch(text.strip())
    if match is None or bool(match["before"]) == bool(match["after"]):
        raise SettingsError(f"{what} is an amount and a currency such as 20usd, 0.5 eur or $20, not {text!r}")
    sign = match["before"] or match["after"]
    return _micros(match["number"], what), _SYMBOLS.get(sign, sign.lower())


def _micros(value: object, what: str) -> int:
    """`value` units in micros, exactly."""
    refused = SettingsError(f"{what}: {value!r} is no amount from 0 to {_MOST} of at most six decimals")
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise refused
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        raise refused  # Decimal would read 1e3, 1_000 and NaN too
    try:
        number = Decimal(str(value).strip())
        # the comparison comes first: below, digits are written out
        if not number.is_finite() or not 0 <= number <= _MOST:
            raise refused
        with localcontext(Context(prec=64, traps=[Inexact, InvalidOperation])):
            return int(number.scaleb(6).to_integral_exact())
    except (Inexact, InvalidOperation):
        raise refused from None
