"""Several views of one picture: which questions they are, and how an answer finds back to the picture.

A view is one or more queries, and each query is a picture of its own to the teacher:

    identity        the picture itself
    flip            mirrored
    scale:F         resized by F, 0.25 to 2
    columns:N       N overlapping full-height windows, each two widths of an N+1-th part of the picture
    columns:N+flip  the same, mirrored

Many teachers resize whatever they get to one size: windows show them more pixels an object, and an aspect
closer to what they were trained on. Test-time augmentation (Krizhevsky et al., NeurIPS 2012), asked once.

Legend: H W picture size, K disclosed classes.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from corte_student.data.folder import Picture
from corte_student.errors import SettingsError

UInt8 = npt.NDArray[np.uint8]

LABEL_VIEWS = ("identity", "flip")
"""Asked of a teacher that discloses labels only, if nothing else is said, as far as the budget goes.

Scales of the whole picture helped on neither of the pairs that were measured (docs/experiments.md).
"""


@dataclass(frozen=True, slots=True)
class Query:
    """One question of a view: columns `left` to `right` as shares of the width, mirrored, scaled.

    `name` is the ledger's name for it, so it must change whenever the pixels that are sent would.
    """

    name: str
    left: float = 0.0
    right: float = 1.0
    flip: bool = False
    scale: float = 1.0

    def window(self, width: int) -> slice:
        """The columns that are shown, at least one."""
        left = min(round(self.left * width), width - 1)
        return slice(left, max(left + 1, round(self.right * width)))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what is sent of a picture of that size."""
        window = self.window(width)
        columns = window.stop - window.start
        return max(1, round(height * self.scale)), max(1, round(columns * self.scale))

    def shown(self, picture: Picture) -> Picture:
        """The picture that is sent: other pixels, the digests of the whole one."""
        if self.name == "identity":
            return picture
        pixels = picture.pixels[:, self.window(picture.pixels.shape[1])]
        if self.flip:
            pixels = pixels[:, ::-1]
        if self.scale != 1.0:
            height, width = self.size(*picture.pixels.shape[:2])
            how = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_LINEAR
            pixels = np.asarray(
                cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=how), np.uint8
            )
        pixels = np.ascontiguousarray(pixels)
        body = io.BytesIO()
        Pillow.fromarray(pixels).save(body, "PNG", compress_level=2)
        return replace(picture, pixels=pixels, body=body.getvalue(), media_type="image/png")

    def back(self, plane: UInt8, height: int, width: int) -> UInt8:
        """Planes [K, h, w] of an answer on the pixels of the window, nearest: ids and ranked scores alike."""
        window = self.window(width)
        columns = window.stop - window.start
        if plane.shape[1:] != (height, columns):
            size = (columns, height)
            plane = np.stack([cv2.resize(p, size, interpolation=cv2.INTER_NEAREST_EXACT) for p in plane])
        return plane[:, :, ::-1] if self.flip else plane


def parse_views(names: Sequence[str]) -> tuple[Query, ...]:
    """The queries of the views called `names`, in order. Raises SettingsError."""
    queries = [query for name in names for query in _view(name)]
    if not queries or len({q.name for q in queries}) != len(queries):
        raise SettingsError(f"views: name at least one view, each once, not {', '.join(names) or 'none'}")
    return tuple(queries)


def _view(name: str) -> list[Query]:
    kind, _, value = name.removesuffix("+flip").partition(":")
    flip = name.endswith("+flip")
    if name in ("identity", "flip"):
        return [Query(name, flip=name == "flip")]
    try:
        if kind == "scale" and not flip and 0.25 <= float(value) <= 2.0 and float(value) != 1.0:
            return [Query(f"scale:{float(value):g}", scale=float(f"{float(value):g}"))]
        if kind == "columns" and 2 <= int(value) <= 8:
            parts, mirrored = int(value), "+flip" if flip else ""
            return [
                Query(f"columns:{parts}/{i}{mirrored}", i / (parts + 1), (i + 2) / (parts + 1), flip)
                for i in range(parts)
            ]
    except ValueError:
        pass
    raise SettingsError(
        f"unknown view {name!r}: choose identity, flip, scale:F (0.25 to 2), columns:N (2 to 8) "
        "or columns:N+flip"
    )


IDENTITY = Query("identity")
