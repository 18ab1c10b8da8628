"""One request on its way through the threads, and where its time went."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from corte_protocol import Disclosure, Prediction
from corte_teacher.backends import Planes
from corte_teacher.backends.prepare import Ready
from corte_teacher.model import Model
from corte_teacher.pictures import Picture

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


class Job(Generic[Answer]):
    """One question while it waits and is worked on. Made in the event loop, worked on in threads.

    `read` makes the question of the body; `admit` takes its pixels on the owner's account, or raises. Both
    may block and raise any TeacherServiceError. `deadline` is of `time.perf_counter`.
    """

    __slots__ = (
        "admit", "asked", "batch", "deadline", "encode", "future", "loop", "model", "owner", "planes",
        "quick", "read", "ready", "size", "watch",
    )  # fmt: skip

    def __init__(
        self,
        owner: str,
        model: Model,
        read: Callable[[], Question[Answer]],
        admit: Callable[[int], None],
        deadline: float,
        watch: Stopwatch,
    ) -> None:
        self.owner = owner
        self.model = model
        self.read: Callable[[], Question[Answer]] | None = read
        self.admit = admit
        self.deadline = deadline
        self.watch = watch
        # of the question only these: its picture holds the body and the decoded pixels
        self.size = (0, 0)
        self.asked: Disclosure | None = None
        self.encode: Callable[[Prediction], Answer] | None = None
        self.quick = False
        self.ready: Ready | None = None
        self.planes: Planes | None = None
        self.batch = 0
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Answer] = self.loop.create_future()

    @property
    def over(self) -> bool:
        """Whether nobody waits for the answer any more: answered, given up, or past its deadline."""
        return self.future.done() or self.late(0.0)

    def late(self, seconds: float) -> bool:
        """Whether work of so many seconds would end after the deadline."""
        return time.perf_counter() + seconds > self.deadline

    def open(self) -> None:
        """Body to what the model takes, in this thread; the body is let go."""
        assert self.read is not None
        try:
            read, self.read = self.read, None  # let go of also where it raises
            question = read()
            self.admit(question.picture.pixels)
            picture = question.picture
            self.ready = self.model.prepare(picture.decode())
            self.size = (picture.height, picture.width)
            self.asked, self.encode, self.quick = question.asked, question.encode, question.quick
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
