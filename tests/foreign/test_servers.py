"""The foreign server is what our client will meet: KServe's routes over the street model, JSON and binary."""

import json
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from corte_teacher.backends.street import files

pytestmark = [pytest.mark.foreign, pytest.mark.timeout(900)]  # the first run builds the environment

Array = npt.NDArray[Any]
LENGTH = "inference-header-content-length"
DTYPES = {"FP32": "<f4", "INT64": "<i8"}
STREET = [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 128, 256]}]
LOGITS = [{"name": "logits", "datatype": "FP32", "shape": [-1, 9, 128, 256]}]
PIXELS = [{"name": "pixels", "datatype": "UINT8", "shape": [1, -1, -1, 3]}]
MAPS = [
    {"name": "probabilities", "datatype": "FP32", "shape": [1, 9, 128, 256]},
    {"name": "labels", "datatype": "INT64", "shape": [1, 128, 256]},
]


@pytest.fixture(scope="module")
def image() -> Array:
    """An input of the network, float32 [1, 3, 128, 256]."""
    return np.random.default_rng(3).normal(size=(1, 3, 128, 256)).astype(np.float32)


def ask(url: str, model: str, array: Array, *, binary: bool, **more: Any) -> dict[str, Array]:
    """One inference, the input as JSON or as bytes, and its outputs by name."""
    name, datatype = {"street": ("image", "FP32"), "street-pixels": ("pixels", "UINT8")}[model]
    tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
    if binary:
        tensor["parameters"] = {"binary_data_size": array.nbytes}
        head = json.dumps({"id": "7", "inputs": [tensor]} | more).encode()
        body = head + array.tobytes()
        headers = {LENGTH: str(len(head)), "content-type": "application/octet-stream"}
    else:
        tensor["data"] = array.ravel().tolist()
        body = json.dumps({"id": "7", "inputs": [tensor]} | more).encode()
        headers = {"content-type": "application/json"}
    url = f"{url}/v2/models/{model}/infer"
    return read(httpx.post(url, content=body, headers=headers, timeout=60))


def read(answer: httpx.Response) -> dict[str, Array]:
    """The outputs of an answer, by the protocol's own rules."""
    assert answer.status_code == 200, answer.text
    size = int(answer.headers.get(LENGTH, len(answer.content)))
    document, rest = json.loads(answer.content[:size]), answer.content[size:]
    assert document["id"] == "7"
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


def test_metadata_says_what_the_models_take_and_give(foreign_server: str) -> None:
    """Names, types and shapes of both models; KServe knows no versions and no platform."""
    for model, inputs, outputs in [("street", STREET, LOGITS), ("street-pixels", PIXELS, MAPS)]:
        described = httpx.get(f"{foreign_server}/v2/models/{model}").json()
        assert described == {
            "name": model,
            "versions": None,
            "platform": "",
            "inputs": inputs,
            "outputs": outputs,
        }
        assert httpx.get(f"{foreign_server}/v2/models/{model}/ready").json() == {"name": model, "ready": True}
    assert httpx.get(f"{foreign_server}/v2").json()["name"] == "kserve"


def test_json_and_binary_hold_the_same_logits(foreign_server: str, image: Array) -> None:
    """Four ways to ask and to be answered give one array: the model's own."""
    model, _ = files()
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    right = session.run(None, {"image": image})[0]
    all_binary = {"parameters": {"binary_data_output": True}}
    one_binary = {"outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}
    seen = [
        ask(foreign_server, "street", image, binary=binary, **more)["logits"]
        for binary in (False, True)
        for more in ({}, all_binary, one_binary)
    ]
    assert all(np.array_equal(seen[0], other) for other in seen[1:])
    assert seen[0].shape == (1, 9, 128, 256)
    np.testing.assert_allclose(seen[0], right, rtol=1e-4, atol=1e-4)


def test_pixels_of_any_size_give_probabilities_and_labels(foreign_server: str) -> None:
    """Outputs are at the network's size; some may be asked for, each in its own form."""
    pixels = np.random.default_rng(4).integers(0, 256, (1, 60, 90, 3), dtype=np.uint8)
    both = ask(foreign_server, "street-pixels", pixels, binary=True, parameters={"binary_data_output": True})
    assert both["probabilities"].shape == (1, 9, 128, 256) and both["labels"].dtype == np.int64
    np.testing.assert_allclose(both["probabilities"].sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(both["labels"], both["probabilities"].argmax(axis=1))
    mixed = [{"name": "labels", "parameters": {"binary_data": True}}, {"name": "probabilities"}]
    again = ask(foreign_server, "street-pixels", pixels, binary=True, outputs=mixed)
    assert list(again) == ["labels", "probabilities"]
    assert all(np.array_equal(again[name], both[name]) for name in both)


def test_failures_have_a_status_and_a_document(foreign_server: str, image: Array) -> None:
    """A wrong shape is 400, an unknown model 404, a version 501, all {"error"}; KServe's own 422 is not."""
    url = f"{foreign_server}/v2/models"
    tensor = {"name": "image", "shape": [1, 3, 1, 1], "datatype": "FP32", "data": [0, 0, 0]}
    for path, status in [("street/infer", 400), ("other/infer", 404), ("street/versions/1/infer", 501)]:
        answer = httpx.post(f"{url}/{path}", json={"inputs": [tensor]}, timeout=60)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
    answer = httpx.post(f"{url}/street/infer", json={})
    assert (answer.status_code, list(answer.json())) == (422, ["detail"])
