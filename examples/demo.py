"""The whole job in minutes: hide a model, train a student from its answers, see who is better.

    make demo            or            make demo SEED=3

Starts `corte-teacher serve` on the embedded street-scenes model, trains three students over HTTP on
unlabelled target images (naive transfer, CoRTe, and, knowing the truth, target-only), scores all four on
held-out target images and writes a report with a picture. It prints whatever it measures.
"""

import argparse
import asyncio
import base64
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from accuracy.street import RECIPE, Row, Scenes, run_seed, street_teacher
from corte_protocol import Disclosure
from corte_student.asking import Asker, Tally, ask_info
from corte_student.checkpoint import load_statistics, load_student
from corte_student.classmap import ClassMap, Mapped
from corte_student.data.folder import read_picture
from corte_student.data.layouts import read_labels
from corte_student.endpoints import connect
from corte_student.evaluate import predict_pixels
from corte_student.ledger import Ledger
from corte_student.metrics import ConfusionMatrix
from corte_student.report.preview import PreviewRow, panel_png
from corte_student.report.progress import Progress
from corte_student.settings import TrainSettings, load_settings
from corte_student.training import Observer

SHOWN = (0, 5, 9, 14)
STEPS = 1300  # 5 min 36 s in all on two idle cores; the tables take 1600
ABOUT = {
    "black box": "the hidden source model itself",
    "naive": "student, every answer taken as truth",
    "corte-plus": "student, CoRTe with class mixing: the default",
    "target-only": "student, true labels: the upper bound",
}


class Bar(Observer):
    """One progress line for one row."""

    def __init__(self, method: str, settings: TrainSettings) -> None:
        self._bar = Progress(settings.steps, f"{method:11s}", batch=settings.batch)
        self._steps = settings.steps
        self._bar.__enter__()

    def stepped(self, step: int, tally: Tally) -> None:
        """Move it, and close it at the end."""
        self._bar.update(step, sent=tally.sent, saved=tally.saved)
        if step == self._steps:
            self._bar.__exit__(None, None, None)


async def answers(url: str, scenes: Scenes, ledger: Path) -> list[Mapped]:
    """The teacher's answers for the images that are shown; they are in the ledger by now."""
    endpoint = connect(url, deadline_s=60, connections=2)
    store = Ledger.open(ledger)
    try:
        info, _ = await ask_info(endpoint, store, url)
        asker, classmap = Asker(endpoint, store, info, Disclosure(2, 8), 2), ClassMap.identity(info)
        pictures = [read_picture(scenes.report / "images" / f"{n:04d}.png") for n in SHOWN]
        return [classmap.apply(await asker.answer(picture)) for picture in pictures]
    finally:
        await endpoint.aclose()
        store.close()


def picture(url: str, scenes: Scenes, base: Path, run: Path) -> bytes:
    """Image, teacher, kept pixels, student and truth of a few held-out images, as PNG."""
    student, spec = load_student(run)
    statistics = load_statistics(run)
    rows = []
    for number, mapped in zip(SHOWN, asyncio.run(answers(url, scenes, base / "ledger.sqlite")), strict=True):
        image = read_picture(scenes.report / "images" / f"{number:04d}.png").pixels
        truth = read_labels(scenes.report / "labels" / f"{number:04d}.png", "plain", len(spec.classes))
        labels = predict_pixels(student, image)
        assert mapped.margin is not None
        kept = statistics.keeps(mapped.labels, mapped.margin)
        captions = {
            "image": f"held-out target image {number}",
            "teacher": _caption(truth, mapped.labels, len(spec.classes)),
            "kept": f"{100 * np.mean(kept):.0f} % kept",
            "student": _caption(truth, labels, len(spec.classes)),
        }
        rows.append(PreviewRow(image, mapped.labels, kept, labels, truth, captions))
    return panel_png(rows, spec.classes, spec.colors)


def _caption(truth: np.ndarray, labels: np.ndarray, classes: int) -> str:
    matrix = ConfusionMatrix(classes)
    matrix.update(truth, labels)
    return f"mIoU {100 * matrix.miou:.0f} here"


def table(rows: Sequence[Row], names: Sequence[str]) -> Table:
    """The result for a terminal: a column a method, so that it fits eighty characters."""
    best = max(row.miou for row in rows if row.method != "target-only")
    view = Table("IoU, percent", title="held-out target images", title_justify="left")
    for row in rows:
        view.add_column(row.method, justify="right", style="bold" if row.miou == best else None)
    view.add_row("mean (mIoU)", *(f"{100 * row.miou:.1f}" for row in rows), end_section=True)
    for index, name in enumerate(names):
        values = (row.iou[index] for row in rows)
        view.add_row(name, *("absent" if v is None else f"{100 * v:.1f}" for v in values))
    view.add_section()
    view.add_row("pixels kept", *("-" if row.kept is None else f"{100 * row.kept:.0f} %" for row in rows))
    asked = ("-" if row.method in ("black box", "target-only") else str(row.requests) for row in rows)
    view.add_row("requests", *asked)
    view.add_row("seconds", *(f"{row.seconds:.0f}" for row in rows))
    return view


def verdict(rows: Sequence[Row]) -> str:
    """What the numbers of this seed say, win or lose."""
    miou = {row.method: 100 * row.miou for row in rows}
    box, naive, corte = miou["black box"], miou["naive"], miou["corte-plus"]
    return (
        f"CoRTe {corte:.1f}: {corte - box:+.1f} points against the black box, {corte - naive:+.1f} against "
        "naive transfer. One seed is an anecdote: the claim rests on the tables of several seeds in "
        "benchmarks/accuracy/results."
    )


def _line(row: Row) -> str:
    cells = "".join("<td>-</td>" if v is None else f"<td>{100 * v:.0f}</td>" for v in row.iou)
    name = f"{escape(row.method)}<small>{escape(ABOUT[row.method])}</small>"
    return f"<tr><td>{name}</td><td><b>{100 * row.miou:.1f}</b></td>{cells}</tr>"


def page(rows: Sequence[Row], names: Sequence[str], png: bytes, seed: int, settings: TrainSettings) -> str:
    """The report: one HTML file, no network."""
    head = "".join(f"<th>{escape(c)}</th>" for c in ("", "mIoU", *names))
    body = "".join(_line(row) for row in rows)
    image = base64.b64encode(png).decode()
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>CoRTe demo, seed {seed}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem;color:#222}}
table{{border-collapse:collapse}}td,th{{padding:.35rem .6rem;text-align:right;border-bottom:1px solid #ddd}}
td:first-child,th:first-child{{text-align:left}}small{{display:block;color:#666}}img{{max-width:100%}}</style>
<h1>From a black box to a small student</h1>
<p>{escape(verdict(rows))}</p>
<table><tr>{head}</tr>{body}</table>
<p>IoU in percent on {escape("held-out target images")}, void pixels excluded. Street scenes, seed {seed},
{settings.steps} steps of {settings.batch}, encoder {escape(settings.encoder)} from random weights.</p>
<h2>What the teacher said, what was kept, what the student sees</h2>
<img alt="image, teacher, kept pixels, student and truth side by side" src="data:image/png;base64,{image}">
</html>
"""


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run; fewer for a quick look")
    flags = parser.parse_args()
    console, began = Console(), time.perf_counter()
    flags.out.mkdir(parents=True, exist_ok=True)
    settings = load_settings(RECIPE, {"seed": flags.seed, "steps": flags.steps}, [])
    console.print("rendering street scenes, then starting the teacher: a real service on a real socket")
    with street_teacher() as url:
        console.print(f"teacher at {url}; students know nothing but its answers", highlight=False)
        rows = run_seed(flags.seed, flags.out, url, steps=flags.steps, observer=Bar)
        scenes = Scenes(flags.out / f"seed{flags.seed}" / "train", flags.out / f"seed{flags.seed}" / "report")
        run = flags.out / f"seed{flags.seed}" / "run-corte-plus"
        names = load_student(run)[1].classes
        png = picture(url, scenes, flags.out, run)
    (flags.out / "picture.png").write_bytes(png)
    (flags.out / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    (flags.out / "report.html").write_text(page(rows, names, png, flags.seed, settings))
    console.print(table(rows, names))
    console.print(verdict(rows), highlight=False, soft_wrap=True)
    console.print(
        f"{time.perf_counter() - began:.0f} s; report: {flags.out / 'report.html'}", highlight=False
    )


if __name__ == "__main__":
    main()
