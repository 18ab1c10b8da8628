"""The source model: a residual U-shaped net of about 0.7 million parameters that works at strides 2 to 16."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from street_scenes.domains import CLASSES

WIDTHS = (24, 40, 64, 104)
MEAN, STD = 0.5, 0.25


def convolution(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Return convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        """Keep the width and the stride."""
        super().__init__()
        self.first = convolution(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map float[B,width,h,w] to the same shape."""
        return functional.relu(x + self.second(self.first(x)))


class StreetNet(nn.Module):
    """Encoder with one stage per stride and a decoder that adds them up again."""

    def __init__(self) -> None:
        """Draw random weights; seed torch before for a repeatable start."""
        super().__init__()
        w2, w4, w8, w16 = WIDTHS
        self.at2 = nn.Sequential(convolution(3, w2, 2), convolution(w2, w2))
        self.at4 = nn.Sequential(convolution(w2, w4, 2), Residual(w4))
        self.at8 = nn.Sequential(convolution(w4, w8, 2), Residual(w8))
        self.at16 = nn.Sequential(convolution(w8, w16, 2), Residual(w16), Residual(w16))
        self.scene = nn.Linear(w16, w16)
        self.down8, self.down4, self.down2 = (nn.Conv2d(a, b, 1) for a, b in ((w16, w8), (w8, w4), (w4, w2)))
        self.mix8, self.mix4, self.mix2 = (convolution(width, width) for width in (w8, w4, w2))
        self.head = nn.Conv2d(w2, len(CLASSES), 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map a normalised image float[B,3,H,W] to logits float[B,9,H,W]; H and W are multiples of 16."""
        at2 = self.at2(image)
        at4 = self.at4(at2)
        at8 = self.at8(at4)
        x = self.at16(at8)
        x = x + self.scene(x.mean(dim=(2, 3)))[:, :, None, None]
        x = self.mix8(at8 + _double(self.down8(x)))
        x = self.mix4(at4 + _double(self.down4(x)))
        x = self.mix2(at2 + _double(self.down2(x)))
        return _double(self.head(x))


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def normalise(images: Tensor) -> Tensor:
    """Turn uint8[B,H,W,3] into the normalised float32[B,3,H,W] that the model card describes."""
    return ((images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD).contiguous(
        memory_format=torch.channels_last
    )
