"""The values that cross the socket. A value that exists is legal: invariants live in the constructors.

Legend: C classes of the teacher, K disclosed classes per pixel, H W image size in pixels.

Arrays are made read-only, types are frozen and compare by identity (`eq=False`) because arrays have no
truth value. numpy only: torch never enters the protocol.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self, cast

import numpy as np
import numpy.typing as npt

from corte_protocol.errors import InvalidValue

VOID: Final = 255
"""The label of a pixel without a class; ids 0..254 are classes (Cityscapes' trainId convention)."""
MAX_CLASSES: Final = VOID
VOID_NAME: Final = "(void)"
"""The reserved name of a teacher's class for pixels that its answers leave without one: maps to void."""

UInt8 = npt.NDArray[np.uint8]
Float16 = npt.NDArray[np.float16]

_ONE: Final = int(np.float16(1).view(np.uint16))
_OPAQUE = re.compile(r"[0-9A-Za-z._-]{1,64}")


def quantise(scores: npt.NDArray[np.floating]) -> UInt8:
    """Probabilities in [0, 1] on the wire's 8-bit grid: floor(255 p), same shape, uint8.

    The only place where a score loses bits, on either side of the socket, so that every disclosure
    level shows the same value. Floored, so the scores of one pixel never add up to more than one.
    This project's choice.
    """
    grid: UInt8 = np.floor(scores.astype(np.float32) * np.float32(255.0)).astype(np.uint8)
    return grid


def on_grid(probs: UInt8 | Float16) -> UInt8:
    """Scores as received, on the 8-bit grid: uint8 as they are, float16 through `quantise`."""
    if probs.dtype == np.uint8:
        return cast(UInt8, probs)
    return quantise(cast(Float16, probs))


@dataclass(frozen=True, slots=True)
class Disclosure:
    """How much of a prediction may be seen: the `top_k` best classes a pixel, scores of `prob_bits` bits.

    Named levels: `labels` (1, 0), `confidence` (1, 8), `margin` (2, 8), `topk:K` (K, 8), `full` (C, 16).
    """

    top_k: int
    prob_bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= MAX_CLASSES:
            raise InvalidValue(f"top_k must be between 1 and {MAX_CLASSES}, not {self.top_k}")
        if self.prob_bits not in (0, 8, 16):
            raise InvalidValue(f"prob_bits must be 0, 8 or 16, not {self.prob_bits}")
        if self.prob_bits == 0 and self.top_k != 1:
            raise InvalidValue("without scores only the best class can be disclosed (top_k = 1)")

    @classmethod
    def parse(cls, text: str, classes: int) -> Self:
        """Read a level's name for a teacher of `classes` classes; levels never exceed what exists."""
        if text == "labels":
            return cls(1, 0)
        if text == "confidence":
            return cls(1, 8)
        if text == "margin":
            return cls(min(2, classes), 8)
        if text == "full":
            return cls(classes, 16)
        match = re.fullmatch(r"topk:(\d{1,3})", text)
        if match and int(match[1]) >= 1:
            return cls(min(int(match[1]), classes), 8)
        raise InvalidValue(
            f"unknown disclosure {text!r}: choose labels, confidence, margin, topk:K (K >= 1) or full"
        )

    def allows(self, other: "Disclosure") -> bool:
        """Whether an answer at this level holds everything that `other` asks for."""
        return other.top_k <= self.top_k and other.prob_bits <= self.prob_bits

    def __str__(self) -> str:
        named = {(1, 0): "labels", (1, 8): "confidence", (2, 8): "margin"}
        if (self.top_k, self.prob_bits) in named:
            return named[self.top_k, self.prob_bits]
        return "full" if self.prob_bits == 16 else f"topk:{self.top_k}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may weigh, as the teacher states it."""

    max_body_bytes: int
    max_pixels: int

    def __post_init__(self) -> None:
        if self.max_body_bytes < 1 or self.max_pixels < 1:
            raise InvalidValue("limits must be positive")


@dataclass(frozen=True, slots=True)
class TeacherInfo:
    """All that a student may know about a teacher before it asks.

    `teacher` identifies the service over restarts and model updates, `revision` the model behind it;
    both are opaque. `colors` are RGB triples for pictures, one a class. Never an architecture's name.
    """

    protocol: int
    teacher: str
    revision: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    disclosure: Disclosure
    limits: Limits

    def __post_init__(self) -> None:
        for name, value in (("teacher", self.teacher), ("revision", self.revision)):
            if not _OPAQUE.fullmatch(value):
                raise InvalidValue(f"{name} must be 1 to 64 letters, digits, '.', '_' or '-'")
        if not 2 <= len(self.classes) <= MAX_CLASSES:
            raise InvalidValue(f"a teacher has 2 to {MAX_CLASSES} classes, not {len(self.classes)}")
        if any(not c or len(c) > 128 for c in self.classes) or len(set(self.classes)) != len(self.classes):
            raise InvalidValue("class names must be distinct, of 1 to 128 characters")
        if len(self.colors) != len(self.classes):
            raise InvalidValue("one colour a class")
        if any(len(c) != 3 or not all(0 <= v <= 255 for v in c) for c in self.colors):
            raise InvalidValue("a colour is three numbers from 0 to 255")
        if self.disclosure.top_k > len(self.classes):
            raise InvalidValue("more classes a pixel are disclosed than exist")


@dataclass(frozen=True, eq=False)
class Image:
    """An upright RGB picture: `pixels` uint8 [H, W, 3], C-contiguous."""

    pixels: UInt8

    def __post_init__(self) -> None:
        p = self.pixels
        if p.dtype != np.uint8 or p.ndim != 3 or p.shape[2] != 3 or 0 in p.shape:
            raise InvalidValue(f"an image is uint8 [H, W, 3], not {p.dtype} {list(p.shape)}")
        object.__setattr__(self, "pixels", _frozen(p))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shape and pixels, hex: two files that decode alike have the same digest."""
        height, width, _ = self.pixels.shape
        head = f"corte-image-1 {height} {width} ".encode()
        return hashlib.sha256(head + self.pixels.tobytes()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """One answer: the K best classes of each pixel, best first, and their scores where disclosed.

    `classes` uint8 [K, H, W], distinct along K; `probs` uint8 (units of 1/255) or float16 [K, H, W],
    descending along K, or None, which implies K = 1. One shape covers label-only answers, confidence,
    margins and full distributions.
    """

    classes: UInt8
    probs: UInt8 | Float16 | None
    revision: str

    def __post_init__(self) -> None:
        c, p = self.classes, self.probs
        if c.dtype != np.uint8 or c.ndim != 3 or 0 in c.shape or c.shape[0] > MAX_CLASSES:
            raise InvalidValue(f"classes must be uint8 [K, H, W], not {c.dtype} {list(c.shape)}")
        if c.max() == VOID:  # the largest uint8
            raise InvalidValue(f"{VOID} is void and never predicted")
        if not _OPAQUE.fullmatch(self.revision):
            raise InvalidValue("revision must be 1 to 64 letters, digits, '.', '_' or '-'")
        if not _distinct(c):
            raise InvalidValue("a pixel names the same class twice")
        if p is None:
            if c.shape[0] != 1:
                raise InvalidValue("several classes a pixel need scores")
        else:
            _check_probs(p, c.shape)
            object.__setattr__(self, "probs", _frozen(p))
        object.__setattr__(self, "classes", _frozen(c))

    @property
    def disclosure(self) -> Disclosure:
        """The level that this answer holds."""
        bits = 0 if self.probs is None else 8 * self.probs.dtype.itemsize
        return Disclosure(self.classes.shape[0], bits)

    @property
    def labels(self) -> UInt8:
        """The best class of each pixel, uint8 [H, W]."""
        best: UInt8 = self.classes[0]
        return best

    @property
    def confidence(self) -> UInt8 | None:
        """The best class's score, uint8 [H, W] in units of 1/255, or None where it was not disclosed."""
        return None if self.probs is None else on_grid(self.probs[0])

    @property
    def margin(self) -> UInt8 | None:
        """Relative confidence, best minus second-best score, uint8 [H, W] in 1/255, or None below K = 2.

        CoRTe (arXiv 2402.13122), relative confidence of the pseudo-labels.
        """
        if self.probs is None or self.probs.shape[0] < 2:
            return None
        margin: UInt8 = on_grid(self.probs[0]) - on_grid(self.probs[1])
        return margin

    def narrow(self, to: Disclosure) -> "Prediction":
        """This answer cut down to the level `to`; asking for more than it holds is an error."""
        if not self.disclosure.allows(to):
            raise InvalidValue(f"an answer of level {self.disclosure} does not hold {to}")
        if to == self.disclosure:
            return self
        probs: UInt8 | Float16 | None = None
        if to.prob_bits and self.probs is not None:
            cut = self.probs[: to.top_k]
            probs = on_grid(cut) if to.prob_bits == 8 else cut
        return Prediction(self.classes[: to.top_k], probs, self.revision)


def _frozen(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """A C-contiguous read-only view; a caller's own writable array is copied, never locked."""
    if array.flags.writeable or not array.flags.c_contiguous:
        array = array.copy()
        array.flags.writeable = False
    return array


def _distinct(classes: UInt8) -> bool:
    count = classes.shape[0]
    if count == 1:
        return True
    if count <= 4:  # pairwise is cheaper than sorting for the usual K of 2 to 4
        return not any((classes[a] == classes[b]).any() for a in range(count) for b in range(a))
    if classes.max() >= 56:
        ordered = np.sort(classes, axis=0)
        return not bool((ordered[1:] == ordered[:-1]).any())
    # A bit for each class: their sum is their union unless one is twice; 255 times bit 55 does not overflow.
    # 19x512x1024 takes 18 ms, sorting 137.
    total, union = np.zeros((2, *classes.shape[1:]), np.uint64)
    for plane in classes:
        bits = np.left_shift(np.uint64(1), plane, dtype=np.uint64)
        total += bits
        union |= bits
    return np.array_equal(total, union)


def _check_probs(p: UInt8 | Float16, shape: tuple[int, ...]) -> None:
    if p.dtype not in (np.uint8, np.float16) or p.shape != shape:
        raise InvalidValue(f"probs must be uint8 or float16 {list(shape)}, not {p.dtype} {list(p.shape)}")
    order: np.ndarray[Any, Any] = p
    if p.dtype == np.float16:
        # from 0 to 1 a float16 is ordered as its bits are, which take a twentieth of the time to compare
        order = np.ascontiguousarray(p).view(np.uint16)
        if order.max() > _ONE:
            if not ((p >= 0) & (p <= 1)).all():  # catches NaN as well
                raise InvalidValue("scores must lie between 0 and 1")
            order = p  # there is a negative zero
    if (order[1:] > order[:-1]).any():
        raise InvalidValue("scores must descend along K")
    if p.dtype == np.uint8 and p.shape[0] > 1 and (p.sum(axis=0, dtype=np.uint16) > 255).any():
        raise InvalidValue("the scores of a pixel add up to more than one")
