"""Connections: how long and how large a request's head may be, how many there are, and how they end.

uvicorn waits for a head for ever, reads the body of a request that was refused to its end, and has texts of
its own for bytes that are no HTTP. Here a connection that goes wrong before the application is asked gets a
row of `errors.WIRE`, and one that still sends after its answer is closed in a way that lets it read that
answer: half-closed, a little more is taken and dropped, then closed (RFC 9112, 9.6).
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from corte_protocol.errors import WIRE
from corte_protocol.routes import REQUEST_ID_HEADER
from corte_teacher.answers import problem
from corte_teacher.extensions import ON_GONE
from corte_teacher.gathering import Gathering
from corte_teacher.observing import tell
from corte_teacher.record import Observer, Record

REST = 64 * 1024
"""Bytes that are taken and dropped after an answer, at most, before a connection is closed."""
LINGER_S = 1.0
"""Seconds that a client has to read its answer before a connection is closed on bytes it still sends."""
_READ = 64 * 1024
_STEP = 4096  # of a chunked body, whose end is known only once it is passed
_REFUSED = 128  # connections beyond the limit that read their 503; more are dropped without one
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Connections:
    """The bounds of a listener's connections, in seconds, bytes and connections, all above 0.

    `max_body_bytes` is what the application takes. Raises ValueError for a bound that is not above 0.
    """

    head_timeout_s: float = 10.0
    max_head_bytes: int = 32 * 1024
    max_connections: int = 1024
    max_body_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        if min(self.head_timeout_s, self.max_head_bytes, self.max_connections, self.max_body_bytes) <= 0:
            raise ValueError("each bound of a connection must be above 0")


def refusal_bytes(code: str, request_id: str, headers: Mapping[str, str]) -> bytes:
    """A whole HTTP/1.1 answer: the problem document of one row of `errors.WIRE`, after which is closed."""
    answer = problem(code, request_id)
    answer.headers.update({REQUEST_ID_HEADER: request_id, "connection": "close", **headers})
    lines = (name + b": " + value + b"\r\n" for name, value in answer.raw_headers)
    return b"".join((STATUS_LINE[answer.status_code], *lines, b"\r\n", bytes(answer.body)))


def protocol(settings: Connections, told: Sequence[Observer] = ()) -> "type[Reader]":
    """The protocol class for `uvicorn.Config(http=...)` of one server; `told` hear of what it refuses."""

    class Bounded(BoundedProtocol):
        bounds = settings
        observers = told
        taken = 0
        refused = 0

    class OfServer(Reader):
        bounded = Bounded
        buffer = memoryview(bytearray(_READ))

    return OfServer


class Reader(asyncio.BufferedProtocol):
    """Between a transport and a `BoundedProtocol`: reads no more at once than that one wants.

    A transport fills whatever buffer it has, uvloop's holds 250 KiB, unless the protocol brings its own. All
    connections of a server share one, because nothing happens between the filling and the parsing.
    """

    bounded: ClassVar[type["BoundedProtocol"]]
    buffer: ClassVar[memoryview]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._inner = self.bounded(*args, **kwargs)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `BoundedProtocol`, as for all that follow."""
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._inner.connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self.buffer[: self._inner.wanted]

    def buffer_updated(self, nbytes: int) -> None:
        """So many have come."""
        self._inner.data_received(self.buffer[:nbytes])

    def eof_received(self) -> None:
        """No more will come."""
        self._inner.eof_received()

    def pause_writing(self) -> None:
        """The client does not read."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._inner.resume_writing()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol within `bounds`. Made by a `Reader`, used by the event loop."""

    bounds: ClassVar[Connections]
    observers: ClassVar[Sequence[Observer]]
    taken: ClassVar[int]
    """Bytes read from the sockets of all connections."""
    refused: ClassVar[int]
    """Connections beyond the limit that are open to read their 503."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._application = self.app
        self._timer: asyncio.TimerHandle | None = None
        self._owed = 0  # requests whose head was read and whose answer is not complete
        self._beyond = False
        self.on_gone: Callable[[], None] | None = None
        self._postponed: str | None = None  # to be refused with, once all that is owed is sent
        self._last = False  # the answer that is being sent is the last
        self._ending = False
        self._room = REST
        self._in_head = True
        self._begun = False
        self._plain = 0  # bytes in a row that were no body: a head so far, or trailers and chunk extensions
        self._tail = b""
        self._left: int | None = None  # bytes of the body still to come; None for chunks
        self._body = 0
        self._framing: tuple[bytes, bytes] | None = None
        self._skipped = False  # the parser takes a request that asks for an upgrade to have no body
        self._repeated = False  # a head that is parsed again, for its body

    # What the transport tells

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a head, or refuse."""
        self.gathering = Gathering(transport)
        if len(self.connections) >= self.bounds.max_connections:
            self.transport = transport
            if self.refused >= _REFUSED:
                transport.abort()
                return
            self._beyond = True
            type(self).refused += 1
            self._say("overloaded", {"retry-after": "1"})
            return
        super().connection_made(self.gathering)
        self._wait(self.bounds.head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._ending = True
        self._stop_waiting()
        if self._beyond:
            type(self).refused -= 1
        super().connection_lost(exc)
        if self.on_gone is not None:
            self.on_gone()

    @property
    def wanted(self) -> int:
        """How many bytes to read at once, at most."""
        if self._ending or self._postponed:
            return max(1, self._room)
        return max(1, self.bounds.max_body_bytes + REST - self._body)

    def data_received(self, data: bytes | memoryview) -> None:
        """Parse, at most one head or body at a time, so that each is measured."""
        fresh = not self._begun and not self._plain
        type(self).taken += len(data)
        if self._ending or self._postponed:
            self._drop(len(data))
            return
        self._unset_keepalive_if_required()
        if fresh and self._in_head:
            self._stop_waiting()
        rest = memoryview(data)
        while rest and not self._ending and not self._postponed:
            size = self._portion(rest)
            self._feed(rest[:size])
            rest = rest[size:]
        self._watch()

    def shutdown(self) -> None:
        """Close once what is owed is sent; an answer that is being read is left to be read."""
        if not self._ending:
            super().shutdown()

    # What the parser tells

    def on_message_begin(self) -> None:
        """A head begins."""
        if self._repeated:
            return
        self._begun = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; trailers are dropped, uvicorn would take them for fields of the head."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer. Whatever is raised here is answered as bad HTTP."""
        if self._repeated:
            return
        answering = _Answering(self, self._application)
        self.app = answering
        super().on_headers_complete()
        answering.cycle = self.cycle
        self._owed += 1
        self._in_head = self._begun = False
        self._plain = self._body = 0
        self._tail = b""
        fields = (field for field in self.headers if field[0] in (b"content-length", b"transfer-encoding"))
        self._framing = next(fields, None)
        name, value = self._framing or (b"", b"")
        self._left = int(value) if name == b"content-length" else None
        self._skipped = self.parser.should_upgrade() and self._framing is not None
        self._stop_waiting()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._plain = 0
        self._body += len(body)
        if self._left is not None:
            self._left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next bytes are a head."""
        if self._skipped:
            return
        self._in_head = True
        self._plain = self._body = 0
        self._stop_waiting()
        if self.cycle.response_complete and not self._ending:  # uvicorn's timer went at the body's first byte
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is out: go on with the next request, or end."""
        self.gathering.release()
        self._owed -= 1
        self.on_gone = None
        super().on_response_complete()
        if self._last:
            self._end()
        elif self._postponed and not self._owed:
            self._say(self._postponed)
        else:
            self._watch()

    def _should_upgrade(self) -> bool:
        return False

    # Measuring

    def _portion(self, data: memoryview) -> int:
        """How many bytes to parse before looking again."""
        if not self._in_head:
            return min(len(data), _STEP if self._left is None else self._left)
        data = data[: self.bounds.max_head_bytes - self._plain]
        seen = self._tail + bytes(data)
        end = seen.find(_HEAD_END)
        self._tail = seen[-3:]
        return len(data) if end < 0 else end + len(_HEAD_END) - (len(seen) - len(data))

    def _feed(self, data: memoryview) -> None:
        """Parse, and refuse what is no HTTP or has too much that is no body."""
        owed, body, in_head = self._owed, self._body, self._in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._pass_upgrade()
            if rest := data[exc.args[0] :]:
                self._feed(rest)
            return
        except httptools.HttpParserError:
            self._refuse("bad-request")
            return
        if (owed, body, in_head) == (self._owed, self._body, self._in_head):
            self._plain += len(data)
            if self._plain >= self.bounds.max_head_bytes:
                self._refuse("head-too-large")

    def _pass_upgrade(self) -> None:
        """Nothing is upgraded: what follows is the request's body, which the parser must be told of again."""
        if self._skipped and self._framing is not None:
            self._skipped, self._repeated = False, True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b": ".join(self._framing) + _HEAD_END)
            self._repeated = False

    # Waiting

    @property
    def unread(self) -> bool:
        """Whether more of the body of the newest request may come than is worth dropping."""
        return self._left is None or self._left > REST

    def _watch(self) -> None:
        """With no answer owed, what was begun must be finished in time: a head, or a body to be dropped."""
        begun = self._begun or self._plain or not self._in_head
        if begun and not self._owed and not self._ending and self._timer is None:
            self._unset_keepalive_if_required()
            self._wait(self.bounds.head_timeout_s)

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._too_late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if self._ending or not self._in_head:
            self.transport.abort()
        else:
            self._refuse("timeout")

    # Ending

    def last(self) -> None:
        """The answer that is being sent is the last of this connection."""
        self._last = True

    def _refuse(self, code: str) -> None:
        """Refuse the request that is being read; answers to those before it go out first."""
        broken = not self._in_head
        if broken and self.pipeline:  # its turn has not come
            self.pipeline.popleft()
            self._owed -= 1
        elif broken and self._owed:  # the application waits for its body
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._owed = 0
            if self.cycle.response_started:
                self._end()
                return
        if self._owed:
            self._postponed = code
        else:
            self._say(code)

    def _say(self, code: str, headers: Mapping[str, str] | None = None) -> None:
        """Write a refusal and end."""
        request_id = secrets.token_hex(8)
        self.transport.write(refusal_bytes(code, request_id, headers or {}))
        tell(self.observers, Record(request_id, "unknown", time.time(), 0.0, WIRE[code].status, code))
        self._end()

    def _end(self) -> None:
        """Close, but not on bytes that are on their way: that would reset the answer (RFC 9112, 9.6)."""
        if self._ending or self.transport.is_closing():
            return
        self._ending = True
        self._unset_keepalive_if_required()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._room = min(REST, max(0, self.bounds.max_body_bytes + REST - self._body))
        self._wait(LINGER_S)
        self._drop(0)

    def _drop(self, count: int) -> None:
        """Bytes came that nobody wants; once they are too many, no more are read."""
        self._room -= count
        if self._room <= 0:
            self.transport.pause_reading()
        elif self._ending:
            self.transport.resume_reading()


class _Answering:
    """The application, with an eye on what of the request is not read when its answer begins."""

    def __init__(self, connection: BoundedProtocol, app: ASGIApp) -> None:
        self._connection = connection
        self._app = app
        self.cycle: RequestResponseCycle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            cycle = self.cycle
            assert cycle is not None
            if message["type"] != "http.response.start":
                await send(message)
                return
            self._connection.gathering.hold()
            if not cycle.more_body:
                await send(message)
                return
            # a client that was not told to continue may send no body, and its next request in its place
            if cycle.waiting_for_100_continue or self._connection.unread:
                cycle.keep_alive = False
            await send(message)
            if not cycle.keep_alive:
                cycle.keep_alive = True  # or uvicorn would close at once
                self._connection.last()

        scope["extensions"] = {ON_GONE: self._tell_when_gone}
        await self._app(scope, receive, sent)

    def _tell_when_gone(self, tell: Callable[[], None]) -> None:
        self._connection.on_gone = tell
