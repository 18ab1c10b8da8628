"""Rows of `accuracy.street` to a Markdown table: means, every seed, paired differences, losses included.

python -m accuracy.table --rows runs/street/rows.jsonl --out benchmarks/accuracy/results/NAME.md
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from street_scenes.domains import CLASSES

ORDER = ("black box", "naive", "threshold", "soft", "corte", "target-only")
# two-sided 95 % quantiles of Student's t by degrees of freedom
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """The last row of each method and seed."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return list({(row["method"], row["seed"]): row for row in rows}.values())


def interval(values: Sequence[float]) -> str:
    """Mean and half width of its 95 % t-interval."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return f"{mean:.1f} ± {T95.get(len(values) - 1, 1.96) * spread / math.sqrt(len(values)):.1f}"


def by_method(rows: Sequence[Record]) -> dict[str, dict[int, Record]]:
    """Rows by method, then seed."""
    methods: dict[str, dict[int, Record]] = {}
    for name in ORDER:
        found = {row["seed"]: row for row in rows if row["method"] == name}
        if found:
            methods[name] = dict(sorted(found.items()))
    return methods


def summary(methods: dict[str, dict[int, Record]], seeds: Sequence[int]) -> list[str]:
    """One line a method: mean, each seed, kept share, requests, seconds."""
    lines = [
        "| method | mIoU, mean ± 95 % | "
        + " | ".join(f"seed {s}" for s in seeds)
        + " | kept | requests | s |",
        "|---|---|" + "---|" * (len(seeds) + 3),
    ]
    for name, found in methods.items():
        cells = [f"{100 * found[s]['miou']:.1f}" if s in found else "" for s in seeds]
        kept = [100 * row["kept"] for row in found.values() if row["kept"] is not None]
        asked = "-" if name == "target-only" else str(max(row["requests"] for row in found.values()))
        seconds = sum(row["seconds"] for row in found.values()) / len(found)
        share = f"{sum(kept) / len(kept):.0f} %" if kept else "-"
        mean = interval([100 * row["miou"] for row in found.values()])
        lines.append(f"| {name} | {mean} | {' | '.join(cells)} | {share} | {asked} | {seconds:.0f} |")
    return lines


def differences(methods: dict[str, dict[int, Record]], seeds: Sequence[int]) -> list[str]:
    """Paired differences of CoRTe, by seed."""
    lines = [
        "| difference | mean ± 95 % | " + " | ".join(f"seed {s}" for s in seeds) + " | same sign in all |",
        "|---|---|" + "---|" * (len(seeds) + 1),
    ]
    for first, second in (
        ("corte", "naive"),
        ("corte", "black box"),
        ("naive", "black box"),
        ("target-only", "black box"),
    ):
        if first not in methods or second not in methods:
            continue
        both = [s for s in seeds if s in methods[first] and s in methods[second]]
        gaps = {s: 100 * (methods[first][s]["miou"] - methods[second][s]["miou"]) for s in both}
        same = "yes" if len({gap > 0 for gap in gaps.values()}) == 1 else "**no**"
        cells = " | ".join(f"{gaps[s]:+.1f}" if s in gaps else "" for s in seeds)
        lines.append(f"| {first} - {second} | {interval(list(gaps.values()))} | {cells} | {same} |")
    return lines


def classes(methods: dict[str, dict[int, Record]]) -> list[str]:
    """Mean IoU of each class."""
    lines = ["| method | " + " | ".join(CLASSES) + " |", "|---|" + "---|" * len(CLASSES)]
    for name, found in methods.items():
        cells = []
        for index in range(len(CLASSES)):
            values = [row["iou"][index] for row in found.values() if row["iou"][index] is not None]
            cells.append(f"{100 * sum(values) / len(values):.1f}" if values else "absent")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Read rows, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--title", default="Street scenes")
    flags = parser.parse_args()
    methods = by_method(read(flags.rows))
    seeds = sorted({seed for found in methods.values() for seed in found})
    text = "\n".join(
        [
            f"# {flags.title}",
            "",
            "mIoU in percent over nine classes on held-out target images (split `report`), void pixels",
            "excluded, one confusion matrix over all images; the ema's weights at the last step; scenes,",
            "weights and order differ by seed. The black box is asked at `margin`.",
            "",
            *summary(methods, seeds),
            "",
            *differences(methods, seeds),
            "",
            "Mean IoU by class:",
            "",
            *classes(methods),
            "",
        ]
    )
    print(text)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(text)


if __name__ == "__main__":
    main()
