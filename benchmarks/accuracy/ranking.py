"""How well signals without labels rank checkpoints: Spearman's rank correlation with mIoU on labelled images.

    python -m accuracy.ranking --runs RUN... --images DIR --labels DIR --layout plain [--out FILE.md]
        [--answers DIR --ledger FILE --teacher-url URL [--classes MAP]]

For runs trained with `--set keep_checkpoints=true`. Every kept checkpoint is scored; beside it stand the
logged signals, added up over the intervals since the checkpoint before. With --answers, agreement is also
taken on whole images, from answers that the ledger holds; nothing is asked. The labels judge the signals here
and choose nothing: what a run results in stays its last checkpoint.
"""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from corte_protocol import CorteError, Disclosure
from corte_student.asking import Asker, ask_info
from corte_student.checkpoint import kept_steps, load_student
from corte_student.classmap import ClassMap, load_classmap
from corte_student.data.folder import find_images, read_pixels
from corte_student.data.layouts import check_classes, pair
from corte_student.errors import DataError
from corte_student.evaluate import predict_pixels, score, student_predicts, teacher_predicts
from corte_student.ledger import Ledger
from corte_student.metrics import ConfusionMatrix
from corte_student.models import Student
from corte_student.report.recorded import Recorded
from corte_student.report.signals import Logged, Window

UInt8 = npt.NDArray[np.uint8]
Answered = Sequence[tuple[Path, UInt8]]

LOGGED = ("agreement", "agreement, mean IoU", "confidence", "kept")
WHOLE = ("agreement on images", "the same, mean IoU")
LEAST = 3  # points: of two, the correlation is 1 or -1 whatever they are


@dataclass(frozen=True, slots=True)
class Scored:
    """A checkpoint: its mIoU, 0..1, and the signals by name; None where none was logged."""

    step: int
    miou: float
    signals: Mapping[str, float | None]


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1 on; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    shared: list[float] = (last - (count - 1) / 2)[place].tolist()
    return shared


def spearman(a: Sequence[float | None], b: Sequence[float | None]) -> float | None:
    """Rank correlation of the complete pairs, -1..1; None for fewer than `LEAST` or a constant side."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if len(pairs) < LEAST:
        return None
    x, y = (np.array(ranks(side)) for side in zip(*pairs, strict=True))
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread else None


def logged_signals(intervals: Sequence[Logged], after: int, upto: int) -> dict[str, float | None]:
    """What was logged in steps `after` + 1 to `upto`, by the names of `LOGGED`."""
    held = [i for i in intervals if after < i.step <= upto and i.said]
    if not held:
        return dict.fromkeys(LOGGED)
    window = Window.over(held)
    said = [c for c, pixels in enumerate(window.said) if pixels]
    iou = sum(window.iou(c) for c in said) / len(said) if said else None
    return dict(zip(LOGGED, (window.agreement, iou, window.confidence, window.kept_share), strict=True))


def scored(run: Path, pairs: Sequence[tuple[Path, Path]], layout: str, answered: Answered) -> list[Scored]:
    """Every kept checkpoint of a run, by rising step. Raises CheckpointError or DataError."""
    intervals, found, before = Recorded.read(run).intervals, [], 0
    for step in kept_steps(run):
        student, spec = load_student(run, step)
        check_classes(layout, spec.classes)
        matrix = asyncio.run(
            score(student_predicts(student), pairs, layout=layout, classes=len(spec.classes))
        )
        signals = logged_signals(intervals, before, step) | _on_images(student, answered, len(spec.classes))
        found.append(Scored(step, matrix.miou, signals))
        before = step
    if not found:
        raise DataError(f"{run} holds no checkpoint: train it with --set keep_checkpoints=true")
    return found


def _on_images(student: Student, answered: Answered, classes: int) -> dict[str, float | None]:
    if not answered:
        return {}
    matrix = ConfusionMatrix(classes)
    for image, answer in answered:
        matrix.update(answer, predict_pixels(student, read_pixels(image)), source=f"the answer to {image}")
    return dict(zip(WHOLE, (matrix.pixel_accuracy, matrix.miou), strict=True))


async def stored_answers(images: Path, ledger: Path, url: str, classes: Path | None) -> Answered:
    """Each image with the labels that the ledger holds for it, uint8 [H, W], in the student's classes.

    Raises Unavailable for an image that was never asked about: nothing is sent.
    """
    store = Ledger.open(ledger)
    try:
        info, _ = await ask_info(None, store, url)
        classmap = load_classmap(classes, info) if classes else ClassMap.identity(info)
        predict = teacher_predicts(Asker(None, store, info, Disclosure(1, 0), 1), classmap)
        return [(image, await predict(image)) for image in find_images(images)]
    finally:
        store.close()


def markdown(runs: Mapping[str, Sequence[Scored]]) -> str:
    """Correlations first, then every checkpoint that they come from."""
    names = list(next(iter(runs.values()))[0].signals)
    ends = [checkpoints[-1] for checkpoints in runs.values()]
    whole = {name: _row(points, names) for name, points in runs.items()}
    late = {name: _row(points[len(points) // 2 :], names) for name, points in runs.items()}
    parts = [
        "Spearman's rank correlation with mIoU; `-` where a signal is constant or points are fewer than "
        f"{LEAST}. Over a whole run both rise because it trains, so its later half says more.",
        _table("Within a run, all checkpoints", names, whole | {"mean": _mean(list(whole.values()))}),
        _table("Within a run, later half", names, late | {"mean": _mean(list(late.values()))}),
        _table("Across runs, at their ends", names, {f"{len(ends)} runs": _row(ends, names)}),
    ]
    for name, points in runs.items():
        rows = {
            str(p.step): [100 * p.miou, *(None if (s := p.signals[n]) is None else 100 * s for n in names)]
            for p in points
        }
        parts.append(_table(f"{name}, percent", ["mIoU", *names], rows, head="step", digits=1))
    return "\n\n".join(parts) + "\n"


def _row(points: Sequence[Scored], names: Sequence[str]) -> list[float | None]:
    miou = [p.miou for p in points]
    return [spearman([p.signals[name] for p in points], miou) for name in names]


def _mean(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    found = [[v for v in column if v is not None] for column in zip(*rows, strict=True)]
    return [sum(column) / len(column) if column else None for column in found]


def _table(
    title: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[float | None]],
    *,
    head: str = "run",
    digits: int = 2,
) -> str:
    lines = [
        f"**{title}**",
        "",
        "| " + " | ".join([head, *columns]) + " |",
        "|---" + "|--:" * len(columns) + "|",
    ]
    for name, values in rows.items():
        cells = ["-" if value is None else f"{value:.{digits}f}" for value in values]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    """The command in the module's docstring."""
    parser = argparse.ArgumentParser(prog="accuracy.ranking", description="Rank checkpoints without labels.")
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--layout", default="plain")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--answers", type=Path, help="images whose answers the ledger holds")
    parser.add_argument("--ledger", type=Path)
    parser.add_argument("--teacher-url", help="the URL under which the ledger knows the teacher")
    parser.add_argument("--classes", type=Path, help="the run's class map")
    given = parser.parse_args(args)
    if given.answers and not (given.ledger and given.teacher_url):
        parser.error("--answers needs --ledger and --teacher-url")
    try:
        answered: Answered = []
        if given.answers:
            answered = asyncio.run(
                stored_answers(given.answers, given.ledger, given.teacher_url, given.classes)
            )
        pairs = pair(given.images, given.labels, given.layout)
        text = markdown({str(run): scored(run, pairs, given.layout, answered) for run in given.runs})
    except CorteError as exc:
        parser.exit(1, f"error: {exc}\n")
    if given.out:
        given.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
