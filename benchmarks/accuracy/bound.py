"""What the bound of merged classes costs: relative confidence from top-2 answers beside full ones.

    python -m accuracy.bound --teacher-url URL --classes MAP.toml --images DIR --labels DIR --layout camvid

The teacher must disclose `full`. Each image is asked once, at `full`; its top-2 answer is what `narrow`
leaves of it, which is bit for bit what a teacher at `margin` would have said.
"""

import argparse
import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from corte_protocol import VOID, Disclosure, Prediction
from corte_student.asking import Asker, ask_info
from corte_student.classmap import ClassMap, Mapped, load_classmap
from corte_student.data.folder import read_picture
from corte_student.data.layouts import pair, read_labels
from corte_student.endpoints import connect
from corte_student.ledger import Ledger
from corte_student.metrics import ConfusionMatrix
from corte_student.statistics import MarginStatistics

LEVELS = {"margin": Disclosure(2, 8), "topk:3": Disclosure(3, 8), "full": None}


@dataclass(frozen=True, eq=False)
class Seen:
    """One image in the student's classes at one level, and its truth."""

    mapped: Mapped
    truth: npt.NDArray[np.uint8]


def measure(seen: list[Seen], classes: int) -> dict[str, float]:
    """mIoU of the labels; share of pixels that relative confidence keeps; share of those that are right."""
    matrix, statistics = ConfusionMatrix(classes), MarginStatistics.empty(classes)
    for one in seen:
        assert one.mapped.margin is not None
        matrix.update(one.truth, one.mapped.labels)
        statistics += MarginStatistics.of(one.mapped.labels, one.mapped.margin, classes)
    kept, right, judged, pixels = 0, 0, 0, 0
    for one in seen:
        labels, margin = one.mapped.labels, one.mapped.margin
        assert margin is not None
        keep = statistics.keeps(labels, margin)
        kept, pixels = kept + int(keep.sum()), pixels + keep.size
        known = keep & (one.truth != VOID)
        judged, right = judged + int(known.sum()), right + int((labels == one.truth)[known].sum())
    return {"miou": matrix.miou, "kept": kept / pixels, "right": right / judged}


async def run(flags: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Ask, map at each level, measure."""
    endpoint = connect(flags.teacher_url, deadline_s=120, connections=2)
    ledger = Ledger.open(flags.ledger)
    try:
        info, _ = await ask_info(endpoint, ledger, flags.teacher_url)
        classmap = load_classmap(flags.classes, info)
        asker = Asker(endpoint, ledger, info, info.disclosure, 2)
        seen: dict[str, list[Seen]] = {level: [] for level in LEVELS}
        for image, label in pair(flags.images, flags.labels, flags.layout)[:: flags.every]:
            answer = await asker.answer(read_picture(image))
            truth = read_labels(label, flags.layout, len(classmap.names))
            for level, mapped in _mapped(answer, classmap).items():
                seen[level].append(Seen(mapped, truth))
        return {level: measure(found, len(classmap.names)) for level, found in seen.items()}
    finally:
        await endpoint.aclose()
        ledger.close()


def _mapped(answer: Prediction, classmap: ClassMap) -> dict[str, Mapped]:
    return {
        name: classmap.apply(answer if level is None else answer.narrow(level))
        for name, level in LEVELS.items()
    }


def main() -> None:
    """Print one JSON object a level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher-url", required=True)
    for name in ("classes", "images", "labels", "ledger"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--layout", default="camvid")
    parser.add_argument("--every", type=int, default=1, help="take every n-th image")
    flags = parser.parse_args()
    for level, found in asyncio.run(run(flags)).items():
        print(level, json.dumps({name: round(100 * value, 1) for name, value in found.items()}))


if __name__ == "__main__":
    main()
