"""What a model costs, against counts made by hand and by hooks."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from accuracy.cost import onnx_macs, student_cost
from corte_student.models import build_student


def test_macs_and_parameters_of_a_student_are_those_that_hooks_count() -> None:
    """Every convolution and linear layer: outputs times what each sums over."""
    student = build_student("test_byobnet", 4, width=8).eval()
    counted = 0

    def count(layer: nn.Module, given: tuple[torch.Tensor], out: torch.Tensor) -> None:
        nonlocal counted
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        counted += out.numel() * (weight.numel() // weight.shape[0])

    hooks = [
        layer.register_forward_hook(count)
        for layer in student.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        student(torch.zeros(1, 3, 48, 64))
    for hook in hooks:
        hook.remove()
    cost = student_cost(student, np.zeros((48, 64, 3), np.uint8), repeats=1)
    assert cost.macs == counted > 0
    assert cost.params == sum(p.numel() for p in student.parameters())
    assert cost.encoder is not None and 0 < cost.encoder < cost.params


def model(*nodes: onnx.NodeProto, weights: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A graph from `x`, of unknown size, to `y`."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_macs_of_an_onnx_graph_are_those_of_a_hand() -> None:
    """A strided convolution in groups, then a Gemm with a transposed weight, at a size given from outside."""
    net = model(
        helper.make_node("Conv", ["x", "a"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1], group=3),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "b"], ["y"], transB=1),
        weights={"a": (6, 1, 3, 3), "b": (5, 6)},
    )
    assert onnx_macs(net, (1, 3, 8, 10)) == 6 * 4 * 5 * 9 + 5 * 6
    assert onnx_macs(net, (1, 3, 16, 10)) == 6 * 8 * 5 * 9 + 5 * 6


def test_macs_of_an_operator_that_is_not_understood_are_unknown() -> None:
    """No number rather than one that leaves something out."""
    net = model(helper.make_node("ConvTranspose", ["x", "a"], ["y"]), weights={"a": (3, 2, 3, 3)})
    assert onnx_macs(net, (1, 3, 8, 8)) is None
