"""Finished jobs to a dated table: Markdown for people, JSON for programs, losses included.

    python -m accuracy.report --work runs/bench --pair street --out benchmarks/accuracy/results

Strategy: read every result.json of a pair, refuse to mix what does not belong together, compare by seed and
by images (`accuracy.compare`), and print all of it: each seed, each class, what asking and computing cost,
and whether the budget lets a row count at all.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accuracy.compare import Difference, blocks_of, difference, half_width
from accuracy.rows import ALL, BESIDE
from accuracy.scoring import Scores
from accuracy.tasks import write_json
from corte_student.settings import TrainSettings

Record = dict[str, Any]
Rows = dict[str, dict[int, Record]]

BLACK_BOX, NAIVE, BOUND = "black box", "naive", "target-only"
LEAST_GAP = 8.0
"""Points of mIoU that target-only must be above the black box: below, the budget is measured."""
KEPT = ("share", "end", "right", "answers_right")
BUDGET = ("steps", "batch", "encoder", "height", "width")


def read(base: Path) -> Rows:
    """The results below WORK/PAIR, by row and seed, in order. Raises ValueError for mixed ones."""
    rows: Rows = {}
    for path in sorted(base.glob("seed*/*/result.json")):
        record = json.loads(path.read_text())
        record["folder"] = str(path.parent)
        if record["kind"] != "teacher":  # a setting that is younger than the run stands for its default
            record["settings"] = TrainSettings().model_dump(mode="json") | record["settings"]
        rows.setdefault(record["row"], {})[record["seed"]] = record
    order = [row.name for row in ALL if row.name in rows]
    order += sorted(rows.keys() - set(order))
    rows = {name: dict(sorted(rows[name].items())) for name in order}
    _check(rows)
    return rows


def _check(rows: Rows) -> None:
    """One table has one class list, and a row the same settings and sizes in every seed."""
    if not rows:
        raise ValueError("there is no finished job")
    everything = [record for found in rows.values() for record in found.values()]
    for key in ("classes", "images", "block", "fixed"):
        if any(record[key] != everything[0][key] for record in everything):
            raise ValueError(f"the results differ in {key!r}: they do not belong in one table")
    for name, found in rows.items():
        plans = [{**r["settings"], "seed": None} for r in found.values()]
        if any(plan != plans[0] for plan in plans):
            keys = {k for plan in plans for k in plan if plan[k] != plans[0].get(k)}
            raise ValueError(f"the seeds of {name!r} differ in {', '.join(sorted(keys))}")


def compared(rows: Rows) -> dict[tuple[str, str], Difference]:
    """Every row against the black box and against naive, and `BESIDE`, where they share a seed."""
    scores = {
        name: {seed: Scores.load(Path(r["folder"]) / "report.npz") for seed, r in found.items()}
        for name, found in rows.items()
    }
    differences = {}
    wanted = [(first, second) for second in (BLACK_BOX, NAIVE) for first in rows if first != second]
    wanted = [pair for pair in wanted if pair != (BLACK_BOX, NAIVE)]
    for first, second in [*wanted, *BESIDE]:
        if not rows.get(first, {}).keys() & rows.get(second, {}).keys():
            continue
        one = next(iter(rows[first].values()))
        for seed in rows[first].keys() & rows[second].keys():
            if scores[first][seed].names != scores[second][seed].names:
                raise ValueError(f"{first} and {second} were scored on different images in seed {seed}")
        differences[first, second] = difference(
            {seed: s.counts for seed, s in scores[first].items()},
            {seed: s.counts for seed, s in scores[second].items()},
            {seed: blocks_of(s.names, one["block"]) for seed, s in scores[first].items()},
            shared=one["fixed"],
        )
    return differences


def summary(rows: Rows) -> list[str]:
    """One line a row: mIoU, each seed, kept pixels, questions, time."""
    seeds = _seeds(rows)
    lines = _head(
        [
            *("row", "mIoU, mean ± 95 %", *(f"seed {s}" for s in seeds), "pixel accuracy"),
            *("kept", "kept at the end", "of them right", "of the answers right"),
            *("asked a seed", "sent in all", "s a seed", "steps"),
        ]
    )
    for name, found in rows.items():
        records = list(found.values())
        asked = records[0]["queries"]
        cells = [
            name,
            _mean([100 * r["miou"] for r in records]),
            *(f"{100 * found[s]['miou']:.1f}" if s in found else "" for s in seeds),
            _percent([r["pixel_accuracy"] for r in records]),
            *(_percent([r["kept"].get(key) for r in records]) for key in KEPT),
            "labels" if records[0]["kind"] == "truth" else f"{asked['images']} x {asked['views']}",
            "-" if records[0]["kind"] == "truth" else str(sum(r["queries"]["sent"] for r in records)),
            f"{sum(r['seconds'] for r in records) / len(records):.0f}",
            str(records[0]["settings"].get("steps", "-")),
        ]
        lines.append(_line(cells))
    return lines


def differences_table(rows: Rows, differences: dict[tuple[str, str], Difference]) -> list[str]:
    """One line a paired difference, in points."""
    seeds = _seeds(rows)
    columns = (f"seed {s}" for s in seeds)
    lines = _head(["difference", "mean ± 95 % over seeds", *columns, "95 % over blocks", "verdict"])
    for (first, second), found in differences.items():
        half = "" if found.half is None else f" ± {100 * found.half:.1f}"
        cells = [
            f"{first} - {second}",
            f"{100 * found.mean:+.1f}{half}",
            *(f"{100 * found.seeds[s]:+.1f}" if s in found.seeds else "" for s in seeds),
            f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
            f"**{found.verdict}**" if found.win else found.verdict,
        ]
        lines.append(_line(cells))
    return lines


def budget(rows: Rows, differences: dict[tuple[str, str], Difference]) -> dict[str, Any]:
    """Whether the rows count: target-only's gap to the black box in points, in the mean and by seed.

    `others` names the rows whose budget is not target-only's: the rule says nothing about them.
    """
    found = differences.get((BOUND, BLACK_BOX))
    if found is None:
        return {"gap": None, "seeds": {}, "counts": None, "others": []}
    plan = next(iter(rows[BOUND].values()))["settings"]
    others = []
    for name, records in rows.items():
        settings = next(iter(records.values()))["settings"]
        if "steps" in settings and any(settings[key] != plan[key] for key in BUDGET):
            others.append(name)
    gaps = {seed: 100 * gap for seed, gap in found.seeds.items()}
    return {
        "gap": 100 * found.mean,
        "seeds": gaps,
        "counts": 100 * found.mean >= LEAST_GAP,
        "others": others,
    }


def budget_text(rule: Record) -> list[str]:
    """The rule of `budget` in words."""
    if rule["gap"] is None:
        return [
            f"**No row counts yet:** {BOUND} and {BLACK_BOX} share no seed, so nobody knows whether the",
            "budget or the method is measured.",
        ]
    seeds = ", ".join(
        f"seed {seed} {gap:+.1f} ({'counts' if gap >= LEAST_GAP else 'does not count'})"
        for seed, gap in rule["seeds"].items()
    )
    word = "The rows count" if rule["counts"] else "**The rows do not count: the budget is measured**"
    lines = [
        f"{word}: {BOUND} under the same budget is {rule['gap']:+.1f} points against the black box "
        f"(at least +{LEAST_GAP:.0f} are asked for). By seed: {seeds}."
    ]
    if rule["others"]:
        lines.append(f"Of another budget, so the rule says nothing about them: {', '.join(rule['others'])}.")
    return lines


def classes(rows: Rows) -> list[str]:
    """Mean IoU of each class over the seeds."""
    names = _any(rows)["classes"]
    lines = _head(["row", *names])
    for name, found in rows.items():
        values = [[r["iou"][i] for r in found.values()] for i in range(len(names))]
        lines.append(_line([name, *(_percent(v, absent="absent") for v in values)]))
    return lines


def sequences(rows: Rows) -> list[str]:
    """The train images, by sequence: mIoU of each, mean over seeds. Empty where they were not scored."""
    scored = {name: [r["transductive"] for r in found.values() if "transductive" in r]
              for name, found in rows.items()}  # fmt: skip
    parts = next((list(records[0]) for records in scored.values() if records), [])
    if not parts:
        return []
    return _head(["row", *parts]) + [
        _line([name, *(_percent([record[part]["miou"] for record in records]) for part in parts)])
        for name, records in scored.items()
        if records
    ]


def costs(rows: Rows) -> list[str]:
    """One line for each different model: what it weighs, computes and takes."""
    lines = _head(["model", "parameters", "of them encoder", "MACs an image", "ms an image, one thread"])
    seen: dict[tuple[Any, ...], list[Record]] = {}
    for found in rows.values():
        for record in found.values():
            cost = record["cost"]
            key = (record["kind"] == "teacher", cost["params"], cost["macs"], cost["height"], cost["width"])
            seen.setdefault(key, []).append(record)
    for (teacher, params, macs, height, width), records in seen.items():
        encoder = records[0]["cost"]["encoder"]
        times = sorted(r["cost"]["ms"] for r in records)
        name = "teacher" if teacher else f"student ({records[0]['settings']['encoder']})"
        lines.append(_line([
            f"{name} at {height} x {width}",
            f"{params / 1e3:.0f} k",
            "-" if encoder is None else f"{encoder / 1e3:.0f} k",
            "unknown" if macs is None else f"{macs / 1e6:.0f} M",
            f"{times[len(times) // 2]:.1f} ({times[0]:.1f} to {times[-1]:.1f} in {len(times)} jobs)",
        ]))  # fmt: skip
    return lines


def settings_text(rows: Rows) -> list[str]:
    """What all trained rows share, and where a row differs from naive (or the first of them)."""
    plans = {name: next(iter(found.values())) for name, found in rows.items()}
    trained = {name: r["settings"] for name, r in plans.items() if r["kind"] != "teacher"}
    if not trained:
        return []
    base = trained.get(NAIVE) or next(iter(trained.values()))
    same = {k: v for k, v in base.items() if k != "seed" and all(p.get(k) == v for p in trained.values())}
    lines = ["All trained rows share " + ", ".join(f"{k} {json.dumps(v)}" for k, v in same.items()) + ".", ""]
    lines += _head(["row", "what it is", "its own settings"])
    for name, record in plans.items():
        shared = {} if record["kind"] == "teacher" else same
        own = {k: v for k, v in record["settings"].items() if k not in shared and k != "seed"}
        lines.append(
            _line([name, record["about"], ", ".join(f"{k} {json.dumps(v)}" for k, v in own.items())])
        )
    return lines


def markdown(rows: Rows, differences: dict[tuple[str, str], Difference], date: str) -> str:
    """The whole report."""
    one = _any(rows)
    blocks = min((d.blocks for d in differences.values()), default=0)
    drawn = "the same draws for all seeds, which share their images" if one["fixed"] else "anew for each seed"
    commits = sorted({r["commit"] for f in rows.values() for r in f.values()})
    machines = sorted({r["machine"] for f in rows.values() for r in f.values()})
    transductive = sequences(rows)
    parts: list[list[str]] = [
        [f"# {one['pair']}, {date}"],
        [
            f"{one['about_pair']}. mIoU in percent over {len(one['classes'])} classes",
            f"({', '.join(one['classes'])}); one confusion matrix over all {one['images']['report']} images;",
            f"{one['absent_rule']}; void pixels excluded. The ema's weights at the last step; the black box",
            f"is asked at `margin`. Scored at commit {', '.join(commits)};",
            f"{'; '.join(machines)}.",
        ],
        summary(rows),
        budget_text(budget(rows, differences)),
        [
            "Paired differences in points. A win has the same sign in each of at least three seeds and a",
            f"95 % block-bootstrap interval that excludes zero: {blocks} blocks of at least {one['block']}",
            f"consecutive images of one sequence, {drawn}.",
        ],
        differences_table(rows, differences),
        [
            "`kept` is the share of the answered pixels that the run learned from; at its end the labeller",
            "is asked once more, on whole train images whose labels only this program reads.",
        ],
        ["IoU by class, mean over seeds:"],
        classes(rows),
        *([["The train images (transductive: their pixels were seen), mIoU by sequence:"], transductive]
          if transductive else []),
        ["What the models cost, measured beside other processes:"],
        costs(rows),
        settings_text(rows),
    ]  # fmt: skip
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def as_object(rows: Rows, differences: dict[tuple[str, str], Difference], date: str) -> Record:
    """The same as one object: every result as it was recorded, and what was computed from them."""
    return {
        "pair": _any(rows)["pair"],
        "date": date,
        "budget": budget(rows, differences),
        "differences": [
            {
                "first": first,
                "second": second,
                **asdict(d),
                "mean": d.mean,
                "verdict": d.verdict,
                "win": d.win,
            }
            for (first, second), d in differences.items()
        ],
        "results": [
            {k: v for k, v in r.items() if k != "folder"} for found in rows.values() for r in found.values()
        ],
    }


def _any(rows: Rows) -> Record:
    return next(iter(next(iter(rows.values())).values()))


def _seeds(rows: Rows) -> list[int]:
    return sorted({seed for found in rows.values() for seed in found})


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|---" * len(cells) + "|"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _mean(values: Sequence[float]) -> str:
    half = half_width(values)
    mean = sum(values) / len(values)
    return f"{mean:.1f}" if half is None else f"{mean:.1f} ± {half:.1f}"


def _percent(values: Sequence[float | None], absent: str = "-") -> str:
    known = [v for v in values if v is not None]
    return f"{100 * sum(known) / len(known):.1f}" if known else absent


def main() -> None:
    """Print the table; with --out write DATE-PAIR.md and .json there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--pair", required=True)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--date", default=datetime.now(UTC).strftime("%Y-%m-%d"))
    flags = parser.parse_args()
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", flags.date):
        raise SystemExit("--date is YYYY-MM-DD")
    try:
        rows = read(flags.work / flags.pair)
        differences = compared(rows)
    except ValueError as exc:
        raise SystemExit(f"{flags.work / flags.pair}: {exc}") from exc
    text = markdown(rows, differences, flags.date)
    print(text, end="")
    if flags.out is not None:
        flags.out.mkdir(parents=True, exist_ok=True)
        name = f"{flags.date}-{flags.pair}"
        (flags.out / f"{name}.md").write_text(text)
        write_json(flags.out / f"{name}.json", as_object(rows, differences, flags.date))


if __name__ == "__main__":
    main()
