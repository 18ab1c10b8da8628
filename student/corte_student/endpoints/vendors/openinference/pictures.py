"""A picture as the tensor that a model behind the Open Inference Protocol takes.

Rule 1: no metadata says how pixels become floats, so the user must (`scale`, or `mean` and `std`).
Rule 2: where height and width are fixed the picture is resized to them (cv2, bilinear), and what comes back
is resized to the picture's own size; else it goes out as it is.
"""

import io
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from PIL import Image as Pillow

from corte_protocol.types import UInt8
from corte_student.endpoints.answers import Sent
from corte_student.endpoints.tensors import DTYPES, Array, Tensor
from corte_student.endpoints.vendors.openinference.model import ANY, Spec
from corte_student.endpoints.vendors.openinference.options import WHERE, Scale
from corte_student.errors import ImageRefused, SettingsError


@dataclass(frozen=True, slots=True)
class Feed:
    """How pictures go in: `shape` as the model states it; `axis` is that of the colours, None for BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    axis: int | None
    scale: Scale | None

    @classmethod
    def of(cls, spec: Spec, scale: Scale | None) -> Self:
        """Raises SettingsError for what is no picture's shape, or for floats without a scale."""
        if spec.datatype == "BYTES":
            _no_scale(spec, scale)
            if len(spec.shape) > 2 or any(side not in (1, ANY) for side in spec.shape):
                raise _shapeless(spec, "that holds one encoded picture: `shape = [1]`")
            return cls(spec.name, "BYTES", spec.shape or (1,), None, None)
        if spec.datatype not in ("UINT8", "FP16", "FP32"):
            raise SettingsError(
                f"the input {spec.name!r} takes {spec.datatype[:16]}: pictures go into BYTES, UINT8, FP16 "
                f"or FP32; if the metadata is wrong, write `datatype` into {WHERE}"
            )
        if spec.datatype == "UINT8":
            _no_scale(spec, scale)
        elif scale is None:
            raise SettingsError(
                f"the input {spec.name!r} takes {spec.datatype}, and no server says how pixels are scaled: "
                f'write `scale = "unit"` (x / 255), "imagenet" or "none", or `mean` and `std`, into {WHERE}'
            )
        axis = _channels(spec.shape)
        if axis is None:
            raise _shapeless(spec, "with three colours: `shape = [1, 3, -1, -1]` or [1, -1, -1, 3]")
        return cls(spec.name, spec.datatype, spec.shape, axis, scale)

    @property
    def fixed(self) -> tuple[int, int] | None:
        """Height and width where the model takes no others."""
        if self.axis is None:
            return None
        height, width = self._sides()
        return None if ANY in (height, width) else (height, width)

    def pixel_bytes(self, *, binary: bool) -> int:
        """What one pixel weighs in a request, at most; 0 for BYTES, which weigh what their body does."""
        if self.axis is None:
            return 0
        if binary:
            return 3 * DTYPES[self.datatype].itemsize
        return 12 if self.datatype == "UINT8" else 72

    def tensor(self, image: Sent) -> Tensor:
        """The picture as this input takes it. Blocking. Raises ImageRefused for what is no image."""
        if self.axis is None:
            return Tensor.of_bytes(self.name, [image.body], (1,) * len(self.shape))
        height, width = self._sides()
        size = (
            image.height if height == ANY else height,
            image.width if width == ANY else width,
        )
        pixels = _decoded(image.body)
        if pixels.shape[:2] != size:
            pixels = np.asarray(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
        array: Array = pixels if self.scale is None else self.scale.apply(pixels)
        array = array.astype(DTYPES[self.datatype], copy=False)
        if self.axis == len(self.shape) - 3:
            array = array.transpose(2, 0, 1)
        if len(self.shape) == 4:
            array = array[None]
        return Tensor.of(self.name, np.ascontiguousarray(array))

    def _sides(self) -> tuple[int, int]:
        first = self.axis == len(self.shape) - 3
        height, width = self.shape[-2:] if first else self.shape[-3:-1]
        return height, width


def _channels(shape: tuple[int, ...]) -> int | None:
    """The axis of the three colours in [3, H, W] or [H, W, 3], with or without a batch of one."""
    if len(shape) == 4 and shape[0] not in (1, ANY):
        return None
    if len(shape) not in (3, 4) or any(side == 0 or side < ANY for side in shape):
        return None
    places = [axis for axis in (len(shape) - 3, len(shape) - 1) if shape[axis] == 3]
    return places[0] if places else None


def _no_scale(spec: Spec, scale: Scale | None) -> None:
    if scale is not None:
        raise SettingsError(
            f"the input {spec.name!r} takes {spec.datatype}, which is not scaled: "
            f"take `scale`, `mean` and `std` out of {WHERE}"
        )


def _shapeless(spec: Spec, wanted: str) -> SettingsError:
    return SettingsError(
        f"the input {spec.name!r} has the shape {list(spec.shape)[:8]}: write one {wanted}, into {WHERE}"
    )


def _decoded(body: bytes) -> UInt8:
    try:
        with Pillow.open(io.BytesIO(body)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as exc:
        raise ImageRefused("what should be sent is no image: not sent") from exc
