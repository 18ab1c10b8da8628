"""What an answer's headers say about when to ask again. Reads only; believes nothing that makes no sense.

Rule 1: what is negative, not a number or not a date is as if it had not been sent. Rule 2: no wait is longer
than a day. Rule 3: of several limits the tightest counts.

    wait_of     Retry-After (RFC 9110 section 10.2.3: seconds, of which fractions are accepted, or a date);
                before it retry-after-ms and x-ms-retry-after-ms, which are finer (Azure's REST clients)
    hint_of     RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-10: "api";r=0;t=55),
                the three fields of the draft's version 05 (RateLimit-Remaining, -Reset, -Limit), and their
                elder sisters with X-, whose reset is seconds from now or seconds since 1970
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_S = 86_400.0
"""No wait is longer: a day."""
_MOST_REQUESTS = 1_000_000_000
_EPOCH_S = 1_000_000_000.0
"""A reset beyond this is a time since 1970: as seconds from now it would be 31 years."""
_EPOCH_MS = 1_000_000_000_000.0
_DIGITS = re.compile(r"[0-9]{1,15}(\.[0-9]{0,15})?|\.[0-9]{1,15}")
_ITEMS = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*")+')
_PARTS = re.compile(r'(?:[^";]|"(?:[^"\\]|\\.)*")+')


@dataclass(frozen=True, slots=True)
class RateHint:
    """A teacher lets `remaining` more requests through in the next `reset_s` seconds.

    Where it also states its policy: `quota` requests in every `window_s` seconds.
    """

    remaining: int
    reset_s: float
    quota: int | None = None
    window_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.remaining <= _MOST_REQUESTS or not 0 <= self.reset_s <= LONGEST_S:
            raise ValueError("a hint has remaining requests and a reset within a day")
        if self.quota is not None and not 0 < self.quota <= _MOST_REQUESTS:
            raise ValueError("a quota is positive")
        if self.window_s is not None and not 0 < self.window_s <= LONGEST_S:
            raise ValueError("a window is positive and at most a day")


def wait_of(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the teacher asks to wait, at most a day; None where it says nothing that makes sense.

    `headers` may spell names in any case; `now` is aware of its time zone.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        finer = _number(lower.get(name))
        if finer is not None:
            return min(finer / 1000.0, LONGEST_S)
    value = lower.get("retry-after")
    if value is None:
        return None
    seconds = _number(value)
    if seconds is None:
        seconds = _until(value, now)
    return None if seconds is None else min(seconds, LONGEST_S)


def hint_of(headers: Mapping[str, str], now: datetime) -> RateHint | None:
    """What the headers of any answer say of the requests that are left; None where they say nothing.

    `headers` may spell names in any case; `now` is aware of its time zone.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    policy = lower.get("ratelimit-policy", "")
    if "ratelimit" in lower:
        hints = list(_fields(lower["ratelimit"], policy))
        if hints:
            return min(hints, key=_room)
    for prefix in ("ratelimit-", "x-ratelimit-", "x-rate-limit-"):
        remaining, reset = _number(lower.get(prefix + "remaining")), _number(lower.get(prefix + "reset"))
        if remaining is None or reset is None or remaining > _MOST_REQUESTS:
            continue
        reset = _from_now(reset, now)
        if reset is not None:
            quota, window = _policy(policy).get(None, (None, None))
            return RateHint(int(remaining), reset, quota, window)
    return None


def _room(hint: RateHint) -> tuple[float, float]:
    """Orders hints by tightness: the fewest requests a second, then the longest wait."""
    return hint.remaining / max(hint.reset_s, 1.0), -hint.reset_s


def _fields(value: str, policy: str) -> Iterator[RateHint]:
    """The members of RateLimit: `"name";r=9;t=5`, or `limit=10, remaining=9, reset=5` of version 07."""
    policies, other = _policy(policy), _of_other_units(policy)
    elder: dict[str, float] = {}
    for item in _ITEMS.findall(value):
        name, parameters = _item(item)
        remaining, reset = _number(parameters.get("r")), _number(parameters.get("t"))
        if name in other and remaining:  # what is left of pixels or bytes is no number of requests; none is
            continue
        if remaining is not None and reset is not None and max(remaining, reset) <= _MOST_REQUESTS:
            quota, window = policies.get(name, (None, None))
            yield RateHint(int(remaining), min(reset, LONGEST_S), quota, window)
        key, _, number = name.partition("=")
        if (said := _number(number)) is not None:
            elder[key.strip()] = said
    if (
        "remaining" in elder
        and "reset" in elder
        and max(elder["remaining"], elder["reset"]) <= _MOST_REQUESTS
    ):
        quota, window = policies.get(None, (None, None))
        yield RateHint(int(elder["remaining"]), min(elder["reset"], LONGEST_S), quota, window)


def _policy(value: str) -> dict[str | None, tuple[int | None, float | None]]:
    """Quota and window by a policy's name; under None that of the only one, where there is one.

    `"api";q=100;w=60` (version 10) and `100;w=60` (version 05) alike; a quota of bytes (`qu`) is not ours.
    """
    found: dict[str | None, tuple[int | None, float | None]] = {}
    for item in _ITEMS.findall(value):
        name, parameters = _item(item)
        quota, window = _number(parameters.get("q", name)), _number(parameters.get("w"))
        if parameters.get("qu", "requests").strip('"') != "requests":
            continue
        if quota and window and quota <= _MOST_REQUESTS and window <= LONGEST_S and int(quota):
            found[name] = (int(quota), window)
    if len(found) == 1:
        found[None] = next(iter(found.values()))
    return found


def _of_other_units(value: str) -> set[str]:
    """The names of the policies that count something else than requests, such as a teacher's pixels."""
    items = map(_item, _ITEMS.findall(value))
    return {name for name, found in items if found.get("qu", "requests").strip('"') != "requests"}


def _item(text: str) -> tuple[str, dict[str, str]]:
    """A structured field's item (RFC 9651): its bare value, quotes removed, and its parameters."""
    value, *rest = [part.strip() for part in _PARTS.findall(text)] or [""]
    parameters = {}
    for part in rest:
        key, _, said = part.partition("=")
        parameters[key.strip().lower()] = said.strip()
    return value.strip('"'), parameters


def _number(text: str | None) -> float | None:
    """A plain decimal number without sign or exponent."""
    if text is None or not _DIGITS.fullmatch(text.strip()):
        return None
    return float(text)


def _until(text: str, now: datetime) -> float | None:
    """Seconds until an HTTP date, none for one that has passed."""
    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    seconds = (when - now).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _from_now(reset: float, now: datetime) -> float | None:
    """Seconds from now of a reset in any of its three spellings; None for what lies beyond a day."""
    if reset >= _EPOCH_MS:
        reset /= 1000.0
    if reset >= _EPOCH_S:
        reset = max(0.0, reset - now.timestamp())
    return reset if reset <= LONGEST_S else None
