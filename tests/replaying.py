"""A real HTTP server that answers as a vendor documents, counts, and misbehaves on request.

Strategy: one catch-all route on a free loopback port, in a thread. `answer` is the vendor's behaviour,
written by the test of that vendor; `faults` are used up first, one a request that carries an image.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loopback import served

Answer = Callable[[Request, bytes], Awaitable[Response]]


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Replay:
    """The state of one server."""

    answer: Answer
    faults: deque[Response] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    @property
    def images(self) -> int:
        """Requests with a body."""
        return sum(bool(one.body) for one in self.seen)

    async def handle(self, request: Request) -> Response:
        """Any method on any path."""
        body = await request.body()
        self.seen.append(Seen(request.method, str(request.url), dict(request.headers), body))
        if body and self.faults:
            return self.faults.popleft()
        return await self.answer(request, body)


@contextmanager
def replay(answer: Answer, *, cert: tuple[str, str] | None = None) -> Iterator[Replay]:
    """Serve `answer` on a free loopback port; `cert` is (certificate file, key file) for https."""
    server_state = Replay(answer)
    methods = ["GET", "POST", "PUT", "DELETE"]
    app = Starlette(routes=[Route("/{path:path}", server_state.handle, methods=methods)])
    with served(app, cert=cert) as server_state.url:
        yield server_state
