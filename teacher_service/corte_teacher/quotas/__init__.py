"""How many pixels a key's holder may ask about per minute and per day, and the accounts of what was spent.

Rule 1: windows are fixed (they start at multiples of their length, so the day is that of UTC) and what is
spent in one never exceeds the quota, whatever the threads, processes or hosts that spend. Rule 2: what was
acknowledged survives a crash. Rule 3: the minute window is the rate and counts every request; the day window
is the bill and lets a sender repeat a request whose answer it lost: the same content within `REPEAT_S`
seconds of its billing costs nothing, `REPEATS` times. Rule 4: a refused request spends nothing at all.

`sqlite` keeps the accounts in a file, `redis` in a server that replicas on several hosts share.
"""

import hashlib
import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol, cast

from corte_protocol import CorteError, InvalidValue
from corte_teacher.errors import QuotaExhausted, StartError, TooLarge

REPEATS: Final = 3
REPEAT_S: Final = 600
GRACE_S: Final = 60
"""How long a window is kept after its end: as far as the clocks of replicas may differ, or be set back."""
NAMESPACE: Final = "corte-teacher"
_MOST: Final = 999_999_999_999_999  # the largest Integer of RFC 9651, and exact as a double
_REDIS: Final = ("redis", "rediss", "unix")

WindowName = Literal["minute", "day"]
SECONDS: Final[dict[WindowName, int]] = {"minute": 60, "day": 86_400}


@dataclass(frozen=True, slots=True)
class Quota:
    """Pixels that may be asked about, 1 to 10^15 - 1; None for no limit. Raises InvalidValue otherwise."""

    per_minute: int | None = None
    per_day: int | None = None

    def __post_init__(self) -> None:
        for pixels in (self.per_minute, self.per_day):
            if pixels is not None and not 1 <= pixels <= _MOST:
                raise InvalidValue(f"a quota is 1 to {_MOST} pixels, not {pixels}")


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left of one window: `remaining` of `quota` pixels for `reset_s` seconds, rounded up."""

    window: WindowName
    quota: int
    remaining: int
    reset_s: int


class Spending(NamedTuple):
    """What one request takes of its owner's pixels.

    `content` tells requests apart: a digest of all that decides the answer.
    """

    owner: str
    quota: Quota
    pixels: int
    content: bytes


Outcome = tuple[Standing, ...] | CorteError
"""What is left of the limited windows once a request has spent its pixels, or why it has spent nothing."""


class Quotas(Protocol):
    """The accounts. Safe to use from several threads."""

    def spend_all(self, spendings: Sequence[Spending], now: float) -> list[Outcome]:
        """Spend for each in turn, at `now` (seconds since the epoch), and keep all with one write.

        An outcome is QuotaExhausted where a window does not hold the pixels any more, TooLarge where it never
        could, InvalidValue without pixels. Raises Overloaded when the accounts cannot be reached; nothing is
        spent then. (A Redis that answers too late may have counted.)
        """

    def standing(self, owner: str, quota: Quota, now: float) -> tuple[Standing, ...]:
        """What is left now, of the limited windows. Raises Overloaded."""

    def close(self) -> None:
        """Let go of the storage; nothing is asked afterwards."""


def open_quotas(where: str, namespace: str = NAMESPACE) -> Quotas:
    """The accounts in a file, or at a redis://, rediss:// or unix:// address. Raises StartError.

    Services that share a Redis and a namespace share their accounts; a file is a namespace of its own.
    """
    scheme, colon, _ = where.partition("://")
    if not colon:
        opener = importlib.import_module("corte_teacher.quotas.sqlite").SqliteQuotas
        return cast(Callable[[Path], Quotas], opener)(Path(where))
    if scheme not in _REDIS:
        raise StartError(f"--quotas takes a file or redis://, rediss://, unix://, not {scheme}://")
    try:
        module = importlib.import_module("corte_teacher.quotas.redis")
    except ImportError as exc:
        raise StartError(f"--quotas {scheme}:// needs: pip install 'corte-teacher[redis]' ({exc})") from exc
    return cast(Callable[[str, str], Quotas], module.RedisQuotas)(where, namespace)


def headers(standings: Iterable[Standing]) -> dict[str, str]:
    """RateLimit and RateLimit-Policy of draft-ietf-httpapi-ratelimit-headers-10; none without a window."""
    known = list(standings)
    if not known:
        return {}
    limits = (f'"{s.window}";r={s.remaining};t={s.reset_s}' for s in known)
    policy = (f'"{s.window}";q={s.quota};w={SECONDS[s.window]};qu="pixels"' for s in known)
    return {"RateLimit": ", ".join(limits), "RateLimit-Policy": ", ".join(policy)}


class Window(NamedTuple):
    """One limited window as it stands in the calendar: `quota` pixels from `start` for `seconds`."""

    name: WindowName
    quota: int
    seconds: int
    start: int

    def left_s(self, now: float) -> int:
        """Whole seconds until it ends, at least 1."""
        return max(1, math.ceil(self.start + self.seconds - now))

    def standing(self, spent: int, now: float) -> Standing:
        """What is left of it; nothing where the quota was lowered below what is spent."""
        return Standing(self.name, self.quota, max(0, self.quota - spent), self.left_s(now))


def windows_at(quota: Quota, now: float) -> tuple[Window, ...]:
    """The windows that limit a request at `now`."""
    limits: tuple[tuple[WindowName, int | None], ...] = (
        ("minute", quota.per_minute),
        ("day", quota.per_day),
    )
    return tuple(
        Window(name, limit, SECONDS[name], int(now // SECONDS[name]) * SECONDS[name])
        for name, limit in limits
        if limit is not None
    )


def impossible(windows: Iterable[Window], pixels: int) -> CorteError | None:
    """Why even untouched windows do not hold so many: TooLarge, or InvalidValue for none."""
    if pixels < 1:
        return InvalidValue(f"a request is about 1 or more pixels, not {pixels}")
    for window in windows:
        if pixels > window.quota:
            return TooLarge(f"{pixels} pixels are more than the whole {window.name}'s quota, {window.quota}")
    return None


def refusal(owner: str, pixels: int, short: Sequence[Window], now: float) -> QuotaExhausted:
    """The error for windows that do not hold `pixels` any more; its wait lasts until all have ended."""
    names = " and ".join(f"{window.quota} pixels a {window.name}" for window in short)
    wait_s = max(window.left_s(now) for window in short)
    return QuotaExhausted(f"{pixels} pixels would exceed the {names} of {owner}", float(wait_s))


def fingerprint(owner: str, content: bytes) -> bytes:
    """16 bytes that stand for a content of an owner: bounded in size, and no picture's digest is kept."""
    name = owner.encode()
    return hashlib.blake2b(len(name).to_bytes(4, "big") + name + content, digest_size=16).digest()
