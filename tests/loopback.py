"""An ASGI application behind a real socket on a free loopback port, in a thread: every test server is one."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp


@contextmanager
def served(app: ASGIApp, *, cert: tuple[str, str] | None = None) -> Iterator[str]:
    """The base URL of `app`, until the end; `cert` is (certificate file, key file) for https."""
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
            raise RuntimeError("the test's server did not start")
        waiting.wait(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http{'s' if cert else ''}://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
