"""Write labelled scenes to a folder: `images/NNNN.png` (RGB), `labels/NNNN.png` (8-bit ids, 255 is void)."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2

from street_scenes.domains import DOMAINS, SPLITS, Domain, Split
from street_scenes.scene import render


def write(
    domain: Domain, split: Split, count: int, seed: int, out: Path, size: tuple[int, int] = (128, 256)
) -> None:
    """Render scenes 0 to count-1 of (domain, split, seed) into `out`; size is (height, width) in pixels."""
    images, labels = out / "images", out / "labels"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image, label = render(domain, split, seed, index, size)
        for path, array in (
            (images / f"{index:04d}.png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR)),
            (labels / f"{index:04d}.png", label),
        ):
            if not cv2.imwrite(str(path), array):
                raise OSError(f"OpenCV could not write {path}")


def main() -> None:
    """Parse flags and write the scenes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domain", choices=sorted(DOMAINS), required=True)
    parser.add_argument("--split", choices=SPLITS, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    size = (flags.height, flags.width)
    write(DOMAINS[flags.domain], flags.split, flags.count, flags.seed, flags.out, size)
    print(f"{flags.count} scenes of {flags.domain}/{flags.split} in {flags.out}")


if __name__ == "__main__":
    main()
