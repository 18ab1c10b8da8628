"""Any ONNX model, with the disclosure's work appended to its own graph. The only importer of onnxruntime.

Strategy: the model's first output is followed by a head made of plain ONNX operators in the model's own
opset: resize to the sent size, cut, softmax, groups, the K best, cast. One session runs all of it, so the
dense maps are born and die inside, and Python gets K planes. On a CPU the head goes tile by tile, so that
what it makes on the way stays in the cache.

Legend: that of `onnx_head.py`.
"""

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

# onnxruntime's Linux wheels send usage events, with the model's file name, unless told not to before they
# are loaded (its Privacy.md). A service that hides a model must not.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
from onnx import GraphProto, helper
from PIL.Image import Image

from corte_protocol import Disclosure
from corte_protocol.types import Float16, UInt8
from corte_teacher.backends.onnx_head import CROP, FROM, SIZE, TO, append_head, head_outputs
from corte_teacher.backends.prepare import Prepared, Ready, prepare, prepared
from corte_teacher.card import Card
from corte_teacher.errors import OutOfMemory, StartError

# Floats of one tile, with its classes. 19x512x1024, K=2, one core: tiles of 0.3 MB 45 ms, 0.6 MB 39,
# 1.2 MB 35, 2.4 MB 39, 4.8 MB 50; all at once 111. Two cores have the same best.
_TILE_FLOATS: Final = 1 << 18
# What onnxruntime says when there is no memory, by its own allocators, by C++ and by CUDA's libraries.
_NO_MEMORY: Final = re.compile("(?i)failed to allocate memory|bad.alloc|out of memory|alloc_failed")
# Floats of dense maps, N C H W, beyond which a forward gives its memory back afterwards: after one 3000x6000
# image the street model holds 180 MB, and 932 otherwise. With no arena at all each map is made of fresh
# pages: 40 ms more for 19x512x1024, 35 for 9x1024x2048.
_LARGE: Final = 1 << 26
_SMALL: Final = 1 << 21  # below, arrays of ours are not worth the 0.1 ms that it takes to bind them


class OnnxBackend:
    """One session over the merged graph. `batches` is false where the model's file fixes that axis."""

    def __init__(
        self, session: onnxruntime.InferenceSession, card: Card, ceiling: Disclosure, batches: bool
    ) -> None:
        self.batches = batches
        self._session = session
        self._spec = card.input
        self._classes = len(card.classes)
        self._k = ceiling.top_k
        names = [i.name for i in session.get_inputs()]
        self._input = next(name for name in names if name not in (SIZE, CROP, FROM, TO))
        self._cuts = CROP in names
        self._tiles = FROM in names
        self._outputs = head_outputs(ceiling)
        self._tight = False

    def prepare(self, image: Image) -> Prepared:
        """See `PreparingBackend.prepare`."""
        return prepare(self._spec, image)

    def predict(self, pixels: Ready) -> tuple[UInt8, Float16 | None]:
        """See `Backend.predict`. Raises OutOfMemory when there is too little; the session lives on."""
        return self.predict_many([pixels])[0]

    def predict_many(self, pixels: Sequence[Ready]) -> list[tuple[UInt8, Float16 | None]]:
        """What `predict` gives for each image, all of one size, in one run. Raises OutOfMemory."""
        try:
            return self._run(prepared(self._spec, pixels))
        except MemoryError as exc:
            self._tight = True
            raise OutOfMemory(f"no memory around the model: {exc}") from exc
        except Exception as exc:  # onnxruntime raises a dozen pybind classes without a common public root
            if _NO_MEMORY.search(str(exc)):
                self._tight = True
                raise OutOfMemory(f"no memory in the model: {exc}") from exc
            raise

    def _run(self, images: Sequence[Prepared]) -> list[tuple[UInt8, Float16 | None]]:
        _, size, (height, width) = images[0]
        arrays = [image.array for image in images]
        feed = {self._input: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)}
        feed[SIZE] = np.array(size, np.int64)
        shape: tuple[int, ...] = (len(arrays), self._k, height, width)
        if self._tiles:
            rows = max(1, min(height, _TILE_FLOATS // (self._classes * width)))
            feed[FROM], feed[TO] = _tiles(len(arrays), height, width, rows)
            shape = (len(feed[FROM]), 1, self._k, rows, width)
        elif self._cuts:
            feed[CROP] = np.array((height, width), np.int64)
        dense = len(arrays) * self._classes * size[0] * size[1]
        if dense < _SMALL and not self._tight:
            found = self._session.run(None, feed)
        else:
            found = self._bound(feed, shape, dense > _LARGE)
        outputs = [_untiled(planes, len(arrays), height) for planes in found]
        for plane in chain(*outputs):
            plane.flags.writeable = False  # or a Prediction would copy what nobody else holds
        return list(zip(outputs[0], outputs[1] if len(outputs) == 2 else [None] * len(arrays), strict=True))

    def _bound(self, feed: dict[str, Any], shape: tuple[int, ...], large: bool) -> list[npt.NDArray[Any]]:
        """A run into arrays of ours: outputs in the arena would keep its memory from being given back."""
        options = onnxruntime.RunOptions()
        if (large or self._tight) and len(self._session.get_providers()) == 1:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        outputs = [np.empty(shape, helper.tensor_dtype_to_np_dtype(dtype)) for _, dtype in self._outputs]
        binding = self._session.io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, array)
        for (name, _), array in zip(self._outputs, outputs, strict=True):
            binding.bind_output(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)
        self._session.run_with_iobinding(binding, options)
        self._tight = False
        return outputs


@lru_cache(maxsize=64)
def _tiles(images: int, height: int, width: int, rows: int) -> tuple[npt.NDArray[np.int64], ...]:
    """First and last (image, row, column) of each tile, int64 [T, 3] each; all have `rows` rows.

    The last tile of an image overlaps the one before it, because a Loop stacks only what is of one shape.
    """
    tops = np.minimum(np.arange(0, height, rows), height - rows)
    start = np.zeros((images * len(tops), 3), np.int64)
    start[:, 0] = np.arange(images).repeat(len(tops))
    start[:, 1] = np.tile(tops, images)
    both = (start, start + np.array((1, rows, width), np.int64))
    for corners in both:  # all runs share them
        corners.flags.writeable = False
    return both


def _untiled(planes: npt.NDArray[Any], images: int, height: int) -> list[npt.NDArray[Any]]:
    """[N, K, H, W], or tiles [T, 1, K, r, W], to one [K, H, W] for each image."""
    if planes.ndim == 4:
        return list(planes)
    each = planes.reshape(images, -1, *planes.shape[2:])
    count, rows = each.shape[1], each.shape[3]
    if count == 1:
        return list(each[:, 0])
    left = height - (count - 1) * rows
    return [np.concatenate([*tiles[:-1], tiles[-1][:, rows - left :]], axis=1) for tiles in each]


def build(model: Path, card: Card, ceiling: Disclosure, threads: int) -> OnnxBackend:
    """Load a model with its head. Raises StartError when it cannot be read, merged or started."""
    try:
        graph = onnx.load(str(model), load_external_data=False)
    except Exception as exc:  # protobuf's own error class is not part of onnx's API
        raise StartError(f"{model} cannot be read as an ONNX model") from exc
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    batches = _takes_batches(graph.graph)
    append_head(graph, card, ceiling, tiles=len(providers) == 1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Idle threads that spin steal the cores from a student on the same machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(model.resolve().parent)
    )
    try:
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=providers)
    except Exception as exc:  # as in predict_many
        raise StartError(f"{model} does not start with the head its card asks for: {exc}") from exc
    return OnnxBackend(session, card, ceiling, batches)


def _takes_batches(graph: GraphProto) -> bool:
    """Whether neither the input nor the first output of a model states a size of its first axis."""
    stored = {t.name for t in graph.initializer}
    ends = [*(i for i in graph.input if i.name not in stored), *graph.output[:1]]
    shapes = [end.type.tensor_type.shape.dim for end in ends]
    return not any(dims[0].dim_value for dims in shapes if dims)
