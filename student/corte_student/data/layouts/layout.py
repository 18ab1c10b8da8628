"""The rules of one data set as values: nothing is read here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Encoding:
    """One meaning of stored values: `meaning` gives every legal one its class id, or VOID.

    `suffix` is what the stem of such a label file adds to its image's; "" for the bare stem.
    """

    meaning: Mapping[int, int]
    suffix: str = ""

    def table(self) -> npt.NDArray[np.int16]:
        """Stored value to class id, int16 [256], UNKNOWN where a value has no meaning."""
        table = np.full(256, UNKNOWN, np.int16)
        table[list(self.meaning)] = list(self.meaning.values())
        return table


@dataclass(frozen=True, slots=True)
class Place:
    """Where a data set lies once unpacked, relative to its root; `{split}` and `{part}` are filled in.

    `listed` is a file of image names that are the split `val` of a folder that holds all splits.
    """

    images: str
    labels: str
    splits: tuple[str, ...] = ("train", "val", "test")
    listed: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """One data set's rules: names of files, stored form, meaning of values.

    `classes` names the ids where the layout fixes them, and is empty where it does not. `image_suffix` is
    what image stems end in and label stems do not. `stored`: "index" a PNG of 8-bit numbers, grey or
    palette; "palette" a palette PNG only; "red16" a PNG of 3 x 16 bits whose red holds the class.
    `partial`: copies with files missing, or of another size, are usual, so such pairs are left out with a
    warning in place of an error. `remedy` says what to do about labels of the wrong kind. `codes` are the
    names that a `codes.txt` beside the labels must hold.
    """

    about: str
    encodings: tuple[Encoding, ...]
    classes: tuple[str, ...] = ()
    image_suffix: str = ""
    stored: Literal["index", "palette", "red16"] = "index"
    partial: bool = False
    remedy: str = "convert it to an 8-bit PNG that stores one class number a pixel (255 for void)"
    codes: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    parts: tuple[str, ...] = ("",)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What label stems add to image stems, the preferred one first."""
        return tuple(dict.fromkeys(encoding.suffix for encoding in self.encodings))

    def tables(self, label: Path) -> list[npt.NDArray[np.int16]]:
        """The tables that the name of a label file leaves to choose from, the preferred one first."""
        named = [e for e in self.encodings if e.suffix and label.stem.endswith(e.suffix)]
        bare = [e for e in self.encodings if not e.suffix]
        return [encoding.table() for encoding in named or bare or self.encodings]
