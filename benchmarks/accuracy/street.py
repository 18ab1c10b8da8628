"""Street scenes, one seed: the black box, naive transfer, CoRTe and target-only on held-out target images.

What `examples/demo.py` runs; the table of many seeds is `accuracy.bench`.

Every row shares scenes, initialisation, views, steps and the weights that are scored (the ema's, at the last
step); only the labels differ. The service is the real one, on a socket. Target images come from the split
`train`, scores from `report`, whose scenes and assets no training has seen.
"""

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from accuracy.service import serving
from accuracy.truth import TruthEndpoint, write_classmap
from corte_protocol import Disclosure
from corte_student.asking import Asker, ask_info
from corte_student.checkpoint import load_student
from corte_student.classmap import ClassMap
from corte_student.data.layouts import pair, read_labels
from corte_student.endpoints import connect
from corte_student.evaluate import score, student_predicts, teacher_predicts
from corte_student.ledger import Ledger
from corte_student.metrics import ConfusionMatrix
from corte_student.settings import TrainSettings, load_settings, shipped_recipes
from corte_student.training import Job, Observer, Summary, train
from street_scenes.domains import CLASSES, PALETTE, TARGET, Split
from street_scenes.generate import write

RECIPE = Path(__file__).parents[2] / "examples" / "recipes" / "street.toml"
TRAIN_IMAGES, REPORT_IMAGES = 1200, 150
METHODS = ("naive", "corte-plus", "target-only")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: IoU between 0 and 1, None for a class absent from the truth."""

    method: str
    seed: int
    miou: float
    pixel_accuracy: float
    iou: list[float | None]
    kept: float | None
    requests: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Scenes:
    """Where one seed's images and labels lie."""

    train: Path
    report: Path

    @classmethod
    def of(cls, base: Path, seed: int, train_images: int, report_images: int) -> "Scenes":
        """Render what is not there yet."""
        scenes = cls(base / f"seed{seed}" / "train", base / f"seed{seed}" / "report")
        wanted: tuple[tuple[Path, Split, int], ...] = (
            (scenes.train, "train", train_images),
            (scenes.report, "report", report_images),
        )
        for folder, split, count in wanted:
            if not (folder / "labels" / f"{count - 1:04d}.png").exists():
                write(TARGET, split, count, seed, folder)
        return scenes


@contextmanager
def street_teacher(disclosure: str = "margin") -> Iterator[str]:
    """`corte-teacher serve` on the embedded model, on a free port of loopback; yields its URL."""
    with serving(("--disclosure", disclosure)) as url:
        yield url


def settings_for(method: str, seed: int, steps: int | None, assignments: list[str]) -> TrainSettings:
    """The street recipe for one row, which may be a shipped recipe; they differ in nothing else."""
    shipped = shipped_recipes()
    name = None if method in shipped else "naive" if method == "target-only" else method
    recipes = [shipped.get(method, shipped["corte"]), RECIPE]
    return load_settings(recipes, {"method": name, "seed": seed, "steps": steps}, assignments)


def train_row(
    method: str, url: str, scenes: Scenes, base: Path, settings: TrainSettings, observer: Observer
) -> tuple[Path, Summary, float]:
    """Train one row; returns its run folder, its summary and the seconds it took."""
    out = base / f"seed{settings.seed}" / f"run-{method}"
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    job = Job(url, scenes.train / "images", out, settings, ledger=base / "ledger.sqlite")
    if method != "target-only":
        return out, asyncio.run(train(job, observer)), time.perf_counter() - began
    pairs = pair(scenes.train / "images", scenes.train / "labels", "plain")
    truth = TruthEndpoint(pairs, lambda path: read_labels(path, "plain", len(CLASSES)), CLASSES, PALETTE)
    classes = write_classmap(base / "truth.toml", CLASSES, PALETTE)
    # its own ledger, emptied each time: the truth is free, and must never answer for a teacher
    (base / f"truth-{settings.seed}.sqlite").unlink(missing_ok=True)
    job = Job(
        "http://127.0.0.1:1",
        job.images,
        out,
        settings,
        classes=classes,
        ledger=base / f"truth-{settings.seed}.sqlite",
    )
    return out, asyncio.run(train(job, observer, truth)), time.perf_counter() - began


def score_student(run: Path, scenes: Scenes) -> ConfusionMatrix:
    """A run's student on the report split."""
    student, spec = load_student(run)
    pairs = pair(scenes.report / "images", scenes.report / "labels", "plain")
    return asyncio.run(score(student_predicts(student), pairs, layout="plain", classes=len(spec.classes)))


def score_teacher(url: str, scenes: Scenes, base: Path) -> ConfusionMatrix:
    """The black box on the report split, through the same ledger and the same code."""

    async def run() -> ConfusionMatrix:
        endpoint = connect(url, deadline_s=60, connections=4)
        ledger = Ledger.open(base / "ledger.sqlite")
        try:
            info, _ = await ask_info(endpoint, ledger, url)
            asker = Asker(endpoint, ledger, info, Disclosure(2, 8), 4)
            pairs = pair(scenes.report / "images", scenes.report / "labels", "plain")
            predicts = teacher_predicts(asker, ClassMap.identity(info))
            return await score(predicts, pairs, layout="plain", classes=len(CLASSES), in_flight=4)
        finally:
            await endpoint.aclose()
            ledger.close()

    return asyncio.run(run())


def kept_share(run: Path) -> float:
    """The share of answered pixels that the run learned from, over its whole log."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    kept = sum(sum(r["kept_per_class"]) for r in records)
    return kept / max(1, sum(sum(r["answered_per_class"]) for r in records))


def run_seed(
    seed: int,
    base: Path,
    url: str,
    *,
    methods: tuple[str, ...] = METHODS,
    steps: int | None = None,
    assignments: list[str] | None = None,
    sizes: tuple[int, int] = (TRAIN_IMAGES, REPORT_IMAGES),
    observer: Callable[[str, TrainSettings], Observer] = lambda method, settings: Observer(),
    told: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """All rows of one seed, the black box first; `told` hears each as it is there."""
    base.mkdir(parents=True, exist_ok=True)
    scenes = Scenes.of(base, seed, *sizes)
    began = time.perf_counter()
    rows = [_row("black box", seed, score_teacher(url, scenes, base), None, 0, time.perf_counter() - began)]
    told(rows[0])
    for method in methods:
        settings = settings_for(method, seed, steps, assignments or [])
        run, summary, seconds = train_row(method, url, scenes, base, settings, observer(method, settings))
        matrix = score_student(run, scenes)
        rows.append(_row(method, seed, matrix, kept_share(run), summary.tally.sent, seconds))
        told(rows[-1])
    return rows


def _row(
    method: str, seed: int, matrix: ConfusionMatrix, kept: float | None, requests: int, seconds: float
) -> Row:
    return Row(
        method,
        seed,
        matrix.miou,
        matrix.pixel_accuracy,
        list(matrix.iou()),
        kept,
        requests,
        round(seconds, 1),
    )
