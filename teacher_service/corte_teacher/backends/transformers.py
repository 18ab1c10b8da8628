"""A Hugging Face semantic segmenter from a local folder. The only importer of transformers in this package.

The folder holds config.json and model.safetensors (one or in shards), of any class that
`AutoModelForSemanticSegmentation` knows: SegFormer, UPerNet, DPT, BEiT and so on. Download it first
(`hf download OWNER/NAME --revision REVISION --local-dir DIR`): this service never asks the hub. Only
safetensors are read and no code from the folder is run. The card says size, normalisation and classes; what
preprocessor_config.json says is not read.
"""

import os
from pathlib import Path
from typing import Any

# A backbone named in config.json would be fetched from the hub whatever from_pretrained is told, and a
# service that hides a model must not tell its name. Both are read when the package is loaded.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
import torch
from torch import Tensor
from transformers import AutoModelForSemanticSegmentation
from transformers.utils import logging

from corte_protocol import Disclosure
from corte_teacher.backends.torch_head import Network, TorchBackend, choose_device, first_line
from corte_teacher.card import Card
from corte_teacher.errors import StartError


def build(model: Path, card: Card, ceiling: Disclosure, threads: int) -> TorchBackend:
    """Load a folder as the card describes it. Raises StartError with the remedy."""
    if not model.is_dir():
        raise StartError(f"{model} is no folder: give the one with config.json and model.safetensors")
    device = choose_device(card, threads)
    logging.disable_progress_bar()
    try:
        net, report = AutoModelForSemanticSegmentation.from_pretrained(
            model,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as exc:  # OSError, ValueError, and safetensors' error, which has no public root
        raise StartError(f"{model} is no semantic segmenter in safetensors: {first_line(exc)}") from exc
    _check(model, net, report, card)
    net = net.to(device).eval()

    def forward(x: Tensor) -> Tensor:
        logits: Tensor = net(pixel_values=x).logits
        return logits

    return TorchBackend(Network(forward, device), card, ceiling)


def _check(model: Path, net: Any, report: dict[str, Any], card: Card) -> None:
    """Refuse weights that the library would have made up. Raises StartError."""
    made_up = sorted(report["missing_keys"])
    if made_up:
        raise StartError(
            f"{model} lacks {len(made_up)} weights, {made_up[0]} first: give a model trained for segmentation"
        )
    if net.config.num_labels != len(card.classes):
        raise StartError(
            f"{model} answers {net.config.num_labels} classes, the card names {len(card.classes)}"
        )
