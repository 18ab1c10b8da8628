"""Train the source model on source/train and export it as one ONNX file.

`python -m street_scenes.train_source` writes the shipped file; `--domain target` trains the same net with
target truth, to compare with. Only flips and a mild change of brightness and contrast augment the images, so
that the gap between the domains stays what the generator makes it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from street_scenes.domains import CLASSES, DOMAINS, VOID, Domain, Image, Split
from street_scenes.model import StreetNet, normalise
from street_scenes.scene import render

SEED = 20261122
DEFAULT_OUT = Path(__file__).parents[2] / "teacher_service/corte_teacher/backends/street.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the model is trained."""

    images: int = 2000
    steps: int = 2200
    batch: int = 8
    rate: float = 4e-3
    decay: float = 1e-3
    seed: int = SEED
    threads: int = 2


def load(domain: Domain, split: Split, seed: int, count: int) -> tuple[Image, Image]:
    """Render `count` scenes into images uint8[N,H,W,3] and labels uint8[N,H,W]."""
    pairs = [render(domain, split, seed, index) for index in range(count)]
    return np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs])


def train(images: Image, labels: Image, recipe: Recipe, report: Callable[[str], None]) -> StreetNet:
    """Fit a new net to images uint8[N,H,W,3], labels uint8[N,H,W]; `report` gets a line now and then."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    generator = torch.Generator().manual_seed(recipe.seed)
    net = StreetNet().to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.rate, total_steps=recipe.steps, pct_start=0.15
    )
    weights = _class_weights(labels)
    started = time.monotonic()
    for step in range(recipe.steps):
        chosen = torch.randint(len(images), (recipe.batch,), generator=generator)
        x, y = _augment(torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen]), generator)
        loss = functional.cross_entropy(net(x), y, weight=weights, ignore_index=VOID)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            report(f"step {step:5d}  loss {loss.item():.3f}  {time.monotonic() - started:6.1f} s")
    return net.eval()


def _class_weights(labels: Image) -> Tensor:
    """Weight classes by frequency ** -1/4: enough to hold poles, too little to distort confidence."""
    counts = np.bincount(labels[labels != VOID], minlength=len(CLASSES)) + 1.0
    weights = (counts / counts.sum()) ** -0.25
    return torch.from_numpy((weights / weights.mean()).astype(np.float32))


def _augment(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flip half of the batch and vary brightness and contrast by about a tenth."""
    x, y = normalise(images), labels.long()
    flip = torch.rand(len(x), generator=generator) < 0.5
    x[flip], y[flip] = x[flip].flip(-1), y[flip].flip(-1)
    contrast = 1 + 0.1 * torch.randn(len(x), 1, 1, 1, generator=generator)
    brightness = 0.1 * torch.randn(len(x), 1, 1, 1, generator=generator)
    return x * contrast + brightness, y


def export(net: StreetNet, path: Path) -> None:
    """Write one ONNX file: `image` float32[N,3,H,W] to `logits` float32[N,9,H,W]."""
    names = {0: "batch"}
    torch.onnx.export(
        net.to(memory_format=torch.contiguous_format),
        (torch.zeros(1, 3, 128, 256),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": names, "logits": names},
        opset_version=17,
        dynamo=False,
    )


def main() -> None:
    """Parse flags, train, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domain", choices=sorted(DOMAINS), default="source")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--images", type=int, default=Recipe().images)
    parser.add_argument("--out", type=Path, default=None, help="ONNX file; required with --domain target")
    flags = parser.parse_args()
    if flags.domain != "source" and flags.out is None:
        parser.error("--out is required with --domain target: only the source model is shipped")
    recipe = Recipe(steps=flags.steps, images=flags.images)
    print(f"rendering {recipe.images} scenes of {flags.domain}/train", flush=True)
    images, labels = load(DOMAINS[flags.domain], "train", recipe.seed, recipe.images)
    net = train(images, labels, recipe, lambda line: print(line, flush=True))
    export(net, flags.out or DEFAULT_OUT)


if __name__ == "__main__":
    main()
