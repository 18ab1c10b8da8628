"""What a model costs: parameters, multiply-adds, and the time of one image on one thread.

Strategy: count, do not trust a paper. The student's MACs come from torch's own counter at the size of the
pair's images; the teacher's from the shapes of its ONNX graph, and are unknown (None) where an operator is
not understood. Latency is a median after warm-up, everything included that an image costs: normalise,
forward, resize, arg-max (for the teacher its resize, softmax and top-k). Other processes on the machine
lengthen it.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch.utils.flop_counter import FlopCounterMode

from corte_protocol import Disclosure
from corte_student.evaluate import predict_pixels
from corte_student.models import Student
from corte_teacher.backends import find_source, load_backend

UInt8 = npt.NDArray[np.uint8]
REPEATS = 20
# these carry no multiply-adds worth counting; any other operator makes the sum unknown
_COUNTED = ("Conv", "MatMul", "Gemm")
_UNKNOWN = ("ConvTranspose", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "Einsum", "LSTM")


@dataclass(frozen=True, slots=True)
class Cost:
    """`encoder`, `params`: weights; `macs`: multiply-adds of one image [height, width];
    `ms`: its median time. None where unknown.
    """

    encoder: int | None
    params: int
    macs: int | None
    ms: float
    height: int
    width: int


def student_cost(student: Student, pixels: UInt8, repeats: int = REPEATS) -> Cost:
    """The cost of a student on one image uint8 [H, W, 3]."""
    height, width = pixels.shape[:2]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        student(torch.zeros(1, 3, height, width))
    ms = _median_ms(lambda: predict_pixels(student, pixels), repeats)
    encoder = sum(p.numel() for p in student.encoder.parameters())
    params = sum(p.numel() for p in student.parameters())
    return Cost(encoder, params, counter.get_total_flops() // 2, ms, height, width)


def teacher_cost(serve: tuple[str, ...], pixels: UInt8, repeats: int = REPEATS) -> Cost:
    """The cost of the model behind `corte-teacher serve SERVE` on one image uint8 [H, W, 3]."""
    flags = dict(zip(serve[::2], serve[1::2], strict=True))
    model, card = (Path(flags[name]) if name in flags else None for name in ("--model", "--card"))
    source = find_source(flags["--backend"], model, card)
    assert source.model is not None
    backend = load_backend(source, Disclosure(2, 8), 1)
    height, width = pixels.shape[:2]
    spec = source.card.input
    size = (spec.height or height, spec.width or width)
    shape = (1, *size, 3) if spec.layout == "nhwc" else (1, 3, *size)
    graph = onnx.load(str(source.model))
    params = sum(prod(t.dims) for t in graph.graph.initializer)
    ms = _median_ms(lambda: backend.predict(pixels), repeats)
    return Cost(None, params, onnx_macs(graph, shape), ms, height, width)


def onnx_macs(model: onnx.ModelProto, shape: tuple[int, ...]) -> int | None:
    """Multiply-adds of Conv, MatMul and Gemm for an input of `shape`; None where a shape stays unknown."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    stored = {t.name: tuple(t.dims) for t in fixed.graph.initializer}
    entry = next(i for i in fixed.graph.input if i.name not in stored)
    dims = entry.type.tensor_type.shape.dim
    for dim, value in zip(dims, shape, strict=True):
        dim.dim_value = value
    for output in fixed.graph.output:  # stated sizes may belong to another input
        output.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes = dict(stored)
    for value in (*inferred.value_info, *inferred.output, *inferred.input):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    total = 0
    for node in inferred.node:
        if node.op_type in _UNKNOWN:
            return None
        if node.op_type in _COUNTED:
            count = _macs_of(node, shapes)
            if not count:
                return None
            total += count
    return total


def _macs_of(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Multiply-adds of one node: outputs times what each sums over; 0 where a shape is unknown."""
    out, weight = shapes.get(node.output[0], ()), shapes.get(node.input[1], ())
    if not out or not weight:
        return 0
    if node.op_type == "Conv":  # weight [out, in / groups, *kernel]
        return prod(out) * prod(weight[1:])
    flipped = any(a.name == "transB" and a.i for a in node.attribute)
    return prod(out) * (weight[-1] if flipped else weight[-2 if len(weight) > 1 else 0])


def _median_ms(work: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of `work` on one torch thread, after three calls that do not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(repeats + 3):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(times[3:])
