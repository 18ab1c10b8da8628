"""Tensors of the Open Inference Protocol on the wire, both directions: in JSON, or as bytes behind it.

Sources: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
for the JSON objects and datatypes,
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
for the binary tensor data extension, https://docs.seldon.ai/mlserver/user-guide/content-type for `base64`.

Rule 1: a message is taken apart first and a tensor decoded only when it is asked for, so outputs that nobody
needs cost nothing. Rule 2: binary data is a view of the body, never a copy. Rule 3: nothing is allocated on
the word of the sender: the declared shape is checked against the caller's bound and against the bytes there.
Rule 4: BF16 is refused, numpy has no such type.
"""

import base64
import binascii
import itertools
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from corte_protocol import InvalidValue, LimitExceeded, MalformedFrame

LENGTH_HEADER: Final = "Inference-Header-Content-Length"
"""How many bytes of a body are JSON, where binary data follows."""
DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Every datatype with a fixed size that is read; BYTES are the others."""
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_MAX_TENSORS: Final = 256
_MAX_RANK: Final = 16

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One named tensor: `data` is an array of `shape`, or for BYTES the elements in row-major order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array | tuple[bytes, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if any(side < 0 for side in self.shape):
            raise InvalidValue(f"a tensor of the shape {list(self.shape)}")
        if isinstance(self.data, tuple):
            if self.datatype != "BYTES" or len(self.data) != math.prod(self.shape):
                raise InvalidValue(f"{len(self.data)} BYTES elements for the shape {list(self.shape)}")
        elif _NAMES.get(self.data.dtype) != self.datatype or self.data.shape != self.shape:
            raise InvalidValue(f"{self.data.dtype} {list(self.data.shape)} is no {self.datatype} tensor")

    @classmethod
    def of(cls, name: str, array: Array) -> Self:
        """The tensor of a numeric or truth-value array."""
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if little.dtype not in _NAMES:
            raise InvalidValue(f"the protocol has no datatype for {array.dtype}")
        return cls(name, _NAMES[little.dtype], little.shape, little)

    @classmethod
    def of_bytes(cls, name: str, elements: Sequence[bytes], shape: tuple[int, ...]) -> Self:
        """A BYTES tensor, its elements in row-major order."""
        return cls(name, "BYTES", shape, tuple(elements))

    @property
    def array(self) -> Array:
        """The numbers. Raises InvalidValue for BYTES."""
        if isinstance(self.data, tuple):
            raise InvalidValue(f"the tensor {self.name[:64]!r} holds BYTES, not numbers")
        return self.data


@dataclass(frozen=True, slots=True)
class Packed:
    """A body; `json_bytes` of it are JSON where binary data follows, else None."""

    body: bytes = field(repr=False)
    json_bytes: int | None

    @property
    def headers(self) -> dict[str, str]:
        """What must be sent with it."""
        if self.json_bytes is None:
            return {"Content-Type": "application/json"}
        return {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(self.json_bytes)}


def pack(document: Mapping[str, object], key: str, tensors: Sequence[Tensor], *, binary: bool) -> Packed:
    """`document` with `tensors` under `key` ("inputs" or "outputs"), as JSON or with their bytes behind it.

    Raises InvalidValue for numbers that JSON cannot tell (NaN, infinity).
    """
    described: list[dict[str, object]] = []
    behind: list[bytes] = []
    for tensor in tensors:
        entry: dict[str, object] = {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "datatype": tensor.datatype,
        }
        if binary:
            behind.append(_to_bytes(tensor))
            entry["parameters"] = {"binary_data_size": len(behind[-1])}
        elif isinstance(tensor.data, tuple):
            # JSON has no bytes: base64, marked as MLServer marks it
            entry["parameters"] = {"content_type": "base64"}
            entry["data"] = [base64.b64encode(element).decode("ascii") for element in tensor.data]
        else:
            entry["data"] = tensor.data.reshape(-1).tolist()
        described.append(entry)
    try:
        text = json.dumps({**document, key: described}, separators=(",", ":"), allow_nan=False).encode()
    except ValueError as exc:
        raise InvalidValue("a tensor holds numbers that JSON cannot tell") from exc
    if not binary:
        return Packed(text, None)
    return Packed(b"".join((text, *behind)), len(text))


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a message, not decoded yet: `data` as JSON gave it, or a view of the body."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Mapping[str, Any]
    data: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Message:
    """A request or response taken apart: the JSON object, and its tensors by name, in their order."""

    document: Mapping[str, Any] = field(repr=False)
    entries: Mapping[str, Entry]

    def tensor(self, name: str, max_elements: int) -> Tensor:
        """One tensor decoded. Raises InvalidValue, MalformedFrame or LimitExceeded.

        At most `max_elements` are allocated, a few bytes each beyond the JSON that is there anyway.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise InvalidValue(f"no tensor is called {name[:64]!r}: there is {listed(self.entries)}")
        if entry.datatype not in DTYPES and entry.datatype != "BYTES":
            raise InvalidValue(f"the datatype {entry.datatype[:16]!r} is not read")
        if math.prod(entry.shape) > max_elements:
            raise LimitExceeded(
                f"a tensor of the shape {list(entry.shape)} is beyond {max_elements} elements"
            )
        if isinstance(entry.data, memoryview):
            return _from_bytes(entry, entry.data)
        return _from_json(entry)


def listed(names: Iterable[str]) -> str:
    """Names that a service gave, short enough for a message."""
    shown = [repr(name[:64]) for name in itertools.islice(names, 9)]
    return ", ".join((*shown[:8], *(["..."] if len(shown) > 8 else []))) or "none"


def unpack(body: bytes, json_bytes: str | None, key: str) -> Message:
    """Take a body apart; `json_bytes` is the header's text, None where it was not sent.

    Raises MalformedFrame. Where no header was sent all of the body is JSON.
    """
    length = len(body)
    if json_bytes is not None:
        if not (json_bytes.isascii() and json_bytes.isdecimal()) or len(json_bytes) > 12:
            raise MalformedFrame(f"{LENGTH_HEADER} is no length")
        length = int(json_bytes)
        if length > len(body):
            raise MalformedFrame(f"{LENGTH_HEADER} is beyond the body")
    try:
        document = json.loads(body[:length])
    except (ValueError, RecursionError) as exc:
        raise MalformedFrame("the answer is not JSON") from exc
    if not isinstance(document, dict) or not isinstance(document.get(key), list):
        raise MalformedFrame(f"the answer is no JSON object with {key}")
    if len(document[key]) > _MAX_TENSORS:
        raise LimitExceeded(f"{len(document[key])} tensors")
    entries: dict[str, Entry] = {}
    rest = memoryview(body)[length:]
    for value in document[key]:
        entry, rest = _entry(value, rest)
        if entry.name in entries:
            raise MalformedFrame("two tensors have one name")
        entries[entry.name] = entry
    if len(rest):
        raise MalformedFrame(f"{len(rest)} bytes belong to no tensor")
    return Message(document, entries)


def _entry(value: object, rest: memoryview) -> tuple[Entry, memoryview]:
    """One described tensor, and the bytes that follow its own."""
    if not isinstance(value, dict):
        raise MalformedFrame("a tensor is not described by an object")
    name, datatype, shape = value.get("name"), value.get("datatype"), value.get("shape")
    if not isinstance(name, str) or not isinstance(datatype, str) or not isinstance(shape, list):
        raise MalformedFrame("a tensor without a name, datatype or shape")
    sides = tuple(side for side in shape if type(side) is int and side >= 0)
    if len(sides) != len(shape) or len(shape) > _MAX_RANK:
        raise MalformedFrame("a tensor's shape is no list of lengths")
    parameters = value.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in value:
            raise MalformedFrame("a tensor without data")
        return Entry(name, datatype, sides, parameters, value["data"]), rest
    if type(size) is not int or not 0 <= size <= len(rest):  # a truth value is an int as well
        raise MalformedFrame("binary_data_size is beyond the body")
    return Entry(name, datatype, sides, parameters, rest[:size]), rest[size:]


def _to_bytes(tensor: Tensor) -> bytes:
    if isinstance(tensor.data, tuple):
        lengths = (struct.pack("<I", len(element)) for element in tensor.data)
        return b"".join(itertools.chain.from_iterable(zip(lengths, tensor.data, strict=True)))
    return tensor.data.tobytes()


def _from_bytes(entry: Entry, raw: memoryview) -> Tensor:
    count = math.prod(entry.shape)
    if entry.datatype == "BYTES":
        return Tensor.of_bytes(entry.name, _elements(raw, count), entry.shape)
    dtype = DTYPES[entry.datatype]
    if len(raw) != count * dtype.itemsize:
        raise MalformedFrame(f"{len(raw)} bytes for {entry.datatype} {list(entry.shape)}")
    if entry.datatype == "BOOL":
        return Tensor.of(entry.name, _truth(np.frombuffer(raw, np.uint8)).reshape(entry.shape))
    return Tensor.of(entry.name, np.frombuffer(raw, dtype).reshape(entry.shape))


def _elements(raw: memoryview, count: int) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(raw) and len(elements) < count:
        if len(raw) - at < 4:
            break
        end = at + 4 + struct.unpack_from("<I", raw, at)[0]
        if end > len(raw):
            break
        elements.append(bytes(raw[at + 4 : end]))
        at = end
    if at != len(raw) or len(elements) != count:
        raise MalformedFrame("BYTES elements do not fill their tensor")
    return elements


def _from_json(entry: Entry) -> Tensor:
    """The protocol allows nested lists as well as a flat one."""
    if entry.datatype == "BYTES":
        return Tensor.of_bytes(entry.name, _texts(entry), entry.shape)
    array = _numbers(entry.data, DTYPES[entry.datatype])
    if array.size != math.prod(entry.shape):
        raise MalformedFrame(f"{array.size} numbers for {entry.datatype} {list(entry.shape)}")
    return Tensor.of(entry.name, array.reshape(entry.shape))


def _numbers(data: object, dtype: np.dtype[Any]) -> Array:
    """The type is named to numpy at once: left to guess, it would make room for the longest text."""
    if not isinstance(data, list):
        raise MalformedFrame("a tensor's data is no list")
    try:
        with np.errstate(over="ignore"):  # a logit beyond the type's range becomes infinite
            if dtype.kind == "f":
                return np.array(data, dtype)  # null becomes NaN, as MLServer means it
            whole = np.array(data, np.dtype("u1") if dtype.kind == "b" else dtype)
            exact = np.array_equal(np.array(data, np.float64), whole.astype(np.float64))
    except (ValueError, TypeError, OverflowError) as exc:
        raise MalformedFrame(f"a tensor's data is no list of {dtype} numbers") from exc
    if not exact:
        raise MalformedFrame(f"a tensor's data is no list of {dtype} numbers")
    return _truth(whole) if dtype.kind == "b" else whole


def _truth(values: Array) -> Array:
    if values.size and int(values.max()) > 1:
        raise MalformedFrame("a truth value is neither 0 nor 1")
    return values.astype(np.bool_)


def _texts(entry: Entry) -> list[bytes]:
    coded = entry.parameters.get("content_type") == "base64"
    found: list[bytes] = []
    waiting: list[object] = [entry.data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(reversed(value))
        elif isinstance(value, str):
            found.append(_text(value, coded=coded))
        else:
            raise MalformedFrame("an element of BYTES is no text")
    return found


def _text(value: str, *, coded: bool) -> bytes:
    try:
        return base64.b64decode(value, validate=True) if coded else value.encode()
    except (binascii.Error, ValueError) as exc:
        raise MalformedFrame("an element of BYTES is no base64") from exc
