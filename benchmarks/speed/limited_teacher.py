"""A teacher that allows so many images a second, in a process of its own, and remembers when they arrived.

Usage: python -m speed.limited_teacher PORT LIMIT LATENCY_S BURST|fixed OFFSET_S. Who is over the limit gets
429 with `Retry-After: 1`, as late as an answer. `GET /arrivals` lists [time, allowed] of all so far, times on
the machine's monotonic clock, which is that of every asyncio loop on Linux.

    BURST   a bucket of so many requests, which refills steadily
    fixed   a count that begins anew every second, at the clock's whole seconds plus OFFSET_S
"""

import asyncio
import json
import math
import sys
import time
from typing import Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class Limiter(Protocol):
    """Decides about one request at a time."""

    def allows(self, now: float) -> bool:
        """Whether a request that arrives now may pass."""
        ...


class Bucket:
    """`limit` tokens a second, at most `burst` of them kept."""

    def __init__(self, limit: float, burst: float) -> None:
        self.limit, self._burst = limit, burst
        self._tokens, self._at = burst, 0.0

    def allows(self, now: float) -> bool:
        """Takes a token, if there is a whole one."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self.limit)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Fixed:
    """`limit` requests in every second of the clock, which begin `offset_s` after its whole ones."""

    def __init__(self, limit: float, offset_s: float) -> None:
        self.limit, self._offset_s = limit, offset_s
        self._second, self._passed = -1, 0

    def allows(self, now: float) -> bool:
        """Counts, and begins anew with each second."""
        second = math.floor(now - self._offset_s)
        if second != self._second:
            self._second, self._passed = second, 0
        self._passed += 1
        return self._passed <= self.limit


def serve(port: int, limiter: Limiter, latency_s: float) -> None:
    """Serve on loopback until the process ends."""
    arrivals: list[tuple[float, bool]] = []

    async def ask(request: Request) -> Response:
        now = time.monotonic()
        allowed = limiter.allows(now)
        arrivals.append((now, allowed))
        await asyncio.gather(request.body(), asyncio.sleep(latency_s))
        return Response("ok") if allowed else Response("no", 429, {"Retry-After": "1"})

    async def told(request: Request) -> Response:
        return Response(json.dumps(arrivals), media_type="application/json")

    app = Starlette(routes=[Route("/ask", ask, methods=["POST"]), Route("/arrivals", told)])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical", lifespan="off", ws="none")


if __name__ == "__main__":
    port, limit, latency, kind, offset = sys.argv[1:]
    chosen = Fixed(float(limit), float(offset)) if kind == "fixed" else Bucket(float(limit), float(kind))
    serve(int(port), chosen, float(latency))
