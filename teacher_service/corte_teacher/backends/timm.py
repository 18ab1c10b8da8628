"""A timm encoder with a 1x1 head, on the torch device. The only importer of torch and timm in this package.

The checkpoint is one safetensors file: `encoder.*` as in `timm.create_model(encoder, features_only=True,
out_indices=(level,))`, `head.weight` [C, F, 1, 1] and `head.bias` [C], F the channels of that feature level.
The card names both: `[model] encoder = "mobilenetv2_100"` and, if not the last, `level = 3`.

Legend: C classes of the model, A answered classes (after groups), K disclosed ones, H W the sent size.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from corte_protocol import Disclosure
from corte_protocol.types import Float16, UInt8
from corte_teacher.backends.prepare import prepare
from corte_teacher.card import Card
from corte_teacher.errors import StartError

_FEW = 4  # up to here repeated arg-max beats a stable sort of all classes


class Segmenter(nn.Module):
    """One feature level of a timm encoder under a 1x1 convolution."""

    def __init__(self, encoder: str, level: int, classes: int) -> None:
        super().__init__()
        # Any, because timm's declared type knows nothing of feature_info
        features: Any = timm.create_model(encoder, features_only=True, out_indices=(level,), pretrained=False)
        self.encoder: nn.Module = features
        self.head = nn.Conv2d(features.feature_info.channels()[-1], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [1, 3, h, w] to logits [1, C, h', w']."""
        return cast(Tensor, self.head(self.encoder(x)[-1]))


class TimmBackend:
    """Everything between the pixels and the K planes stays on the torch device."""

    def __init__(self, model: Segmenter, card: Card, ceiling: Disclosure, device: torch.device) -> None:
        self._model = model.to(device).eval()
        self._card = card
        self._ceiling = ceiling
        self._device = device

    @torch.inference_mode()
    def predict(self, pixels: UInt8) -> tuple[UInt8, Float16 | None]:
        """See `Backend.predict`."""
        array, size, (height, width) = prepare(self._card.input, pixels)
        logits = self._model(torch.from_numpy(array).to(self._device))
        logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        logits = logits[0, :, :height, :width]
        shifted = logits - logits.amax(0, keepdim=True)
        powers = shifted.exp()
        total = powers.sum(0, keepdim=True)
        grouped = bool(self._card.groups)
        if grouped:
            ordered = torch.stack([powers[list(members)].sum(0) for _, _, members in self._card.outputs])
        else:
            ordered = shifted
        values, ids = _best(ordered, self._ceiling.top_k)
        classes = ids.to(torch.uint8).cpu().numpy()
        if not self._ceiling.prob_bits:
            return classes, None
        scores = (values if grouped else values.exp()) / total
        return classes, scores.to(torch.float16).cpu().numpy().astype(np.float16, copy=False)


def build(model: Path, card: Card, ceiling: Disclosure, threads: int) -> TimmBackend:
    """Load a checkpoint as the card describes it. Raises StartError with the remedy."""
    if card.model is None:
        raise StartError('the timm backend needs [model] encoder = "..." in the card')
    if card.output.kind != "logits" or card.input.layout != "nchw" or card.input.dtype != "float32":
        raise StartError("the timm backend makes logits from float32 nchw input: correct the card")
    if threads:
        torch.set_num_threads(threads)
    try:
        net = Segmenter(card.model.encoder, card.model.level, len(card.classes))
    except (RuntimeError, ValueError, IndexError, AssertionError) as exc:
        raise StartError(f"timm does not build encoder {card.model.encoder!r} at that level: {exc}") from exc
    try:
        net.load_state_dict(load_file(str(model)), strict=True)
    except Exception as exc:  # safetensors' error has no public root; load_state_dict raises RuntimeError
        reason = str(exc).splitlines()[0]
        raise StartError(
            f"{model} does not hold encoder.*, head.weight and head.bias for it: {reason}"
        ) from exc
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TimmBackend(net, card, ceiling, device)


def _best(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest over axis 0 of [A, H, W] and their ids, descending, ties to the lower id.

    torch.topk leaves the order of ties open; arg-max and the stable sort do not.
    """
    if k > _FEW:
        values, ids = torch.sort(x, dim=0, descending=True, stable=True)
        return values[:k], ids[:k]
    taken = []
    for _ in range(k):
        value, best = x.max(dim=0, keepdim=True)
        taken.append((value, best))
        x = x.scatter(0, best, -torch.inf)
    return torch.cat([v for v, _ in taken]), torch.cat([i for _, i in taken])
