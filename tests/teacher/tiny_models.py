"""Tiny ONNX models, cards for them, and a slow numpy reference of what the service must answer."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from corte_protocol.types import UInt8
from corte_teacher.card import Card

F32 = npt.NDArray[np.float32]
NAMES = ("road", "car", "truck", "sky", "tree")
COLOURS = ((128, 64, 128), (0, 0, 142), (0, 0, 70), (70, 130, 180), (107, 142, 35))


def card_data(**changes: Any) -> dict[str, Any]:
    """A card's content for five classes; sections in `changes` replace its own."""
    classes = [{"name": n, "color": list(c)} for n, c in zip(NAMES, COLOURS, strict=True)]
    return {
        "name": "tiny-secret-name",
        "input": {"height": 16, "width": 24, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]},
        "output": {"kind": "logits", "layout": "nchw"},
        "classes": classes,
        **changes,
    }


def as_toml(data: dict[str, Any]) -> str:
    """A card's content as TOML: JSON's scalars and arrays are TOML's."""
    import json

    top = [f"{k} = {json.dumps(v)}" for k, v in data.items() if isinstance(v, str)]
    for name, value in data.items():
        sections = value if isinstance(value, list | tuple) else [value] if isinstance(value, dict) else []
        head = f"[[{name}]]" if isinstance(value, list | tuple) else f"[{name}]"
        for section in sections:
            top += ["", head, *(f"{k} = {json.dumps(v)}" for k, v in section.items())]
    return "\n".join(top) + "\n"


def write_model(path: Path, card: Card, *, opset: int = 17, stride: int = 2, scale: float = 1.0) -> Path:
    """A 3x3 convolution with fixed random weights, laid out as the card says."""
    rng = np.random.default_rng(7)
    classes = len(card.classes)
    weights = (rng.normal(size=(classes, 3, 3, 3)) * scale).astype(np.float32)
    nodes: list[onnx.NodeProto] = []
    x = "image"

    def add(kind: str, *inputs: str, **attributes: Any) -> str:
        out = f"t{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    if card.input.dtype == "uint8":
        x = add("Div", add("Cast", x, to=TensorProto.FLOAT), "scale")
    if card.input.layout == "nhwc":
        x = add("Transpose", x, perm=[0, 3, 1, 2])
    x = add("Conv", x, "weights", strides=[stride, stride], pads=[1, 1, 1, 1])
    dtype = TensorProto.FLOAT
    if card.output.kind == "probabilities":
        x = add("Softmax", x, axis=1)
    if card.output.kind == "labels":
        x, dtype = add("ArgMax", x, axis=1, keepdims=0), TensorProto.INT64
    if card.output.layout == "nhwc":
        x = add("Transpose", x, perm=[0, 2, 3, 1])
    entry = TensorProto.UINT8 if card.input.dtype == "uint8" else TensorProto.FLOAT
    shape: list[str | int | None] = ["n", "h", "w", 3] if card.input.layout == "nhwc" else ["n", 3, "h", "w"]
    rank = 3 if card.output.kind == "labels" else 4
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", entry, shape)],
        [helper.make_tensor_value_info(x, dtype, [None] * rank)],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array(64, np.float32), "scale"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def network_input(card: Card, pixels: UInt8) -> tuple[npt.NDArray[Any], tuple[int, int]]:
    """The model's input by the card's words, and the size its output stands for."""
    spec = card.input
    height, width = pixels.shape[:2]
    size = (height, width)
    if spec.height and spec.width:
        pixels = np.asarray(
            Image.fromarray(pixels).resize((spec.width, spec.height), Image.Resampling.BILINEAR)
        )
    else:
        size = tuple(-(-n // spec.multiple_of) * spec.multiple_of for n in size)
        pixels = np.pad(pixels, ((0, size[0] - height), (0, size[1] - width), (0, 0)), mode="edge")
    array: npt.NDArray[Any] = pixels
    if spec.dtype == "float32":
        array = ((pixels / 255.0 - np.array(spec.mean)) / np.array(spec.std)).astype(np.float32)
    if spec.layout == "nchw":
        array = array.transpose(2, 0, 1)
    return np.ascontiguousarray(array[None]), size


def raw_output(model: Path, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The bare model's first output."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    output: npt.NDArray[Any] = session.run(None, {session.get_inputs()[0].name: array})[0]
    return output


def bilinear(maps: F32, size: tuple[int, int]) -> F32:
    """float [C, h, w] to [C, H, W], half-pixel centres, one axis after the other."""
    for axis, target in ((1, size[0]), (2, size[1])):
        source = maps.shape[axis]
        at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, source - 1)
        shape = [1, 1, 1]
        shape[axis] = target
        part = (at - low).astype(np.float32).reshape(shape)
        maps = maps.take(low, axis) * (1 - part) + maps.take(high, axis) * part
    return maps


def dense_reference(card: Card, raw: npt.NDArray[Any], size: tuple[int, int], pixels: UInt8) -> F32:
    """All probabilities of the answered classes, [A, H, W]: resize, softmax, groups."""
    maps = raw[0].transpose(2, 0, 1) if card.output.layout == "nhwc" else raw[0]
    maps = bilinear(maps.astype(np.float32), size)[:, : pixels.shape[0], : pixels.shape[1]]
    if card.output.kind == "logits":
        maps = np.exp(maps - maps.max(axis=0))
        maps = maps / maps.sum(axis=0)
    return np.stack([maps[list(members)].sum(axis=0) for _, _, members in card.outputs])
