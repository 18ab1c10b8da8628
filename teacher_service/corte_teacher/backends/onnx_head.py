"""The disclosure's work as plain ONNX operators, appended to a model's own graph.

Legend: N images, C classes of the model, A answered classes (after groups), K disclosed ones, H W the sent
size, T tiles of r rows.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from corte_protocol import VOID, Disclosure
from corte_teacher.card import Card
from corte_teacher.errors import StartError

SIZE, CROP, FROM, TO = "corte_size", "corte_crop", "corte_from", "corte_to"
"""Inputs of a graph with a head: the size to resize to, the part that is kept, the corners of its tiles."""
_CLASSES, _SCORES, _TURN, _GO = "corte_classes", "corte_scores", "corte_turn", "corte_go"
_OLDEST_OPSET: Final = 11  # Resize with sizes and half_pixel
_TILES_OPSET: Final = 12  # Min of uint8
_FEW: Final = 3  # up to here K masked arg-maxes beat TopK: 19x1024x2048, K=2, two cores: 175 against 252 ms
_FEW_TILED: Final = 6  # in tiles: 19x512x1024, K=5, one core: 78 against 137 ms; TopK gains nothing by tiles
_FAR: Final = 3e38  # more than twice any clipped logit, and finite


def append_head(model: ModelProto, card: Card, ceiling: Disclosure, tiles: bool = False) -> None:
    """Replace the outputs of `model`, in place, by `corte_classes` uint8 [N, K, H, W] and, where the ceiling
    holds scores, `corte_scores` float16 [N, K, H, W]; add the inputs that name the size.

    With `tiles`, where the head can work in tiles, `corte_from` and `corte_to`, int64 [T, 3], name them, and
    the outputs are [T, 1, K, r, W]. Raises StartError when the model is not of the kind that the card says.
    """
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < _OLDEST_OPSET:
        raise StartError(f"the model's opset is {opset}: export it with opset {_OLDEST_OPSET} or later")
    graph = model.graph
    stored = {t.name for t in graph.initializer}
    if len([i for i in graph.input if i.name not in stored]) != 1 or not graph.output:
        raise StartError("the model must have one input, and its answer as the first output")
    _check_channels(graph, card)
    labels = card.output.kind == "labels"
    tiles = tiles and not labels and opset >= _TILES_OPSET and ceiling.top_k <= _FEW_TILED
    head = _Head(graph, opset, tiles)
    cuts = card.input.height is None
    if labels:
        _labels_head(head, card, cuts)
    else:
        _scores_head(head, card, ceiling, cuts)
    inputs: dict[str, list[int | None]] = {SIZE: [2]}
    if tiles:
        inputs |= {FROM: [None, 3], TO: [None, 3]}
    elif cuts:
        inputs[CROP] = [2]
    for name, shape in inputs.items():
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
    del graph.output[:]
    for name, dtype in head_outputs(ceiling):
        graph.output.append(helper.make_tensor_value_info(name, dtype, [None] * (5 if tiles else 4)))


def head_outputs(ceiling: Disclosure) -> list[tuple[str, int]]:
    """Names and types of what leaves the head."""
    both: list[tuple[str, int]] = [(_CLASSES, TensorProto.UINT8), (_SCORES, TensorProto.FLOAT16)]
    return both[: 1 + bool(ceiling.prob_bits)]


class _Head:
    """Appends nodes to a graph and names what they make.

    `tiles` says which operators to choose. onnxruntime's reductions over the classes are not vectorised on a
    CPU, its element-wise operators are: for 19x512x1024 in cache ReduceMax takes 12.6 ms, Split and Max 5;
    ArgMax 16.6, Equal, Where, Split and Min of uint8 4; Where of float 7, Cast, Mul and Sub 4. The bits are
    the same. On a GPU, and before opset 12, the plain operators serve.
    """

    def __init__(self, graph: GraphProto, opset: int, tiles: bool) -> None:
        self.graph = graph
        self.tiles = tiles
        self._nodes: Any = graph.node
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
        self._nodes.append(node)
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

    def max(self, x: str, classes: int) -> str:
        """The largest value over the `classes` of axis 1, axis kept."""
        if self.tiles:
            return self.op("Max", *self.split(x, classes))
        return self.over("ReduceMax", x, 1, 18, keepdims=1)

    def sum(self, x: str, classes: int) -> str:
        """The sum over the `classes` of axis 1, axis kept."""
        if self.tiles:
            return self.op("Sum", *self.split(x, classes))
        return self.over("ReduceSum", x, 1, 13, keepdims=1)

    def split(self, x: str, classes: int) -> list[str]:
        """The planes of axis 1, axis kept."""
        names, ones = ("",) * classes, [1] * classes
        if self._opset < 13:
            return self.ops("Split", x, names=names, axis=1, split=ones)
        return self.ops("Split", x, self.ints(*ones), names=names, axis=1)

    def tiled(self, x: str, planes: Callable[[str], list[str]], outputs: list[tuple[str, int]]) -> None:
        """`planes` over each tile of x [N, C, H, W]; what it gives is stacked into the `outputs`."""
        outer, self._nodes = self._nodes, []
        start, end = (self.op("Gather", corners, _TURN, axis=0) for corners in (FROM, TO))
        results = planes(self.op("Slice", x, start, end, self.ints(0, 2, 3)))
        go_on = self.op("Identity", _GO)
        nodes, self._nodes = self._nodes, outer
        dtypes = [TensorProto.BOOL, *(dtype for _, dtype in outputs)]
        body = helper.make_graph(
            nodes,
            "corte_tile",
            [
                helper.make_tensor_value_info(_TURN, TensorProto.INT64, []),
                helper.make_tensor_value_info(_GO, TensorProto.BOOL, []),
            ],
            [
                helper.make_tensor_value_info(name, dtype, None)
                for name, dtype in zip([go_on, *results], dtypes, strict=True)
            ],
        )
        count = self.op("Gather", self.op("Shape", FROM), self.array(0, np.int64), axis=0)
        self.ops("Loop", count, "", names=tuple(name for name, _ in outputs), body=body)

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
    """float [N, channels, h, w] to the sent size.

    The Reshape changes nothing: it fails where the model answers another number of channels than the card
    names, which Resize would silently interpolate.
    """
    x = head.op("Reshape", x, head.ints(0, channels, 0, 0))
    lead = head.op("Slice", head.op("Shape", x), head.ints(0), head.ints(2))
    # Resize wants roi and scales passed as empty; opset 11 accepts empty tensors, later ones the empty name
    none = head.array([], np.float32)
    sizes = head.op("Concat", lead, SIZE, axis=0)
    x = head.op("Resize", x, none, none, sizes, mode=mode, coordinate_transformation_mode="half_pixel")
    if cuts:
        x = head.op("Slice", x, head.ints(0, 0), CROP, head.ints(2, 3))
    return x


def _labels_head(head: _Head, card: Card, cuts: bool) -> None:
    """Nearest resize, then groups by a table; an id beyond the card's classes fails in the look-up."""
    x = head.op("Cast", head.source, to=TensorProto.FLOAT)
    x = head.over("Unsqueeze", x, 1, 13)
    x = _fit(head, x, 1, "nearest", cuts)
    table = np.empty(len(card.classes), np.uint8)
    for answer, (_, _, members) in enumerate(card.outputs):
        table[list(members)] = answer
    ids = head.op("Cast", x, to=TensorProto.INT64)
    head.op("Gather", head.array(table, np.uint8), ids, name=_CLASSES, axis=0)


def _scores_head(head: _Head, card: Card, ceiling: Disclosure, cuts: bool) -> None:
    """Resize, then the planes, tile by tile or at once."""
    x = head.op("Cast", head.source, to=TensorProto.FLOAT)
    if card.output.layout == "nhwc":
        x = head.op("Transpose", x, perm=[0, 3, 1, 2])
    if card.output.kind == "logits":  # an infinite logit would turn into NaN between two pixels
        x = head.op("Clip", x, head.array(-1e30, np.float32), head.array(1e30, np.float32))
    x = _fit(head, x, len(card.classes), "linear", cuts and not head.tiles)
    if head.tiles:
        head.tiled(x, lambda tile: _planes(head, tile, card, ceiling, ("", "")), head_outputs(ceiling))
    else:
        _planes(head, x, card, ceiling, (_CLASSES, _SCORES))


def _planes(head: _Head, x: str, card: Card, ceiling: Disclosure, names: tuple[str, str]) -> list[str]:
    """Order the classes, and turn only the K chosen values into probabilities.

    Without groups logits are ordered as they are: exp is monotone, and full softmax over 19x1024x2048 costs
    a second where the sum of exponentials costs 50 ms. With groups exp(x - max) is added per group.
    """
    logits = card.output.kind == "logits"
    peak = total = ""
    if logits and (card.groups or ceiling.prob_bits):
        peak = head.max(x, len(card.classes))
        powers = head.op("Exp", head.op("Sub", x, peak))
        total = head.sum(powers, len(card.classes))
        x = powers if card.groups else x
    if card.groups:
        x = _merge(head, x, card)
    values, ids = _best(head, x, ceiling, len(card.outputs), "" if card.groups else peak)
    classes = head.op("Cast", ids, name=names[0], to=TensorProto.UINT8)
    if not ceiling.prob_bits:
        return [classes]
    if logits:
        values = values if card.groups else head.op("Exp", head.op("Sub", values, peak))
        values = head.op("Div", values, total)
    return [classes, head.op("Cast", values, name=names[1], to=TensorProto.FLOAT16)]


def _merge(head: _Head, x: str, card: Card) -> str:
    """[N, C, H, W] to [N, A, H, W]: the members of a group added, the others as they are."""
    planes = []
    for _, _, members in card.outputs:
        plane = head.op("Gather", x, head.ints(*members), axis=1)
        planes.append(head.sum(plane, len(members)) if len(members) > 1 else plane)
    return head.op("Concat", *planes, axis=1)


def _best(head: _Head, x: str, ceiling: Disclosure, classes: int, peak: str) -> tuple[str, str]:
    """The K largest over axis 1 and their ids, both [N, K, H, W], descending, ties to the lower id.

    `peak` is the largest value where it is known already, or empty. The values are empty where nobody needs
    them, because onnxruntime would compute them.
    """
    k = ceiling.top_k
    if k > (_FEW_TILED if head.tiles else _FEW):
        values, ids = head.ops("TopK", x, head.ints(k), names=("", ""), axis=1, largest=1, sorted=1)
        return values, ids
    every = head.array(np.arange(classes).reshape(1, classes, 1, 1), np.uint8 if head.tiles else np.int64)
    taken: list[tuple[str, str]] = []
    while True:
        if head.tiles or ceiling.prob_bits:
            peak = peak or head.max(x, classes)
        best = _first(head, x, peak, classes, every)
        taken.append((peak, best))
        if len(taken) == k:
            break
        x = _without(head, x, head.op("Equal", every, best))
        peak = ""
    if k == 1:
        return taken[0]
    values = head.op("Concat", *(value for value, _ in taken), axis=1)
    return values, head.op("Concat", *(ids for _, ids in taken), axis=1)


def _first(head: _Head, x: str, peak: str, classes: int, every: str) -> str:
    """The lowest id whose value is `peak`; in tiles void, which no answer may hold, where the peak is NaN."""
    if not head.tiles:
        return head.op("ArgMax", x, axis=1, keepdims=1)
    void = head.array([[[[VOID]]]], np.uint8)
    ids = head.op("Where", head.op("Equal", x, peak), every, void)
    return head.op("Min", *head.split(ids, classes))


def _without(head: _Head, x: str, taken: str) -> str:
    """x, with the `taken` places below all others."""
    if not head.tiles:
        return head.op("Where", taken, head.array(-np.inf, np.float32), x)
    far = head.op("Mul", head.op("Cast", taken, to=TensorProto.FLOAT), head.array(_FAR, np.float32))
    return head.op("Sub", x, far)
