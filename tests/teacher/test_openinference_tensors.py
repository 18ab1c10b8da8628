"""The wire form of the Open Inference Protocol, without a socket: what is written is read back."""

import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from corte_protocol import Disclosure, Limits, TeacherInfo
from corte_protocol.types import UInt8
from corte_teacher.dialects.openinference import read_question
from corte_teacher.dialects.tensors import array_text, decoded_image, encoded_image, read_tensor, take_apart
from corte_teacher.errors import TeacherServiceError
from teacher.openinference_requests import LENGTH, behind, binary_image, inner

INFO = TeacherInfo(1, "t", "r", ("a", "b", "c"), ((0, 0, 0),) * 3, Disclosure(2, 8), Limits(1 << 16, 400))
VALUES = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        3,
        12,
        1 << 70,
        "",
        "image",
        "pixels",
        "BYTES",
        "UINT8",
        "base64",
        "AAAA",
        "classes",
    ]
)
LISTS = st.lists(VALUES | st.lists(VALUES, max_size=3), max_size=4)
PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "content_type", "disclosure"]),
    VALUES,
    max_size=2,
)
TENSOR = st.fixed_dictionaries(
    {"name": st.just("pixels") | VALUES, "datatype": st.just("UINT8") | VALUES, "shape": LISTS | VALUES},
    optional={"data": LISTS | VALUES, "parameters": PARAMETERS | VALUES},
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR | VALUES, max_size=2) | VALUES},
    optional={
        "id": VALUES,
        "parameters": PARAMETERS | VALUES,
        "outputs": LISTS
        | st.lists(st.fixed_dictionaries({"name": VALUES, "parameters": PARAMETERS}), max_size=2),
    },
)


@given(REQUEST, st.binary(max_size=14), st.integers(0, 200))
def test_no_body_raises_anything_but_a_refusal(document: Any, rest: bytes, length: int) -> None:
    """Whatever is sent, reading it ends in a question or in an error with a row on the wire."""
    text = json.dumps(document).encode()
    for header in (None, str(length), str(len(text))):
        try:
            read_question(text + rest, header, INFO)
        except TeacherServiceError as exc:
            assert exc.code in {"bad-request", "malformed", "invalid", "forbidden", "too-large"}


@given(arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=6)))
def test_numbers_in_json_are_those_of_the_array(values: UInt8) -> None:
    """The fast text is what the json module reads back, in row-major order."""
    assert json.loads(array_text(values)) == values.ravel().tolist()


@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3))), st.booleans())
def test_pixels_are_read_back_from_each_form(values: UInt8, batch: bool) -> None:
    """Flat, nested and binary data of one array are one array, and binary data is not copied."""
    whole = values[None] if batch else values
    tensor = {"name": "pixels", "shape": list(whole.shape), "datatype": "UINT8"}
    body, headers = behind(tensor, values.tobytes())
    message, rest = take_apart(body, headers[LENGTH])
    inputs: Any = message["inputs"]
    seen = decoded_image(read_tensor(inputs[0], rest), INFO.limits)
    assert np.array_equal(seen, values) and np.shares_memory(seen, np.frombuffer(body, np.uint8))
    for data in (values.ravel().tolist(), whole.tolist()):
        listed = read_tensor(tensor | {"data": data}, memoryview(b""))
        assert np.array_equal(decoded_image(listed, INFO.limits), values)


@given(st.binary(max_size=50))
def test_an_image_file_is_read_back_from_each_form(content: bytes) -> None:
    """The element of a BYTES tensor, behind the JSON or as base64."""
    body, headers = binary_image(content)
    message, rest = take_apart(body, headers[LENGTH])
    inputs: Any = message["inputs"]
    assert bytes(encoded_image(read_tensor(inputs[0], rest))) == content
    assert encoded_image(read_tensor(inner(content)["inputs"][0], memoryview(b""))) == content
