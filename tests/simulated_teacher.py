"""A teacher in simulated time, and the tasks that ask it through a pacer: for `virtual_time.run`.

Strategy: no network and no waiting, but asyncio's own tasks. A request takes a quarter of the latency to
arrive and the rest to be answered, each a little more or less, from a seeded generator.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from corte_student.endpoints.hints import RateHint
from corte_student.endpoints.pacing import Outcome, Pacer

ANSWERED, CANCELLED = Outcome("answered"), Outcome("cancelled")
Headers = Callable[[float], RateHint | None]


class Limiter(Protocol):
    """Decides about one request at a time."""

    def allows(self, now: float) -> bool:
        """Whether a request that arrives now may pass."""
        ...


class Unlimited:
    """Lets everything through."""

    def allows(self, now: float) -> bool:
        return True


@dataclass
class Simulated:
    """Its limits and what it saw. Times are the loop's."""

    limiter: Limiter = field(default_factory=Unlimited)
    latency_s: float = 0.05
    jitter_s: float = 0.004
    retry_after_s: float | None = 1.0
    away: tuple[float, float] = (0.0, 0.0)
    """From when until when nobody listens."""
    headers: Headers = lambda now: None
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    arrived: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    refused: int = 0

    async def ask(self) -> tuple[Outcome, RateHint | None]:
        """One request and its outcome."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.latency_s / 4 + self.rng.random() * self.jitter_s)
        now = loop.time()
        if self.away[0] <= now < self.away[1]:
            self.lost.append(now)
            return Outcome("lost"), None
        self.arrived.append(now)
        allowed = self.limiter.allows(now)
        hint = self.headers(now)
        await asyncio.sleep(self.latency_s * 3 / 4 + self.rng.random() * self.jitter_s)
        if not allowed:
            self.refused += 1
            return Outcome("refused", self.retry_after_s), hint
        self.answered.append(loop.time())
        return ANSWERED, hint

    def rate(self, begin: float, end: float) -> float:
        """Answers a second in [begin, end)."""
        return sum(begin <= at < end for at in self.answered) / (end - begin)

    async def asked(self, pacer: Pacer, seconds: float, tasks: int = 128) -> None:
        """Be asked without end by so many tasks, for so long."""
        loop = asyncio.get_running_loop()

        async def ask() -> None:
            while True:
                await pacer.enter(loop.time() + 1000.0)
                told = CANCELLED
                try:
                    told, hint = await self.ask()
                    if hint is not None:
                        pacer.hint(hint)
                finally:
                    pacer.leave(told)

        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                for _ in range(tasks):
                    group.create_task(ask())


async def once(pacer: Pacer, outcome: Outcome, seconds: float = 0.0, until: float = 1e6) -> float:
    """One request with a known outcome; the time at which it left."""
    await pacer.enter(until)
    at = asyncio.get_running_loop().time()
    told = CANCELLED
    try:
        await asyncio.sleep(seconds)
        told = outcome
    finally:
        pacer.leave(told)
    return at
