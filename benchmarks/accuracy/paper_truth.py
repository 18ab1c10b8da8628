"""Labelled folders of tens of thousands of images as a teacher that knows the truth.

Strategy: `TruthEndpoint` knows an image by its pixels. Hashing GTA5 takes minutes, so all cores do it, once:
the digests are kept in a file, by name, size and time of change. Labels are read at the same time, because a
wrong one must end a run before it begins; in the middle of it the image would merely be set aside.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from accuracy.truth import TruthEndpoint
from corte_protocol import Image
from corte_student.data.folder import read_pixels
from corte_student.data.layouts import read_labels
from corte_student.data.layouts.cityscapes import CLASSES, COLORS
from corte_student.errors import DataError

Pairs = list[tuple[Path, Path]]


class IndexedTruth(TruthEndpoint):
    """`TruthEndpoint` over a layout of Cityscapes' classes, its digests kept in the file `index`."""

    def __init__(self, pairs: Pairs, layout: str, index: Path) -> None:
        super().__init__([], lambda path: read_labels(path, layout, len(CLASSES)), CLASSES, COLORS)
        known = digests(pairs, layout, index)
        self._labels = {known[image]: label for image, label in pairs}


def digests(pairs: Pairs, layout: str, index: Path) -> dict[Path, str]:
    """The pixel digest of each image; pairs that `index` does not hold are read and added to it.

    Raises DataError for an image or a label that cannot be read, and for two sizes.
    """
    held: dict[str, str] = json.loads(index.read_text()) if index.exists() else {}
    keys = {pair: f"{_key(pair[0])} {_key(pair[1])}" for pair in pairs}
    fresh = [pair for pair, key in keys.items() if key not in held]
    with ThreadPoolExecutor() as threads:
        found = threads.map(lambda pair: _examined(pair, layout), fresh)
        held |= {keys[pair]: digest for pair, digest in zip(fresh, found, strict=True)}
    if fresh:
        write_whole(index, json.dumps(held))
    return {image: held[key] for (image, _), key in keys.items()}


def _examined(pair: tuple[Path, Path], layout: str) -> str:
    image, label = pair
    pixels, labels = read_pixels(image), read_labels(label, layout, len(CLASSES))
    if labels.shape != pixels.shape[:2]:
        raise DataError(f"{label} has another size than {image}: replace or remove the pair")
    return Image(pixels).digest


def link(pairs: Pairs, folder: Path) -> Path:
    """A folder of links to the images that have a label, so that partial copies train on whole pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {image.name: image.resolve() for image, _ in pairs}
    for stale in {entry.name for entry in folder.iterdir()} - wanted.keys():
        (folder / stale).unlink()
    for name, image in wanted.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(image)
    return folder


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    os.replace(fresh, path)


def _key(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
