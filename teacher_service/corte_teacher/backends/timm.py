"""A timm encoder with a 1x1 head, on the torch device. The only importer of timm in this package.

The checkpoint is one safetensors file: `encoder.*` as in `timm.create_model(encoder, features_only=True,
out_indices=(level,))`, `head.weight` [C, F, 1, 1] and `head.bias` [C], F the channels of that feature level.
A .pt or .pth file may hold the same state dict; it is read with `weights_only=True`, which makes tensors and
plain containers and runs no code. The card names both: `[model] encoder = "mobilenetv2_100"` and, if not the
last, `level = 3`.
"""

from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from corte_protocol import Disclosure
from corte_teacher.backends.torch_head import Network, TorchBackend, choose_device, first_line
from corte_teacher.card import Card
from corte_teacher.errors import StartError


class Segmenter(nn.Module):
    """One feature level of a timm encoder under a 1x1 convolution."""

    def __init__(self, encoder: str, level: int, classes: int) -> None:
        super().__init__()
        # Any, because timm's declared type knows nothing of feature_info
        features: Any = timm.create_model(encoder, features_only=True, out_indices=(level,), pretrained=False)
        self.encoder: nn.Module = features
        self.head = nn.Conv2d(features.feature_info.channels()[-1], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, 3, h, w] to logits [N, C, h', w']."""
        return cast(Tensor, self.head(self.encoder(x)[-1]))


def build(model: Path, card: Card, ceiling: Disclosure, threads: int) -> TorchBackend:
    """Load a checkpoint as the card describes it. Raises StartError with the remedy."""
    if card.model is None or card.model.encoder is None:
        raise StartError('the timm backend needs [model] encoder = "..." in the card')
    device = choose_device(card, threads)
    try:
        net = Segmenter(card.model.encoder, card.model.level, len(card.classes))
    except (RuntimeError, ValueError, IndexError, AssertionError) as exc:
        raise StartError(f"timm does not build encoder {card.model.encoder!r} at that level: {exc}") from exc
    state = _read(model)
    try:
        net.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError, AttributeError) as exc:  # the last two: not a dict of tensors
        raise StartError(
            f"{model} does not hold encoder.*, head.weight and head.bias for it: {first_line(exc)}"
        ) from exc
    return TorchBackend(Network(net.to(device).eval(), device), card, ceiling)


def _read(model: Path) -> Any:
    """The state dict in a file. Raises StartError with the remedy."""
    if model.suffix == ".safetensors":
        remedy = "save it with safetensors.torch.save_file(net.state_dict(), FILE)"
    elif model.suffix in (".pt", ".pth"):
        remedy = "it may hold tensors only: save it with torch.save(net.state_dict(), FILE)"
    else:
        raise StartError(f"{model} is no checkpoint by its name: give .safetensors, .pt or .pth")
    try:
        if model.suffix == ".safetensors":
            return load_file(str(model))
        return torch.load(model, map_location="cpu", weights_only=True)
    except Exception as exc:  # safetensors' error has no public root, torch.load raises half a dozen
        raise StartError(f"{model} cannot be read: {first_line(exc)} ({remedy})") from exc
