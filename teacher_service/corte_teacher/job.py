"""One request on its way through the threads, and where its time went."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from corte_protocol import Disclosure, Prediction
from corte_teacher.backends import Planes
from corte_teacher.backends.prepare import Ready
from corte_teacher.callers import Caller
from corte_teacher.model import Model
from corte_teacher.pictures import Picture
from corte_teacher.quotas import Standing

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, eq=False)
class Question(Generic[Answer]):
    """One image, the level asked, and how its dialect writes the answer down.

    `quick`: writing it down takes no time beside any forward.
    """

    picture: Picture
    asked: Disclosure
    encode: Callable[[Prediction], Answer]
    quick: bool = False


class Stopwatch:
    """Where a request's time went: each stretch of it is given one name, so that they add up."""

    __slots__ = ("_last", "began", "stages")

    def __init__(self) -> None:
        self.began = self._last = time.perf_counter()
        self.stages: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        """The time since the last mark was `stage`."""
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds from the start to the last mark."""
        return self._last - self.began


@dataclass(slots=True)
class Notes:
    """What the parts of a request's way write down for its record; one a request."""

    watch: Stopwatch = field(default_factory=Stopwatch)
    owner: str = ""
    level: str | None = None
    revision: str | None = None
    digest: str | None = None
    pixels: int = 0
    batch: int = 0
    standings: Sequence[Standing] = ()


class Job(Generic[Answer]):
    """One question while it waits and is worked on. Made in the event loop, worked on in threads.

    `read` makes a question of `body`, in a thread; it may raise any TeacherServiceError. `deadline` is of
    `time.perf_counter`.
    """

    __slots__ = (
        "asked", "body", "caller", "deadline", "encode", "future", "loop", "model", "notes",
        "picture", "planes", "quick", "read", "ready", "size",
    )  # fmt: skip

    def __init__(
        self,
        caller: Caller,
        model: Model,
        body: bytes,
        read: Callable[[bytes], Question[Answer]],
        deadline: float,
        notes: Notes,
    ) -> None:
        self.caller = caller
        self.model = model
        self.body: bytes | None = body
        self.read = read
        self.deadline = deadline
        self.notes = notes
        self.picture: Picture | None = None
        self.size = (0, 0)
        self.asked: Disclosure | None = None
        self.encode: Callable[[Prediction], Answer] | None = None
        self.quick = False
        self.ready: Ready | None = None
        self.planes: Planes | None = None
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Answer] = self.loop.create_future()

    @property
    def owner(self) -> str:
        """The name under which its work and its pixels are counted."""
        return self.caller.owner

    @property
    def watch(self) -> Stopwatch:
        """Where its time goes."""
        return self.notes.watch

    @property
    def over(self) -> bool:
        """Whether nobody waits for the answer any more: answered, given up, or past its deadline."""
        return self.future.done() or self.late(0.0)

    def late(self, seconds: float) -> bool:
        """Whether work of so many seconds would end after the deadline."""
        return time.perf_counter() + seconds > self.deadline

    def judge(self) -> None:
        """Body to a picture of known size, in this thread, and who asks about what into the notes."""
        assert self.body is not None
        try:
            body, self.body = self.body, None  # let go of also where it raises
            self.notes.digest = hashlib.sha256(body).hexdigest()
            question = self.read(body)
            self.picture = question.picture
            self.size = (question.picture.height, question.picture.width)
            self.asked, self.encode, self.quick = question.asked, question.encode, question.quick
            self.notes.level, self.notes.pixels = str(question.asked), question.picture.pixels
        finally:
            self.watch.mark("decode")

    def open(self) -> None:
        """Picture to what the model takes, in this thread; the picture, which holds the body, is let go."""
        assert self.picture is not None
        try:
            picture, self.picture = self.picture, None
            self.ready = self.model.prepare(picture.decode())
        finally:
            self.watch.mark("decode")

    def finish(self) -> Answer:
        """Planes to the answer, in this thread; the planes are let go."""
        assert self.asked is not None and self.encode is not None and self.planes is not None
        planes, self.planes = self.planes, None
        prediction = self.model.disclose(planes, self.size, self.asked)
        self.watch.mark("disclose")
        answer = self.encode(prediction)
        self.watch.mark("encode")
        return answer

    def settle(self, answer: Answer) -> None:
        """Hand the answer to the event loop, from any thread."""
        self.loop.call_soon_threadsafe(self._settle, answer)

    def fail(self, exc: BaseException) -> None:
        """Hand a failure to the event loop, from any thread."""
        self.loop.call_soon_threadsafe(self._fail, exc)

    def _settle(self, answer: Answer) -> None:
        if not self.future.done():
            self.future.set_result(answer)

    def _fail(self, exc: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(exc)
