"""A `torch.export` program: any network, without its Python code. One file, as torch.export.save writes it.

The program takes float32 [N, 3, h, w] and its first output is logits [N, C, h', w']; N, h and w may be
dynamic or fixed. Export it in eval mode, on the CPU:

    program = torch.export.export(net.eval(), (example,), dynamic_shapes={"x": {0: n, 2: h, 3: w}})
    torch.export.save(program, "net.pt2")

Safety: the file is the operator's own and is trusted like code; take none from a stranger.
`torch.export.load` (torch 2.15) has no safe mode. Weights are raw bytes, but it unpickles, with
`weights_only=False`, tensors of special classes, constant objects and, where the safe way fails, the sample
inputs; it loads native libraries of AOTInductor; and sympy evaluates the expressions of dynamic shapes. This
module looks into the archive first and refuses all of these but the last, which every program with dynamic
shapes has.
"""

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from corte_protocol import Disclosure
from corte_teacher.backends.torch_head import Network, TorchBackend, choose_device, first_line
from corte_teacher.card import Card
from corte_teacher.errors import StartError

# An archive's plain members, below its root folder; see torch/export/pt2_archive/constants.py.
_PLAIN: Final = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
    r"|archive_format|archive_version|byteorder|version|\.data/\w+|extra/.*"
)
# Operators that answer differently while training, and the place of the argument that says so.
_LEARNS: Final[dict[object, int]] = {torch.ops.aten.batch_norm.default: 5, torch.ops.aten.dropout.default: 2}
_REMEDY: Final = "write it with torch.export.save(program, 'NAME.pt2') of torch 2.9 or later"


def build(model: Path, card: Card, ceiling: Disclosure, threads: int) -> TorchBackend:
    """Load a program as the card describes it. Raises StartError with the remedy."""
    device = choose_device(card, threads)
    _check_archive(model)
    try:
        program = torch.export.load(str(model))
    except Exception as exc:  # a dozen kinds, from JSON to a missing operator or device
        raise StartError(f"{model} does not load: {first_line(exc)} (export it on the CPU)") from exc
    batches = _check_program(program, card)
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    module = program.module()
    return TorchBackend(Network(lambda x: _first(module(x)), device, batches), card, ceiling)


def _check_archive(model: Path) -> None:
    """Refuse what would be unpickled or run by loading alone. Raises StartError."""
    if model.suffix != ".pt2":
        raise StartError(f"{model} is no exported program by its name: {_REMEDY}")
    try:
        with zipfile.ZipFile(model) as archive:
            members = {name.partition("/")[2]: name for name in archive.namelist()}
            odd = [name for name in members if not _PLAIN.fullmatch(name)]
            for kind in ("weights", "constants"):
                config = json.loads(archive.read(members[f"data/{kind}/model_{kind}_config.json"]))
                odd += [name for name, entry in config["config"].items() if entry["use_pickle"]]
            sample = archive.read(members["data/sample_inputs/model.pt"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as exc:
        raise StartError(f"{model} cannot be read as an exported program: {_REMEDY}") from exc
    if odd:
        raise StartError(
            f"{model} holds {odd[0]!r}, which would run code: export plain tensors and operators"
        )
    try:
        if sample:
            torch.load(io.BytesIO(sample), map_location="cpu", weights_only=True)
    except Exception as exc:  # an unpickling error, or whatever a broken archive raises
        raise StartError(f"{model} has sample inputs other than tensors: {first_line(exc)}") from exc


def _check_program(program: ExportedProgram, card: Card) -> bool:
    """Whether it takes batches. Raises StartError where program and card contradict each other."""
    signature = program.graph_signature
    learning = any(
        node.target in _LEARNS and node.args[_LEARNS[node.target] :][:1] == (True,)
        for node in program.graph.nodes
    )
    if learning or signature.buffers_to_mutate:
        raise StartError("the program was exported in training mode: export net.eval()")
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    shapes = [[*values[str(name)].shape] for name in signature.user_inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 3:
        raise StartError(f"the program takes {shapes}, not one tensor [N, 3, h, w]: export it with one")
    count, _, *fixed = shapes[0]
    given = [card.input.height, card.input.width]
    if any(isinstance(have, int) and have != want for have, want in zip(fixed, given, strict=True)):
        sizes = " and ".join(f"{name} {size}" for name, size in zip(("height", "width"), fixed, strict=True))
        raise StartError(f"the program takes images of {sizes} only: say so under [input] in the card")
    out = values[str(signature.user_outputs[0])]
    if not isinstance(out, Tensor) or out.ndim != 4:
        raise StartError(
            "the program's first output is not a tensor [N, C, h, w]: export one that gives logits"
        )
    if isinstance(out.shape[1], int) and out.shape[1] != len(card.classes):
        raise StartError(f"the program answers {out.shape[1]} classes, the card names {len(card.classes)}")
    return not isinstance(count, int)


def _first(result: Any) -> Tensor:
    """The first tensor of what a program returns: itself, or in a tuple or dict."""
    while not isinstance(result, Tensor):
        result = next(iter(result.values() if isinstance(result, dict) else result))
    return result
