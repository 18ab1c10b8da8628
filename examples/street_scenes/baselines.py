"""Two predictors that see no scene: colour of a 5x5 patch, and position in the image.

Both are fitted on target truth. If they came close to a trained network, the scenes would be too easy.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from street_scenes.domains import CLASSES, VOID, Image

PATCH = 5
PIXELS_PER_IMAGE = 4000


def position_prior(labels: Image, count: int) -> Image:
    """Predict each pixel's most frequent class in labels uint8[N,H,W], `count` times: uint8[count,H,W].

    Frequencies are smoothed over neighbouring pixels, which helps the prior.
    """
    votes = np.stack(
        [
            cv2.GaussianBlur((labels == k).mean(axis=0, dtype=np.float32), (0, 0), 2.0)
            for k in range(len(CLASSES))
        ]
    )
    best = votes.argmax(axis=0).astype(np.uint8)
    return np.repeat(best[None], count, axis=0)


def patches(image: Image) -> NDArray[np.float32]:
    """Return the 75 colour values around every pixel, float32[H*W,75] on -1..1."""
    margin = PATCH // 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    views = np.lib.stride_tricks.sliding_window_view(padded, (PATCH, PATCH), axis=(0, 1))
    return views.reshape(-1, 3 * PATCH * PATCH).astype(np.float32) / 127.5 - 1


def colour_classifier(images: Image, labels: Image, steps: int = 2000) -> nn.Module:
    """Fit a small perceptron from 5x5 patches to classes on images uint8[N,H,W,3] and labels uint8[N,H,W]."""
    torch.manual_seed(0)
    source = np.random.default_rng(0)
    pixels = source.integers(0, labels[0].size, (len(images), PIXELS_PER_IMAGE))
    seen = np.concatenate([patches(image)[at] for image, at in zip(images, pixels, strict=True)])
    truth = np.concatenate([label.ravel()[at] for label, at in zip(labels, pixels, strict=True)])
    x, y = torch.from_numpy(seen), torch.from_numpy(truth.astype(np.int64))
    net = nn.Sequential(
        nn.Linear(3 * PATCH * PATCH, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, len(CLASSES))
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen = torch.from_numpy(source.integers(0, len(x), 4096))
        loss = functional.cross_entropy(net(x[chosen]), y[chosen], ignore_index=VOID)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    return net.eval()


def classify_colours(net: nn.Module, images: Image) -> Image:
    """Predict uint8[N,H,W] from patches alone."""
    with torch.no_grad():
        found = [net(torch.from_numpy(patches(image))).argmax(1).numpy().astype(np.uint8) for image in images]
    return np.stack(found).reshape(images.shape[:3])
