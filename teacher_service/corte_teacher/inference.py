"""One model thread behind a bounded queue: asyncio waits, this thread computes.

A request holds a place from before its image is decoded until its answer is encoded, so that decoded
images and answers are bounded by places; a body beyond them is dropped at once with its request.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from corte_protocol import Disclosure, Image, Prediction, ProtocolError, TeacherInfo, encode_prediction
from corte_protocol.types import UInt8
from corte_teacher.backends import Backend
from corte_teacher.disclosure import disclose
from corte_teacher.errors import BackendError, Overloaded, TeacherServiceError

log = logging.getLogger(__name__)

_TRIAL = (64, 96)
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, eq=False)
class Question(Generic[Answer]):
    """One image, the level asked, and how its dialect writes the answer down."""

    image: Image
    asked: Disclosure
    encode: Callable[[Prediction], Answer]


class Inference:
    """The backend's only caller. Close it to end its threads."""

    def __init__(self, backend: Backend, info: TeacherInfo, *, places: int, timeout_s: float) -> None:
        self._backend = backend
        self._info = info
        self._free = places
        self._timeout_s = timeout_s
        self._model_thread = ThreadPoolExecutor(1, "corte-model")
        self._decoders = ThreadPoolExecutor(2, "corte-decode")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one place in the queue. Raises Overloaded at once when there is none."""
        if self._free == 0:
            raise Overloaded("no place in the queue")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def answer(self, read: Callable[[], Question[Answer]]) -> Answer:
        """The answer to what `read` makes of a body, within the time-out.

        `read` may block and raise any TeacherServiceError: it runs in a decoder thread. Encoding runs in
        the model thread, so that one answer at a time is held in two forms.
        """
        loop = asyncio.get_running_loop()
        with self.place():
            try:
                async with asyncio.timeout(self._timeout_s):
                    question = await loop.run_in_executor(self._decoders, read)
                    return await loop.run_in_executor(self._model_thread, self._reply, question)
            except TimeoutError as exc:
                raise Overloaded("no answer in time") from exc

    async def try_out(self) -> None:
        """One real forward. Raises BackendError when the model fails or breaks its contract."""
        image = Image(trial_pixels())
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._model_thread, self.frame, image, self._info.disclosure)

    def frame(self, image: Image, asked: Disclosure) -> bytes:
        """An answer as a frame. Blocking; in the model thread, or before it exists."""
        return self._reply(Question(image, asked, encode_prediction))

    def _reply(self, question: Question[Answer]) -> Answer:
        return question.encode(self._predict(question.image, question.asked))

    def _predict(self, image: Image, asked: Disclosure) -> Prediction:
        """Ask the model, and cut its answer down to `asked`."""
        try:
            classes, scores = self._backend.predict(image.pixels)
            prediction = disclose(classes, scores, self._info.disclosure, asked, self._info.revision)
        except TeacherServiceError:
            raise
        except ProtocolError as exc:  # the model is to blame for an illegal answer, not the client
            raise BackendError(f"the model answered something impossible: {exc}") from exc
        except Exception as exc:  # foreign code: onnxruntime, torch, or an operator's own backend
            raise BackendError(f"the model failed: {type(exc).__name__}: {exc}") from exc
        if prediction.classes.shape[1:] != image.pixels.shape[:2]:
            raise BackendError("the model answered at another size than the image's")
        if int(prediction.classes.max()) >= len(self._info.classes):
            raise BackendError("the model answered a class that its card does not name")
        return prediction

    def close(self) -> None:
        """Let the running step finish and end the threads."""
        self._model_thread.shutdown(wait=True, cancel_futures=True)
        self._decoders.shutdown(wait=True, cancel_futures=True)


def trial_pixels() -> UInt8:
    """A picture to try a model on, uint8 [H, W, 3]: a gradient, so that it is not one colour."""
    height, width = _TRIAL
    ramp = np.linspace(0, 255, height * width * 3).astype(np.uint8)
    return ramp.reshape(height, width, 3)
