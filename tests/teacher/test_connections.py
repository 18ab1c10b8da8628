"""Connections over raw sockets against uvicorn: heads, their bounds, bad HTTP, and bodies nobody reads."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from corte_protocol.errors import WIRE
from corte_protocol.routes import PROBLEM_TYPE
from corte_teacher.answers import problem
from corte_teacher.connections import REST, BoundedProtocol, Connections, protocol, refusal_bytes

LIMIT = 1 << 20
HUGE = 150 * LIMIT
BUFFER = 64 * 1024
READ = 32 * 1024
"""The most that one read takes from a receive buffer of 16 KiB, which Linux doubles."""
FRAMING = 512
"""Bytes of a head, and of the chunks' sizes."""
GET = b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
CHUNKED = b"POST /ok HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
SHORT = 0.2
LOOPS = ["asyncio", "uvloop"]


async def ok(request: Request) -> Response:
    """Say a word after the body."""
    await request.body()
    return PlainTextResponse("ok")


async def deny(request: Request) -> Response:
    """Refuse before the body."""
    return problem("unauthorized", "0" * 16)


async def trailers(request: Request) -> Response:
    """Read all and say the names of all fields."""
    await request.body()
    return PlainTextResponse(" ".join(request.headers.keys()))


async def slow(request: Request) -> Response:
    """Say a word later than a head may take."""
    await asyncio.sleep(3 * SHORT)
    return PlainTextResponse("slow")


async def count(request: Request) -> Response:
    """Count the body, refuse it at the first byte beyond the limit."""
    size = int(request.headers.get("content-length", "0"))
    if size <= LIMIT:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > LIMIT:
                break
    if size > LIMIT:
        answer = problem("too-large", "0" * 16)
        answer.headers["connection"] = "close"
        return answer
    return PlainTextResponse(str(size))


async def parts(request: Request) -> Response:
    """Say a word, and another one later."""

    async def words() -> AsyncIterator[str]:
        yield "one "
        await asyncio.sleep(SHORT)
        yield "two"

    return StreamingResponse(words())


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its port and its protocol class."""

    port: int
    built: type[BoundedProtocol]


@contextmanager
def running(bounds: Connections, loop: str = "asyncio", buffer: int = 0) -> Iterator[Server]:
    """uvicorn in a thread with the routes above; `buffer` is the receive buffer of its sockets."""
    routes = [
        Route(f"/{f.__name__}", f, methods=["GET", "POST"]) for f in (ok, deny, trailers, slow, count, parts)
    ]
    reader = protocol(bounds)
    built = reader.bounded
    config = uvicorn.Config(
        Starlette(routes=routes),
        http=cast(type[asyncio.Protocol], reader),
        loop=loop,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=1,
    )
    listener = socket.socket()
    if buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    waiting = threading.Event()
    while not server.started:
        assert thread.is_alive()
        waiting.wait(0.01)
    try:
        yield Server(listener.getsockname()[1], built)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture(scope="module", params=LOOPS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with a short time for heads, small heads and few connections, on each event loop."""
    with running(Connections(SHORT, 4096, 8, LIMIT), request.param) as server:
        yield server


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    """A connection to it."""
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        yield connection


def to_the_end(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


def one_answer(connection: socket.socket) -> bytes:
    """One answer with a content-length."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(1 << 16)
        assert piece, data
        data += piece
    length = int(data.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(data.split(b"\r\n\r\n", 1)[1]) < length:
        data += connection.recv(1 << 16)
    return data


def said(server: Server, request: bytes) -> bytes:
    """All that is said to some bytes, until the server closes."""
    with connected(server) as connection:
        connection.sendall(request)
        return to_the_end(connection)


def assert_refused(answer: bytes, code: str) -> dict[str, str]:
    """The answer is one problem document, the last of its connection; its headers are returned."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    wire = WIRE[code]
    assert lines[0].startswith(f"HTTP/1.1 {wire.status} ")
    assert headers["content-type"] == PROBLEM_TYPE
    assert headers["connection"] == "close"
    assert headers["content-length"] == str(len(body))
    assert {"server", "date"}.isdisjoint(headers)
    document = json.loads(body)
    request_id = document.pop("request_id")
    assert request_id == headers["x-request-id"] and len(bytes.fromhex(request_id)) == 8
    assert document == {"type": "about:blank", "title": wire.title, "status": wire.status, "code": code}
    return headers


def test_a_refusal_is_the_applications_document() -> None:
    """The body is byte for byte that of `problem`, the extra header is there."""
    answer = refusal_bytes("overloaded", "0123456789abcdef", {"retry-after": "1"})
    assert assert_refused(answer, "overloaded")["retry-after"] == "1"
    assert answer.endswith(bytes(problem("overloaded", "0123456789abcdef").body))


def test_bounds_are_above_nothing() -> None:
    """A bound of nought is an error."""
    with pytest.raises(ValueError, match="above 0"):
        Connections(head_timeout_s=0)


@pytest.mark.parametrize("start", [b"", b"G", b"\r\n", GET[:-2], GET[:-1]])
def test_a_head_that_does_not_end_is_timed_out(server: Server, start: bytes) -> None:
    """Wherever a head stops, even before its first byte, 408 comes and the connection ends."""
    assert_refused(said(server, start), "timeout")


def test_a_head_that_trickles_is_timed_out(server: Server) -> None:
    """Bytes that keep coming do not put the end off."""
    with connected(server) as connection:
        waiting = threading.Event()
        with contextlib.suppress(OSError):
            for at in range(1000):
                connection.sendall(GET[at : at + 1] if at < 4 else b"x")
                connection.settimeout(0.01)
                with contextlib.suppress(TimeoutError):
                    if connection.recv(1, socket.MSG_PEEK):
                        break
                waiting.wait(0.01)
        connection.settimeout(20)
        assert at < 999
        assert_refused(to_the_end(connection), "timeout")


def test_the_next_head_of_a_connection_is_timed_out_too(server: Server) -> None:
    """A request that is whole is answered, and half a one after it is refused, alone or at once."""
    with connected(server) as connection:
        connection.sendall(GET)
        assert one_answer(connection).endswith(b"\r\n\r\nok")
        connection.sendall(GET[:9])
        assert_refused(to_the_end(connection), "timeout")
    first, _, second = said(server, GET + GET[:9]).partition(b"\r\n\r\nok")
    assert first.startswith(b"HTTP/1.1 200")
    assert_refused(second, "timeout")


def test_a_slow_answer_is_no_slow_head(server: Server) -> None:
    """The time of an answer does not count, nor does half a head that waits behind it."""
    with connected(server) as connection:
        connection.sendall(GET.replace(b"/ok", b"/slow") + GET[:9])
        assert one_answer(connection).endswith(b"slow")
        connection.sendall(GET[9:])
        assert one_answer(connection).endswith(b"ok")


def test_an_idle_connection_is_kept(server: Server) -> None:
    """Between requests only uvicorn's keep-alive timer runs."""
    with connected(server) as connection:
        for _ in range(3):
            connection.sendall(GET)
            assert one_answer(connection).endswith(b"ok")
            threading.Event().wait(2 * SHORT)


def test_an_answer_is_one_packet(server: Server) -> None:
    """Head and body of each answer are read at once."""
    with connected(server) as connection:
        for _ in range(50):
            connection.sendall(GET)
            piece = connection.recv(1 << 16)
            assert piece.startswith(b"HTTP/1.1 200") and piece.endswith(b"\r\n\r\nok")


def test_a_head_without_a_body_is_sent(server: Server) -> None:
    """HEAD is answered, and what comes next on its connection as well, also where it is the last."""
    with connected(server) as connection:
        connection.sendall(GET.replace(b"GET", b"HEAD") + GET)
        answers = one_answer(connection)
        while not answers.endswith(b"ok"):
            answers += connection.recv(1 << 16)
        assert answers.count(b"HTTP/1.1 200") == 2
        connection.sendall(LAST.replace(b"GET", b"HEAD"))
        assert to_the_end(connection).startswith(b"HTTP/1.1 200")


def test_parts_of_an_answer_are_sent_when_they_are_there(server: Server) -> None:
    """The head comes with the first part, which does not wait for the second."""
    with connected(server) as connection:
        connection.sendall(LAST.replace(b"/ok", b"/parts"))
        assert connection.recv(1 << 16).endswith(b"one \r\n")
        assert to_the_end(connection) == b"3\r\ntwo\r\n0\r\n\r\n"


@pytest.mark.parametrize("pieces", [1, 3, 700])
def test_the_size_of_a_head_is_exact(server: Server, pieces: int) -> None:
    """4096 bytes pass and 4097 do not, in any pieces, also as the second head of a connection."""
    for size in (4096, 4097):
        start = LAST[:-2] + b"x: "
        head = start + b"y" * (size - len(start) - 4) + b"\r\n\r\n"
        for before in (b"", GET, CHUNKED):
            data = before + head
            step = -(-len(data) // pieces)
            with connected(server) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for at in range(0, len(data), step):
                    connection.sendall(data[at : at + step])
                answer = to_the_end(connection)
            if before:
                assert answer.startswith(b"HTTP/1.1 200 ")
                answer = answer.partition(b"\r\n\r\nok")[2]
            if size == 4096:
                assert answer.endswith(b"\r\n\r\nok") and answer.count(b"HTTP/1.1 ") == 1
            elif before != CHUNKED:  # where its end was met is known to 4 KiB
                assert_refused(answer, "head-too-large")


@pytest.mark.parametrize("endless", ["url", "name", "value", "fields", "empty lines", "trailer", "extension"])
def test_what_is_no_body_has_an_end(server: Server, endless: str) -> None:
    """A url, a field, fields, empty lines, trailers or chunk extensions without end are cut off."""
    chunked = b"POST /trailers HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1"
    start, more = {
        "url": (b"GET /", b"y"),
        "name": (GET[:-2], b"y"),
        "value": (GET[:-2] + b"x:", b"y"),
        "fields": (GET[:-2], b"a: b\r\n"),
        "empty lines": (b"", b"\r\n"),
        "trailer": (chunked + b"\r\na\r\n0\r\n", b"a: b\r\n"),
        "extension": (chunked + b";", b"y"),
    }[endless]
    before = server.built.taken
    answer = said(server, start + more * (40_000 // len(more)))
    assert_refused(answer, "head-too-large")
    assert server.built.taken - before <= 45_000


BAD = {
    "noise": bytes(range(256)),
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "method": b"F00 / HTTP/1.1\r\n\r\n",
    "version": b"GET / HTTP/9.9\r\n\r\n",
    "name": b"GET /ok HTTP/1.1\r\na b: c\r\n\r\n",
    "bare newlines": b"GET /ok HTTP/1.1\nhost: x\n\n",
    "two lengths": b"POST /count HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na",
    "length and chunks": CHUNKED.replace(b"host: x", b"content-length: 1"),
    "negative length": b"POST /count HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    "vast length": b"POST /count HTTP/1.1\r\ncontent-length: " + b"9" * 40 + b"\r\n\r\n",
    "no path": b"GET http:// HTTP/1.1\r\n\r\n",
    "not ascii": b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_http_gets_the_fixed_text(server: Server, name: str) -> None:
    """Bytes that are no HTTP get 400, never a parser's text."""
    assert_refused(said(server, BAD[name]), "bad-request")


@pytest.mark.parametrize("size", [b"zz", b"-1", b"f" * 17, b"0x1", b" "])
def test_a_bad_chunk_is_refused_while_the_application_waits(server: Server, size: bytes) -> None:
    """A body that breaks after its head gets the same 400, once."""
    head = b"POST /count HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"
    assert_refused(said(server, head + size + b"\r\nabc\r\n"), "bad-request")


def test_bad_http_waits_its_turn(server: Server) -> None:
    """Answers to what was right come first and whole, then the refusal."""
    right = GET.replace(b"/ok", b"/slow") + GET
    for wrong in (b"\x00\x01", b"POST /count HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"):
        answer = said(server, right + wrong)
        assert answer.count(b"HTTP/1.1 ") == 3
        assert answer.index(b"\r\n\r\nslow") < answer.index(b"\r\n\r\nok")
        assert_refused(answer.partition(b"\r\n\r\nok")[2], "bad-request")


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c", b"TLS/1.0"])
def test_an_upgrade_is_an_ordinary_request(server: Server, upgrade: bytes) -> None:
    """It is answered as if nothing had been asked, and so is the next request, together or after it."""
    asked = b"host: x\r\nconnection: upgrade\r\nupgrade: " + upgrade + b"\r\n\r\n"
    body = b"POST /count HTTP/1.1\r\ncontent-length: 3\r\n" + asked + b"abc"
    chunks = b"POST /count HTTP/1.1\r\ntransfer-encoding: chunked\r\n" + asked + b"3\r\nabc\r\n0\r\n\r\n"
    with connected(server) as connection:
        connection.sendall(b"GET /ok HTTP/1.1\r\n" + asked)
        assert one_answer(connection).endswith(b"\r\n\r\nok")
        for request in (body, chunks):
            connection.sendall(request)
            assert one_answer(connection).endswith(b"\r\n\r\n3")
        connection.sendall(b"GET /ok HTTP/1.1\r\n" + asked + body + chunks + LAST)
        answer = to_the_end(connection)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200"] * 4


def test_connections_beyond_the_limit_are_told(server: Server) -> None:
    """The ninth connection gets 503, the others go on, and a place that is left is taken again."""
    with contextlib.ExitStack() as opened:
        kept = [opened.enter_context(connected(server)) for _ in range(8)]
        for connection in kept:
            connection.sendall(GET)
            assert one_answer(connection).endswith(b"ok")
        assert assert_refused(said(server, GET), "overloaded")["retry-after"] == "1"
        for connection in kept:
            connection.sendall(GET)
            assert one_answer(connection).endswith(b"ok")
    answer = b""
    for _ in range(200):
        answer = said(server, LAST)
        if answer.endswith(b"ok"):
            break
        threading.Event().wait(0.02)
    assert answer.endswith(b"ok")


def test_trailers_are_no_fields(server: Server) -> None:
    """A field after the body reaches no application."""
    head = b"POST /trailers HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = said(server, head + b"1\r\na\r\n0\r\nauthorization: Bearer x\r\n\r\n")
    assert b"\r\n\r\nhost connection transfer-encoding" in answer and b"authorization" not in answer


def _endless(connection: socket.socket, pieces: Iterator[bytes], sent: list[int]) -> None:
    with contextlib.suppress(OSError):
        for piece in pieces:
            sent.append(connection.send(piece))  # noqa: PERF401 - what was sent counts when an error ends it


def _declared() -> Iterator[bytes]:
    yield b"content-length: %d\r\n\r\n" % HUGE
    yield from (bytes(BUFFER) for _ in range(HUGE // BUFFER))


def _chunked() -> Iterator[bytes]:
    yield b"transfer-encoding: chunked\r\n\r\n"
    yield from (b"%x\r\n%b\r\n" % (BUFFER, bytes(BUFFER)) for _ in range(HUGE // BUFFER))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("route", "code", "body", "limit"),
    [
        ("count", "too-large", _declared, READ),
        ("count", "too-large", _chunked, LIMIT),
        ("deny", "unauthorized", _declared, READ),
        ("deny", "unauthorized", _chunked, READ),
    ],
)
def test_a_body_nobody_reads_is_not_taken(
    loop: str, route: str, code: str, body: Callable[[], Iterator[bytes]], limit: int
) -> None:
    """Of 150 MB at most 64 KiB beyond the limit leave the kernel's buffers, and the answer is read."""
    with (
        running(Connections(max_body_bytes=LIMIT), loop, 16 * 1024) as server,
        connected(server) as connection,
    ):
        connection.sendall(b"POST /%b HTTP/1.1\r\nhost: x\r\n" % route.encode())
        sent: list[int] = []
        sender = threading.Thread(target=_endless, args=(connection, body(), sent))
        sender.start()
        answer = to_the_end(connection)
        sender.join(20)
        assert not sender.is_alive()
        head = answer.partition(b"\r\n\r\n")[0]
        assert head.startswith(b"HTTP/1.1 %d " % WIRE[code].status) and b"connection: close" in head.lower()
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == code
        assert sum(sent) < HUGE // 10
        assert server.built.taken <= limit + REST + FRAMING


def test_a_small_body_nobody_reads_keeps_the_connection(server: Server) -> None:
    """What is left of a small body is dropped, and the next request is answered on the same connection."""
    head = b"POST /deny HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n"
    with connected(server) as connection:
        for _ in range(2):
            connection.sendall(head)
            assert b"connection: close" not in one_answer(connection)
            connection.sendall(bytes(60_000))
        connection.sendall(GET)
        assert one_answer(connection).endswith(b"ok")
        connection.sendall(head)
        one_answer(connection)
        connection.sendall(b"a")
        assert to_the_end(connection) == b""  # the rest never came


def test_a_client_that_was_not_told_to_continue_is_not_waited_for(server: Server) -> None:
    """A refusal instead of 100 ends the connection: whatever came next could be body or request."""
    head = b"POST /deny HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(GET)
    with connected(server) as connection:
        connection.sendall(head)
        assert connection.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 401"
        connection.sendall(GET)
        answer = to_the_end(connection)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer
