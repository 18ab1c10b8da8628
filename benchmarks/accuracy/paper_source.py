"""The source model of a benchmark as a file that `corte-teacher serve --backend onnx` takes.

Strategy: it is a `Student` trained on the source's truth by the ordinary training code, exported with its
normalisation, and described by a card. From then on nobody but the service opens it.
"""

import json
import warnings
from pathlib import Path

import torch

from corte_student.checkpoint import load_student
from corte_student.data.layouts.cityscapes import CLASSES, COLORS
from corte_student.models import Student

MULTIPLE_OF = 32  # the coarsest stride of the usual encoders: the service repeats the edge up to it


def export(student: Student, path: Path) -> None:
    """Write one ONNX file: pixels uint8 [1, 3, H, W] to logits float32 [1, C, H/s, W/s], H and W free."""
    fresh = path.with_name(path.name + ".new")
    axes = {2: "height", 3: "width"}
    with warnings.catch_warnings():
        # tracing warns where the decoder asks for a shape; those shapes are what the dynamic axes are for
        warnings.simplefilter("ignore")
        torch.onnx.export(
            student.cpu().eval().to(memory_format=torch.contiguous_format),
            (torch.zeros(1, 3, 4 * MULTIPLE_OF, 6 * MULTIPLE_OF, dtype=torch.uint8),),
            str(fresh),
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_axes={"pixels": axes, "logits": axes},
            opset_version=17,
            dynamo=False,
        )
    fresh.replace(path)


def card() -> str:
    """The model's card, TOML: Cityscapes' 19 classes with their colours."""
    head = (
        'name = "source"\n\n[input]\nlayout = "nchw"\ndtype = "uint8"\n'
        f'multiple_of = {MULTIPLE_OF}\n\n[output]\nkind = "logits"\nlayout = "nchw"\n'
    )
    classes = [
        f"\n[[classes]]\nname = {json.dumps(name)}\ncolor = {list(color)}\n"
        for name, color in zip(CLASSES, COLORS, strict=True)
    ]
    return head + "".join(classes)


def write_model(run: Path, model: Path) -> None:
    """Export the run's ema to `model`, with its card beside it. Raises CheckpointError."""
    student, _ = load_student(run)
    model.with_suffix(".toml").write_text(card())
    export(student, model)
