"""Measure what the generator promises and write `AUDIT.md` and, on request, a JSON file.

Everything is measured on the report split, whose scenes and assets no model has seen; only the R2CP figures
use the train split too, because those are the images that a student sends to the teacher.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from street_scenes.baselines import classify_colours, colour_classifier, position_prior
from street_scenes.domains import CLASSES, FACTORS, SOURCE, TARGET, VOID, Image
from street_scenes.metrics import Kept, class_ious, confusion, margins, mean_iou, r2cp
from street_scenes.model import MEAN, STD, normalise
from street_scenes.scene import render
from street_scenes.train_source import DEFAULT_OUT, Recipe, load, train

DATE = "2026-11-22"
SEED = 7
TARGET_TRAIN_SEED = 11
REPORT = Path(__file__).with_name("AUDIT.md")


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All figures; IoUs and shares in percent."""

    images: int
    source: float
    target: float
    source_classes: tuple[float, ...]
    target_classes: tuple[float, ...]
    factors: dict[str, float]
    kept_report: Kept
    kept_train: Kept
    supervised: float
    supervised_classes: tuple[float, ...]
    colour: float
    position: float
    images_per_second: float
    shares: tuple[float, ...]
    model_bytes: int


class Teacher:
    """The shipped ONNX file as a function from images to probabilities."""

    def __init__(self, path: Path) -> None:
        """Open the file on the CPU."""
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, images: Image) -> NDArray[np.float32]:
        """Return class probabilities float32[N,9,H,W] for uint8[N,H,W,3]."""
        x = ((images.transpose(0, 3, 1, 2).astype(np.float32) / 255 - MEAN) / STD).astype(np.float32)
        parts = [self.session.run(["logits"], {"image": x[at : at + 16]})[0] for at in range(0, len(x), 16)]
        return np.asarray(torch.softmax(torch.from_numpy(np.concatenate(parts)), dim=1).numpy(), np.float32)


def score(teacher: Teacher, images: Image, truth: Image) -> tuple[NDArray[np.int64], Kept]:
    """Return the confusion matrix int64[9,9] and what R2CP keeps."""
    probabilities = teacher(images)
    predicted = probabilities.argmax(axis=1).astype(np.uint8)
    return confusion(truth, predicted), r2cp(truth, predicted, margins(probabilities))


def throughput(count: int = 100) -> float:
    """Return target images per second of one core's time."""
    started = time.process_time()
    for index in range(count):
        render(TARGET, "report", SEED, index)
    return count / (time.process_time() - started)


def supervised(images: Image, truth: Image, recipe: Recipe) -> NDArray[np.int64]:
    """Train the teacher's architecture on target truth; return its confusion matrix on the given images."""
    own_images, own_labels = load(TARGET, "train", TARGET_TRAIN_SEED, recipe.images)
    net = train(own_images, own_labels, recipe, lambda line: print(line, flush=True))
    with torch.no_grad():
        parts = [net(normalise(torch.from_numpy(images[at : at + 16]))) for at in range(0, len(images), 16)]
    return confusion(truth, torch.cat(parts).argmax(dim=1).numpy().astype(np.uint8))


def measure(model: Path, count: int, recipe: Recipe) -> Findings:
    """Run the whole audit on `count` report images."""
    torch.set_num_threads(recipe.threads)
    teacher = Teacher(model)
    images, truth = load(TARGET, "report", SEED, count)
    on_source, _ = score(teacher, *load(SOURCE, "report", SEED, count))
    on_target, kept = score(teacher, images, truth)
    drops = {}
    for factor in FACTORS:
        alone, _ = score(teacher, *load(SOURCE.only(factor), "report", SEED, count))
        drops[factor] = mean_iou(on_source) - mean_iou(alone)
    train_images, train_truth = load(TARGET, "train", TARGET_TRAIN_SEED, count)
    _, kept_train = score(teacher, train_images, train_truth)
    by_colour = classify_colours(colour_classifier(train_images, train_truth), images)
    by_place = position_prior(train_truth, count)
    upper = supervised(images, truth, recipe)
    counts = np.bincount(truth.ravel(), minlength=VOID + 1)[[*range(len(CLASSES)), VOID]]
    return Findings(
        images=count,
        source=mean_iou(on_source),
        target=mean_iou(on_target),
        source_classes=tuple(class_ious(on_source).tolist()),
        target_classes=tuple(class_ious(on_target).tolist()),
        factors=drops,
        kept_report=kept,
        kept_train=kept_train,
        supervised=mean_iou(upper),
        supervised_classes=tuple(class_ious(upper).tolist()),
        colour=mean_iou(confusion(truth, by_colour)),
        position=mean_iou(confusion(truth, by_place)),
        images_per_second=throughput(),
        shares=tuple((100 * counts / counts.sum()).tolist()),
        model_bytes=model.stat().st_size,
    )


def demands(found: Findings) -> list[tuple[str, str, bool]]:
    """Return (demand, measured, met) rows."""
    drop = found.source - found.target
    worst = max(found.factors, key=lambda factor: found.factors[factor])
    share, kept = 100 * found.factors[worst] / drop, found.kept_train
    half = found.supervised / 2
    return [
        ("model file at most 3 MB", f"{found.model_bytes / 1e6:.2f} MB", found.model_bytes <= 3_000_000),
        ("source mIoU at least 75", f"{found.source:.1f}", found.source >= 75),
        ("target at least 15 points less", f"{found.target:.1f} (-{drop:.1f})", drop >= 15),
        ("no factor alone above half of the drop", f"{worst} {share:.0f} %", share <= 50),
        ("R2CP keeps 60 to 85 % (train)", f"{kept.share:.1f} %", 60 <= kept.share <= 85),
        ("R2CP right on 90 to 97 % (train)", f"{kept.right:.1f} %", 90 <= kept.right <= 97),
        (
            "supervised at least 15 above the source model",
            f"{found.supervised:.1f} (+{found.supervised - found.target:.1f})",
            found.supervised - found.target >= 15,
        ),
        (
            "colour classifier below half of supervised",
            f"{found.colour:.1f} < {half:.1f}",
            found.colour < half,
        ),
        (
            "position prior below half of supervised",
            f"{found.position:.1f} < {half:.1f}",
            found.position < half,
        ),
        ("at least 50 images/s on one core", f"{found.images_per_second:.0f}", found.images_per_second >= 50),
    ]


def markdown(found: Findings, recipe: Recipe) -> str:
    """Return the report as Markdown."""
    drop, kept = found.source - found.target, found.kept_report
    lines = [
        "# Audit of the street scenes",
        "",
        f"{DATE}, `python -m street_scenes.audit`, {found.images} report images of 128x256, seed {SEED}.",
        f"Supervised: the teacher's architecture, {recipe.steps} steps, {recipe.images} target/train images.",
        "",
        "| demand | measured | met |",
        "|---|---|---|",
        *(f"| {name} | {value} | {'yes' if met else '**no**'} |" for name, value, met in demands(found)),
        "",
        f"On the report split R2CP keeps {kept.share:.1f} % of the pixels; right on {kept.right:.1f} %.",
        "",
        "## Each factor alone",
        "",
        "| factor | drop in mIoU | share of the whole drop |",
        "|---|---|---|",
        *(f"| {name} | {value:.1f} | {100 * value / drop:.0f} % |" for name, value in found.factors.items()),
        f"| all | {drop:.1f} | 100 % |",
        "",
        "## Classes (IoU in percent)",
        "",
        "| class | share of target pixels | teacher on source | teacher on target | supervised on target |",
        "|---|---|---|---|---|",
    ]
    rows = zip(
        CLASSES,
        found.shares,
        found.source_classes,
        found.target_classes,
        found.supervised_classes,
        strict=False,
    )
    lines += [f"| {name} | {share:.1f} % | {a:.1f} | {b:.1f} | {c:.1f} |" for name, share, a, b, c in rows]
    lines += [f"| void | {found.shares[-1]:.1f} % | | | |"]
    lines += [f"| mean | | {found.source:.1f} | {found.target:.1f} | {found.supervised:.1f} |", ""]
    return "\n".join(lines)


def main() -> None:
    """Parse flags, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--steps", type=int, default=2200, help="steps of the supervised run")
    parser.add_argument("--train-images", type=int, default=2000, help="images of the supervised run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=REPORT)
    flags = parser.parse_args()
    recipe = Recipe(steps=flags.steps, images=flags.train_images, threads=flags.threads)
    found = measure(flags.model, flags.images, recipe)
    text = markdown(found, recipe)
    print(text)
    flags.out.write_text(text)
    if flags.json is not None:
        flags.json.write_text(json.dumps(asdict(found), indent=1))


if __name__ == "__main__":
    main()
