"""A teacher that knows the truth, for the target-only row: the upper bound under the same budget.

It stands where the black box stands, so that the row differs from the others in its labels alone. Void
pixels are answered as one more class, which the class map sends to void: 255 is never predicted.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from corte_protocol import VOID, Disclosure, Image, Limits, Prediction, TeacherInfo, encode_prediction
from corte_protocol.routes import PROTOCOL_VERSION
from corte_student.data.folder import read_picture
from corte_student.endpoints import FREE, Meter, Stored, read_frame

UInt8 = npt.NDArray[np.uint8]
Rgb = tuple[int, int, int]


class TruthEndpoint:
    """Answers with the label file of the image that it is shown, known by its pixels."""

    def __init__(
        self,
        pairs: list[tuple[Path, Path]],
        read: Callable[[Path], UInt8],
        names: tuple[str, ...],
        colors: tuple[Rgb, ...],
    ) -> None:
        self._labels = {read_picture(image).pixel_digest: labels for image, labels in pairs}
        self._read = read
        self._names, self._colors = names, colors

    async def info(self) -> TeacherInfo:
        """The classes and a void one; labels only."""
        return TeacherInfo(
            PROTOCOL_VERSION,
            "truth",
            "truth",
            (*self._names, "void"),
            (*self._colors, (0, 0, 0)),
            Disclosure(1, 0),
            Limits(1 << 30, 1 << 30),
        )

    @property
    def down(self) -> bool:
        """Never."""
        return False

    async def predict(
        self, body: bytes, media_type: str, disclosure: Disclosure, meter: Meter = FREE
    ) -> Stored:
        """The frame of the image's label file."""
        with Pillow.open(BytesIO(body)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        labels = self._read(self._labels[Image(pixels).digest])
        classes = np.where(labels == VOID, len(self._names), labels).astype(np.uint8)
        frame = encode_prediction(Prediction(classes[None], None, "truth"))
        return Stored(frame, "truth", disclosure)

    def read(self, blob: bytes, height: int, width: int, need: Disclosure) -> Prediction:
        """The frame back."""
        return read_frame(blob, height, width, need)

    async def aclose(self) -> None:
        """Nothing is open."""


def write_classmap(path: Path, names: tuple[str, ...], colors: tuple[Rgb, ...]) -> Path:
    """A class map that keeps the classes and leaves the void one unmapped."""
    entries = [
        f'[[classes]]\nname = "{name}"\ncolor = {list(color)}\nfrom = ["{name}"]\n'
        for name, color in zip(names, colors, strict=True)
    ]
    path.write_text("\n".join(entries))
    return path
