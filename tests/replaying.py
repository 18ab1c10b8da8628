"""A real HTTP server that answers as a vendor documents, counts, and misbehaves on request.

Strategy: one catch-all route on a free loopback port, in a thread. `answer` is the vendor's behaviour,
written by the test of that vendor; `faults` are used up first, one a request that carries an image.
"""

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

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
    config = uvicorn.Config(
        app,
        port=0,
        http="h11",
        ws="none",
        lifespan="off",
        log_level="critical",
        date_header=False,
        timeout_graceful_shutdown=1,
        ssl_certfile=cert[0] if cert else None,
        ssl_keyfile=cert[1] if cert else None,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    waiting = threading.Event()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the replaying server did not start")
        waiting.wait(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    server_state.url = f"http{'s' if cert else ''}://127.0.0.1:{port}"
    try:
        yield server_state
    finally:
        server.should_exit = True
        thread.join(10)
