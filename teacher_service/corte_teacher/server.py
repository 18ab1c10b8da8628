"""From settings to a running service: load, bind, answer until a signal, end cleanly."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from corte_protocol import InvalidValue, Limits, TeacherInfo
from corte_teacher.app import create_app
from corte_teacher.backends import Backend, Source, find_source, load_backend
from corte_teacher.errors import StartError
from corte_teacher.identity import describe, parse_policy
from corte_teacher.keys import KeyRing, read_keys
from corte_teacher.settings import Settings

_GRACE_S = 10


@dataclass(frozen=True)
class Teacher:
    """A loaded model with what may be known about it; `keys` None means open."""

    source: Source
    backend: Backend
    info: TeacherInfo
    keys: KeyRing | None


def load_teacher(settings: Settings) -> Teacher:
    """Load everything that the settings name. Raises StartError with the remedy."""
    keys = None if settings.keys is None else read_keys(settings.keys)
    if keys is not None and not keys.entries:
        raise StartError(
            f"{settings.keys} holds no key: corte-teacher keys create NAME --keys {settings.keys}"
        )
    source = find_source(settings.backend, settings.model, settings.card)
    try:
        policy = parse_policy(settings.disclosure, source.card)
    except InvalidValue as exc:
        raise StartError(f"--disclosure: {exc}") from exc
    salt = b"" if keys is None else keys.salt
    limits = Limits(settings.max_body_bytes, settings.max_pixels)
    info = describe(source, salt, policy, limits)
    return Teacher(source, load_backend(source, policy, settings.threads), info, keys)


def serve(settings: Settings, teacher: Teacher, announce: Callable[[str], None]) -> None:
    """Answer until SIGINT or SIGTERM; call `announce` with the base URL once the first forward is done.

    Raises StartError when the port is taken or the model does not answer.
    """
    app = create_app(settings, teacher.backend, teacher.info, teacher.keys)
    listener = _bind(settings.host, settings.port)
    scheme = "http" if settings.tls_cert is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"{scheme}://{host}:{listener.getsockname()[1]}"
    try:
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            timeout_graceful_shutdown=_GRACE_S,
        )
        config.load()
    except OSError as exc:  # ssl.SSLError is one
        listener.close()
        raise StartError(f"--tls-cert or --tls-key cannot be used: {exc}") from exc
    server = _Server(config)

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve(sockets=[listener]))
            tasks.create_task(_announce_when_ready(server, app.state, lambda: announce(url)))

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(run())
    if server.failure is not None:
        raise StartError(f"the model does not answer: {server.failure}")


class _Server(uvicorn.Server):
    """uvicorn's server, ending with status 0 on a signal instead of dying by it again."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.tried = asyncio.Event()  # start-up is over, well or badly
        self.failure: BaseException | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own, then tell who waits for it."""
        try:
            await super().startup(sockets)
        finally:
            self.tried.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM for the time of serving, and do not raise them once more at the end."""
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


async def _announce_when_ready(server: _Server, state: object, announce: Callable[[], None]) -> None:
    """Wait for the first forward, then announce; a model that fails it ends the server."""
    await server.tried.wait()
    if server.should_exit:
        return
    ready: asyncio.Future[None] = state.ready  # type: ignore[attr-defined]
    await asyncio.wait([ready])
    if ready.cancelled():
        return
    server.failure = ready.exception()
    if server.failure is None:
        announce()
    else:
        server.should_exit = True


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as exc:
        raise StartError(
            f"cannot listen on {host}:{port}: {exc.strerror or exc}: choose another --port"
        ) from exc
