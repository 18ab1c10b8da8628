"""What every peer runs: a JPEG in, its label map out. Lives in their environments, so without the project.

The graph is the street model with the head that the service appends to it (resize, arg-max); the
preparation is that of the model's card, written as `corte_teacher.backends.prepare` writes it.
"""

import os
from io import BytesIO

import numpy as np
from PIL import Image

# onnxruntime's Linux wheels send usage events unless told not to before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

from peers.work import GRAPH

_HEIGHT, _WIDTH = 128, 256
_MEAN = np.full((1, 3, 1, 1), 0.5, np.float32)
_STD = np.full((1, 3, 1, 1), 0.25, np.float32)
_ROWS = 56  # of a tile of the head, as the service chooses it for 9 classes and this width


class Pipeline:
    """The model, one inference thread, which does not spin."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            os.environ[GRAPH], options, providers=["CPUExecutionProvider"]
        )
        self._input = next(i.name for i in self._session.get_inputs() if not i.name.startswith("corte_"))

    def answer(self, jpeg: bytes) -> bytes:
        """The classes of one picture, H x W bytes, row by row."""
        opened = Image.open(BytesIO(jpeg))
        picture = opened if opened.mode == "RGB" else opened.convert("RGB")
        small = np.asarray(picture.resize((_WIDTH, _HEIGHT), Image.Resampling.BILINEAR))
        array = np.ascontiguousarray(small.transpose(2, 0, 1))[None].astype(np.float32)
        array /= np.float32(255.0)
        array -= _MEAN
        array /= _STD
        height, width = picture.height, picture.width
        tops = np.minimum(np.arange(0, height, _ROWS), height - _ROWS)
        begin = np.stack([np.zeros_like(tops), tops, np.zeros_like(tops)], axis=1)
        feed = {
            self._input: array,
            "corte_size": np.array((height, width), np.int64),
            "corte_from": begin,
            "corte_to": begin + np.array((1, _ROWS, width)),
        }
        tiles = self._session.run(None, feed)[0][:, 0, 0]
        last = height - (len(tops) - 1) * _ROWS  # the last tile overlaps the one before it
        labels: bytes = np.concatenate([*tiles[:-1], tiles[-1][_ROWS - last :]]).tobytes()
        return labels
