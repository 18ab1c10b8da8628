"""The table of a source-to-Cityscapes benchmark, from the confusion matrices of its rows.

Strategy: one matrix of 19x19 classes (and void) a row; all numbers are means over rows of it. With SYNTHIA
as source, 16 classes are scored: the model has 19 outputs, three of which no source image ever names.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accuracy.paper_truth import write_whole
from corte_student.data.layouts.cityscapes import CLASSES
from corte_student.metrics import ABSENT_RULE, CLASS_LISTS, ConfusionMatrix

# what papers report for each source; the first list gives the columns
MEANS = {"gta5": ("mIoU",), "synthia": ("mIoU16", "mIoU13")}


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One line: its name, its matrix over the `images` of Cityscapes val."""

    name: str
    matrix: ConfusionMatrix
    images: int

    def save(self, path: Path) -> None:
        """Keep the counts, so that a table costs no training."""
        path.parent.mkdir(parents=True, exist_ok=True)
        held = {"name": self.name, "images": self.images, "counts": self.matrix.counts.tolist()}
        write_whole(path, json.dumps(held))

    @classmethod
    def load(cls, path: Path) -> "Row":
        """Read what `save` wrote."""
        held = json.loads(path.read_text())
        matrix = ConfusionMatrix(len(CLASSES))
        matrix.counts = np.array(held["counts"], np.int64)
        return cls(held["name"], matrix, held["images"])


def as_object(source: str, rows: list[Row]) -> dict[str, Any]:
    """The table's numbers: all between 0 and 1, null for a class absent from the truth."""
    columns = CLASS_LISTS[MEANS[source][0]]
    lines = []
    for row in rows:
        iou = row.matrix.iou()
        lines.append(
            {
                "name": row.name,
                "images": row.images,
                "iou": {CLASSES[c]: iou[c] for c in columns},
                "means": {title: row.matrix.mean_iou(CLASS_LISTS[title]) for title in MEANS[source]},
                "pixel_accuracy": row.matrix.pixel_accuracy,
            }
        )
    return {"source": source, "target": "cityscapes val", "rows": lines, "absent_rule": ABSENT_RULE}


def as_markdown(source: str, rows: list[Row]) -> str:
    """The same as a page: IoU in percent, one line a row."""
    found = as_object(source, rows)
    columns = [CLASSES[c] for c in CLASS_LISTS[MEANS[source][0]]]
    head = ["", *columns, *MEANS[source]]
    lines = [
        f"# {source} to Cityscapes val, IoU in percent",
        "",
        "| " + " | ".join(head) + " |",
        "|---|" + "--:|" * (len(head) - 1),
    ]
    for line in found["rows"]:
        values = [*line["iou"].values(), *line["means"].values()]
        cells = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        lines.append("| " + " | ".join([line["name"], *cells]) + " |")
    images = ", ".join(sorted({str(row.images) for row in rows}))
    lines += ["", f"{images} images. Rule: {ABSENT_RULE}.", *_note(source)]
    return "\n".join(lines) + "\n"


def _note(source: str) -> list[str]:
    if source != "synthia":
        return []
    return [
        "",
        "SYNTHIA shows 16 of the 19 classes. Every model has 19 outputs; terrain, truck and train are never "
        "trained by the source and not averaged, but a pixel given to them counts against its true class. "
        "mIoU13 leaves out wall, fence and pole as well.",
    ]
