"""A small real teacher for tests of the student: it speaks the protocol, counts, and misbehaves on request.

Answers follow from the pixels alone (class = red channel modulo the classes), so any frame can be checked.
"""

import io
import json
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from PIL import Image as Pillow
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from corte_protocol import Disclosure, Image, Limits, Prediction, TeacherInfo, encode_info, encode_prediction
from corte_protocol.errors import WIRE
from corte_protocol.routes import DEADLINE_HEADER, DISCLOSURE_QUERY, FRAME_TYPE, INFO, PREDICT, PROBLEM_TYPE
from corte_protocol.types import UInt8
from loopback import served
from pictures import until

_MARGIN = Disclosure(2, 8)
CLASSES = ("road", "car", "sky")
Fault = Callable[[Request], Awaitable[Response]]


def teacher_info(
    revision: str = "r1", teacher: str = "faulty", disclosure: Disclosure = _MARGIN
) -> TeacherInfo:
    """The info of the teacher below."""
    colors = ((0, 0, 0), (1, 1, 1), (2, 2, 2))
    return TeacherInfo(1, teacher, revision, CLASSES, colors, disclosure, Limits(1 << 20, 1 << 20))


def expected(pixels: UInt8, level: Disclosure, revision: str = "r1") -> Prediction:
    """What the teacher below answers to `pixels`."""
    best = pixels[:, :, 0] % len(CLASSES)
    classes = np.stack([(best + k) % len(CLASSES) for k in range(level.top_k)]).astype(np.uint8)
    scores = np.stack([np.full(best.shape, s, np.uint8) for s in (150, 60, 30)])[: level.top_k]
    return Prediction(classes, scores if level.prob_bits else None, revision)


def problem(code: str, headers: Mapping[str, str] | None = None) -> Fault:
    """Answer with this row of the wire's table."""

    async def fail(request: Request) -> Response:
        row = WIRE[code]
        body = json.dumps({"title": row.title, "status": row.status, "code": code})
        return Response(body, row.status, headers, PROBLEM_TYPE)

    return fail


def raw(
    body: bytes, status: int = 200, media_type: str = FRAME_TYPE, headers: Mapping[str, str] | None = None
) -> Fault:
    """Answer with these bytes."""

    async def answer(request: Request) -> Response:
        return Response(body, status, headers, media_type)

    return answer


@dataclass
class FaultyTeacher:
    """The state of one server. `faults` are used up, one a prediction, before it answers properly."""

    revision: str = "r1"
    key: str | None = None
    faults: deque[Fault] = field(default_factory=deque)
    info_faults: deque[Fault] = field(default_factory=deque)
    asked: Counter[str] = field(default_factory=Counter)
    """Proper answers begun, by pixel digest."""
    attempts: int = 0
    bodies: list[bytes] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    deadlines: list[str | None] = field(default_factory=list)
    """What each question said of its deadline, in milliseconds."""
    hold_after: int | None = None
    """Answers after this many wait for `go_on`."""
    away_after: int | None = None
    """After this many proper answers it is overloaded, until this is None again."""
    changes_after: int | None = None
    """After this many proper answers its revision is r2."""
    go_on: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    async def info(self, request: Request) -> Response:
        """GET /v1/info."""
        self.targets.append(str(request.url))
        if self.info_faults:
            return await self.info_faults.popleft()(request)
        if self._stranger(request):
            return await problem("unauthorized")(request)
        return Response(encode_info(teacher_info(self.revision)), media_type="application/json")

    async def predict(self, request: Request) -> Response:
        """POST /v1/predict."""
        body = await request.body()
        self.attempts += 1
        self.bodies.append(body)
        self.targets.append(str(request.url))
        self.deadlines.append(request.headers.get(DEADLINE_HEADER))
        if self.faults:
            return await self.faults.popleft()(request)
        if self.away_after is not None and self.asked.total() >= self.away_after:
            return await problem("overloaded", {"Retry-After": "0"})(request)
        if self._stranger(request):
            return await problem("unauthorized")(request)
        with Pillow.open(io.BytesIO(body)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        if self.changes_after is not None and self.asked.total() >= self.changes_after:
            self.revision = "r2"
        self.asked[Image(pixels).digest] += 1
        if self.hold_after is not None and self.asked.total() > self.hold_after:
            await until(self.go_on.is_set)
        level = Disclosure.parse(request.query_params[DISCLOSURE_QUERY], len(CLASSES))
        return Response(encode_prediction(expected(pixels, level, self.revision)), media_type=FRAME_TYPE)

    def _stranger(self, request: Request) -> bool:
        return self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}"


@contextmanager
def faulty_teacher(**state: object) -> Iterator[FaultyTeacher]:
    """Serve one on a free loopback port, in a thread."""
    teacher = FaultyTeacher(**state)  # type: ignore[arg-type]
    app = Starlette(
        routes=[Route(INFO, teacher.info), Route(PREDICT, teacher.predict, methods=["POST"])],
    )
    with served(app) as teacher.url:
        try:
            yield teacher
        finally:
            teacher.go_on.set()  # what is held is let go, or the server would wait for it
