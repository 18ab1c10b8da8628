"""`[openinference]` in --teacher-config: what a model's metadata leaves open, or says wrongly."""

from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np
from pydantic import model_validator

from corte_protocol.types import UInt8
from corte_student.endpoints.config import Strict
from corte_student.endpoints.tensors import Array

WHERE: Final = "[openinference] of --teacher-config"
_IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Triple = tuple[float, float, float]
Layout = Literal["nchw", "nhwc"]
Answer = Literal["scores", "labels"]
Activation = Literal["auto", "softmax", "none"]


@dataclass(frozen=True, slots=True)
class Scale:
    """Floats of 8-bit pixels: (x / `divisor` - `mean`) / `std`."""

    divisor: float
    mean: Triple | None = None
    std: Triple | None = None

    @classmethod
    def named(cls, name: str) -> Self:
        """`unit`, `none` or `imagenet`."""
        return cls(255.0, *_IMAGENET) if name == "imagenet" else cls(255.0 if name == "unit" else 1.0)

    def apply(self, pixels: UInt8) -> Array:
        """uint8 [H, W, 3] to float32."""
        floats = pixels.astype(np.float32)
        floats /= np.float32(self.divisor)
        if self.mean is not None and self.std is not None:
            floats -= np.array(self.mean, np.float32)
            floats /= np.array(self.std, np.float32)
        return floats


class Options(Strict):
    """`[openinference]` in --teacher-config. `input`, `datatype`, `shape`, `scale`, `mean` and `std` say what
    goes in; `output`, `answer`, `layout` and `activation` what comes out; `binary` how.
    """

    input: str | None = None
    datatype: Literal["BYTES", "UINT8", "FP16", "FP32"] | None = None
    shape: tuple[int, ...] | None = None
    scale: Literal["unit", "none", "imagenet"] | None = None
    mean: Triple | None = None
    std: Triple | None = None
    output: str | None = None
    answer: Answer | None = None
    layout: Layout | None = None
    activation: Activation = "auto"
    binary: Literal["auto"] | bool = "auto"

    @model_validator(mode="after")
    def _one_scale(self) -> Self:
        if (self.mean is None) != (self.std is None) or (self.mean is not None and self.scale is not None):
            raise ValueError("give scale, or mean and std of pixels between 0 and 1")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self

    @property
    def scaling(self) -> Scale | None:
        """None where the user said nothing."""
        if self.mean is not None:
            return Scale(255.0, self.mean, self.std)
        return None if self.scale is None else Scale.named(self.scale)
