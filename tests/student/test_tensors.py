"""The tensor wire format: documented bytes, round trips of every datatype in both forms, hostile bodies."""

import base64
import contextlib
import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from corte_protocol import InvalidValue, LimitExceeded, MalformedFrame, ProtocolError
from corte_student.endpoints.tensors import DTYPES, LENGTH_HEADER, Packed, Tensor, listed, pack, unpack

NUMBERS = sorted(DTYPES)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
BYTES = st.lists(st.binary(max_size=9), max_size=6)


@st.composite
def arrays(draw: st.DrawFn, *, finite: bool = False) -> Tensor:
    """A numeric tensor of any datatype and shape."""
    dtype = DTYPES[draw(st.sampled_from(NUMBERS))]
    elements = {"allow_nan": False, "allow_infinity": False} if finite and dtype.kind == "f" else None
    array: np.ndarray[Any, Any] = draw(hnp.arrays(dtype, draw(SHAPES), elements=elements))
    return Tensor.of("planes", array)


def back(packed: Packed, key: str = "outputs", max_elements: int = 1 << 20) -> dict[str, Tensor]:
    """All tensors of a body, as a receiver reads it."""
    header = None if packed.json_bytes is None else str(packed.json_bytes)
    message = unpack(packed.body, header, key)
    return {name: message.tensor(name, max_elements) for name in message.entries}


def same(one: Tensor, other: Tensor) -> bool:
    """Equal in name, type, shape and every bit that means something; NaN equals NaN."""
    if (one.name, one.datatype, one.shape) != (other.name, other.datatype, other.shape):
        return False
    if isinstance(one.data, tuple) or isinstance(other.data, tuple):
        return one.data == other.data
    return np.array_equal(one.data, other.data, equal_nan=one.data.dtype.kind == "f")


def answer(**entry: object) -> bytes:
    """A JSON answer with one output."""
    return json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], **entry}]}).encode()


@given(arrays(), BYTES, st.sampled_from(["inputs", "outputs"]))
def test_binary_data_survives_the_wire(tensor: Tensor, elements: list[bytes], key: str) -> None:
    """Every datatype, bit for bit, NaN and infinity included, two tensors behind each other."""
    texts = Tensor.of_bytes("texts", elements, (len(elements),))
    found = back(pack({"id": "7"}, key, [tensor, texts], binary=True), key)
    assert list(found) == ["planes", "texts"]
    assert same(found["planes"], tensor)
    assert same(found["texts"], texts)


@given(arrays(finite=True), BYTES, st.sampled_from(["inputs", "outputs"]))
def test_json_data_survives_the_wire(tensor: Tensor, elements: list[bytes], key: str) -> None:
    """Every datatype that JSON can tell, FP16 as numbers, bytes as base64."""
    texts = Tensor.of_bytes("texts", elements, (len(elements), 1))
    packed = pack({}, key, [tensor, texts], binary=False)
    assert packed.json_bytes is None
    found = back(packed, key)
    assert same(found["planes"], tensor)
    assert same(found["texts"], texts)


@given(arrays(finite=True))
def test_nested_lists_are_read_like_flat_ones(tensor: Tensor) -> None:
    """`data` may be nested as the shape says (Open Inference Protocol, "Tensor Data")."""
    entry = {
        "name": "planes",
        "datatype": tensor.datatype,
        "shape": tensor.shape,
        "data": tensor.array.tolist() if tensor.shape else [tensor.array.item()],
    }
    message = unpack(json.dumps({"outputs": [entry]}).encode(), None, "outputs")
    assert same(message.tensor("planes", 1 << 20), tensor)


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-2, 220).map(str), st.text(max_size=3)))
def test_any_bytes_are_read_or_refused(body: bytes, header: str | None) -> None:
    """Nothing but ProtocolError comes out of a foreign body."""
    with contextlib.suppress(ProtocolError):
        unpack(body, header, "outputs")


WORDS = st.sampled_from(["y", "FP32", "UINT8", "BOOL", "BYTES", "INT64", "BF16", ""])
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-9, 300), st.floats(), WORDS, st.just(2**70))
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@given(
    WORDS, st.one_of(VALUES, st.lists(st.integers(0, 3), max_size=3)), VALUES, st.one_of(st.none(), VALUES)
)
def test_any_described_tensor_is_read_or_refused(name: str, shape: Any, data: Any, size: Any) -> None:
    """Whatever JSON stands where name, type, shape, data and size are due."""
    entry = {"name": "y", "datatype": name, "shape": shape, "data": data}
    if size is not None:
        entry["parameters"] = {"binary_data_size": size}
    text = json.dumps({"outputs": [entry]}).encode()
    with contextlib.suppress(ProtocolError):
        tensor = unpack(text + bytes(4), str(len(text)), "outputs").tensor("y", 64)
        assert math.prod(tensor.shape) <= 64


def test_documented_request_bytes() -> None:
    """Triton's example (extension_binary_data.md): UINT32 [2, 2] and BOOL [3], 19 bytes, little-endian."""
    numbers = Tensor.of("input0", np.array([[1, 2], [3, 4]], np.uint32))
    truths = Tensor.of("input1", np.array([True, False, True]))
    asked = [{"name": "output0", "parameters": {"binary_data": True}}]
    packed = pack({"model_name": "mymodel", "outputs": asked}, "inputs", [numbers, truths], binary=True)
    assert packed.json_bytes is not None
    assert json.loads(packed.body[: packed.json_bytes]) == {
        "model_name": "mymodel",
        "inputs": [
            {
                "name": "input0",
                "shape": [2, 2],
                "datatype": "UINT32",
                "parameters": {"binary_data_size": 16},
            },
            {"name": "input1", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}},
        ],
        "outputs": asked,
    }
    assert packed.body[packed.json_bytes :] == struct.pack("<4I", 1, 2, 3, 4) + b"\x01\x00\x01"
    assert packed.headers[LENGTH_HEADER] == str(packed.json_bytes)


def test_documented_response_bytes() -> None:
    """The same document's answer: FP32 [3, 2] in 24 bytes."""
    head = b"""{
  "outputs" : [
    {
      "name" : "output0",
      "shape" : [ 3, 2 ],
      "datatype"  : "FP32",
      "parameters" : {
        "binary_data_size" : 24
      }
    }
  ]
}"""
    body = head + struct.pack("<6f", 0, 0.5, 1, -1, 2, 3)
    tensor = unpack(body, str(len(head)), "outputs").tensor("output0", 6)
    assert tensor.array.tolist() == [[0, 0.5], [1, -1], [2, 3]]


def test_bytes_elements_have_a_length_of_four_bytes() -> None:
    """A BYTES element is its length, unsigned, 4 bytes, little-endian, then itself."""
    packed = pack({}, "inputs", [Tensor.of_bytes("image", [b"\xff\xd8jpeg"], (1,))], binary=True)
    assert packed.body.endswith(b"\x06\x00\x00\x00\xff\xd8jpeg")


def test_big_endian_arrays_leave_as_little_endian() -> None:
    """Whatever order the machine or the array has."""
    packed = pack({}, "inputs", [Tensor.of("x", np.array([1], ">i4"))], binary=True)
    assert packed.body.endswith(b"\x01\x00\x00\x00")


def test_plain_texts_are_bytes_too() -> None:
    """Without the mark `base64` an element of BYTES is its UTF-8 text, as Triton and KServe write it."""
    body = answer(datatype="BYTES", data=["ä", "b"])
    assert unpack(body, None, "outputs").tensor("y", 2).data == ("ä".encode(), b"b")
    coded = [base64.b64encode(b"\x00\xff").decode()]
    body = answer(datatype="BYTES", shape=[1], data=coded, parameters={"content_type": "base64"})
    assert unpack(body, None, "outputs").tensor("y", 2).data == (b"\x00\xff",)


def test_null_is_no_number() -> None:
    """MLServer writes null where a float is NaN."""
    assert np.isnan(unpack(answer(data=[None, 1.0]), None, "outputs").tensor("y", 2).array[0])


def test_json_has_no_nan_of_ours() -> None:
    """It is refused before it is sent, not written as text that is no JSON."""
    with pytest.raises(InvalidValue, match="JSON"):
        pack({}, "inputs", [Tensor.of("x", np.array([np.nan], np.float32))], binary=False)


def test_outputs_that_nobody_asks_for_cost_nothing() -> None:
    """A neighbour of an unknown datatype is skipped by its size; asking for it is told."""
    head = json.dumps(
        {
            "outputs": [
                {"name": "b", "shape": [1], "datatype": "BF16", "parameters": {"binary_data_size": 2}},
                {"name": "y", "shape": [1], "datatype": "UINT8", "parameters": {"binary_data_size": 1}},
            ]
        }
    ).encode()
    message = unpack(head + b"\x00\x01\x07", str(len(head)), "outputs")
    assert message.tensor("y", 1).array.tolist() == [7]
    with pytest.raises(InvalidValue, match="BF16"):
        message.tensor("b", 1)
    with pytest.raises(InvalidValue, match="'b', 'y'"):
        message.tensor("z", 1)


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (b"<html>", None),
        (b"[1]", None),
        (b'{"outputs": {}}', None),
        (b'{"outputs": [1]}', None),
        (b'{"outputs": [{"name": "y"}]}', None),
        (b"[" * 200_000, None),
        (answer(shape=[-1], data=[1]), None),
        (answer(shape=[True], data=[1]), None),
        (answer(shape=[1] * 17, data=[1]), None),
        (answer(), None),
        (answer(parameters={"binary_data_size": 9}), None),
        (answer(parameters={"binary_data_size": True}), None),
        (answer(data=[1, 2]) + b"\x00", str(len(answer(data=[1, 2])))),
        (answer(data=[1, 2]), "9999"),
        (answer(data=[1, 2]), "-1"),
        (answer(data=[1, 2]), "²"),
        (answer(data=[1, 2]), "1" * 5000),
        (b'{"outputs": [' + b",".join([answer(data=[1, 2])[13:-2]] * 2) + b"]}", None),
    ],
)
def test_a_body_that_is_not_of_the_form_is_refused(body: bytes, header: str | None) -> None:
    """One line, no crash, nothing allocated."""
    with pytest.raises(MalformedFrame):
        unpack(body, header, "outputs")


@pytest.mark.parametrize(
    "entry",
    [
        {"data": [1.0]},
        {"data": 1.0},
        {"data": [1.0, "red"]},
        {"data": [1.0, {}]},
        {"data": [[1.0], [2.0, 3.0]]},
        {"datatype": "UINT8", "data": [1, 256]},
        {"datatype": "UINT8", "data": [1, 1.5]},
        {"datatype": "UINT8", "data": [1, -1]},
        {"datatype": "INT64", "data": [1, None]},
        {"datatype": "BOOL", "data": [0, 2]},
        {"datatype": "BYTES", "data": ["a"], "shape": [1], "parameters": {"content_type": "base64"}},
        {"datatype": "BYTES", "data": ["ä"], "shape": [1], "parameters": {"content_type": "base64"}},
        {"datatype": "BYTES", "data": [1], "shape": [1]},
        {"datatype": "BYTES", "data": ["a", "b"], "shape": [1]},
    ],
)
def test_data_that_are_not_of_their_type_are_refused(entry: dict[str, object]) -> None:
    """Too few, out of range, fractions among integers, no numbers at all."""
    with pytest.raises((MalformedFrame, InvalidValue)):
        unpack(answer(**entry), None, "outputs").tensor("y", 2)


@pytest.mark.parametrize(
    ("datatype", "raw"),
    [("FP32", bytes(7)), ("BOOL", b"\x00\x02"), ("BYTES", b"\x01\x00\x00\x00a"), ("BYTES", b"\xff" * 9)],
)
def test_bytes_that_do_not_fill_their_tensor_are_refused(datatype: str, raw: bytes) -> None:
    """The declared shape [2] must be what the bytes hold."""
    head = answer(datatype=datatype, parameters={"binary_data_size": len(raw)})
    with pytest.raises(MalformedFrame):
        unpack(head + raw, str(len(head)), "outputs").tensor("y", 2)


def test_a_shape_is_bounded_before_anything_is_made_of_it() -> None:
    """A declared terabyte is refused by the caller's bound, as is one element too many."""
    message = unpack(answer(shape=[1 << 40], data=[]), None, "outputs")
    with pytest.raises(LimitExceeded):
        message.tensor("y", 1 << 20)
    with pytest.raises(LimitExceeded):
        unpack(answer(data=[1, 2]), None, "outputs").tensor("y", 1)


def test_many_tensors_are_refused() -> None:
    """A message describes some tensors, not thousands."""
    with pytest.raises(LimitExceeded):
        unpack(json.dumps({"outputs": [{}] * 257}).encode(), None, "outputs")


def test_a_tensor_that_exists_is_legal() -> None:
    """Type, shape and data agree, or there is no tensor."""
    with pytest.raises(InvalidValue):
        Tensor("x", "FP32", (2,), np.zeros(2, np.uint8))
    with pytest.raises(InvalidValue):
        Tensor("x", "FP32", (3,), np.zeros(2, np.float32))
    with pytest.raises(InvalidValue):
        Tensor.of_bytes("x", [b"a"], (2,))
    with pytest.raises(InvalidValue):
        Tensor.of_bytes("x", [b"a"], (-1,))
    with pytest.raises(InvalidValue):
        Tensor.of("x", np.zeros(2, np.complex64))
    with pytest.raises(InvalidValue, match="BYTES"):
        _ = Tensor.of_bytes("x", [b"a"], (1,)).array


def test_names_in_messages_are_short() -> None:
    """A service cannot fill the terminal."""
    assert listed([]) == "none"
    assert listed(["a", "b"]) == "'a', 'b'"
    assert len(listed(["x" * 999] * 999)) < 600
