"""MXNet RecordIO frames, and the one protobuf message that SageMaker's built-in algorithms put into them.

Strategy: a reader of the wire format that is just large enough for `Record`, so that no protobuf library is
needed. Numbers that stand packed are read in place. Rule 1: nothing is allocated for a length that is only
stated. Rule 2: fields that are not known are passed over, as protobuf wants it; groups, which `Record` does
not have, are refused.

    frame       u32 magic 0xced7230a, u32 flag << 29 | length, data, 0..3 bytes up to a multiple of four
    Record      map<string, Value> features = 1, label = 2
    Value       oneof: Float32Tensor = 2, Float64Tensor = 3, Int32Tensor = 7, Bytes = 9
    *Tensor     repeated values = 1, uint64 keys = 2, uint64 shape = 3
    Bytes       repeated bytes value = 1

Little-endian throughout. Sources: https://github.com/dmlc/dmlc-core (include/dmlc/recordio.h),
https://github.com/aws/sagemaker-python-sdk (src/sagemaker/amazon/record.proto),
https://protobuf.dev/programming-guides/encoding/. All raise ProtocolError.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corte_protocol import InvalidValue, LimitExceeded, MalformedFrame

Numbers = npt.NDArray[np.float32] | npt.NDArray[np.float64] | npt.NDArray[np.int32]
UInt64 = npt.NDArray[np.uint64]

_MAGIC: Final = struct.pack("<I", 0xCED7230A)
_HEAD: Final = struct.Struct("<4sI")
_LENGTH_BITS: Final = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_FIELDS: Final = 1 << 16  # of one record: its tensors are packed, so that it needs a dozen
_MAX_WHOLE: Final = 1 << 22  # decoding takes some dozen bytes for each, where a float is read in place
_MAX_SIDES: Final = 32
_VARINT_BYTES: Final = 10
_TENSORS: Final[Mapping[int, str]] = MappingProxyType({2: "<f4", 3: "<f8", 7: "<i4"})
_BLOB: Final = 9
_FIXED: Final = {"<f4": _FIXED32, "<f8": _FIXED64}


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A dense tensor: `values` [n] of float32, float64 or int32, read-only; `shape` if it was stated."""

    values: Numbers
    shape: tuple[int, ...] = ()


Value = Tensor | tuple[bytes, ...]
"""What a feature holds: a tensor, or byte strings."""


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One record: values by name."""

    features: Mapping[str, Value]
    label: Mapping[str, Value]

    def tensor(self, name: str) -> Tensor:
        """The feature `name`. Raises InvalidValue where it is missing or no tensor."""
        value = self.features.get(name)
        if not isinstance(value, Tensor):
            raise InvalidValue(f"a record without a tensor {name!r}")
        return value


def payloads(data: bytes, *, most: int = 1) -> list[memoryview]:
    """What the frames in `data` carry, at least one and at most `most`; a view where it is one piece.

    A writer splits data that holds the magic number at a multiple of four, and leaves that number out.
    """
    view, at = memoryview(data), 0
    found: list[memoryview] = []
    parts: list[memoryview | bytes] = []
    while at < len(view):
        flag, part, at = _frame(view, at)
        if flag in (_WHOLE, _FIRST) if parts else flag in (_MIDDLE, _LAST):
            raise MalformedFrame("RecordIO parts out of order")
        if len(found) == most:
            raise LimitExceeded(f"more RecordIO records than {most}")
        parts += (_MAGIC, part) if parts else (part,)
        if flag == _WHOLE:
            found.append(part)
        elif flag == _LAST:
            found.append(memoryview(b"".join(parts)))
        if flag in (_WHOLE, _LAST):
            parts = []
    if parts or not found:
        raise MalformedFrame("a RecordIO stream that ends before its record")
    return found


def read_record(payload: bytes | memoryview, *, max_values: int) -> Record:
    """One `Record`. No tensor of it may have more than `max_values` values, and none may be sparse."""
    reader = _Reader(max_values)
    maps: dict[int, dict[str, Value]] = {1: {}, 2: {}}
    for number, wire, content in reader.fields(memoryview(payload)):
        if number in maps and wire == _BYTES:
            name, value = reader.entry(content)
            maps[number][name] = value
    return Record(MappingProxyType(maps[1]), MappingProxyType(maps[2]))


def _frame(view: memoryview, at: int) -> tuple[int, memoryview, int]:
    """The flag and data of the frame at `at`, and where the next one begins."""
    start = at + _HEAD.size
    if start > len(view):
        raise MalformedFrame("a RecordIO header that is cut off")
    magic, packed = _HEAD.unpack_from(view, at)
    flag, length = packed >> _LENGTH_BITS, packed & ((1 << _LENGTH_BITS) - 1)
    if magic != _MAGIC or flag > _LAST:
        raise MalformedFrame("not a RecordIO frame")
    end = start + (length + 3) // 4 * 4
    if end > len(view):
        raise MalformedFrame(f"a RecordIO frame of {length} bytes with {len(view) - start} left")
    return flag, view[start : start + length], end


class _Reader:
    """Reads one record and counts its fields."""

    def __init__(self, max_values: int) -> None:
        self._max_values = max_values
        self._fields = 0

    def fields(self, message: memoryview) -> Iterator[tuple[int, int, Any]]:
        """Number, wire type and content of each field: a memoryview, or an int for a varint."""
        at = 0
        while at < len(message):
            self._fields += 1
            if self._fields > _MAX_FIELDS:
                raise LimitExceeded(f"a record of more than {_MAX_FIELDS} fields")
            tag, at = _varint(message, at)
            number, wire = tag >> 3, tag & 7
            if number < 1 or number >= 1 << 29:
                raise MalformedFrame("a record with an impossible field")
            if wire == _VARINT:
                content, at = _varint(message, at)
                yield number, wire, content
                continue
            if wire == _BYTES:
                length, at = _varint(message, at)
            elif wire in (_FIXED32, _FIXED64):
                length = 4 if wire == _FIXED32 else 8
            else:
                raise MalformedFrame("a record with a field of an unknown kind")
            if length > len(message) - at:
                raise MalformedFrame(f"a record's field of {length} bytes with {len(message) - at} left")
            yield number, wire, message[at : at + length]
            at += length

    def entry(self, message: memoryview) -> tuple[str, Value]:
        """One entry of a map: key 1 and value 2, either of which may be missing."""
        key, parts = b"", []
        for number, wire, content in self.fields(message):
            if wire == _BYTES and number == 1:
                key = bytes(content)
            elif wire == _BYTES and number == 2:
                parts.append(content)
        try:
            return key.decode(), self._value(parts)
        except UnicodeDecodeError as exc:
            raise MalformedFrame("a record with a name that is not UTF-8") from exc

    def _value(self, messages: list[memoryview]) -> Value:
        """A `Value` in parts; of its kinds, the last one to appear counts."""
        kind, parts = 0, list[memoryview]()
        for message in messages:
            for number, wire, content in self.fields(message):
                if wire != _BYTES or not (number in _TENSORS or number == _BLOB):
                    continue
                if number != kind:
                    kind, parts = number, []
                parts.append(content)
        if kind in _TENSORS:
            return self._tensor(parts, _TENSORS[kind])
        blobs = (field for part in parts for field in self.fields(part))
        return tuple(bytes(content) for number, wire, content in blobs if (number, wire) == (1, _BYTES))

    def _tensor(self, parts: list[memoryview], dtype: str) -> Tensor:
        values: list[Any] = []
        shape: list[UInt64] = []
        for part in parts:
            for number, wire, content in self.fields(part):
                if number == 1:
                    values.append(self._numbers(wire, content, dtype))
                elif number == 3:
                    shape.append(self._varints(wire, content))
                elif number == 2 and len(self._varints(wire, content)):
                    raise InvalidValue("a sparse tensor")
        if sum(map(len, values)) > self._max_values:
            raise LimitExceeded(f"a tensor of more than {self._max_values} values")
        if sum(map(len, shape)) > _MAX_SIDES:
            raise LimitExceeded(f"a tensor of more than {_MAX_SIDES} dimensions")
        whole = values[0] if len(values) == 1 else np.concatenate((np.empty(0, dtype), *values))
        whole.flags.writeable = False
        return Tensor(whole, tuple(int(side) for sides in shape for side in sides))

    def _numbers(self, wire: int, content: Any, dtype: str) -> Any:
        """Values of one field, packed or single."""
        if dtype not in _FIXED:
            # a negative int32 is told in 64 bits, of which the lower half counts
            return (self._varints(wire, content) & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)
        size = np.dtype(dtype).itemsize
        if wire not in (_BYTES, _FIXED[dtype]) or len(content) % size:
            raise MalformedFrame("a tensor with values of another type")
        if len(content) // size > self._max_values:
            raise LimitExceeded(f"a tensor of more than {self._max_values} values")
        return np.frombuffer(content, dtype)

    def _varints(self, wire: int, content: Any) -> UInt64:
        """Whole numbers of one field, packed or single."""
        if wire == _VARINT:
            return np.array([content], np.uint64)
        if wire != _BYTES:
            raise MalformedFrame("a tensor with whole numbers of another type")
        most = min(self._max_values, _MAX_WHOLE)
        if len(content) > _VARINT_BYTES * most:
            raise LimitExceeded(f"a tensor of more than {most} whole numbers")
        raw = np.frombuffer(content, np.uint8)
        ends = np.flatnonzero(raw < 0x80)
        if len(ends) > most:
            raise LimitExceeded(f"a tensor of more than {most} whole numbers")
        if not raw.size:
            return np.empty(0, np.uint64)
        if raw[-1] >= 0x80:
            raise MalformedFrame("a tensor whose last number is cut off")
        starts = np.concatenate(([0], ends[:-1] + 1))
        lengths = ends - starts + 1
        if int(lengths.max()) > _VARINT_BYTES:
            raise MalformedFrame("a tensor with a number of more than 64 bits")
        places = (np.arange(raw.size) - np.repeat(starts, lengths)).astype(np.uint64)
        digits = (raw & 0x7F).astype(np.uint64) << places * np.uint64(7)
        numbers: UInt64 = np.add.reduceat(digits, starts)
        return numbers


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The varint at `at` and where it ends."""
    number = 0
    for place in range(_VARINT_BYTES):
        if at >= len(message):
            break
        byte = message[at]
        number |= (byte & 0x7F) << 7 * place
        at += 1
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at
    raise MalformedFrame("a record with a number that is cut off or too long")
