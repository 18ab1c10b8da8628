"""RecordIO and the Record message: as protobuf and dmlc-core write them, and hostile bytes."""

import contextlib
import itertools
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)
from hypothesis import given
from hypothesis import strategies as st

from corte_protocol import InvalidValue, LimitExceeded, MalformedFrame, ProtocolError
from corte_student.endpoints.recordio import Record, Tensor, Value, payloads, read_record

MAGIC = struct.pack("<I", 0xCED7230A)
MANY = 1 << 20
KINDS = {"float32_tensor": "<f4", "float64_tensor": "<f8", "int32_tensor": "<i4"}

Field = descriptor_pb2.FieldDescriptorProto


def _message_class(*, packed: bool) -> Any:
    """The class `Record` of aws/sagemaker-python-sdk, src/sagemaker/amazon/record.proto (proto2)."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"record_{packed}.proto", package=f"aialgs{packed}", syntax="proto2"
    )

    def message(name: str, *fields: tuple[str, int, int, int, str]) -> Any:
        kind = file.message_type.add(name=name)
        for field, number, label, of, type_name in fields:
            added = kind.field.add(name=field, number=number, label=label, type=of)
            if type_name:
                added.type_name = type_name
            if label == Field.LABEL_REPEATED and of not in (Field.TYPE_MESSAGE, Field.TYPE_BYTES):
                added.options.packed = packed
        return kind

    many, one = Field.LABEL_REPEATED, Field.LABEL_OPTIONAL
    for name, of in (("Float32Tensor", Field.TYPE_FLOAT), ("Float64Tensor", Field.TYPE_DOUBLE)):
        message(
            name,
            ("values", 1, many, of, ""),
            ("keys", 2, many, Field.TYPE_UINT64, ""),
            ("shape", 3, many, Field.TYPE_UINT64, ""),
        )
    message(
        "Int32Tensor",
        ("values", 1, many, Field.TYPE_INT32, ""),
        ("keys", 2, many, Field.TYPE_UINT64, ""),
        ("shape", 3, many, Field.TYPE_UINT64, ""),
    )
    message(
        "Bytes", ("value", 1, many, Field.TYPE_BYTES, ""), ("content_type", 2, one, Field.TYPE_STRING, "")
    )
    value = message(
        "Value",
        *(
            (name, number, one, Field.TYPE_MESSAGE, f".{file.package}.{of}")
            for name, number, of in (
                ("float32_tensor", 2, "Float32Tensor"),
                ("float64_tensor", 3, "Float64Tensor"),
                ("int32_tensor", 7, "Int32Tensor"),
                ("bytes", 9, "Bytes"),
            )
        ),
    )
    value.oneof_decl.add(name="value")
    for field in value.field:
        field.oneof_index = 0
    record = message(
        "Record",
        ("features", 1, many, Field.TYPE_MESSAGE, f".{file.package}.Record.FeaturesEntry"),
        ("label", 2, many, Field.TYPE_MESSAGE, f".{file.package}.Record.LabelEntry"),
        ("uid", 3, one, Field.TYPE_STRING, ""),
        ("metadata", 4, one, Field.TYPE_STRING, ""),
        ("configuration", 5, one, Field.TYPE_STRING, ""),
    )
    for name in ("FeaturesEntry", "LabelEntry"):
        entry = record.nested_type.add(name=name)
        entry.field.add(name="key", number=1, label=one, type=Field.TYPE_STRING)
        entry.field.add(
            name="value", number=2, label=one, type=Field.TYPE_MESSAGE, type_name=f".{file.package}.Value"
        )
        entry.options.map_entry = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Record"))


Packed = _message_class(packed=True)
Unpacked = _message_class(packed=False)


def frame(data: bytes, flag: int = 0, *, length: int | None = None) -> bytes:
    """One RecordIO frame."""
    head = struct.pack("<I", flag << 29 | (len(data) if length is None else length))
    return MAGIC + head + data + bytes(-len(data) % 4)


def written(data: bytes) -> bytes:
    """What the writer of dmlc-core makes of a record: split where it holds the magic number, aligned."""
    cuts = [at for at in range(0, len(data) - 3, 4) if data[at : at + 4] == MAGIC]
    if not cuts:
        return frame(data)
    edges = [-4, *cuts, len(data)]
    parts = [data[a + 4 : b] for a, b in itertools.pairwise(edges)]
    flags = [1, *[2] * (len(parts) - 2), 3]
    return b"".join(frame(part, flag) for part, flag in zip(parts, flags, strict=True))


magical = st.lists(st.binary(max_size=9) | st.just(MAGIC) | st.just(bytes(4)), max_size=6).map(b"".join)


@given(st.lists(magical, min_size=1, max_size=3))
def test_frames_carry_their_records(records: list[bytes]) -> None:
    """Any bytes, the magic number among them."""
    stream = b"".join(map(written, records))
    assert [bytes(p) for p in payloads(stream, most=3)] == records
    if len(records) > 1:
        with pytest.raises(LimitExceeded, match="than 1"):
            payloads(stream)


def test_a_whole_record_is_not_copied() -> None:
    """What comes in one piece is read where it lies."""
    stream = frame(b"abcd")
    assert payloads(stream)[0].obj is stream


def test_a_frame_that_is_cut_off_is_malformed() -> None:
    """At whatever byte, its padding included, split or not."""
    for whole in (frame(b"abcde"), written(b"abcd" + MAGIC + b"efghi")):
        for end in range(len(whole)):
            with pytest.raises(MalformedFrame):
                payloads(whole[:end])


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\x0a\x23\xd7\xcf" + bytes(4),
        frame(b"abcd", 4),
        frame(b"abcd", 7),
        frame(b"abcd", 1),
        frame(b"abcd", 2),
        frame(b"abcd", 3),
        frame(b"abcd", 1) + frame(b"abcd", 0),
        frame(b"abcd", 1) + frame(b"abcd", 1),
        frame(b"abcd", 1) + frame(b"abcd", 2),
        frame(b"abcd", length=5),
        frame(b"abcd", length=(1 << 29) - 1),
        frame(b"abcd") + b"\0",
    ],
)
def test_streams_that_are_none(stream: bytes) -> None:
    """Another magic number, flags out of order, lengths that lie, bytes left over."""
    with pytest.raises(MalformedFrame):
        payloads(stream, most=2)


@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from([MAGIC, bytes(4), b"\4\0\0\0", b"\4\0\0\x20"])).map(b"".join)
)
def test_hostile_streams_do_no_harm(stream: bytes) -> None:
    """Any bytes: records, or our own error."""
    with contextlib.suppress(ProtocolError):
        assert payloads(stream, most=9)


floats32 = st.floats(width=32, allow_nan=False)
values = st.one_of(
    st.tuples(st.just("float32_tensor"), st.lists(floats32, max_size=6)),
    st.tuples(st.just("float64_tensor"), st.lists(st.floats(allow_nan=False), max_size=6)),
    st.tuples(st.just("int32_tensor"), st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6)),
    st.tuples(st.just("bytes"), st.lists(st.binary(max_size=6), max_size=3)),
)
shapes = st.lists(st.integers(0, 2**64 - 1), max_size=4)
names = st.text(max_size=5)
contents = st.dictionaries(names, st.tuples(values, shapes), max_size=4)


def filled(of: Any, features: dict[str, Any], label: dict[str, Any]) -> Any:
    """A message of either class."""
    message = of(uid="7", metadata='{"a": 1}')
    for target, source in ((message.features, features), (message.label, label)):
        for name, ((kind, numbers), shape) in source.items():
            inner = getattr(target[name], kind)
            inner.SetInParent()
            if kind == "bytes":
                inner.value.extend(numbers)
                inner.content_type = "image/png"
            else:
                inner.values.extend(numbers)
                inner.shape.extend(shape)
    return message


def as_protobuf_reads(value: Any) -> Any:
    """A `Value` in plain Python."""
    kind = value.WhichOneof("value")
    if kind in KINDS:
        inner = getattr(value, kind)
        return KINDS[kind], list(inner.values), list(inner.shape)
    return [bytes(b) for b in value.bytes.value]


def as_we_read(value: Value) -> Any:
    """The same of ours."""
    if isinstance(value, Tensor):
        return value.values.dtype.str, value.values.tolist(), list(value.shape)
    return list(value)


def agree(record: Record, message: Any) -> None:
    """Both hold the same."""
    for ours, theirs in ((record.features, message.features), (record.label, message.label)):
        assert {k: as_we_read(v) for k, v in ours.items()} == {
            k: as_protobuf_reads(v) for k, v in theirs.items()
        }


@pytest.mark.parametrize("of", [Packed, Unpacked], ids=["packed", "unpacked"])
@given(features=contents, label=contents)
def test_records_are_read_as_protobuf_does(of: Any, features: dict[str, Any], label: dict[str, Any]) -> None:
    """All four kinds of value, packed or not; unknown fields beside them are passed over."""
    message = filled(of, features, label)
    agree(read_record(message.SerializeToString(), max_values=MANY), message)


@given(st.lists(st.tuples(contents, contents), min_size=2, max_size=3))
def test_records_in_a_row_are_merged(parts: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Messages one after the other are one message, in which later entries count."""
    data = b"".join(filled(Packed, *part).SerializeToString() for part in parts)
    agree(read_record(data, max_values=MANY), Packed.FromString(data))


def varint(number: int) -> bytes:
    """A varint."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(name: bytes, value: bytes) -> bytes:
    """One entry of `features`."""
    return field(1, field(1, name) + field(2, value))


@given(st.lists(st.sampled_from([2, 3, 7, 9]), min_size=1, max_size=5), st.booleans())
def test_the_last_kind_counts_and_equal_kinds_merge(kinds: list[int], split: bool) -> None:
    """A oneof that is told several times, in one value or in several."""
    inner = {
        2: field(1, struct.pack("<f", 1.5)),
        3: field(1, struct.pack("<d", 2.5)) + field(3, b"\1"),
        7: field(1, b"\5\6"),
        9: field(1, b"x"),
    }
    told = [field(kind, inner[kind]) for kind in kinds]
    value = b"".join(field(2, part) for part in told) if split else field(2, b"".join(told))
    data = field(1, field(1, b"a") + value)
    agree(read_record(data, max_values=MANY), Packed.FromString(data))


def test_entries_without_key_or_value() -> None:
    """Both are optional in a map."""
    data = field(1, b"") + field(1, field(1, b"a"))
    agree(read_record(data, max_values=MANY), Packed.FromString(data))


GOLDEN = (
    "0a23d7ce3b0000000a110a05736861706512083a060a04010201030a260a06746172676574121c121a0a180000803e00"
    "00003f0000403f0000403f0000003f0000803e00"
)
"""Two classes on a picture of one by three pixels, as SageMaker's algorithm tells them: frozen."""


def test_a_golden_answer() -> None:
    """The frame, the message and both tensors of an answer, in bytes that protobuf 7.36.2 wrote."""
    (payload,) = payloads(bytes.fromhex(GOLDEN))
    record = read_record(payload, max_values=6)
    shape = record.tensor("shape").values
    assert shape.dtype == np.int32 and shape.tolist() == [1, 2, 1, 3]
    target = record.tensor("target").values
    assert target.dtype == np.float32 and target.tolist() == [0.25, 0.5, 0.75, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    "value",
    [
        field(2, field(1, b"abc")),
        field(3, field(1, b"abcd")),
        field(2, b"\x08\x01"),
        field(2, b"\x09" + bytes(8)),
        field(3, b"\x0d" + bytes(4)),
        field(7, b"\x0d" + bytes(4)),
        field(7, field(1, b"\x80")),
        field(7, field(1, b"\x80" * 10 + b"\1")),
        field(7, field(3, b"\1\x80")),
    ],
)
def test_tensors_that_are_none(value: bytes) -> None:
    """Half numbers, numbers of another type, numbers of more than 64 bits."""
    with pytest.raises(MalformedFrame):
        read_record(feature(b"a", value), max_values=MANY)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",
        b"\x80" * 11,
        b"\x00\x01",
        b"\x0a",
        b"\x0a\x05abc",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0b",
        b"\x0c",
        b"\x0e",
        b"\x0d\0\0\0",
        b"\x09" + bytes(7),
        varint(1 << 33) + b"\1",
        feature(b"\xff", b""),
    ],
)
def test_messages_that_are_none(data: bytes) -> None:
    """Cut off, groups, unknown wire types, impossible field numbers, names that are no text."""
    with pytest.raises(MalformedFrame):
        read_record(data, max_values=MANY)


def test_sparse_tensors_are_refused() -> None:
    """Keys would have to be obeyed."""
    message = Packed()
    message.features["a"].float32_tensor.values.extend([1.0])
    message.features["a"].float32_tensor.keys.extend([7])
    with pytest.raises(InvalidValue, match="sparse"):
        read_record(message.SerializeToString(), max_values=MANY)


@pytest.mark.parametrize("of", [Packed, Unpacked], ids=["packed", "unpacked"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_bounded(of: Any, kind: str) -> None:
    """As many as were allowed are read, one more is not."""
    data = filled(of, {"a": ((kind, [1] * 9), [])}, {}).SerializeToString()
    assert len(read_record(data, max_values=9).tensor("a").values) == 9
    with pytest.raises(LimitExceeded, match="8"):
        read_record(data, max_values=8)


def test_fields_and_dimensions_are_bounded() -> None:
    """A record of nothing but tiny fields costs no minutes, and a shape is no list of millions."""
    with pytest.raises(LimitExceeded, match="fields"):
        read_record(b"\x18\x01" * 70_000, max_values=MANY)
    with pytest.raises(LimitExceeded, match="fields"):
        read_record(feature(b"a", field(2, b"") * 70_000), max_values=MANY)
    with pytest.raises(LimitExceeded, match="dimensions"):
        read_record(feature(b"a", field(2, field(3, b"\1" * 33))), max_values=MANY)


def test_a_stated_length_allocates_nothing() -> None:
    """Neither a frame's nor a field's; and whole numbers are bounded before they are decoded."""
    numbers = feature(b"a", field(7, field(1, bytes(5 << 20))))
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFrame):
            payloads(frame(b"abcd", length=(1 << 29) - 4))
        with pytest.raises(MalformedFrame):
            read_record(b"\x0a\xff\xff\xff\xff\x7f", max_values=1 << 40)
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(LimitExceeded):
            read_record(numbers, max_values=1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - before < 1 << 20


def test_floats_are_read_in_place_and_cannot_be_changed() -> None:
    """A packed tensor is a view of the bytes received, even where those could be changed."""
    data = bytearray(filled(Packed, {"a": (("float32_tensor", [1.0, 2.0]), [])}, {}).SerializeToString())
    values = read_record(memoryview(data), max_values=2).tensor("a").values
    assert not values.flags.writeable and not values.flags.owndata


@given(contents, st.data())
def test_damaged_records_do_no_harm(features: dict[str, Any], data: st.DataObject) -> None:
    """Whatever bytes are changed, removed or added: a record within bounds, or our own error."""
    damaged = bytearray(filled(Packed, features, {}).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    with contextlib.suppress(ProtocolError):
        record = read_record(bytes(damaged), max_values=10)
        for value in (*record.features.values(), *record.label.values()):
            assert not isinstance(value, Tensor) or len(value.values) <= 10


@given(st.binary(max_size=50))
def test_any_bytes_do_no_harm(data: bytes) -> None:
    """A record, or our own error."""
    with contextlib.suppress(ProtocolError):
        read_record(data, max_values=10)


def test_a_missing_tensor_is_named() -> None:
    """So is one that holds byte strings."""
    record = read_record(feature(b"a", field(9, field(1, b"x"))), max_values=1)
    for name in ("a", "shape"):
        with pytest.raises(InvalidValue, match=f"'{name}'"):
            record.tensor(name)
