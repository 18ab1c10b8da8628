"""The student: a timm encoder and a light decoder, sized for a small device.

Legend: B batch, C classes, H W input size. A plain additive feature pyramid (Lin et al., "Feature Pyramid
Networks", CVPR 2017, reduced): 1x1 laterals, a 3x3 convolution a level, one 1x1 classifier at the finest
stride, and the mean of the coarsest features as context (Liu et al., "ParseNet", 2015).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corte_student.errors import SettingsError

# torchvision trained its MobileNetV3 weights with this BatchNorm eps (torchvision/models/mobilenetv3.py);
# timm builds 1e-5, and with it the pretrained features are wrong.
_BATCHNORM_EPS = {"mobilenetv3_small_100": 1e-3}


class Student(nn.Module):
    """Per-pixel class scores from RGB pixels of any size.

    `forward(pixels)` takes [B, 3, H, W] with values 0..255 (uint8 or float) and returns logits
    float [B, C, ceil(H/s), ceil(W/s)] at the decoder's stride s; `resize_logits` brings them to a size.
    Normalisation is part of the model, so a caller never needs its mean and std.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        classes: int,
        *,
        width: int,
        stride: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        info: Any = encoder.feature_info
        self.levels = [i for i, reduction in enumerate(info.reduction()) if reduction >= stride]
        channels = [info.channels()[i] for i in self.levels]
        self.context = nn.Linear(channels[-1], width)
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.mixes = nn.ModuleList(_mix(width) for _ in channels)
        self.classify = nn.Conv2d(width, classes, 1)
        self.classes = classes
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits at the decoder's stride; see the class."""
        features = self.encoder((pixels.float() - self.mean) / self.std)
        features = [features[i] for i in self.levels]
        merged = self.context(features[-1].mean(dim=(2, 3)))[:, :, None, None]
        for feature, lateral, mix in zip(
            reversed(features), reversed(self.laterals), reversed(self.mixes), strict=True
        ):
            if merged.shape[-2:] != (1, 1):
                merged = F.interpolate(merged, size=feature.shape[-2:], mode="bilinear", align_corners=False)
            merged = mix(lateral(feature) + merged)
        logits: Tensor = self.classify(merged)
        return logits


def _mix(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear to [B, C, *size], half-pixel centres. Contiguous first: upsampling channels-last is slower."""
    return F.interpolate(logits.contiguous(), size=size, mode="bilinear", align_corners=False)


def build_student(
    encoder: str,
    classes: int,
    *,
    weights: Path | None = None,
    pretrained: bool = False,
    width: int = 96,
    stride: int = 4,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Student:
    """A `Student` on timm's `encoder`.

    `weights` is a folder in timm's `local-dir:` layout (config.json, model.safetensors) of that encoder.
    `pretrained` downloads from the Hugging Face hub. Without either the encoder starts at random. `width`
    and `stride` are the decoder's channels and finest stride: 2 sees thinner things than 4 and costs up to
    four times as much in the decoder. `mean` and `std` (0..1 scale) override timm's, for a student read
    from a checkpoint. Raises SettingsError.
    """
    name = encoder if weights is None else f"local-dir:{_checked(weights)}"
    extra: dict[str, Any] = {"bn_eps": _BATCHNORM_EPS[encoder]} if encoder in _BATCHNORM_EPS else {}
    try:
        net = timm.create_model(
            name, pretrained=pretrained or weights is not None, features_only=True, **extra
        )
    except (RuntimeError, ValueError, OSError, TypeError) as exc:
        raise SettingsError(
            f"cannot build the encoder {encoder!r}: choose a timm name with features "
            f"(for example mobilenetv3_small_100), or --weights with a folder of config.json and "
            f"model.safetensors ({type(exc).__name__})"
        ) from exc
    config: Any = net.pretrained_cfg
    return Student(
        net, classes, width=width, stride=stride, mean=mean or config["mean"], std=std or config["std"]
    )


def _checked(weights: Path) -> str:
    for needed in ("config.json", "model.safetensors"):
        if not (weights / needed).is_file():
            raise SettingsError(
                f"--weights {weights} holds no {needed}: point it at a folder made by "
                "`hf download timm/NAME --local-dir DIR`"
            )
    return str(weights.resolve())
