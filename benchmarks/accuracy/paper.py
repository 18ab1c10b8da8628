"""GTA5 or SYNTHIA to Cityscapes: source model, service, students, scores and the table, in one command.

    python -m accuracy.paper --source gta5 --source-root GTA5 --target-root CITYSCAPES --work DIR

Parts, each left alone where it is finished, so that the same command goes on after a stop:

    DIR/source/          a model trained on the source's labels, and source.onnx with its card
    DIR/runs/ROW/        a student trained on Cityscapes train; naive and corte ask the real service
    DIR/scores/ROW.json  the confusion matrix on Cityscapes val
    DIR/table.md, .json  what is printed

The students of all rows share initialisation, views, steps and the weights that are scored (the ema's, at the
last step). Labels of Cityscapes train reach the row target-only alone (docs/decisions/0006).
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy.paper_source import write_model
from accuracy.paper_table import MEANS, Row, as_markdown, as_object
from accuracy.paper_truth import IndexedTruth, link, write_whole
from accuracy.service import serving
from accuracy.truth import write_classmap
from corte_protocol import CorteError, Disclosure
from corte_student.asking import Asker, Tally, ask_info
from corte_student.checkpoint import latest, load_student
from corte_student.classmap import ClassMap
from corte_student.cli import first_cause
from corte_student.data.layouts import find_pairs
from corte_student.data.layouts.cityscapes import CLASSES, COLORS
from corte_student.endpoints import connect
from corte_student.errors import SettingsError
from corte_student.evaluate import score, student_predicts, teacher_predicts
from corte_student.ledger import Ledger
from corte_student.metrics import ConfusionMatrix
from corte_student.settings import TrainSettings, load_settings, read_toml, shipped_recipes
from corte_student.trainer import Interval
from corte_student.training import Job, Observer, device_of, train

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
ROWS = ("naive", "corte", "corte-plus", "target-only")
TARGET, TARGET_IMAGES = "cityscapes", Path("leftImg8bit/train")
NOWHERE = "http://127.0.0.1:1"  # a truth endpoint takes its place
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Paper:
    """What is run: `settings` are the students', but for their method; `source_settings` the source's."""

    source: str
    source_root: Path
    target_root: Path
    work: Path
    settings: TrainSettings
    source_settings: TrainSettings
    weights: Path | None = None
    source_weights: Path | None = None

    @property
    def model(self) -> Path:
        """The served file."""
        return self.work / "source" / "source.onnx"

    def scores(self, row: str) -> Path:
        """Where a row's matrix is kept."""
        return self.work / "scores" / f"{row}.json"


class Progress(Observer):
    """One line at each log interval."""

    def __init__(self, name: str, steps: int, tell: Tell) -> None:
        self._name, self._steps, self._tell = name, steps, tell

    def interval(self, interval: Interval, tally: Tally, per_second: float) -> None:
        """See the class."""
        self._tell(
            f"{self._name:12s} step {interval.step}/{self._steps}  loss {interval.loss:.3f}  "
            f"kept {100 * interval.kept_share:.0f} %  asked {tally.sent}  {per_second:.1f} images/s"
        )


def run(paper: Paper, rows: tuple[str, ...], tell: Tell) -> list[Row]:
    """Do what is missing and write the table; `tell` gets a line at a time. Raises a CorteError."""
    _check_same(paper)
    names = ("source", *rows)
    if any(not paper.scores(name).exists() for name in names):
        if not paper.model.exists():
            _make_source(paper, tell)
        with serving(("--backend", "onnx", "--model", str(paper.model), "--disclosure", "margin")) as url:
            for name in names:
                if not paper.scores(name).exists():
                    matrix, images = _row(paper, name, url, tell)
                    Row(name, matrix, images).save(paper.scores(name))
    done = [Row.load(paper.scores(name)) for name in names]
    found = as_object(paper.source, done) | _record(paper)
    write_whole(paper.work / "table.json", json.dumps(found, indent=1) + "\n")
    write_whole(paper.work / "table.md", as_markdown(paper.source, done))
    return done


def _record(paper: Paper) -> dict[str, Any]:
    """What decides the numbers."""
    return {
        "source": paper.source,
        "source_root": str(paper.source_root.resolve()),
        "target_root": str(paper.target_root.resolve()),
        "settings": paper.settings.model_dump(),
        "source_settings": paper.source_settings.model_dump(),
        "weights": str(paper.weights),
        "source_weights": str(paper.source_weights),
    }


def _check_same(paper: Paper) -> None:
    """Raises SettingsError where the folder holds parts that were made otherwise."""
    path, record = paper.work / "paper.json", _record(paper)
    if path.exists():
        held = json.loads(path.read_text())
        other = [key for key in record if held.get(key) != record[key]]
        if other:
            raise SettingsError(
                f"{paper.work} was begun with another {', '.join(other)} (see {path}): "
                "give the same flags again, or another --work"
            )
    paper.work.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=1) + "\n")


def _make_source(paper: Paper, tell: Tell) -> None:
    """Train the source model on the source's labels and export it."""
    folder = paper.work / "source"
    pairs = find_pairs(paper.source_root, paper.source, "train")
    images = link(pairs, folder / "images")
    tell(f"source       {len(pairs)} labelled images of {paper.source}")
    truth = IndexedTruth(pairs, paper.source, folder / "index.json")
    job = Job(
        NOWHERE,
        images,
        folder / "run",
        paper.source_settings,
        classes=write_classmap(folder / "classes.toml", CLASSES, COLORS),
        weights=paper.source_weights,
        ledger=folder / "truth.sqlite",
        resume=True,
    )
    _train(job, "source", truth, tell)
    write_model(folder / "run", paper.model)


def _row(paper: Paper, name: str, url: str, tell: Tell) -> tuple[ConfusionMatrix, int]:
    """Train what is missing of a row, and score it on val; with the number of images."""
    pairs = find_pairs(paper.target_root, TARGET, "val")
    tell(f"{name:12s} begins")
    if name == "source":
        matrix = asyncio.run(_score_service(paper, url, pairs))
    else:
        folder = _train_student(paper, name, url, tell)
        student, _ = load_student(folder)
        student = student.to(device_of(paper.settings))
        matrix = asyncio.run(score(student_predicts(student), pairs, layout=TARGET, classes=len(CLASSES)))
    tell(f"{name:12s} scored on {len(pairs)} images")
    return matrix, len(pairs)


def _train_student(paper: Paper, name: str, url: str, tell: Tell) -> Path:
    """A student on Cityscapes train: asks the service, or for target-only the truth. Its run folder."""
    out, images = paper.work / "runs" / name, paper.target_root / TARGET_IMAGES
    truth, classes, ledger = None, None, paper.work / "ledger.sqlite"
    method = name
    if name == "target-only":
        method, url, ledger = "naive", NOWHERE, paper.work / "target-truth.sqlite"
        pairs = find_pairs(paper.target_root, TARGET, "train")
        truth = IndexedTruth(pairs, TARGET, paper.work / "target-index.json")
        classes = write_classmap(paper.work / "target-classes.toml", CLASSES, COLORS)
    shipped = shipped_recipes()
    update = read_toml(shipped[name]) if name in shipped else {"method": method}
    settings = paper.settings.model_copy(update=update)
    job = Job(url, images, out, settings, classes=classes, weights=paper.weights, ledger=ledger, resume=True)
    _train(job, name, truth, tell)
    return out


def _train(job: Job, name: str, truth: IndexedTruth | None, tell: Tell) -> None:
    """Train to the end from the last checkpoint; nothing where that is the end."""
    steps = job.settings.steps
    reached = latest(job.out)
    if reached is None or reached.name != f"step-{steps:08d}":
        summary = asyncio.run(train(job, Progress(name, steps, tell), truth))
        for image, why in summary.aside.items():
            tell(f"{name:12s} {image} was set aside: {why}")


async def _score_service(paper: Paper, url: str, pairs: list[tuple[Path, Path]]) -> ConfusionMatrix:
    """The source model as clients see it, each image asked once."""
    in_flight = paper.settings.in_flight
    endpoint = connect(url, deadline_s=paper.settings.deadline_s, connections=in_flight)
    ledger = Ledger.open(paper.work / "ledger.sqlite")
    try:
        info, _ = await ask_info(endpoint, ledger, url)
        asker = Asker(endpoint, ledger, info, Disclosure(2, 8), in_flight)
        predict = teacher_predicts(asker, ClassMap.identity(info))
        return await score(predict, pairs, layout=TARGET, classes=len(CLASSES), in_flight=in_flight)
    finally:
        await endpoint.aclose()
        ledger.close()


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", choices=sorted(MEANS), required=True)
    parser.add_argument("--source-root", type=Path, required=True, help="holds images/ or RGB/")
    parser.add_argument("--target-root", type=Path, required=True, help="holds leftImg8bit/ and gtFine/")
    parser.add_argument("--work", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--rows", default=",".join(ROWS), help="students to train, of %(default)s")
    parser.add_argument("--recipe", type=Path, help="settings (examples/recipes/SOURCE_cityscapes.toml)")
    parser.add_argument("--encoder", help="timm encoder of the source model (the recipe's)")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int, help="of the source model and of each student")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all models")
    parser.add_argument("--source-set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--weights", type=Path, help="folder of the students' encoder weights")
    parser.add_argument("--source-weights", type=Path, help="folder of the source's encoder weights")
    return parser.parse_args()


def read(flags: argparse.Namespace) -> tuple[Paper, tuple[str, ...]]:
    """The flags as values. Raises SettingsError before anything is begun."""
    rows = tuple(dict.fromkeys(flags.rows.split(",")))
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        raise SettingsError(f"unknown row {unknown[0]!r}: choose of {', '.join(ROWS)}")
    plain = shipped_recipes()["corte"]  # rows mix classes only where they say so
    recipe = flags.recipe or RECIPES / f"{flags.source}_cityscapes.toml"
    common = {"seed": flags.seed, "steps": flags.steps}
    source = {"method": "naive", "encoder": flags.encoder} | common
    paper = Paper(
        flags.source,
        flags.source_root,
        flags.target_root,
        flags.work,
        load_settings([plain, recipe], common, flags.set),
        load_settings([plain, recipe], source, flags.set + flags.source_set),
        flags.weights,
        flags.source_weights,
    )
    return paper, rows


def main() -> None:
    """Run, and print the table; an error of ours is one line and its exit code."""
    flags = _flags()
    try:
        paper, rows = read(flags)
        run(paper, rows, lambda line: print(line, flush=True))
    except (CorteError, BaseExceptionGroup) as exc:
        cause = first_cause(exc)
        if not isinstance(cause, CorteError):
            raise
        print(f"error: {cause}", file=sys.stderr)
        raise SystemExit(getattr(cause, "exit_code", 1)) from None
    print((paper.work / "table.md").read_text())


if __name__ == "__main__":
    main()
