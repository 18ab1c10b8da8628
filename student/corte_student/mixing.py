"""What is done to a whole batch after its targets are known: class mixing, cutting, masking.

All three change the strong view and its targets together, or the strong view alone; the ema never sees them.
Everything is drawn from one generator a step, so a resumed run draws the same.

Legend: B batch, H W crop, h w its sampled grid.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corte_protocol import VOID
from corte_student.pseudo_labels import PseudoLabels


@dataclass(frozen=True, slots=True)
class MixSettings:
    """`classes`, `cut`, `masked`: the shares of samples that get class mixing, CutMix and masking.

    `block` is the side of a masked block in pixels, `ratio` the share of blocks that is blanked.
    """

    classes: float = 0.0
    cut: float = 0.0
    masked: float = 0.0
    block: int = 64
    ratio: float = 0.7

    @property
    def mixes(self) -> bool:
        """Whether samples are pasted onto each other at all."""
        return self.classes > 0 or self.cut > 0


def draw_regions(labels: Tensor, how: MixSettings, rng: np.random.Generator) -> Tensor:
    """Where each sample is covered by its partner, the sample before it: bool [B, H, W].

    `labels` uint8 [B, H, W] are the answers'. Class mixing pastes half of the classes that the partner's
    answer holds (Olsson et al., "ClassMix", WACV 2021, arXiv 2007.07936), on the target alone; CutMix a
    rectangle of half the area (French et al., BMVC 2020, arXiv 1906.01916).
    """
    regions = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    partner = labels.roll(1, dims=0)
    for slot in range(len(labels)):
        luck = rng.random()
        if luck < how.classes:
            present = torch.unique(partner[slot]).tolist()
            present = [label for label in present if label != VOID]
            if present:
                chosen = rng.choice(present, size=(len(present) + 1) // 2, replace=False)
                wanted = torch.zeros(VOID + 1, dtype=torch.bool, device=labels.device)
                wanted[torch.from_numpy(chosen.astype(np.int64)).to(labels.device)] = True
                regions[slot] = wanted[partner[slot].long()]
        elif luck < how.classes + how.cut:
            regions[slot] = _rectangle(labels.shape[1], labels.shape[2], rng).to(labels.device)
    return regions


def _rectangle(height: int, width: int, rng: np.random.Generator) -> Tensor:
    """A random rectangle of half the area."""
    share = float(rng.uniform(0.5, 1.0))
    high, wide = round(height * share), round(width * 0.5 / share)
    top, left = int(rng.integers(0, height - high + 1)), int(rng.integers(0, width - wide + 1))
    region = torch.zeros(height, width, dtype=torch.bool)
    region[top : top + high, left : left + wide] = True
    return region


def paste_pixels(pixels: Tensor, regions: Tensor) -> Tensor:
    """`pixels` [B, 3, H, W] with the partner's where `regions`."""
    return torch.where(regions[:, None], pixels.roll(1, dims=0), pixels)


def paste_targets(targets: PseudoLabels, regions: Tensor) -> PseudoLabels:
    """`targets` with the partner's where `regions`, bool [B, h, w] on the targets' own grid."""
    soft = targets.soft
    return PseudoLabels(
        torch.where(regions, targets.labels.roll(1, dims=0), targets.labels),
        torch.where(regions, targets.weights.roll(1, dims=0), targets.weights),
        None if soft is None else torch.where(regions[:, None], soft.roll(1, dims=0), soft),
    )


def mask_blocks(pixels: Tensor, fill: Tensor, how: MixSettings, rng: np.random.Generator) -> Tensor:
    """`pixels` [B, 3, H, W] with blocks of some samples set to `fill` [1, 3, 1, 1], the encoder's mean.

    Masked image consistency (Hoyer et al., "MIC", CVPR 2023, arXiv 2212.01322): context must tell what a
    blanked block held. There a second pass with ema labels; here the same pass and targets, which costs
    nothing (this project's choice).
    """
    height, width = pixels.shape[-2:]
    rows, columns = -(-height // how.block), -(-width // how.block)
    out = pixels.clone()
    for slot in range(len(pixels)):
        if rng.random() >= how.masked:
            continue
        blank = torch.from_numpy(rng.random((rows, columns)) < how.ratio).to(pixels.device)
        grid = blank.repeat_interleave(how.block, 0).repeat_interleave(how.block, 1)[:height, :width]
        out[slot] = torch.where(grid, fill[0].to(pixels.dtype), pixels[slot])
    return out
