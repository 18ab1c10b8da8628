"""Models for the torch backends: the street model as a torch network, tiny ones, and files that hold them."""

import functools
import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from corte_protocol import Disclosure
from corte_protocol.types import UInt8
from corte_teacher.backends import Source, load_backend, street
from corte_teacher.backends.torch_head import TorchBackend
from corte_teacher.card import Card
from street_scenes.domains import Domain
from street_scenes.model import StreetNet
from street_scenes.scene import render
from teacher.tiny_models import card_data

HUGGING = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="TRANSFORMERS MISSING: pip install 'corte-teacher[transformers]'",
)


def card(backend: str, **changes: Any) -> Card:
    """A card for the tiny model of that backend."""
    model = {"encoder": "test_resnet", "level": 2} if backend == "timm" else {}
    return Card.model_validate(card_data(**{**changes, "model": {**model, **changes.get("model", {})}}))


@functools.cache
def tiny_net(backend: str) -> nn.Module:
    """The tiny network of a backend, with fixed random weights; built once, because timm is slow at it."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if backend == "timm":
            from corte_teacher.backends.timm import Segmenter

            return Segmenter("test_resnet", 2, 5).eval()
        if backend == "transformers":
            from transformers import SegformerConfig, SegformerForSemanticSegmentation

            config = SegformerConfig(
                num_labels=5,
                depths=[1, 1, 1, 1],
                hidden_sizes=[8, 16, 16, 16],
                num_attention_heads=[1, 1, 2, 2],
                decoder_hidden_size=16,
                sr_ratios=[1, 1, 1, 1],
            )
            net: nn.Module = SegformerForSemanticSegmentation(config)
            net.eval()
            with torch.no_grad():  # as drawn all logits are nearly the same, and ties would be tested only
                for name, value in net.named_parameters():
                    if name.endswith("weight") and value.ndim > 1:
                        value.mul_(10)
            return net
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1)
        ).eval()


def logits_of(backend: str, x: Tensor) -> Tensor:
    """What the tiny network answers, run by torch as it is."""
    with torch.no_grad():
        result: Any = tiny_net(backend)(x)
    logits: Tensor = result.logits if backend == "transformers" else result
    return logits


def write(backend: str, folder: Path, the_card: Card) -> Source:
    """The tiny network as the file or folder that its backend loads."""
    net = tiny_net(backend)
    if backend == "transformers":
        saved: Any = net
        saved.save_pretrained(folder / "m")
        return Source(backend, folder / "m", the_card)
    if backend == "timm":
        torch.save(net.state_dict(), folder / "m.pth")
        return Source(backend, folder / "m.pth", the_card)
    sides = {2: Dim("h", min=3), 3: Dim("w", min=3)} if the_card.input.height is None else {}
    return Source(
        backend, write_program(net, folder / "m.pt2", (2, 3, 16, 24), {0: Dim("n"), **sides}), the_card
    )


def load(backend: str, folder: Path, level: str = "margin", **changes: Any) -> TorchBackend:
    """The tiny model of a backend as the service has it."""
    the_card = card(backend, **changes)
    ceiling = Disclosure.parse(level, len(the_card.outputs))
    built = load_backend(write(backend, folder, the_card), ceiling, 1)
    assert isinstance(built, TorchBackend)
    return built


def write_program(net: nn.Module, path: Path, shape: tuple[int, ...], dynamic: dict[int, Any]) -> Path:
    """`net` exported for float32 input of that shape, some of its axes dynamic."""
    program = torch.export.export(net, (torch.zeros(shape),), dynamic_shapes=(dynamic,))
    torch.export.save(program, path)
    return path


@functools.cache
def street_net() -> StreetNet:
    """The street model out of its ONNX file, where each batch norm was folded into its convolution."""
    graph = onnx.load(street.files()[0]).graph
    weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    net = StreetNet().eval()
    folded = [n.input[1:] for n in graph.node if n.op_type == "Conv" and n.input[1].startswith("onnx::")]
    pairs = [m for m in net.modules() if isinstance(m, nn.Sequential) and isinstance(m[1], nn.BatchNorm2d)]
    with torch.no_grad():
        for (weight, bias), pair in zip(folded, pairs, strict=True):
            convolution, norm = pair[0], pair[1]
            assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            convolution.weight.copy_(weights.pop(weight))
            norm.weight.fill_(math.sqrt(1 + norm.eps))
            norm.bias.copy_(weights.pop(bias))
    net.load_state_dict(weights, strict=False)
    return net


@functools.cache
def scenes(domain: Domain, count: int) -> tuple[UInt8, ...]:
    """Street scenes that nothing was trained on, uint8 [128, 256, 3]."""
    return tuple(np.ascontiguousarray(render(domain, "report", 0, i)[0]) for i in range(count))
