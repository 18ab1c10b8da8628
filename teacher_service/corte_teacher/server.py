"""From settings to a running service: bind, try the model out, answer until a signal, drain, end cleanly.

SIGTERM     drain: readiness off at once, serve on for `drain_s`, stop accepting, finish, exit 0
SIGINT      the same without serving on; a second signal of either kind does not wait either
SIGHUP      read keys and model again, open the audit log again (`reloading.py`)
"""

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, cast

import uvicorn

from corte_teacher.app import create_app
from corte_teacher.audit import AuditLog
from corte_teacher.connections import Connections, protocol
from corte_teacher.errors import StartError, TeacherServiceError
from corte_teacher.loading import Teacher
from corte_teacher.logs import access
from corte_teacher.metrics import Metrics, serve_metrics
from corte_teacher.record import Observer
from corte_teacher.reloading import Reloading
from corte_teacher.service import Service
from corte_teacher.settings import Settings

log = logging.getLogger(__name__)

_OTHER_FILES: Final = 256  # model, accounts, logs, connections that are only refused
_GRACE_S = 20  # to finish what is in flight: with the drain's 5 below the 30 s of Compose and Kubernetes


def serve(settings: Settings, teacher: Teacher, announce: Callable[[str], None]) -> None:
    """Answer until SIGINT or SIGTERM; call `announce` with the base URL once the first forward is done.

    Raises StartError when a port is taken or the model does not answer.
    """
    with ExitStack() as opened:
        audit = None if settings.audit_log is None else AuditLog(settings.audit_log)
        observers: list[Observer] = [access]
        if audit is not None:
            opened.callback(audit.close)
            observers.append(audit)
        if settings.otel:
            from corte_teacher.tracing import tracer  # noqa: PLC0415 - an extra, imported only when asked for

            spans = tracer(None)
            opened.callback(spans.close)
            observers.append(spans)
        service = Service(settings, teacher.model, teacher.keys, teacher.quotas, observers)
        opened.callback(service.close)
        if settings.metrics_port is not None:
            metrics = _metrics_of(service)
            page = serve_metrics(metrics, settings.metrics_host, settings.metrics_port)
            opened.callback(page.close)
            observers.append(metrics.observe)
        reloading = Reloading(settings, teacher, service, () if audit is None else (audit.reopen,))
        _answer(settings, service, reloading, announce)


def _metrics_of(service: Service) -> Metrics:
    return Metrics(
        queue=lambda: service.inference.waiting,
        places=lambda: service.places.taken,
        ready=lambda: service.ready and not service.draining,
        revision=lambda: service.current.model.info.revision,
    )


def _answer(
    settings: Settings, service: Service, reloading: Reloading, announce: Callable[[str], None]
) -> None:
    listener = _bind(settings.host, settings.port)
    scheme = "http" if settings.tls_cert is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"{scheme}://{host}:{listener.getsockname()[1]}"
    bounds = Connections(
        head_timeout_s=settings.head_timeout_s,
        max_connections=settings.max_connections,
        max_body_bytes=settings.max_body_bytes,
    )
    _make_room(settings.max_connections)
    try:
        config = uvicorn.Config(
            create_app(service),
            # uvicorn asks of the type only that it can be called
            http=cast(type[asyncio.Protocol], protocol(bounds, service.observers)),
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
    life = _Life(settings, service, server, reloading)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(life.run(listener, lambda: announce(url)))
    if life.failure is not None:
        raise StartError(f"the model does not answer: {life.failure}")


class _Server(uvicorn.Server):
    """uvicorn's server, whose signals are its owner's business."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.begun = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own, then tell who waits for it."""
        await super().startup(sockets)
        self.begun.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signal."""
        yield


class _Life:
    """What happens to a service between its start and its end."""

    def __init__(self, settings: Settings, service: Service, server: _Server, reloading: Reloading) -> None:
        self._settings = settings
        self._service = service
        self._server = server
        self._reloading = reloading
        self._hurry = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.failure: TeacherServiceError | None = None

    async def run(self, listener: socket.socket, announce: Callable[[], None]) -> None:
        """Serve until told to end."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end, self._settings.drain_s)
        loop.add_signal_handler(signal.SIGINT, self._end, 0.0)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._start(self._reloading.all()))
        self._start(self._bring_up(announce))
        self._start(self._reloading.watch_keys())
        try:
            await self._server.serve(sockets=[listener])
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _bring_up(self, announce: Callable[[], None]) -> None:
        """Try the model out, then announce; a model that fails it ends the server."""
        try:
            await asyncio.to_thread(self._service.current.model.try_out, self._settings.tried_sizes)
        except TeacherServiceError as exc:
            self.failure = exc
            self._server.should_exit = True
            return
        await self._server.begun.wait()
        self._service.ready = True
        announce()

    def _end(self, drain_s: float) -> None:
        """Begin to end; at the second call do not wait any more."""
        if self._service.draining:
            self._hurry.set()
            return
        self._service.draining = True
        self._start(self._drain(drain_s))

    async def _drain(self, drain_s: float) -> None:
        """Serve on, so that whoever looks at readiness stops sending, then stop accepting."""
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._hurry.wait()
        self._server.should_exit = True

    def _start(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _make_room(connections: int) -> None:
    """Let this process have so many connections, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    granted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    if granted < wanted:
        log.warning(
            "the system allows %d open files, %d connections need %d: raise it, or lower --max-connections",
            granted,
            connections,
            wanted,
        )


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as exc:
        raise StartError(
            f"cannot listen on {host}:{port}: {exc.strerror or exc}: choose another --port"
        ) from exc
