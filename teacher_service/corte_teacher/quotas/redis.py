"""The accounts in a Redis, which replicas on several hosts may share.

One script checks and spends, and Redis runs nothing else meanwhile. Keys go by themselves once they say
nothing any more. How much survives a crash of the server is its own setting: `appendonly yes` keeps what was
acknowledged. One server, or a primary; a fail-over may lose what its replica had not seen yet.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from corte_teacher.errors import Overloaded, StartError
from corte_teacher.quotas import (
    GRACE_S,
    REPEAT_S,
    REPEATS,
    Outcome,
    Quota,
    Spending,
    Standing,
    Window,
    fingerprint,
    impossible,
    refusal,
    windows_at,
)

TIMEOUT_S: Final = 2.0
_NAMESPACE: Final = re.compile(r"[0-9A-Za-z._-]{1,64}")

# KEYS: one counter a window, then the repeats where there is a day window. ARGV: pixels, now, then for each
# window its quota, its seconds to live and 1 where repeats cost nothing. The time is stored as it was sent:
# Lua would cut a number to 14 digits. The answer: 1 for refused, then what is spent, -1 where that refuses.
_SPEND: Final = f"""
local pixels, now = tonumber(ARGV[1]), tonumber(ARGV[2])
local last = (#ARGV - 2) / 3
local seen = KEYS[last + 1]
local repeated = false
if seen then
    local row = redis.call('HMGET', seen, 'billed', 'used')
    repeated = row[1] and now - {REPEAT_S} < tonumber(row[1]) and tonumber(row[2]) < {REPEATS}
end
local counted, answer, refused = {{}}, {{}}, 0
for i = 1, last do
    local quota, bill = tonumber(ARGV[3 * i]), ARGV[3 * i + 2] == '1'
    local spent = tonumber(redis.call('GET', KEYS[i]) or '0')
    counted[i] = (repeated and bill) and 0 or pixels
    answer[i] = spent + counted[i]
    if counted[i] > 0 and answer[i] > quota then
        answer[i] = -1
        refused = 1
    end
end
if refused == 0 then
    for i = 1, last do
        if counted[i] > 0 and redis.call('INCRBY', KEYS[i], ARGV[1]) == pixels then
            redis.call('EXPIRE', KEYS[i], ARGV[3 * i + 1])
        end
    end
    if repeated then
        redis.call('HINCRBY', seen, 'used', 1)
    elseif seen then
        redis.call('HSET', seen, 'billed', ARGV[2], 'used', '0')
        redis.call('EXPIRE', seen, {REPEAT_S + GRACE_S})
    end
end
return {{refused, unpack(answer)}}
"""


class RedisQuotas:
    """The accounts at `url`, under keys that begin with `namespace`. Raises StartError with the remedy."""

    def __init__(self, url: str, namespace: str) -> None:
        if not _NAMESPACE.fullmatch(namespace):
            raise StartError("a namespace is 1 to 64 letters, digits, '.', '_' or '-'")
        self._namespace = namespace
        self._server = _connect(url)
        self._script = self._server.register_script(_SPEND)

    def spend_all(self, spendings: Sequence[Spending], now: float) -> list[Outcome]:
        """See `Quotas.spend_all`. What Redis refuses to do for one request is that one's outcome."""
        asked = [(spending, windows_at(spending.quota, now)) for spending in spendings]
        outcomes = [impossible(windows, spending.pixels) if windows else () for spending, windows in asked]
        due = [one for one, outcome in zip(asked, outcomes, strict=True) if outcome is None]
        replies = iter(self._replies([self._arguments(*one, now) for one in due]))
        return [
            _outcome(*one, next(replies), now) if outcome is None else outcome
            for one, outcome in zip(asked, outcomes, strict=True)
        ]

    def standing(self, owner: str, quota: Quota, now: float) -> tuple[Standing, ...]:
        """See `Quotas.standing`."""
        windows = windows_at(quota, now)
        if not windows:
            return ()
        with _using():
            found = cast(list[Any], self._server.mget([self._key(owner, window) for window in windows]))
        return tuple(
            window.standing(int(spent or 0), now) for window, spent in zip(windows, found, strict=True)
        )

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def _arguments(
        self, spending: Spending, windows: Sequence[Window], now: float
    ) -> tuple[list[str], list[str | int]]:
        """Keys and arguments of the script."""
        owner, quota, pixels, content = spending
        keys = [self._key(owner, window) for window in windows]
        if quota.per_day is not None:
            keys.append(self._repeats(owner, content))
        args: list[str | int] = [pixels, repr(float(now))]
        for window in windows:
            args += [window.quota, window.left_s(now) + GRACE_S, int(window.name == "day")]
        return keys, args

    def _replies(self, calls: Sequence[tuple[list[str], list[str | int]]]) -> list[Any]:
        """What the script says to each: integers, or an error. Several are on their way at once."""
        with _using():
            if len(calls) == 1:
                return [self._script(*calls[0])]
            with self._server.pipeline(transaction=False) as pipeline:
                for keys, args in calls:  # whole: whether the server knows a script is a question of its own
                    pipeline.eval(_SPEND, len(keys), *keys, *args)
                return pipeline.execute(raise_on_error=False)

    def _key(self, owner: str, window: Window) -> str:
        # the braces keep an owner's keys together in a cluster; the last parts decide, whatever a name holds
        return f"corte:{{{self._namespace}:{owner}}}:{window.seconds}:{window.start}"

    def _repeats(self, owner: str, content: bytes) -> str:
        return f"corte:{{{self._namespace}:{owner}}}:repeats:{fingerprint(owner, content).hex()}"


def _outcome(spending: Spending, windows: Sequence[Window], reply: Any, now: float) -> Outcome:
    if isinstance(reply, Exception):
        return Overloaded(f"the quotas in Redis cannot be used: {reply}")
    refused, *spent = cast(list[int], reply)
    if refused:
        short = [window for window, total in zip(windows, spent, strict=True) if total < 0]
        return refusal(spending.owner, spending.pixels, short, now)
    return tuple(window.standing(total, now) for window, total in zip(windows, spent, strict=True))


@contextmanager
def _using() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as exc:  # a full server as well: rather no answer than an unmetered one
        raise Overloaded(f"the quotas in Redis cannot be used: {exc}") from exc


def _connect(url: str) -> redis.Redis:
    """A server that answers and forgets nothing on its own. No text holds the url: it may hold a password."""
    try:
        # once more after a broken connection: what was counted twice then errs on the side of the quota
        retry = Retry(NoBackoff(), 1, (redis.ConnectionError,))
        server = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=retry
        )
    except ValueError as exc:
        raise StartError(f"--quotas is not the address of a Redis: {exc}") from exc
    try:
        memory = server.info("memory")
    except (redis.RedisError, TypeError) as exc:  # TypeError: an option in the url that there is not
        server.close()
        raise StartError(f"the Redis of --quotas does not answer: {exc}") from exc
    policy = memory.get("maxmemory_policy", "noeviction")
    if memory.get("maxmemory") and policy != "noeviction":
        server.close()
        raise StartError(
            f"the Redis of --quotas would forget quotas when full: set its maxmemory-policy to noeviction, "
            f"not {policy}"
        )
    return server
