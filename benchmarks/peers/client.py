"""A closed loop of HTTP/1.1 clients that costs next to nothing: kept-alive sockets, one thread, every answer
compared. A process of its own: `python -m peers.client`, a `Job` as JSON on standard input, a `Cell` back.

Strategy: requests are built once; per request only the eight bytes of the JPEG's comment change. Answers are
compared as whole bytes. The loop begins with an idle server, asks for so many seconds, and waits for all that
is still asked, so that the server's processor time, read before and after, belongs to the answers counted.
"""

import json
import selectors
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from corte_protocol import CorteError, decode_prediction
from peers.processes import busy_ns, cpu_ns
from peers.work import HEIGHT, MARK_AT, WIDTH, Work, read_work

_PATIENCE_S: Final = 60.0
_HEAD: Final = 1 << 14
_PAUSE_S: Final = 0.05  # after a failure, so that a dead server is not hammered


@dataclass(frozen=True, slots=True)
class Job:
    """Whom to ask, how many at once, for how long. `root`: the supervisor of the server. `frame`: it answers
    a frame of ours, not bare labels."""

    port: int
    path: str
    headers: dict[str, str]
    frame: bool
    work: str
    root: int
    clients: int
    seconds: float
    warm_s: float


@dataclass(frozen=True, slots=True)
class Cell:
    """What one server did for one number of clients. Times of requests are in ms, in order of their ends.

    `right` were answered right, all told; `within` of them in the first `seconds`. `wrong`: answered 200 with
    another label map. `failed`: anything else, by kind. Processor times are seconds; `neighbours` is what
    everyone else on the machine took, in cores.
    """

    seconds: float
    right: int
    within: int
    wrong: int
    failed: dict[str, int]
    latencies: list[float]
    server_cpu_s: float
    client_cpu_s: float
    neighbours: float

    @property
    def cost_ms(self) -> float:
        """The server's processor time per right answer, ms; infinite where there was none."""
        return 1000.0 * self.server_cpu_s / self.right if self.right else float("inf")

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return self.within / self.seconds


Judge = Callable[[int, memoryview], bool]
"""Whether the body is the right answer to the picture of that index."""


def judge_labels(truth: Sequence[bytes]) -> Judge:
    """Bodies are label maps."""
    return lambda index, body: bytes(body) == truth[index]  # comparing views goes byte by byte


def judge_frames(truth: Sequence[bytes]) -> Judge:
    """Bodies are frames. One that was decoded and found right is compared as bytes from then on."""
    known: list[set[bytes]] = [set() for _ in truth]

    def right(index: int, body: memoryview) -> bool:
        frame = bytes(body)
        if frame in known[index]:
            return True
        try:
            answer = decode_prediction(frame, max_pixels=HEIGHT * WIDTH, max_k=1)
        except CorteError:
            return False
        if answer.classes.tobytes() != truth[index]:
            return False
        known[index].add(frame)
        return True

    return right


@dataclass(slots=True)
class Tally:
    """Counts of one stretch of asking; `ends` are seconds on the monotonic clock."""

    ends: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    wrong: int = 0
    failed: dict[str, int] = field(default_factory=dict)

    def fail(self, kind: str) -> None:
        """One more of a kind."""
        self.failed[kind] = self.failed.get(kind, 0) + 1


class Broken(Exception):
    """The connection, or what came over it, is of no more use."""


class Connection:
    """One socket; it is opened at the first request, and again after it broke."""

    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._socket: socket.socket | None = None
        self._buffer = bytearray(_HEAD + 2 * HEIGHT * WIDTH)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._begins = self._ends = 0  # of the body, known once the head is here
        self._closes = False
        self.status = 0
        self.picture = 0
        self.began = 0.0

    def ask(self, request: bytearray, picture: int, selector: selectors.BaseSelector) -> None:
        """Send a request. Raises OSError."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=_PATIENCE_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # a whole request fits, so that sending never waits for the server to read
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            selector.register(self._socket, selectors.EVENT_READ, self)
        self._filled = self._begins = self._ends = self.status = 0
        self.picture = picture
        self.began = time.perf_counter()
        self._socket.sendall(request)

    def read(self) -> memoryview | None:
        """What the server sent so far: the body, if that was all of it. Raises OSError or Broken."""
        assert self._socket is not None
        got = self._socket.recv_into(self._view[self._filled :])
        if not got:
            raise Broken("closed")
        self._filled += got
        if not self._begins:
            self._read_head()
        if not self._begins or self._filled < self._ends:
            return None
        return self._view[self._begins : self._ends]

    def finish(self, selector: selectors.BaseSelector) -> None:
        """The answer is dealt with; a server that wants to close, closes."""
        if self._closes:
            self.close(selector)

    def close(self, selector: selectors.BaseSelector) -> None:
        """Forget the socket."""
        if self._socket is not None:
            with suppress(KeyError):
                selector.unregister(self._socket)
            self._socket.close()
            self._socket = None

    def _read_head(self) -> None:
        end = self._buffer.find(b"\r\n\r\n", 0, self._filled)
        if end < 0:
            if self._filled > _HEAD:
                raise Broken("endless head")
            return
        head = bytes(self._view[:end]).decode("latin-1").lower().split("\r\n")
        fields = dict(line.split(":", 1) for line in head[1:])
        length = fields.get("content-length", "").strip()
        if not length.isdecimal() or int(length) > 2 * HEIGHT * WIDTH:
            raise Broken("no usable content-length")
        self.status = int(head[0].split()[1])
        self._closes = fields.get("connection", "").strip() == "close"
        self._begins = end + 4
        self._ends = self._begins + int(length)


class Asker:
    """`clients` connections that ask one after the other, over and over."""

    def __init__(self, job: Job, work: Work) -> None:
        self._requests = [_request(job, jpeg) for jpeg in work.pictures]
        self._judge = (judge_frames if job.frame else judge_labels)(work.truth)
        self._selector = selectors.DefaultSelector()
        self._connections = [Connection(job.port) for _ in range(job.clients)]
        self._count = time.time_ns()  # in the comment: another process of this kind sends other bytes

    def stretch(self, seconds: float) -> Tally:
        """Ask for so long, then wait for what is still asked. Raises TimeoutError where nothing comes."""
        tally = Tally()
        until = time.perf_counter() + seconds
        asking = sum(self._ask(connection, tally) for connection in self._connections)
        while asking:
            ready = self._selector.select(_PATIENCE_S)
            if not ready:
                raise TimeoutError(f"no answer for {_PATIENCE_S:.0f} s")
            for key, _ in ready:
                if self._answered(key.data, tally):
                    asking -= 1
                    if time.perf_counter() < until:
                        asking += self._ask(key.data, tally)
        return tally

    def close(self) -> None:
        """Close everything."""
        for connection in self._connections:
            connection.close(self._selector)
        self._selector.close()

    def _ask(self, connection: Connection, tally: Tally) -> int:
        """1 if the request is on its way."""
        self._count += 1
        picture = self._count % len(self._requests)
        request, mark = self._requests[picture]
        request[mark : mark + 8] = self._count.to_bytes(8, "big")
        try:
            connection.ask(request, picture, self._selector)
        except OSError as exc:
            self._fail(connection, tally, type(exc).__name__)
            return 0
        return 1

    def _answered(self, connection: Connection, tally: Tally) -> bool:
        """Whether this was the end of a request."""
        try:
            body = connection.read()
        except (OSError, Broken) as exc:
            self._fail(connection, tally, str(exc) if isinstance(exc, Broken) else type(exc).__name__)
            return True
        if body is None:
            return False
        now = time.perf_counter()
        if connection.status != 200:
            tally.fail(str(connection.status))
        elif not self._judge(connection.picture, body):
            tally.wrong += 1
        else:
            tally.ends.append(now)
            tally.latencies.append(1000.0 * (now - connection.began))
        connection.finish(self._selector)
        return True

    def _fail(self, connection: Connection, tally: Tally, kind: str) -> None:
        tally.fail(kind)
        connection.close(self._selector)
        time.sleep(_PAUSE_S)


def measure(job: Job, work: Work) -> Cell:
    """Warm the server up, then ask for `job.seconds`. Raises TimeoutError where it does not answer."""
    asker = Asker(job, work)
    try:
        if job.warm_s > 0:
            asker.stretch(job.warm_s)
        server, others, own = cpu_ns(job.root), busy_ns(), time.process_time_ns()
        began = time.perf_counter()
        tally = asker.stretch(job.seconds)
        took = time.perf_counter() - began
        client_s = (time.process_time_ns() - own) / 1e9
        server_s = (cpu_ns(job.root) - server) / 1e9
        busy_s = (busy_ns() - others) / 1e9
    finally:
        asker.close()
    return Cell(
        job.seconds,
        len(tally.ends),
        sum(end <= began + job.seconds for end in tally.ends),
        tally.wrong,
        tally.failed,
        [round(value, 3) for value in tally.latencies],
        server_s,
        client_s,
        max(0.0, (busy_s - server_s - client_s) / took),
    )


def _request(job: Job, jpeg: bytes) -> tuple[bytearray, int]:
    """The request for a picture, and where its comment's eight bytes begin."""
    lines = [
        f"POST {job.path} HTTP/1.1",
        f"host: 127.0.0.1:{job.port}",
        "content-type: image/jpeg",
        f"content-length: {len(jpeg)}",
        *(f"{name}: {value}" for name, value in job.headers.items()),
    ]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    return bytearray(head + jpeg), len(head) + MARK_AT


def main() -> None:
    """One cell."""
    job = Job(**json.load(sys.stdin))
    json.dump(asdict(measure(job, read_work(Path(job.work)))), sys.stdout)


if __name__ == "__main__":
    main()
