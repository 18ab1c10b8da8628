"""Images of one size through the model together, where that pays and changes nothing.

Rule 1: never wait for a batch to fill. Rule 2: a batch size is used for an image size only after a trial at
load in which every class plane was bit-identical to the one of the image alone, the 8-bit scores within 1,
and the time an image at most `MARGIN` of the time alone. On a CPU that is usually no batch size at all.
Rule 3: times are learnt on from real forwards; a batch size that no longer pays rests, and is then tried
once more. Rule 4: a batch that fails is taken apart, so that one image never harms its neighbours; out of
memory it is halved, and what did not fit is not tried again for a while.
"""

import logging
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast, runtime_checkable

import numpy as np
from PIL.Image import Image

from corte_protocol.types import UInt8, quantise
from corte_teacher.backends import Backend, Planes
from corte_teacher.backends.prepare import Prepared, Ready
from corte_teacher.errors import OutOfMemory

log = logging.getLogger(__name__)

MARGIN: Final = 0.97
"""A batch must take at most this share of the single images' time: less is within what clocks show."""
_BACK: Final = 0.95  # a batch size that rests comes back only below this, so that it does not flutter
_SMOOTH: Final = 0.1  # of each real forward in what is known of its time
_REST_S: Final = 600.0  # for a batch size that ran out of memory, or that stopped paying
_REPEATS: Final = 3
MAX_BATCH_PIXELS: Final = 8 * 1024 * 1024

Size = tuple[int, int]


@runtime_checkable
class PreparingBackend(Protocol):
    """A backend whose `predict` and `predict_many` also take images that were prepared before, elsewhere."""

    def prepare(self, image: Image) -> Prepared:
        """A picture in mode RGB to the network's input, in any thread: the device need not wait for it."""


@runtime_checkable
class BatchBackend(Protocol):
    """A backend that may take several images at once: those of ours all have both."""

    batches: bool
    """Whether this model does."""

    def predict_many(self, pixels: Sequence[UInt8]) -> list[Planes]:
        """What `Backend.predict` gives for each image, all of one size [H, W, 3], in one forward.

        Raises OutOfMemory where a smaller batch may fit.
        """


@dataclass(slots=True)
class _Known:
    """What is known of one batch size at one image size: seconds an image, and until when it rests.

    After a rest `rests_until` stays until the first real forward has shown whether the batch size pays again.
    """

    seconds: float
    rests_until: float = 0.0


class Batches:
    """The only caller of a backend; used by one thread at a time. `most` is the largest batch."""

    def __init__(
        self,
        backend: Backend,
        most: int = 8,
        max_batch_pixels: int = MAX_BATCH_PIXELS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._prepares = backend if isinstance(backend, PreparingBackend) else None
        self._one = cast(Callable[[Ready], Planes], backend.predict)  # of what `prepare` gave, at the least
        self._many: Callable[[Sequence[Ready]], list[Planes]] | None = None
        if isinstance(backend, BatchBackend) and backend.batches:
            self._many = cast(Callable[[Sequence[Ready]], list[Planes]], backend.predict_many)
        self._most = most
        self._max_pixels = max_batch_pixels
        self._clock = clock
        self._known: dict[Size, dict[int, _Known]] = {}
        self._per_pixel = 0.0
        self._least = 1  # pixels of the smallest size tried

    @property
    def largest(self) -> int:
        """The largest batch size that any image size may use now."""
        return max((n for size in self._known for n in self._usable(size)), default=1)

    def try_out(self, sizes: Sequence[Size]) -> None:
        """A forward at each size (H, W), and the trial of its batch sizes. Raises what the model raises."""
        self._least = min(height * width for height, width in sizes)
        for size in sizes:
            rng = np.random.default_rng(0)
            images = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(self._most)]
            alone = [self._one(images[0])]  # the first also warms up
            known = self._known[size] = {1: _Known(self._timed(lambda: self._one(images[0])))}  # noqa: B023
            self._per_pixel = known[1].seconds / (size[0] * size[1])
            n = 2
            while self._many is not None and n <= self._most and n * size[0] * size[1] <= self._max_pixels:
                alone += [self._one(image) for image in images[len(alone) : n]]
                if not self._try_batch(size, images[:n], alone):
                    break
                n *= 2

    def size_for(self, size: Size, waiting: int) -> int:
        """How many of `waiting` images of a size to take together now: 1 where batching does not pay."""
        usable = [n for n in self._usable(size) if n <= waiting]
        rested = [n for n in usable if self._known[size][n].rests_until]
        if rested:  # what is known of these is old
            return max(rested)
        return min(usable, key=lambda n: self._known[size][n].seconds, default=1)

    def seconds(self, pixels: int) -> float:
        """What one image of so many pixels takes, as far as is known; 0 before the first forward."""
        return self._per_pixel * pixels

    def prepare(self, image: Image) -> Ready:
        """What `run` takes of a picture in mode RGB, made in any thread."""
        return np.asarray(image) if self._prepares is None else self._prepares.prepare(image)

    def run(self, images: Sequence[Ready]) -> list[Planes | Exception]:
        """The planes of each image, or the exception that it, and no neighbour, caused."""
        if len(images) == 1 or self._many is None:
            return [self._alone(image) for image in images]
        size = (images[0].shape[0], images[0].shape[1])
        result = self._together(size, images)
        if isinstance(result, list):
            return [*result]
        if not isinstance(result, OutOfMemory | MemoryError):
            log.info("a batch of %d failed and is run image by image", len(images), exc_info=result)
            return [self._alone(image) for image in images]
        self._rest(size, len(images))
        half = len(images) // 2
        return [*self.run(images[:half]), *self.run(images[half:])]

    def _together(self, size: Size, images: Sequence[Ready]) -> list[Planes] | Exception:
        """One forward of all images, or why there was none."""
        assert self._many is not None
        began = self._clock()
        try:
            planes = list(self._many(images))
            if len(planes) != len(images):
                raise ValueError(f"{len(planes)} answers to {len(images)} images")
        except Exception as exc:
            return _emptied(exc)
        self._learn(size, len(images), (self._clock() - began) / len(images))
        return planes

    def _alone(self, image: Ready) -> Planes | Exception:
        began = self._clock()
        try:
            planes = self._one(image)
        except MemoryError as exc:
            failed = OutOfMemory("no memory for one image")
            failed.__cause__ = _emptied(exc)
            return failed
        except Exception as exc:  # a backend is foreign code: whatever it raises is this image's answer
            return _emptied(exc)
        self._learn((image.shape[0], image.shape[1]), 1, self._clock() - began)
        return planes

    def _try_batch(self, size: Size, images: Sequence[Ready], alone: Sequence[Planes]) -> bool:
        """Whether a batch of these is the same as alone; learns its time. Larger ones are not tried else."""
        assert self._many is not None
        many = self._many
        try:
            together = many(images)
            seconds = self._timed(lambda: many(images)) / len(images)
        except Exception as exc:  # no memory, or a model that was traced for one image
            log.warning("no batches of %d at %dx%d: %s", len(images), *size, exc)
            return False
        if len(together) != len(alone) or not all(map(_same, together, alone)):
            log.warning("no batches of %d at %dx%d: answers differ from those alone", len(images), *size)
            return False
        known = self._known[size]
        known[len(images)] = _Known(seconds)
        if seconds > MARGIN * known[1].seconds:
            known[len(images)].rests_until = self._clock() + _REST_S
        return True

    def _usable(self, size: Size) -> list[int]:
        """The batch sizes that are known to pay at an image size, without 1."""
        now = self._clock()
        known = self._known.get(size, {})
        return [n for n, found in known.items() if n > 1 and found.rests_until <= now]

    def _learn(self, size: Size, n: int, seconds: float) -> None:
        """A real forward took so many seconds an image."""
        pixels = size[0] * size[1]
        if n == 1 and pixels >= self._least:  # a smaller one's time is that of the call, whatever its size
            fresh = seconds / pixels
            self._per_pixel += (fresh - self._per_pixel) * (_SMOOTH if self._per_pixel else 1.0)
        known = self._known.get(size, {})
        if n not in known:
            return
        found, now = known[n], self._clock()
        rested = 0.0 < found.rests_until <= now
        found.seconds += (seconds - found.seconds) * (1.0 if rested else _SMOOTH)
        if n == 1 or found.rests_until > now:  # a part of a larger batch that failed
            return
        if found.seconds > (_BACK if rested else MARGIN) * known[1].seconds:
            found.rests_until = now + _REST_S
            log.info("batches of %d at %dx%d rest: they do not pay", n, *size)
        else:
            found.rests_until = 0.0

    def _rest(self, size: Size, n: int) -> None:
        """There was no memory for a batch size: use neither it nor a larger one for a while."""
        for other, found in self._known.get(size, {}).items():
            if other >= n > 1:
                found.rests_until = self._clock() + _REST_S
        log.info("batches of %d and more at %dx%d rest: no memory", n, *size)

    def _timed(self, work: Callable[[], object]) -> float:
        """Seconds of one call: the best of a few, since other work only ever adds."""
        best = float("inf")
        for _ in range(_REPEATS):
            began = self._clock()
            work()
            best = min(best, self._clock() - began)
        return best


def _same(one: Planes, other: Planes) -> bool:
    """Whether two answers have the same class planes bit for bit, and 8-bit scores within one step."""
    if not np.array_equal(one[0], other[0]):
        return False
    if one[1] is None or other[1] is None:
        return one[1] is other[1]
    steps = quantise(one[1]).astype(np.int16) - quantise(other[1]).astype(np.int16)
    return bool(np.abs(steps).max() <= 1)


def _emptied(exc: Exception) -> Exception:
    """A failure without the arrays in the frames behind it, which would live as long as it does."""
    link: BaseException | None = exc
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    return exc
