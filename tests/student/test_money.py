"""Money: text becomes whole millionths exactly or is refused, and no cost is rounded down."""

from dataclasses import FrozenInstanceError
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corte_student.errors import SettingsError
from corte_student.money import Cap, Price, cap_from, parse_budget, parse_price, price_from, show

AMOUNTS = st.integers(0, 10**15)  # micros
CODES = st.sampled_from(["usd", "eur", "gbp", "chf"])


@pytest.mark.parametrize(
    ("text", "micros", "currency"),
    [
        ("20usd", 20_000_000, "usd"),
        ("20 USD", 20_000_000, "usd"),
        ("0.5eur", 500_000, "eur"),
        ("$20", 20_000_000, "usd"),
        ("$ 20.50", 20_500_000, "usd"),
        ("€.25", 250_000, "eur"),
        ("20€", 20_000_000, "eur"),
        (" 0.000001gbp ", 1, "gbp"),
        ("0usd", 0, "usd"),
    ],
)
def test_a_budget_is_read_exactly(text: str, micros: int, currency: str) -> None:
    """Amount and currency, in the ways people write them."""
    assert parse_budget(text) == Cap(micros, currency)


NO_BUDGETS = (
    "|20|usd|20 dollars|1,5eur|1_000usd|1e3usd|-1usd|nanusd|1.2.3usd|$20usd|0.0000001usd|1000000001usd|٢٠usd|"
    "20usd now|.usd|20."
)


@pytest.mark.parametrize("text", NO_BUDGETS.split("|"))
def test_what_is_no_budget_is_refused_in_one_line(text: str) -> None:
    """Nothing is guessed: no other notation, nothing finer than a millionth, nothing absurd."""
    with pytest.raises(SettingsError) as refused:
        parse_budget(text)
    assert repr(text) in str(refused.value) or "decimals" in str(refused.value)
    assert "\n" not in str(refused.value)


@given(micros=AMOUNTS, currency=CODES)
def test_what_is_shown_is_read_back(micros: int, currency: str) -> None:
    """`show` loses nothing, and has at least two decimals."""
    text = show(micros, currency)
    assert parse_budget(text) == Cap(micros, currency)
    assert len(text.split()[0].partition(".")[2]) >= 2


def test_money_is_shown_short() -> None:
    """Cents as cents, fractions of a cent where there are any."""
    assert show(12_340_000, "usd") == "12.34 usd"
    assert show(1_500, "usd") == "0.0015 usd"
    assert show(3_000_000, "eur") == "3.00 eur"


@given(
    per_1k=st.integers(1, 10**12),
    per_megapixel=st.integers(0, 10**12),
    pixels=st.integers(0, 10**9),
)
def test_a_cost_is_the_exact_one_rounded_up(per_1k: int, per_megapixel: int, pixels: int) -> None:
    """Never below what is charged, and less than a micro above it."""
    price = Price("usd", per_1k, per_megapixel)
    exact = Fraction(per_1k, 1000) + Fraction(per_megapixel * pixels, 1000 * 10**6)
    assert 0 <= price.cost(pixels) - exact < 1
    assert price.cost(pixels + 1) >= price.cost(pixels)
    assert 0 <= price.micros_per_request - Fraction(per_1k, 1000) < 1


@given(micros=st.integers(1, 10**15), kind=st.sampled_from(["text", "decimal", "float"]))
def test_text_and_numbers_become_the_same_price(micros: int, kind: str) -> None:
    """A float counts as it is written, not as it is stored in binary."""
    amount: str | float | Decimal = f"{micros // 10**6}.{micros % 10**6:06d}"
    if kind == "decimal":
        amount = Decimal(amount)
    elif kind == "float":
        micros = micros % 10**9 or 1
        amount = micros / 10**6
    assert Price.of(amount, "USD") == Price("usd", micros)


def test_a_price_by_size_adds_to_the_price_by_request() -> None:
    """1.50 per 1000 requests and 2.00 per 1000 megapixels, for a 2048 x 1024 image."""
    price = Price.of("1.50", "usd", per_megapixel=2)
    assert price.micros_per_request == 1500
    assert price.cost(2048 * 1024) == 1500 + 4195  # 2.097152 megapixels x 2000 micros, rounded up
    with pytest.raises(FrozenInstanceError):
        price.free = 3  # type: ignore[misc]


NO_AMOUNTS = (
    *("1e3", "1_0", "", "-1", "nan", "0.0000001", "9" * 50),
    *(True, -1, -0.5, 1e-7, 10**9 + 1, float("nan"), float("inf")),
    *(Decimal("Infinity"), Decimal("1e-999999"), Decimal("1e999999"), Decimal("1." + "3" * 80)),
)


@pytest.mark.parametrize("amount", NO_AMOUNTS)
def test_what_is_no_amount_is_refused(amount: str | float | Decimal) -> None:
    """Neither rounded nor read in another notation."""
    with pytest.raises(SettingsError, match="no amount from 0 to"):
        Price.of(amount, "usd")


def test_values_that_exist_are_legal() -> None:
    """A price charges something in a currency; a cap on money names its currency."""
    for wrong in (("dollar", 1), ("USD", 1), ("usd", -1), ("usd", 0), ("usd", 1, -1), ("usd", 1, 0, -1)):
        with pytest.raises(SettingsError):
            Price(*wrong)
    for cap in ((1, None), (None, "usd"), (-1, "usd"), (1, "Usd"), (None, None, -1)):
        with pytest.raises(SettingsError):
            Cap(*cap)
    assert Cap(0, "usd", 0).max_requests == 0


def test_a_table_says_the_price() -> None:
    """`[price]` of a TOML file: numbers or text."""
    table = {"currency": "EUR", "per_1k": 1.5, "per_megapixel_1k": "0.25", "free": 100}
    assert price_from(table) == Price("eur", 1_500_000, 250_000, 100)
    assert price_from({"currency": "usd", "per_megapixel_1k": 3}) == Price("usd", 0, 3_000_000)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (
            {"currency": "usd", "per_1k": 1, "per_image": 2},
            "per_image: use currency, per_1k, per_megapixel_1k",
        ),
        ({"per_1k": 1}, "needs a currency"),
        ({"currency": 1, "per_1k": 1}, "needs a currency"),
        ({"currency": "usd"}, "add per_1k or per_megapixel_1k"),
        ({"currency": "usd", "per_1k": [1]}, "per_1k: "),
        ({"currency": "usd", "per_1k": 1, "free": 1.5}, "free is a whole number"),
        ({"currency": "usd", "per_1k": 1, "free": True}, "free is a whole number"),
        ({"currency": "usd", "per_1k": 1, "free": -1}, "not below zero"),
    ],
)
def test_a_wrong_table_is_one_line_that_names_the_remedy(table: dict[str, object], named: str) -> None:
    """The key and what it should be."""
    with pytest.raises(SettingsError) as refused:
        price_from(table)
    assert named in str(refused.value)


def test_a_cap_needs_a_price_in_its_currency() -> None:
    """A budget in money without a price could never be kept, nor one in another currency."""
    price = parse_price("1.5usd")
    assert price == Price.of("1.5", "usd") == parse_price("$1.50")
    assert cap_from("20usd", 7, price) == Cap(20_000_000, "usd", 7)
    assert cap_from(None, 7, None) == Cap(max_requests=7)
    assert cap_from(None, None, price) == Cap()
    with pytest.raises(SettingsError, match="--price-per-1k"):
        cap_from("20usd", None, None)
    with pytest.raises(SettingsError, match="in eur and the price in usd"):
        cap_from("20eur", None, price)
