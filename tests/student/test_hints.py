"""What headers say about when to ask again, and that nonsense says nothing."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corte_student.endpoints.hints import RateHint, hint_of, wait_of

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
DAY = 86_400.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "120"}, 120.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "Tue, 24 Nov 2026 12:01:30 GMT"}, 90.0),
        ({"Retry-After": "Tuesday, 24-Nov-26 12:01:30 GMT"}, 90.0),
        ({"Retry-After": "Tue Nov 24 12:01:30 2026"}, 90.0),
        ({"Retry-After": "Tue, 24 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"Retry-After": "999999999"}, DAY),
        ({"Retry-After": "Tue, 24 Nov 2099 12:00:00 GMT"}, DAY),
        ({"Retry-After": "2", "retry-after-ms": "1250"}, 1.25),
        ({"Retry-After": "2", "x-ms-retry-after-ms": "500"}, 0.5),
        ({"Retry-After": "2", "retry-after-ms": "soon"}, 2.0),
        ({}, None),
    ],
)
def test_a_wait_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    """Both of RFC 9110, all three dates, fractions, milliseconds; at most a day."""
    assert wait_of(headers, NOW) == seconds


@pytest.mark.parametrize(
    "value",
    ["", "-1", "nan", "inf", "1e9", "0x10", "+5", "1,5", "٣", "soon", "Tue, 99 Nov 2026", "9" * 400, "1.2.3"],
)
def test_a_wait_that_makes_no_sense_is_none(value: str) -> None:
    """It is as if nothing had been said."""
    assert wait_of({"Retry-After": value}, NOW) is None


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        ({"RateLimit": '"api";r=0;t=55'}, RateHint(0, 55.0)),
        ({"ratelimit": '"api"; r=12; t=3.5'}, RateHint(12, 3.5)),
        (
            {"RateLimit": '"api";r=9;t=5', "RateLimit-Policy": '"api";q=500;w=300'},
            RateHint(9, 5.0, 500, 300.0),
        ),
        (
            {"RateLimit": '"a;b,c";r=9;t=5', "RateLimit-Policy": '"x";q=1;w=1, "a;b,c";q=7;w=8'},
            RateHint(9, 5.0, 7, 8.0),
        ),
        # the tightest of several: ten a second against one in forty
        ({"RateLimit": '"burst";r=50;t=5, "day";r=900;t=36000'}, RateHint(900, 36000.0)),
        ({"RateLimit": '"burst";r=0;t=5, "day";r=0;t=36000'}, RateHint(0, 36000.0)),
        # bytes are not requests
        ({"RateLimit": '"a";r=0;t=5', "RateLimit-Policy": '"a";q=100;w=60;qu="bytes"'}, RateHint(0, 5.0)),
        (
            {
                "RateLimit": '"minute";r=9000;t=5, "calls";r=3;t=7',
                "RateLimit-Policy": '"minute";q=60000;w=60;qu="pixels", "calls";q=10;w=60',
            },
            RateHint(3, 7.0, 10, 60.0),
        ),
        ({"RateLimit": "limit=100, remaining=50, reset=30"}, RateHint(50, 30.0)),
        (
            {"RateLimit-Remaining": "7", "RateLimit-Reset": "30", "RateLimit-Policy": "100;w=60"},
            RateHint(7, 30.0, 100, 60.0),
        ),
        ({"X-RateLimit-Remaining": "7", "X-RateLimit-Reset": "30"}, RateHint(7, 30.0)),
        ({"X-Rate-Limit-Remaining": "7", "X-Rate-Limit-Reset": "30"}, RateHint(7, 30.0)),
        (
            {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(NOW.timestamp()) + 45)},
            RateHint(0, 45.0),
        ),
        (
            {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(NOW.timestamp() * 1000) + 45_000)},
            RateHint(0, 45.0),
        ),
        (
            {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(NOW.timestamp()) - 45)},
            RateHint(0, 0.0),
        ),
        # the draft's own field goes before its elder sisters
        (
            {"RateLimit": '"a";r=1;t=2', "X-RateLimit-Remaining": "9", "X-RateLimit-Reset": "9"},
            RateHint(1, 2.0),
        ),
    ],
)
def test_what_is_left_is_read_in_every_form(headers: dict[str, str], hint: RateHint) -> None:
    """The draft's versions, and what was common before them."""
    assert hint_of(headers, NOW) == hint


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"RateLimit": ""},
        {"RateLimit": '"api"'},
        {"RateLimit": '"api";r=5'},
        {"RateLimit": '"api";r=-1;t=5'},
        {"RateLimit": '"api";r=5;t=-5'},
        {"RateLimit": '"api";r=nan;t=5'},
        {"RateLimit": '"api";r=99999999999999;t=5'},
        {"RateLimit": "remaining=5"},
        {"X-RateLimit-Remaining": "-1", "X-RateLimit-Reset": "0"},
        {"X-RateLimit-Remaining": "5"},
        {"X-RateLimit-Remaining": "5", "X-RateLimit-Reset": "31536000"},
        {"X-RateLimit-Remaining": "5", "X-RateLimit-Reset": "1s"},
    ],
)
def test_hints_that_make_no_sense_are_none(headers: dict[str, str]) -> None:
    """Negative, not a number, huge, half, or beyond a day."""
    assert hint_of(headers, NOW) is None


TEXT = st.text(max_size=40) | st.text('"\\;,=rtqw0123456789.- ', max_size=40)
NAMES = ["RateLimit", "RateLimit-Policy", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After"]


@given(st.dictionaries(st.sampled_from(NAMES), TEXT))
def test_no_header_breaks_the_reader(headers: dict[str, str]) -> None:
    """Whatever a server sends, the answer is nothing or something legal."""
    wait, hint = wait_of(headers, NOW), hint_of(headers, NOW)
    assert wait is None or 0 <= wait <= DAY
    assert hint is None or (hint.remaining >= 0 and 0 <= hint.reset_s <= DAY)


@given(st.integers(0, 10**9), st.integers(0, 86_400))
def test_what_is_written_is_read(remaining: int, seconds: int) -> None:
    """Any legal pair comes back, and any date within a day."""
    assert hint_of({"RateLimit": f'"p";r={remaining};t={seconds}'}, NOW) == RateHint(
        remaining, float(seconds)
    )
    when = NOW + timedelta(seconds=seconds)
    assert wait_of({"Retry-After": f"{when:%a, %d %b %Y %H:%M:%S GMT}"}, NOW) == seconds


@pytest.mark.parametrize(
    ("remaining", "reset", "quota", "window"),
    [
        (-1, 1.0, None, None),
        (1, -1.0, None, None),
        (1, math.nan, None, None),
        (1, DAY + 1, None, None),
        (1, 1.0, 0, None),
        (1, 1.0, 1, 0.0),
    ],
)
def test_no_illegal_hint_exists(
    remaining: int, reset: float, quota: int | None, window: float | None
) -> None:
    """The constructor refuses what the reader would never make."""
    with pytest.raises(ValueError, match=r"positive|within a day"):
        RateHint(remaining, reset, quota, window)
