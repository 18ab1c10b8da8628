"""Any ONNX model, with the disclosure's work appended to its own graph. The only importer of onnxruntime.

Strategy: the model's first output is followed by a head made of plain ONNX operators in the model's own
opset: resize to the sent size, cut, softmax, groups, the K best, cast. One session runs all of it, so the
dense maps are born and die inside, and Python gets K planes.

Legend: C classes of the model, A answered classes (after groups), K disclosed ones, H W the sent size.
"""

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

# onnxruntime's Linux wheels send usage events, with the model's file name, unless told not to before they
# are loaded (its Privacy.md). A service that hides a model must not.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from corte_protocol import Disclosure
from corte_protocol.types import Float16, UInt8
from corte_teacher.backends.prepare import prepare
from corte_teacher.card import Card, Input
from corte_teacher.errors import StartError

_SIZE, _CROP, _CLASSES, _SCORES = "corte_size", "corte_crop", "corte_classes", "corte_scores"
_OLDEST_OPSET: Final = 11  # Resize with sizes and half_pixel
_FEW: Final = 3  # up to here K masked arg-maxes beat TopK: 19x1024x2048, K=2, two cores: 175 against 252 ms


class OnnxBackend:
    """One inference session over the merged graph."""

    def __init__(self, session: onnxruntime.InferenceSession, spec: Input) -> None:
        self._session = session
        self._spec = spec
        names = {i.name for i in session.get_inputs()}
        self._input = next(i.name for i in session.get_inputs() if i.name not in (_SIZE, _CROP))
        self._cuts = _CROP in names
        self._scores = len(session.get_outputs()) == 2

    def predict(self, pixels: UInt8) -> tuple[UInt8, Float16 | None]:
        """See `Backend.predict`."""
        array, size, crop = prepare(self._spec, pixels)
        feed = {self._input: array, _SIZE: np.array(size, np.int64)}
        if self._cuts:
            feed[_CROP] = np.array(crop, np.int64)
        planes = self._session.run(None, feed)
        return planes[0][0], planes[1][0] if self._scores else None


def build(model: Path, card: Card, ceiling: Disclosure, threads: int) -> OnnxBackend:
    """Load a model with its head. Raises StartError when it cannot be read, merged or started."""
    try:
        graph = onnx.load(str(model), load_external_data=False)
    except Exception as exc:  # protobuf's own error class is not part of onnx's API
        raise StartError(f"{model} cannot be read as an ONNX model") from exc
    append_head(graph, card, ceiling)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Idle threads that spin steal the cores from a student on the same machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(model.resolve().parent)
    )
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=providers)
    except Exception as exc:  # onnxruntime raises a dozen pybind classes without a common public root
        raise StartError(f"{model} does not start with the head its card asks for: {exc}") from exc
    return OnnxBackend(session, card.input)


def append_head(model: ModelProto, card: Card, ceiling: Disclosure) -> None:
    """Replace the outputs of `model`, in place, by `corte_classes` uint8 [1, K, H, W] and, where the
    ceiling holds scores, `corte_scores` float16 [1, K, H, W]; add the inputs that name the size."""
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < _OLDEST_OPSET:
        raise StartError(f"the model's opset is {opset}: export it with opset {_OLDEST_OPSET} or later")
    graph = model.graph
    stored = {t.name for t in graph.initializer}
    if len([i for i in graph.input if i.name not in stored]) != 1 or not graph.output:
        raise StartError("the model must have one input, and its answer as the first output")
    _check_channels(graph, card)
    head = _Head(graph, opset)
    cuts = card.input.height is None
    if card.output.kind == "labels":
        outputs = _labels_head(head, card, cuts)
    else:
        outputs = _scores_head(head, card, ceiling, cuts)
    for name in (_SIZE, _CROP)[: 1 + cuts]:
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, [2]))
    del graph.output[:]
    for name, dtype in outputs:
        graph.output.append(helper.make_tensor_value_info(name, dtype, [1, None, None, None]))


class _Head:
    """Appends nodes to a graph and names what they make."""

    def __init__(self, graph: GraphProto, opset: int) -> None:
        self.graph = graph
        self._opset = opset
        self._count = 0
        self.source: str = graph.output[0].name

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append one node; returns the name of its (first) output."""
        return self.ops(kind, *inputs, names=(name,), **attributes)[0]

    def ops(self, kind: str, *inputs: str, names: tuple[str, ...], **attributes: Any) -> list[str]:
        """Append one node with several outputs."""
        outputs = [name or self._fresh() for name in names]
        node: NodeProto = helper.make_node(kind, list(inputs), outputs, name=self._fresh(), **attributes)
        self.graph.node.append(node)
        return outputs

    def over(self, kind: str, x: str, axis: int, since: int, **attributes: Any) -> str:
        """A node over `axis`, which is an attribute before opset `since` and an input from there on."""
        if self._opset < since:
            return self.op(kind, x, axes=[axis], **attributes)
        return self.op(kind, x, self.ints(axis), **attributes)

    def array(self, values: object, dtype: type[np.generic]) -> str:
        """A constant."""
        name = self._fresh()
        self.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.array(values, np.int64)

    def max(self, x: str) -> str:
        """The largest value over the classes, axis kept."""
        return self.over("ReduceMax", x, 1, 18, keepdims=1)

    def sum(self, x: str) -> str:
        """The sum over the classes, axis kept."""
        return self.over("ReduceSum", x, 1, 13, keepdims=1)

    def _fresh(self) -> str:
        self._count += 1
        return f"corte_{self._count}"


def _check_channels(graph: GraphProto, card: Card) -> None:
    """A class count that contradicts the card is told at the start, where the graph states it."""
    dims = graph.output[0].type.tensor_type.shape.dim
    rank = 3 if card.output.kind == "labels" else 4
    if dims and len(dims) != rank:
        raise StartError(
            f"the model's output has {len(dims)} axes, the card's kind {card.output.kind} {rank}"
        )
    if not dims or rank == 3:
        return
    stated = dims[3 if card.output.layout == "nhwc" else 1].dim_value
    if stated and stated != len(card.classes):
        raise StartError(
            f"the model answers {stated} classes, the card names {len(card.classes)}: "
            "correct [[classes]], or layout under [output]"
        )


def _fit(head: _Head, x: str, channels: int, mode: str, cuts: bool) -> str:
    """float [1, channels, h, w] to the sent size.

    The Reshape changes nothing: it fails where the model answers another number of channels than the card
    names, which Resize would silently interpolate.
    """
    spatial = head.op("Slice", head.op("Shape", x), head.ints(2), head.ints(4))
    lead = head.ints(1, channels)
    x = head.op("Reshape", x, head.op("Concat", lead, spatial, axis=0))
    # Resize wants roi and scales passed as empty; opset 11 accepts empty tensors, later ones the empty name
    none = head.array([], np.float32)
    sizes = head.op("Concat", lead, _SIZE, axis=0)
    x = head.op("Resize", x, none, none, sizes, mode=mode, coordinate_transformation_mode="half_pixel")
    if cuts:
        x = head.op("Slice", x, head.ints(0, 0), _CROP, head.ints(2, 3))
    return x


def _labels_head(head: _Head, card: Card, cuts: bool) -> list[tuple[str, int]]:
    """Nearest resize, then groups by a table; an id beyond the card's classes fails in the look-up."""
    x = head.op("Cast", head.source, to=TensorProto.FLOAT)
    x = head.over("Unsqueeze", x, 1, 13)
    x = _fit(head, x, 1, "nearest", cuts)
    table = np.empty(len(card.classes), np.uint8)
    for answer, (_, _, members) in enumerate(card.outputs):
        table[list(members)] = answer
    ids = head.op("Cast", x, to=TensorProto.INT64)
    head.op("Gather", head.array(table, np.uint8), ids, name=_CLASSES, axis=0)
    return [(_CLASSES, TensorProto.UINT8)]


def _scores_head(head: _Head, card: Card, ceiling: Disclosure, cuts: bool) -> list[tuple[str, int]]:
    """Resize, order, and turn only the K chosen values into probabilities.

    Without groups logits are ordered as they are: exp is monotone, and full softmax over 19x1024x2048 costs
    a second where the sum of exponentials costs 50 ms. With groups exp(x - max) is added per group.
    """
    x = head.op("Cast", head.source, to=TensorProto.FLOAT)
    if card.output.layout == "nhwc":
        x = head.op("Transpose", x, perm=[0, 3, 1, 2])
    logits = card.output.kind == "logits"
    if logits:  # an infinite logit would turn into NaN between two pixels
        x = head.op("Clip", x, head.array(-1e30, np.float32), head.array(1e30, np.float32))
    x = _fit(head, x, len(card.classes), "linear", cuts)
    peak = total = ""
    if logits and (card.groups or ceiling.prob_bits):
        peak = head.max(x)
        powers = head.op("Exp", head.op("Sub", x, peak))
        total = head.sum(powers)
        x = powers if card.groups else x
    if card.groups:
        x = _merge(head, x, card)
    values, ids = _best(head, x, ceiling.top_k, len(card.outputs))
    head.op("Cast", ids, name=_CLASSES, to=TensorProto.UINT8)
    if not ceiling.prob_bits:
        return [(_CLASSES, TensorProto.UINT8)]
    if logits:
        values = values if card.groups else head.op("Exp", head.op("Sub", values, peak))
        values = head.op("Div", values, total)
    head.op("Cast", values, name=_SCORES, to=TensorProto.FLOAT16)
    return [(_CLASSES, TensorProto.UINT8), (_SCORES, TensorProto.FLOAT16)]


def _merge(head: _Head, x: str, card: Card) -> str:
    """[1, C, H, W] to [1, A, H, W]: the members of a group added, the others as they are."""
    planes = []
    for _, _, members in card.outputs:
        plane = head.op("Gather", x, head.ints(*members), axis=1)
        planes.append(head.sum(plane) if len(members) > 1 else plane)
    return head.op("Concat", *planes, axis=1)


def _best(head: _Head, x: str, k: int, classes: int) -> tuple[str, str]:
    """The k largest over axis 1 and their int64 ids, both [1, k, H, W], descending, ties to the lower id."""
    if k > _FEW:
        values, ids = head.ops("TopK", x, head.ints(k), names=("", ""), axis=1, largest=1, sorted=1)
        return values, ids
    every = head.array(np.arange(classes).reshape(1, classes, 1, 1), np.int64)
    lowest = head.array(-np.inf, np.float32)
    taken: list[tuple[str, str]] = []
    while True:
        best = head.op("ArgMax", x, axis=1, keepdims=1)
        taken.append((head.max(x), best))
        if len(taken) == k:
            break
        x = head.op("Where", head.op("Equal", every, best), lowest, x)
    if k == 1:
        return taken[0]
    values = head.op("Concat", *(value for value, _ in taken), axis=1)
    return values, head.op("Concat", *(ids for _, ids in taken), axis=1)
