"""What a client would see: one image through the whole service path, without a socket."""

import time
from collections.abc import Iterator
from io import BytesIO

import numpy as np

from corte_protocol import Prediction, decode_prediction
from corte_teacher.errors import StartError, TeacherServiceError
from corte_teacher.loading import Teacher
from corte_teacher.model import trial_picture
from corte_teacher.pictures import open_picture


def report(teacher: Teacher, body: bytes | None) -> Iterator[str]:
    """The lines to print for one encoded image, or for a gradient. Raises StartError when the model fails."""
    info = teacher.info
    if body is None:
        buffer = BytesIO()
        trial_picture().save(buffer, "PNG")
        body = buffer.getvalue()
    try:
        image = open_picture(body, info.limits).decode()
        teacher.model.frame(image, info.disclosure)  # the first call pays for set-up
        began = time.perf_counter()
        frame = teacher.model.frame(image, info.disclosure)
        took = time.perf_counter() - began
    except TeacherServiceError as exc:
        raise StartError(f"no answer ({exc.code}): {exc}") from exc
    seen = decode_prediction(frame, max_pixels=info.limits.max_pixels)
    height, width = seen.labels.shape
    yield f"image        {width} x {height}, {len(body)} bytes"
    yield f"answer       {len(frame)} bytes in {took * 1000:.0f} ms, the size of the image"
    yield f"disclosure   {seen.disclosure}: {_in_words(seen)}"
    yield f"revision     {info.revision}"
    yield f"classes      {len(info.classes)}"
    shares = np.bincount(seen.labels.ravel(), minlength=len(info.classes)) / seen.labels.size
    for index in np.argsort(-shares, kind="stable"):
        if shares[index]:
            yield f"  {shares[index]:6.1%}  {info.classes[index]}"


def _in_words(seen: Prediction) -> str:
    level = seen.disclosure
    if seen.confidence is None:
        return "the best class of each pixel, no score"
    what = f"the {level.top_k} best classes of each pixel with scores of {level.prob_bits} bits"
    return f"{what}; mean confidence {seen.confidence.mean() / 255:.2f}"
