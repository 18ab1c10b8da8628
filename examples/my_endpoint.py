"""A teacher of your own in one file, for what no TOML file describes: here, people who paint labels.

    PYTHONPATH=examples corte-student collect --teacher-kind my_endpoint:build --teacher-url FOLDER \
        --teacher-config CLASSES.toml --images DIR

FOLDER holds a PNG of class ids for each image, 255 where nobody knows, named by the digest of its pixels:
`corte_protocol.Image(pixels).digest`, pixels uint8 [H, W, 3]. To wrap a vendor's library, replace `_labels`.
"""

import asyncio
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from corte_protocol import VOID, Disclosure, Image, Limits, Prediction, TeacherInfo, encode_prediction
from corte_protocol.types import VOID_NAME, UInt8
from corte_student.endpoints import FREE, Access, Meter, Stored, read_frame
from corte_student.errors import ImageRefused, SettingsError


class Painters:
    """Labels alone, from a folder. `down` tells that a teacher fails so steadily that it is only probed."""

    down = False
    read = staticmethod(read_frame)  # answers are stored as native frames

    def __init__(self, folder: Path, info: TeacherInfo) -> None:
        self._folder, self._info = folder, info

    async def info(self) -> TeacherInfo:
        """Whose answers these are. Another `revision` would ask about every image anew."""
        return self._info

    async def predict(
        self, body: bytes, media_type: str, disclosure: Disclosure, meter: Meter = FREE
    ) -> Stored:
        """The labels of one image. What costs is reserved first, and given back where nobody worked."""
        receipt = await meter.reserve()
        try:
            labels = await asyncio.to_thread(self._labels, body)
        except ImageRefused:
            await receipt.give_back()
            raise
        frame = encode_prediction(Prediction(labels[None], None, self._info.revision))
        return Stored(frame, self._info.revision, self._info.disclosure)

    async def aclose(self) -> None:
        """Nothing is held open."""

    def _labels(self, body: bytes) -> UInt8:
        """Class ids uint8 [H, W]. Raises ImageRefused for what concerns this image: it is set aside."""
        try:
            with Pillow.open(io.BytesIO(body)) as picture:
                image = Image(np.array(picture.convert("RGB")))
            with Pillow.open(self._folder / f"{image.digest}.png") as picture:
                ids = np.array(picture, np.uint8)
        except OSError as exc:
            raise ImageRefused("nobody has painted this image yet") from exc
        ids[ids == VOID] = len(self._info.classes) - 1
        if ids.shape != image.pixels.shape[:2] or ids.max() >= len(self._info.classes):
            raise ImageRefused("its labels are of another size, or name a class that is not listed")
        return ids


def build(access: Access, deadline_s: float, connections: int) -> Painters:
    """What corte-student calls once: the flags, the seconds for one answer, the requests in flight."""
    if access.config is None or not Path(access.url).is_dir():
        raise SettingsError("name the folder with --teacher-url, and its classes in --teacher-config")
    names, colors = access.config.listed("my_endpoint:build")
    teacher = hashlib.sha256(access.url.encode()).hexdigest()[:16]  # tells it from others, and says nothing
    info = TeacherInfo(
        1, teacher, access.config.revision or "unstated", (*names, VOID_NAME), (*colors, (0, 0, 0)),
        Disclosure(1, 0), Limits(1 << 30, 1 << 28),
    )  # fmt: skip
    return Painters(Path(access.url), info)
