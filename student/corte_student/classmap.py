"""The teacher's classes mapped onto the student's: by name, many to one, with void.

Merging changes margins: of building .30, light .28, sign .27 a top-2 answer shows "building", a full one
"signsymbol .55". What is not disclosed is bounded, never guessed (this project's choice). With K disclosed
scores, undisclosed mass r and smallest disclosed score p_K, a mapped class with n undisclosed members has
a score between L, the sum of its disclosed members, and U = L + min(r, n p_K). The label is arg-max L, ties
to the class whose member ranks first; the margin is max(0, L_label - max U over all others): positive only
where no completion of the answer could change the label, and equal to the plain margin when nothing merges.
All of it in integers on the wire's 8-bit grid.

Legend: K disclosed classes, H W image size, S student classes.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corte_protocol import VOID, Prediction, TeacherInfo, on_grid
from corte_protocol.types import VOID_NAME
from corte_student.errors import DataError

UInt8 = npt.NDArray[np.uint8]
Int16 = npt.NDArray[np.int16]
Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Mapped:
    """An answer in the student's classes: uint8 [H, W] each; scores in units of 1/255, 0 where void.

    `margin` and `confidence` are lower bounds; None where the teacher disclosed labels only. `scores`
    uint8 [S, H, W] is there only if it was asked for.
    """

    labels: UInt8
    margin: UInt8 | None
    confidence: UInt8 | None
    scores: UInt8 | None = None


@dataclass(frozen=True, eq=False)
class ClassMap:
    """Student class names and colours, and for each teacher class its student id or VOID."""

    names: tuple[str, ...]
    colors: tuple[Rgb, ...]
    table: UInt8

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) < VOID or len(set(self.names)) != len(self.names):
            raise DataError("a student needs at least two classes with distinct names")
        used = set(self.table.tolist()) - {VOID}
        for index, name in enumerate(self.names):
            if index not in used:
                raise DataError(f"no class of the teacher maps to {name!r}: remove it or give it a 'from'")

    @classmethod
    def identity(cls, info: TeacherInfo) -> "ClassMap":
        """The student learns the teacher's own classes; the one named `(void)` is void."""
        kept = [i for i, name in enumerate(info.classes) if name != VOID_NAME]
        table = np.full(len(info.classes), VOID, np.uint8)
        table[kept] = np.arange(len(kept))
        return cls(tuple(info.classes[i] for i in kept), tuple(info.colors[i] for i in kept), table)

    @property
    def members(self) -> npt.NDArray[np.int16]:
        """How many teacher classes each student class holds, void last: int16 [S + 1]."""
        slots = np.where(self.table == VOID, len(self.names), self.table)
        return np.bincount(slots, minlength=len(self.names) + 1).astype(np.int16)

    @property
    def one_to_one(self) -> bool:
        """Whether no two teacher classes share a student class, void included."""
        return bool((self.members <= 1).all())

    def apply(self, prediction: Prediction) -> Mapped:
        """Map one answer; see the module for the bound. Raises DataError for a class beyond the table."""
        if int(prediction.classes.max()) >= len(self.table):
            raise DataError("an answer names a class that the teacher's info does not list")
        if prediction.probs is None:
            return Mapped(self.table[prediction.labels], None, None)
        probs = on_grid(prediction.probs)
        if self.one_to_one and len(probs) >= 2:
            labels = self.table[prediction.labels]
            return _cleared(labels, probs[0] - probs[1], probs[0])
        return self._bounded(prediction.classes, np.asarray(probs, np.int16))

    def _bounded(self, classes: UInt8, probs: Int16) -> Mapped:
        lower, upper = self.bounds(classes, probs)
        # a later rank wins only by a strictly larger sum
        best = self._slots[classes[0]]
        top = np.take_along_axis(lower, best[None], 0)[0]
        for slot in self._slots[classes[1:]]:
            score = np.take_along_axis(lower, slot[None], 0)[0]
            better = score > top
            best[better] = slot[better]
            top = np.maximum(top, score)
        return self.decided(lower, upper, best)

    @property
    def _slots(self) -> npt.NDArray[np.intp]:
        return np.where(self.table == VOID, len(self.names), self.table).astype(np.intp)

    def bounds(self, classes: UInt8, probs: Int16 | None) -> tuple[Int16, Int16]:
        """The least and the most that each student class can have, void last: int16 [S + 1, H, W] each.

        `classes` uint8 [K, H, W] best first; `probs` int16 [K, H, W] in 1/255, or None for labels alone,
        which count as one vote of 255.
        """
        count, shape = len(classes), classes.shape[1:]
        void = len(self.names)
        slots = self._slots[classes].reshape(count, -1)
        columns = np.arange(slots.shape[1])
        lower = np.zeros((void + 1, slots.shape[1]), np.int16)
        if probs is None:
            lower[slots[0], columns] = 255
            return (whole := lower.reshape(void + 1, *shape)), whole.copy()
        flat = probs.reshape(count, -1)
        hidden = np.repeat(self.members[:, None], flat.shape[1], axis=1)
        for slot, score in zip(slots, flat, strict=True):
            lower[slot, columns] += score
            hidden[slot, columns] -= 1
        rest = 255 - flat.sum(axis=0, dtype=np.int16)
        # unsigned: n p_K of 255 classes does not fit int16
        most = np.minimum(rest.astype(np.uint16), hidden.astype(np.uint16) * flat[-1].astype(np.uint16))
        upper = lower + most.astype(np.int16)
        return lower.reshape(void + 1, *shape), upper.reshape(void + 1, *shape)

    def decided(self, lower: Int16, upper: Int16, best: npt.NDArray[np.intp] | None = None) -> Mapped:
        """Labels, margins and confidences from bounds [S + 1, H, W]; `best` where ties are broken already."""
        best = lower.argmax(axis=0) if best is None else best
        top = np.take_along_axis(lower, best[None], 0)[0]
        rivals = upper.copy()
        np.put_along_axis(rivals, best[None], -1, 0)
        margin = np.maximum(top - rivals.max(axis=0), 0)
        labels = np.where(best == len(self.names), VOID, best).astype(np.uint8)
        return _cleared(labels, margin.astype(np.uint8), top.astype(np.uint8))

    def spread(self, classes: UInt8, probs: Int16 | None) -> UInt8:
        """Scores of all student classes, uint8 [S, H, W] in 1/255: what is not disclosed, spread evenly.

        The undisclosed mass goes in equal parts to the undisclosed teacher classes, as DINE does (Liang et
        al., arXiv 2104.01539), then all are mapped; what belongs to void is left out. `classes` and `probs`
        as in `bounds`; labels alone are taken for certain.
        """
        void, total = len(self.names), len(self.table)
        lower, _ = self.bounds(classes, probs)
        if probs is None or len(classes) == total:
            return lower[:void].astype(np.uint8)
        hidden = np.repeat(self.members[:, None], lower[0].size, axis=1)
        columns = np.arange(lower[0].size)
        for slot in self._slots[classes].reshape(len(classes), -1):
            hidden[slot, columns] -= 1
        rest = 255 - probs.sum(axis=0, dtype=np.int16)
        # float32 holds the product, which int16 does not, and the quotient's floor exactly
        mine = hidden[:void].reshape(void, *rest.shape).astype(np.float32) * rest
        share = mine / np.float32(total - len(classes))
        scores: UInt8 = (lower[:void] + share).astype(np.uint8)
        return scores


def _cleared(labels: UInt8, margin: UInt8, confidence: UInt8) -> Mapped:
    void = labels == VOID
    if void.any():
        margin, confidence = np.where(void, 0, margin), np.where(void, 0, confidence)
    return Mapped(labels, margin.astype(np.uint8), confidence.astype(np.uint8))


def load_classmap(path: Path, info: TeacherInfo) -> ClassMap:
    """Read a class map: `[[classes]]` with `name`, `from = [teacher classes]` and an optional `color`.

    Teacher classes that no entry names map to void; the census lists them. Raises DataError.
    """
    try:
        data = tomllib.loads(path.read_text())
    except OSError as exc:
        raise DataError(f"cannot read the class map {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise DataError(f"the class map {path} is not TOML: {exc}") from exc
    return classmap_from(data, info, str(path))


def classmap_from(data: dict[str, Any], info: TeacherInfo, source: str) -> ClassMap:
    """The class map in parsed TOML; `source` names it in errors."""
    entries = data.get("classes")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise DataError(f"{source} needs [[classes]] entries with 'name' and 'from'")
    table = np.full(len(info.classes), VOID, np.uint8)
    names: list[str] = []
    colors: list[Rgb] = []
    for index, entry in enumerate(entries):
        unknown = set(entry) - {"name", "from", "color"}
        if unknown or not isinstance(entry.get("name"), str):
            raise DataError(f"{source}: a class has 'name', 'from' and 'color', not {sorted(unknown)}")
        members = entry.get("from", [entry["name"]])
        for member in [members] if isinstance(members, str) else members:
            if member not in info.classes:
                raise DataError(
                    f"{source}: the teacher has no class {member!r}; it has {', '.join(info.classes)}"
                )
            slot = info.classes.index(member)
            if table[slot] != VOID:
                raise DataError(f"{source}: {member!r} is mapped twice")
            table[slot] = index
        names.append(entry["name"])
        colors.append(_color(entry, info, source))
    return ClassMap(tuple(names), tuple(colors), table)


def _color(entry: dict[str, Any], info: TeacherInfo, source: str) -> Rgb:
    if "color" in entry:
        color = entry["color"]
        if len(color) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in color):
            raise DataError(f"{source}: the color of {entry['name']!r} is not three numbers from 0 to 255")
        return (color[0], color[1], color[2])
    members = entry.get("from", [entry["name"]])
    first = members if isinstance(members, str) else members[0] if members else entry["name"]
    return info.colors[info.classes.index(first)] if first in info.classes else (128, 128, 128)
