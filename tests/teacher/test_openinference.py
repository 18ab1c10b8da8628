"""The Open Inference Protocol over real sockets: the native answer in another form, and the same refusals."""

import base64
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from corte_protocol import Prediction, decode_info, decode_prediction
from corte_protocol.errors import WIRE
from corte_protocol.types import UInt8
from serving import running_teacher
from teacher.openinference_requests import LENGTH, behind, binary_image, inner

Encode = Callable[..., bytes]
Array = npt.NDArray[Any]
INFER = "/v2/models/teacher/infer"
DTYPES = {"UINT8": "u1", "FP16": "<f2"}


def post(url: str, request: tuple[bytes, dict[str, str]] | dict[str, Any], key: str = "") -> httpx.Response:
    """One POST to the model."""
    body, headers = request if isinstance(request, tuple) else (json.dumps(request).encode(), {})
    headers = headers | ({"authorization": f"Bearer {key}"} if key else {})
    return httpx.post(url + INFER, content=body, headers=headers, timeout=20)


def outputs(answer: httpx.Response) -> dict[str, Array]:
    """The outputs of an answer by name, read by the protocol's own rules."""
    assert answer.status_code == 200, answer.text
    length = answer.headers.get(LENGTH)
    kind = "application/json" if length is None else "application/octet-stream"
    assert answer.headers["content-type"] == kind
    size = len(answer.content) if length is None else int(length)
    document, rest = json.loads(answer.content[:size]), answer.content[size:]
    found: dict[str, Array] = {}
    for output in document["outputs"]:
        dtype = DTYPES[output["datatype"]]
        if "data" in output:
            array = np.array(output["data"], dtype)
        else:
            count = output["parameters"]["binary_data_size"]
            array, rest = np.frombuffer(rest[:count], dtype), rest[count:]
        found[output["name"]] = array.reshape(output["shape"])
    assert rest == b""
    return found


def native(url: str, file: bytes, level: str = "", key: str = "") -> Prediction:
    """What the native route says about the same image."""
    headers = {"content-type": "image/png"} | ({"authorization": f"Bearer {key}"} if key else {})
    query = f"?disclosure={level}" if level else ""
    answer = httpx.post(f"{url}/v1/predict{query}", content=file, headers=headers, timeout=20)
    assert answer.status_code == 200, answer.text
    return decode_prediction(answer.content, max_pixels=1 << 20)


def assert_same(got: dict[str, Array], right: Prediction) -> None:
    """Both routes said the same, bit for bit."""
    assert set(got) == ({"classes"} if right.probs is None else {"classes", "scores"})
    assert np.array_equal(got["classes"], right.classes[None])
    if right.probs is not None:
        assert got["scores"].dtype == right.probs.dtype
        assert np.array_equal(got["scores"], right.probs[None])


def assert_refused(answer: httpx.Response, code: str) -> None:
    """The answer is the protocol's error of `code` with its fixed text, and nothing else."""
    wire = WIRE[code]
    assert (answer.status_code, answer.json()) == (wire.status, {"error": wire.title})
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-request-id"]) == 16


@pytest.fixture(scope="module")
def file(pixels: UInt8, encode: Encode) -> bytes:
    """The picture as a PNG."""
    return encode(pixels)


@pytest.fixture(scope="module")
def label_teacher(tiny: Path) -> Iterator[str]:
    """The URL of an open service that gives labels only."""
    args = ["--backend", "onnx", "--model", str(tiny), "--open", "--disclosure", "labels"]
    with running_teacher(args) as url:
        yield url


def test_every_form_of_the_image_gets_the_native_answer(
    open_teacher: str, pixels: UInt8, file: bytes
) -> None:
    """A file as bytes or base64, pixels as bytes, flat or nested numbers: the same answer, bit for bit."""
    right = native(open_teacher, file)
    tensor = {"name": "pixels", "shape": [1, *pixels.shape], "datatype": "UINT8"}
    bare = tensor | {"shape": list(pixels.shape)}
    requests: list[tuple[bytes, dict[str, str]] | dict[str, Any]] = [
        binary_image(file),
        inner(file),
        behind(tensor, pixels.tobytes()),
        behind(bare, pixels.tobytes()),
        {"inputs": [tensor | {"data": pixels.ravel().tolist()}]},
        {"inputs": [tensor | {"data": pixels[None].tolist()}]},
        {"inputs": [bare | {"data": pixels.tolist()}]},
    ]
    for request in requests:
        assert_same(outputs(post(open_teacher, request)), right)


def test_an_answer_says_who_answers_and_whom(open_teacher: str, file: bytes) -> None:
    """Model, version and the request's id; an id is only in the answer where one was sent. null is none."""
    info = decode_info(httpx.get(f"{open_teacher}/v1/info").content)
    document = post(open_teacher, inner(file, id="run-1:7")).json()
    assert (document["model_name"], document["model_version"]) == ("teacher", info.revision)
    assert document["id"] == "run-1:7"
    nothing = {"id": None, "parameters": None, "outputs": None}
    for request in (inner(file), inner(file, **nothing)):
        assert "id" not in post(open_teacher, request).json()


@pytest.mark.parametrize("level", ["labels", "confidence", "margin"])
def test_a_client_may_ask_for_less(open_teacher: str, file: bytes, level: str) -> None:
    """The parameter `disclosure` gives what the native query gives."""
    right = native(open_teacher, file, level)
    for request in (
        binary_image(file, parameters={"disclosure": level}),
        inner(file, parameters={"disclosure": level}),
    ):
        assert_same(outputs(post(open_teacher, request)), right)


def test_only_the_outputs_asked_for_are_sent_as_asked(open_teacher: str, file: bytes) -> None:
    """Names select and order, `binary_data` of an output outweighs `binary_data_output` of the request."""
    right = native(open_teacher, file)
    for own, common in [(True, False), (False, True), (True, True), (False, False)]:
        asked = [{"name": "scores", "parameters": {"binary_data": own}}]
        answer = post(open_teacher, inner(file, outputs=asked, parameters={"binary_data_output": common}))
        assert (LENGTH in answer.headers) == own
        assert np.array_equal(outputs(answer)["scores"][0], right.probs)  # type: ignore[arg-type]
        assert list(outputs(answer)) == ["scores"]
    mixed = [{"name": "scores"}, {"name": "classes", "parameters": {"binary_data": True}}]
    answer = post(open_teacher, inner(file, outputs=mixed))
    assert list(outputs(answer)) == ["scores", "classes"]
    assert_same(outputs(answer), right)


def test_full_scores_are_half_floats_as_bytes_only(
    keyed_teacher: str, key_file: tuple[Path, str], file: bytes
) -> None:
    """At `full` the scores are FP16, which JSON cannot hold; fewer bits or binary data can be had."""
    key = key_file[1]
    assert_same(outputs(post(keyed_teacher, binary_image(file), key)), native(keyed_teacher, file, key=key))
    assert_refused(post(keyed_teacher, inner(file), key), "invalid")
    less = inner(file, parameters={"disclosure": "topk:5"})
    assert_same(outputs(post(keyed_teacher, less, key)), native(keyed_teacher, file, "topk:5", key))


def test_nobody_gets_more_than_the_policy(open_teacher: str, label_teacher: str, file: bytes) -> None:
    """A level or an output beyond the policy is forbidden, and a service of labels has no scores at all."""
    for level in ("full", "topk:3"):
        assert_refused(post(open_teacher, inner(file, parameters={"disclosure": level})), "forbidden")
    assert_refused(post(label_teacher, inner(file, outputs=[{"name": "scores"}])), "forbidden")
    assert list(outputs(post(label_teacher, inner(file)))) == ["classes"]
    described = httpx.get(f"{label_teacher}/v2/models/teacher").json()
    assert [output["name"] for output in described["outputs"]] == ["classes"]


def test_metadata_is_the_infos_and_names_no_software(open_teacher: str, tiny: Path) -> None:
    """Tensors, versions, class names, level and limits; no file, card, library or platform."""
    info = decode_info(httpx.get(f"{open_teacher}/v1/info").content)
    answer = httpx.get(f"{open_teacher}/v2/models/teacher")
    assert httpx.get(f"{open_teacher}/v2/models/teacher/versions/{info.revision}").json() == answer.json()
    described = answer.json()
    parameters = described.pop("parameters")
    assert described == {
        "name": "teacher",
        "versions": [info.revision],
        "platform": "corte",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [1, -1, -1, 3]},
        ],
        "outputs": [
            {"name": "classes", "datatype": "UINT8", "shape": [1, 2, -1, -1]},
            {"name": "scores", "datatype": "UINT8", "shape": [1, 2, -1, -1]},
        ],
    }
    assert tuple(json.loads(parameters["classes"])) == info.classes
    assert tuple(map(tuple, json.loads(parameters["colors"]))) == info.colors
    assert (parameters["teacher"], parameters["disclosure"]) == (info.teacher, "margin")
    assert (parameters["max_body_bytes"], parameters["max_pixels"]) == (200_000, 10_000)
    assert all(isinstance(value, str | int) for value in parameters.values())
    told = answer.text + httpx.get(f"{open_teacher}/v2").text
    for word in ("secret", "onnx", "tiny", "torch", "fastapi", "uvicorn"):
        assert word not in told.lower()
    assert {"server", "date"}.isdisjoint(answer.headers)


def test_health_and_server_metadata(open_teacher: str) -> None:
    """The documents that the protocol prescribes; the version is the protocol's, not the software's."""
    for path, document in {
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
        "/v2/models/teacher/ready": {"name": "teacher", "ready": True},
        "/v2": {"name": "corte", "version": "1", "extensions": ["binary_tensor_data"]},
        "/v2/": {"name": "corte", "version": "1", "extensions": ["binary_tensor_data"]},
    }.items():
        answer = httpx.get(open_teacher + path)
        assert (answer.status_code, answer.json()) == (200, document)


def test_a_key_is_needed_but_for_health(keyed_teacher: str, key_file: tuple[Path, str], file: bytes) -> None:
    """Without a known key every route but health is 401, before it tells whether a model exists."""
    for path in ("/v2", "/v2/models/teacher", "/v2/models/other", "/v2/models/teacher/ready"):
        answer = httpx.get(keyed_teacher + path, headers={"authorization": "Bearer ct_no_no"})
        assert_refused(answer, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert_refused(post(keyed_teacher, binary_image(file)), "unauthorized")
    assert httpx.get(f"{keyed_teacher}/v2/health/ready").status_code == 200
    headers = {"authorization": f"Bearer {key_file[1]}"}
    assert httpx.get(f"{keyed_teacher}/v2/models/teacher/ready", headers=headers).status_code == 200


def test_other_models_versions_routes_and_methods(open_teacher: str, file: bytes) -> None:
    """404 and 405 in the protocol's shape below /v2; the one version is asked as the model is."""
    for path in ("other", "other/ready", "teacher/versions/1", "teacher/versions/1/ready", "teacher/x", ""):
        assert_refused(httpx.get(f"{open_teacher}/v2/models/{path}"), "not-found")
    body, headers = binary_image(file)
    for model in ("other", "teacher/versions/1"):
        url = f"{open_teacher}/v2/models/{model}/infer"
        assert_refused(httpx.post(url, content=body, headers=headers), "not-found")
    assert_refused(httpx.get(open_teacher + INFER), "method")
    assert httpx.get(open_teacher + INFER).headers["allow"] == "POST"
    assert httpx.get(f"{open_teacher}/v22").headers["content-type"] == "application/problem+json"
    revision = decode_info(httpx.get(f"{open_teacher}/v1/info").content).revision
    url = f"{open_teacher}/v2/models/teacher/versions/{revision}/infer"
    got = outputs(httpx.post(url, content=body, headers=headers))
    assert_same(got, native(open_teacher, file))


def test_what_is_not_one_image_is_refused(open_teacher: str, pixels: UInt8, file: bytes) -> None:
    """Several inputs, batches, other names, types, shapes and data, and fields that nobody knows."""
    image = inner(file)["inputs"][0]
    shaped = {"name": "pixels", "shape": [1, *pixels.shape], "datatype": "UINT8"}
    flat = pixels.ravel().tolist()
    wrong: list[dict[str, Any]] = [
        image | {"name": "input"},
        image | {"datatype": "UINT8"},
        image | {"shape": [2], "data": image["data"] * 2},
        image | {"shape": [True]},
        image | {"shape": 1},
        image | {"parameters": {}},
        image | {"parameters": {"shared_memory_region": "x"}},
        image | {"parameters": {"content_type": ["base64"]}},
        image | {"data": ["no base64!"]},
        image | {"data": 7},
        shaped | {"shape": [2, *pixels.shape], "data": flat * 2},
        shaped | {"shape": [1, 3, 34, 21], "data": flat},
        shaped | {"shape": [1, 0, 34, 3], "data": []},
        shaped | {"shape": [1, -21, -34, 3], "data": flat},
        shaped | {"datatype": "FP32", "data": flat},
        shaped | {"data": flat[:-1]},
        shaped | {"data": [256, *flat[1:]]},
        shaped | {"data": [0.5, *flat[1:]]},
        shaped | {"data": ["1", *flat[1:]]},
        shaped | {"data": [flat]},
        shaped | {"data": pixels.tolist()},
        shaped,
    ]
    requests: list[dict[str, Any]] = [{"inputs": [tensor]} for tensor in wrong]
    requests += [
        {},
        {"inputs": []},
        {"inputs": image},
        {"inputs": [image, image]},
        {"inputs": [image, shaped | {"data": flat}]},
        inner(file, paramters={"disclosure": "labels"}),
        inner(file, parameters={"disclose": "labels"}),
        inner(file, parameters=["disclosure"]),
        inner(file, outputs="classes"),
        inner(file, outputs=[{"name": "classes", "parameters": {"classification": 3}}]),
    ]
    for request in requests:
        assert_refused(post(open_teacher, request), "bad-request")
    text = {"data": [base64.b64encode(b"no image").decode()]}
    assert_refused(post(open_teacher, {"inputs": [image | text]}), "malformed")
    assert_same(outputs(post(open_teacher, inner(file))), native(open_teacher, file))


def test_bytes_that_do_not_fit_their_description_are_refused(
    open_teacher: str, pixels: UInt8, file: bytes
) -> None:
    """Wrong lengths anywhere, bytes of no tensor, data in both places, and the raw form of Triton."""
    raw = pixels.tobytes()
    shaped = {"name": "pixels", "shape": [1, *pixels.shape], "datatype": "UINT8"}
    named = {"name": "image", "shape": [1], "datatype": "BYTES"}
    body, headers = behind(shaped, raw)
    length = int(headers[LENGTH])
    alone = json.dumps(inner(file)).encode()
    wrong = [
        behind(shaped, raw[:-1]),
        (body[:-1], headers),
        (body + b"x", headers),
        (body, {}),
        (file, {LENGTH: "0"}),
        *((body, {LENGTH: value}) for value in ("0", "-1", "x", "9" * 99)),
        *((body, {LENGTH: str(number)}) for number in (length - 1, length + 1, len(body) + 1)),
        behind(named, file),
        behind(named, b"\x01"),
        behind(named, struct.pack("<I", len(file) + 1) + file),
        behind(named | {"data": ["x"]}, struct.pack("<I", len(file)) + file),
        (alone + b"x", {LENGTH: str(len(alone))}),
    ]
    for request in wrong:
        assert_refused(post(open_teacher, request), "bad-request")


def test_values_that_are_not_answered_are_invalid(open_teacher: str, file: bytes) -> None:
    """Unknown levels and outputs, unsafe ids, and parameters of another type."""
    refused: list[dict[str, Any]] = [
        {"parameters": {"disclosure": "everything"}},
        {"parameters": {"disclosure": 1}},
        {"parameters": {"binary_data_output": "true"}},
        {"parameters": {"disclosure": "labels"}, "outputs": [{"name": "scores"}]},
        {"outputs": [{"name": "logits"}]},
        {"outputs": [{"name": "classes"}, {"name": "classes"}]},
        {"outputs": [{"name": "classes", "parameters": {"binary_data": 1}}]},
        {"outputs": [{}]},
        {"id": 42},
        {"id": "a b"},
        {"id": "<script>"},
        {"id": "x" * 129},
    ]
    for more in refused:
        assert_refused(post(open_teacher, inner(file, **more)), "invalid")
    body, headers = binary_image(file)
    url = f"{open_teacher}{INFER}?disclosure=labels"
    assert_refused(httpx.post(url, content=body, headers=headers), "invalid")


def test_limits_hold_before_anything_is_decoded(open_teacher: str, encode: Encode) -> None:
    """Bytes, pixels in a header or in a shape, and JSON in front of bytes: larger than agreed is 413."""
    large = encode(np.zeros((101, 100, 3), np.uint8))
    shape = {"name": "pixels", "shape": [1, 101, 100, 3], "datatype": "UINT8"}
    endless = (bytes(50_000) for _ in range(5))
    for request in (
        binary_image(large),
        inner(large),
        behind(shape, bytes(101 * 100 * 3)),
        {"inputs": [shape | {"data": []}]},
        (bytes(200_001), {}),
        (b" " * 70_000, {LENGTH: "65537"}),
    ):
        assert_refused(post(open_teacher, request), "too-large")
    assert_refused(httpx.post(open_teacher + INFER, content=endless), "too-large")


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b"[" + b"[]," * 60_000 + b"[]]",
        b"[" + b"{}," * 60_000 + b"{}]",
        b"[" + b'"ab",' * 30_000 + b'"ab"]',
        b'{"id":"a","id":"b"}',
        b'{"inputs":[1.5]}',
        b'{"inputs":[NaN]}',
        b'{"inputs":[' + b"1" * 5000 + b"]}",
        b"\xff\xfe[\x00]\x00",
        b"null",
        b"",
    ],
    ids=lambda text: text[:12].decode("latin-1"),
)
def test_json_that_no_client_sends_is_not_parsed_for_long(open_teacher: str, text: bytes) -> None:
    """Deep, crowded, repeated, fractional or otherwise encoded JSON is refused."""
    assert_refused(post(open_teacher, (text, {})), "bad-request")


def test_compressed_bodies_are_refused_and_answers_never_compressed(open_teacher: str, file: bytes) -> None:
    """Content-Encoding must be identity; Accept-Encoding changes nothing."""
    import gzip

    body, headers = binary_image(file)
    for coding in ("gzip", "deflate", "br", "identity, gzip"):
        answer = post(open_teacher, (gzip.compress(body), headers | {"content-encoding": coding}))
        assert_refused(answer, "media-type")
    answer = post(open_teacher, (body, headers | {"content-encoding": "identity", "accept-encoding": "gzip"}))
    assert "content-encoding" not in answer.headers
    assert_same(outputs(answer), native(open_teacher, file))
