"""The wire form of the Open Inference Protocol: JSON, tensors in it, and tensors as bytes behind it.

Sources: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
for the JSON, https://github.com/kserve/kserve/blob/master/docs/predict-api/v2/required_api.md#tensor-data for
tensor data, https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
for the binary tensor data extension.

Rule 1: what is not of the form gets `BadRequest` (400); a field that nobody knows is not of the form, since
a misspelt request for less must not be answered with more.
Rule 2: JSON is bounded before it is parsed. A byte of it may become ten of Python objects, so what an honest
request has few of (objects, strings, nested rows) is counted first, and numbers must be integers.
Rule 3: bytes are never copied: the image's pixels are a view of the body.
"""

import base64
import binascii
import json
import math
import re
from dataclasses import dataclass
from itertools import chain
from typing import Final, NoReturn

import numpy as np

from corte_protocol import Limits
from corte_protocol.types import UInt8
from corte_teacher.errors import BadRequest, TooLarge

_MAX_HEADER: Final = 1 << 16  # JSON in front of binary data describes two tensors at most
_MAX_OBJECTS: Final = 64
_MAX_QUOTES: Final = 1024
_MAX_ROWS: Final = 1 << 18  # nested arrays: a picture of 512 x 512; a larger one is sent flat, or as bytes
_LENGTH: Final = 4  # of a BYTES element, little-endian, before the element itself


def take_apart(body: bytes, header_length: str | None) -> tuple[dict[str, object], memoryview]:
    """The JSON object of a request, and the bytes behind it.

    `header_length` is the header Inference-Header-Content-Length, None where it was not sent: then all of
    the body is JSON. 0 stands for a body without JSON, which needs a model with one input: refused.
    Raises BadRequest, or TooLarge for more JSON than a request with binary data needs.
    """
    size = len(body)
    if header_length is not None:
        if not re.fullmatch(r"[0-9]{1,12}", header_length) or not 0 < int(header_length) <= len(body):
            raise BadRequest("the JSON's length is not one within the body")
        size = int(header_length)
        if size > _MAX_HEADER:
            raise TooLarge("more JSON than a request with binary data needs")
    return _load(body[:size]), memoryview(body)[size:]


def fields_of(value: object, known: set[str]) -> dict[str, object]:
    """A JSON object with no other fields than `known`; None stands for an empty one. Raises BadRequest."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not known.issuperset(value):
        raise BadRequest("not an object, or one with unknown fields")
    return value


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One input as it was sent: `content` is the list in `data`, or the bytes behind the JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content_type: str | None
    content: list[object] | memoryview


def read_tensor(value: object, behind: memoryview) -> Tensor:
    """The only input of a request. Raises BadRequest, also where `behind` is not exactly its bytes."""
    fields = fields_of(value, {"name", "datatype", "shape", "parameters", "data"})
    parameters = fields_of(fields.get("parameters"), {"binary_data_size", "content_type"})
    name, datatype, shape, data = (fields.get(key) for key in ("name", "datatype", "shape", "data"))
    size, content_type = parameters.get("binary_data_size"), parameters.get("content_type")
    if not isinstance(name, str) or not isinstance(datatype, str):
        raise BadRequest("a tensor without a name or a type")
    if not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise BadRequest("a tensor without a shape")
    if content_type is not None and not isinstance(content_type, str):
        raise BadRequest("a content type that is no text")
    if size is None:
        if not isinstance(data, list) or behind:
            raise BadRequest("a tensor without data, or bytes that belong to no tensor")
        return Tensor(name, datatype, tuple(shape), content_type, data)
    if type(size) is not int or size != len(behind) or data is not None:
        raise BadRequest("a tensor's bytes are not those behind the JSON")
    return Tensor(name, datatype, tuple(shape), content_type, behind)


def encoded_image(tensor: Tensor) -> bytes | memoryview:
    """The image file in a BYTES tensor of shape [1] or [1, 1]. Raises BadRequest.

    As binary data: a length and the file. As JSON: base64 text, declared by the parameter
    content_type = "base64" (MLServer's convention, https://docs.seldon.ai/mlserver/user-guide/content-type),
    because an element of BYTES in JSON is text, and no image is.
    """
    if tensor.datatype != "BYTES" or tensor.shape not in ((1,), (1, 1)):
        raise BadRequest("an image is BYTES [1]")
    content = tensor.content
    if isinstance(content, memoryview):
        if len(content) < _LENGTH or int.from_bytes(content[:_LENGTH], "little") != len(content) - _LENGTH:
            raise BadRequest("a BYTES element is a length and as many bytes")
        return content[_LENGTH:]
    element = content[0] if len(content) == 1 else None
    if isinstance(element, list) and len(element) == 1:
        element = element[0]
    if not isinstance(element, str) or tensor.content_type != "base64":
        raise BadRequest("an image in JSON is base64 text")
    try:
        return base64.b64decode(element, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadRequest("not base64") from exc


def decoded_image(tensor: Tensor, limits: Limits) -> UInt8:
    """The pixels in a UINT8 tensor [1, H, W, 3] or [H, W, 3], as uint8 [H, W, 3].

    Raises BadRequest, or TooLarge before anything is converted.
    """
    shape = tensor.shape[1:] if len(tensor.shape) == 4 and tensor.shape[0] == 1 else tensor.shape
    if tensor.datatype != "UINT8" or len(shape) != 3 or shape[2] != 3 or min(shape) < 1:
        raise BadRequest("pixels are UINT8 [1, H, W, 3]")
    if shape[0] * shape[1] > limits.max_pixels:
        raise TooLarge("too many pixels")
    content = tensor.content
    raw = content if isinstance(content, memoryview) else _numbers(content, tensor.shape)
    if len(raw) != math.prod(shape):
        raise BadRequest("the data does not fill the shape")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def array_text(values: UInt8) -> bytes:
    """uint8 [K, H, W] as one flat JSON array: at most four bytes of text a number, and no objects."""
    numbers = np.array([f"{n},".encode() for n in range(256)], "S4").view(np.uint32)
    planes = (numbers[plane.reshape(-1)].tobytes().replace(b"\0", b"") for plane in values)
    return b"[" + b"".join(planes)[:-1] + b"]"


def _load(text: bytes) -> dict[str, object]:
    few = ((b"{", _MAX_OBJECTS), (b'"', _MAX_QUOTES), (b"[", _MAX_ROWS))
    if any(text.count(mark) > limit for mark, limit in few):
        raise BadRequest("more objects, strings or rows than a request needs")
    try:
        value = json.loads(
            text.decode(), parse_float=_refuse, parse_constant=_refuse, object_pairs_hook=_distinct
        )
    except (ValueError, RecursionError) as exc:  # UnicodeDecodeError is a ValueError
        raise BadRequest("not JSON of integers, texts and truth values") from exc
    if not isinstance(value, dict):
        raise BadRequest("not a JSON object")
    return value


def _refuse(number: str) -> NoReturn:
    raise ValueError("no number of this protocol is anything but an integer")


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is given twice")
    return fields


def _numbers(data: list[object], shape: tuple[int, ...]) -> bytes:
    """`data` nested as `shape` says, or flat, as bytes."""
    row = data
    if row and isinstance(row[0], list):
        for size in shape[1:]:
            if any(not isinstance(part, list) or len(part) != size for part in row):
                raise BadRequest("the data is not nested as the shape says")
            row = list(chain.from_iterable(row))  # type: ignore[arg-type]
    try:
        return bytes(row)  # type: ignore[arg-type]
    except (TypeError, ValueError) as exc:
        raise BadRequest("pixels are integers from 0 to 255") from exc
