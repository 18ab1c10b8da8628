"""Which views to ask for: labels and kept pixels of several view sets, at margin and from labels alone.

    python -m accuracy.views --teacher-url URL --classes MAP.toml --images DIR --labels DIR --layout camvid \\
        --ledger FILE --every 4

Every query goes through one ledger, at `margin`; the label-only rows are what `narrow` leaves of the same
answers. Beside mIoU, which a user without labels does not have, stands what they do have: how far a view set
agrees with itself on mirrored pictures, and its mean margin.
"""

import argparse
import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from accuracy.bound import Seen, measure
from corte_protocol import Disclosure, Prediction
from corte_student.asking import Asker, ask_info
from corte_student.classmap import ClassMap, Mapped, load_classmap
from corte_student.data.folder import Picture, read_picture
from corte_student.data.layouts import pair, read_labels
from corte_student.endpoints import connect
from corte_student.ledger import Ledger
from corte_student.metrics import ConfusionMatrix
from corte_student.queries import Query, parse_views
from corte_student.views import combine

SETS: dict[str, tuple[str, ...]] = {
    "identity": ("identity",),
    "flip": ("flip",),
    "identity, flip": ("identity", "flip"),
    "identity, flip, scale:0.75, scale:1.25": ("identity", "flip", "scale:0.75", "scale:1.25"),
    "columns:2": ("columns:2",),
    "columns:2+flip": ("columns:2+flip",),
    "columns:2, columns:2+flip": ("columns:2", "columns:2+flip"),
    "identity, columns:2": ("identity", "columns:2"),
    "identity, flip, columns:2": ("identity", "flip", "columns:2"),
    "columns:3": ("columns:3",),
    "columns:3+flip": ("columns:3+flip",),
}
MIRRORED = {"identity": "flip", "columns:2": "columns:2+flip", "columns:3": "columns:3+flip"}

Answered = dict[str, Prediction]
UInt8 = npt.NDArray[np.uint8]


async def answered(asker: Asker, picture: Picture, queries: Sequence[Query]) -> Answered:
    """The answer to every query, by the query's name."""
    return {query.name: await asker.answer(picture, query) for query in queries}


def combined(classmap: ClassMap, answers: Answered, views: Sequence[str], size: tuple[int, int]) -> Mapped:
    """One view set's answer; labels alone get votes and purity for a margin."""
    queries = parse_views(views)
    found = [answers[query.name] for query in queries]
    return combine(classmap, found, queries, size, surrogate=True)


async def run(flags: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Ask, combine and measure every set; rows by set and level."""
    endpoint = connect(flags.teacher_url, deadline_s=120, connections=2)
    ledger = Ledger.open(flags.ledger)
    seen: dict[str, list[Seen]] = defaultdict(list)
    names: list[str] = []
    try:
        info, _ = await ask_info(endpoint, ledger, flags.teacher_url)
        classmap = load_classmap(flags.classes, info) if flags.classes else ClassMap.identity(info)
        asker = Asker(endpoint, ledger, info, Disclosure(2, 8), 2)
        every = {q.name: q for views in SETS.values() for q in parse_views(views)}
        for image, label in pair(flags.images, flags.labels, flags.layout)[:: flags.every]:
            picture = await asyncio.to_thread(read_picture, image)
            answers = await answered(asker, picture, list(every.values()))
            truth, size = read_labels(label, flags.layout, len(classmap.names)), picture.pixels.shape[:2]
            bare = {name: answer.narrow(Disclosure(1, 0)) for name, answer in answers.items()}
            names.append(image.stem)
            for views, each in SETS.items():
                seen[views].append(Seen(combined(classmap, answers, each, size), truth))
                seen[f"labels: {views}"].append(Seen(combined(classmap, bare, each, size), truth))
        return rows(seen, names, len(classmap.names))
    finally:
        await endpoint.aclose()
        ledger.close()


def rows(seen: dict[str, list[Seen]], names: Sequence[str], classes: int) -> dict[str, dict[str, object]]:
    """The figures of every set, mIoU by sequence (the part of a file's name before its last `_`) included."""
    table: dict[str, dict[str, object]] = {}
    sequences = [name.rpartition("_")[0] or name[:6] for name in names]
    for views, found in seen.items():
        row: dict[str, object] = {k: round(100 * v, 1) for k, v in measure(found, classes).items()}
        row["queries"] = len(parse_views(SETS[views.removeprefix("labels: ")]))
        row["margin"] = round(
            float(np.mean([s.mapped.margin.mean() for s in found if s.mapped.margin is not None])) / 255, 3
        )
        if views in MIRRORED:
            row["flip agreement"] = round(100 * _agreement(found, seen[MIRRORED[views]]), 1)
        row["by sequence"] = {
            sequence: round(
                100 * _miou([s for s, q in zip(found, sequences, strict=True) if q == sequence], classes), 1
            )
            for sequence in sorted(set(sequences))
        }
        table[views] = row
    return table


def _miou(found: Sequence[Seen], classes: int) -> float:
    matrix = ConfusionMatrix(classes)
    for one in found:
        matrix.update(one.truth, one.mapped.labels)
    return matrix.miou


def _agreement(first: Sequence[Seen], second: Sequence[Seen]) -> float:
    same = [np.mean(a.mapped.labels == b.mapped.labels) for a, b in zip(first, second, strict=True)]
    return float(np.mean(same))


def main() -> None:
    """Print one JSON object a view set and level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher-url", required=True)
    for name in ("images", "labels", "ledger"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--classes", type=Path, default=None)
    parser.add_argument("--layout", default="camvid")
    parser.add_argument("--every", type=int, default=4, help="take every n-th image")
    flags = parser.parse_args()
    for views, row in asyncio.run(run(flags)).items():
        print(f"{views:50s}", json.dumps(row))


if __name__ == "__main__":
    main()
