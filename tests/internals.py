"""Words that no answer of the service may hold: libraries, paths, files and names behind it."""

import re
from typing import Final

WORDS: Final = (
    b"traceback", b"exception", b"onnx", b"torch", b"timm", b"uvicorn", b"starlette", b"fastapi", b"pydantic",
    b"httptools", b"llhttp", b"h11", b"numpy", b"pillow", b"python", b"site-packages", b"corte_teacher",
    b"corte_protocol", b"secret-model", b"tiny-secret-name", b"sqlite", b"/work", b"/usr", b"/tmp", b"/home",
    b"resnet", b"mobilenet", b"deeplab", b"segformer", b"cuda", b"errno",
)  # fmt: skip
_FOUND: Final = re.compile(b"|".join(map(re.escape, WORDS)) + rb"|\.py\b|\bPIL\b", re.IGNORECASE)


def leaks(answer: bytes) -> list[bytes]:
    """The words of the list that an answer, head and body, holds; a frame's planes are not text."""
    head = answer.partition(b"\r\n\r\n")[0]
    text = head if b"application/vnd.corte.frame" in head or b"octet-stream" in head else answer
    return _FOUND.findall(text)
