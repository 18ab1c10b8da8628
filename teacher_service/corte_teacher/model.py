"""One loaded model with what clients may know about it. A hot swap replaces the whole of it at once."""

from collections.abc import Sequence

import numpy as np
from PIL.Image import Image, fromarray

from corte_protocol import Disclosure, Prediction, ProtocolError, TeacherInfo, encode_prediction
from corte_teacher.backends import Planes
from corte_teacher.backends.prepare import Ready
from corte_teacher.batching import Batches
from corte_teacher.disclosure import disclose
from corte_teacher.errors import BackendError, OutOfMemory, TeacherServiceError
from corte_teacher.settings import TRIAL


class Model:
    """The only caller of a backend's `Batches`. All methods block."""

    def __init__(self, batches: Batches, info: TeacherInfo) -> None:
        self.batches = batches
        self.info = info

    def try_out(self, sizes: Sequence[tuple[int, int]]) -> None:
        """A whole answer at each size, and which batches pay there. Raises BackendError."""
        for size in sizes:
            self.frame(trial_picture(size), self.info.disclosure)
        self.batches.try_out(sizes)

    def frame(self, image: Image, asked: Disclosure) -> bytes:
        """The answer to a picture in mode RGB as a frame. Raises BackendError."""
        (planes,) = self.run([self.prepare(image)])
        if isinstance(planes, Exception):
            raise planes
        return encode_prediction(self.disclose(planes, (image.height, image.width), asked))

    def prepare(self, image: Image) -> Ready:
        """What `run` takes of a picture in mode RGB; in any thread, better not in the one of `run`.

        Raises OutOfMemory and BackendError.
        """
        try:
            return self.batches.prepare(image)
        except MemoryError as exc:
            raise OutOfMemory("no memory to prepare an image") from exc
        except Exception as exc:  # as in `disclose`
            raise _blamed(exc) from exc

    def run(self, images: Sequence[Ready]) -> list[Planes | TeacherServiceError]:
        """The planes of each image, or why there are none: one image's failure is its own."""
        return [
            _blamed(result) if isinstance(result, Exception) else result
            for result in self.batches.run(images)
        ]

    def disclose(self, planes: Planes, size: tuple[int, ...], asked: Disclosure) -> Prediction:
        """Planes cut down to `asked`. Raises BackendError for what the model's card excludes."""
        try:
            prediction = disclose(*planes, self.info.disclosure, asked, self.info.revision)
        except ProtocolError as exc:  # the model is to blame for an illegal answer, not the client
            raise BackendError(f"the model answered something impossible: {exc}") from exc
        except TeacherServiceError:
            raise
        except Exception as exc:  # a foreign backend's arrays may be anything
            raise _blamed(exc) from exc
        if prediction.classes.shape[1:] != size:
            raise BackendError("the model answered at another size than the image's")
        if int(prediction.classes.max()) >= len(self.info.classes):
            raise BackendError("the model answered a class that its card does not name")
        return prediction


def _blamed(exc: Exception) -> TeacherServiceError:
    """A failure of foreign code (onnxruntime, torch, an operator's own backend) as one of ours."""
    if isinstance(exc, TeacherServiceError):
        return exc
    blamed = BackendError(f"the model failed: {type(exc).__name__}: {exc}")
    blamed.__cause__ = exc
    return blamed


def trial_picture(size: tuple[int, int] = TRIAL) -> Image:
    """A picture to try a model on, of that height and width: a gradient, so that it is not one colour."""
    height, width = size
    ramp = np.linspace(0, 255, height * width * 3).astype(np.uint8)
    return fromarray(ramp.reshape(height, width, 3))
