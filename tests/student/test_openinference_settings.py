"""What a model's metadata says, leaves open or contradicts, and how pictures are fed to it.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, "Model
Metadata"; platforms as Triton (core, server.cc) and OpenVINO Model Server (its KServe REST page) name them.
"""

import json
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import Response

from corte_protocol import Disclosure
from corte_protocol.types import UInt8
from corte_student.endpoints import Access, connect
from corte_student.endpoints.config import config_from
from corte_student.errors import BrokeContract, SettingsError
from oip_models import (
    FULL,
    NAMES,
    Array,
    Model,
    answering,
    asking,
    encoded_picture,
    logits_of,
    predicted,
    spec,
    taking,
)
from pictures import make_picture
from replaying import replay
from student.dialect_contract import truth

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


@pytest.mark.parametrize("platform", ["", "tensorrt_plan"])
@pytest.mark.parametrize(
    ("datatype", "shape", "options", "expected"),
    [
        ("UINT8", [1, -1, -1, 3], {}, lambda p: p[None]),
        ("UINT8", [-1, 3, -1, -1], {}, lambda p: p.transpose(2, 0, 1)[None]),
        ("UINT8", [-1, -1, 3], {}, lambda p: p),
        ("UINT8", [3, -1, -1], {}, lambda p: p.transpose(2, 0, 1)),
        ("FP32", [-1, 3, -1, -1], {"scale": "unit"}, lambda p: p.transpose(2, 0, 1)[None] / np.float32(255)),
        ("FP32", [-1, -1, -1, 3], {"scale": "none"}, lambda p: p[None].astype(np.float32)),
        ("FP32", [1, -1, -1, 3], {"scale": "imagenet"}, lambda p: (p[None] / np.float32(255) - MEAN) / STD),
        (
            "FP32",
            [1, -1, -1, 3],
            {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
            lambda p: (p[None] / np.float32(255) - np.float32(0.5)) / np.float32(0.25),
        ),
        (
            "FP16",
            [3, -1, -1],
            {"scale": "unit"},
            lambda p: (p.transpose(2, 0, 1) / np.float32(255)).astype(np.float16),
        ),
        (
            "UINT8",
            [1, 8, 6, 3],
            {},
            lambda p: cv2.resize(p, (6, 8), interpolation=cv2.INTER_LINEAR)[None],
        ),
        (
            "UINT8",
            [1, 3, 24, -1],
            {},
            lambda p: cv2.resize(p, (16, 24), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)[None],
        ),
        ("INT64", [1], {"datatype": "UINT8", "shape": [1, -1, -1, 3]}, lambda p: p[None]),
    ],
)
async def test_every_input_is_fed_as_stated(
    platform: str,
    datatype: str,
    shape: list[int],
    options: dict[str, object],
    expected: Callable[[UInt8], Array],
) -> None:
    """Layout, type, scale and size come from the metadata, what it leaves open from the options."""
    model = taking(datatype, shape, platform=platform)
    picture = make_picture(5)
    await predicted(model, picture, Disclosure(1, 0), options)
    wanted = expected(picture.pixels)
    (sent,) = model.seen
    assert sent.name == "image"
    assert sent.shape == wanted.shape
    assert sent.array.dtype == wanted.dtype
    assert np.array_equal(sent.array, wanted)


@pytest.mark.parametrize("shape", [[1], [1, 1], [-1], [-1, 1], [-1, -1], []])
@pytest.mark.parametrize("platform", ["", "ensemble"])
async def test_an_encoded_picture_goes_out_as_it_is(shape: list[int], platform: str) -> None:
    """BYTES of one element, in JSON and in binary form."""
    model = taking("BYTES", shape, platform=platform)
    picture = make_picture(5)
    await predicted(model, picture, Disclosure(1, 0))
    (sent,) = model.seen
    assert sent.data == (picture.body,)
    assert sent.shape == (1,) * max(len(shape), 1)


async def test_openvino_takes_an_encoded_picture_for_an_image_input() -> None:
    """Its metadata states the pixels' shape (ovms_docs_binary_input_kfs.html); `datatype` tells it."""
    model = taking("FP32", [1, 300, 300, 3], platform="OpenVINO")
    await predicted(model, make_picture(5), Disclosure(1, 0), {"datatype": "BYTES"})
    assert (model.seen[0].datatype, model.seen[0].shape) == ("BYTES", (1,))


@pytest.mark.parametrize(
    ("platform", "datatype", "binary"),
    [
        ("", "UINT8", False),
        ("sklearn", "UINT8", False),
        ("", "FP16", True),
        ("tensorrt_plan", "UINT8", True),
        ("onnxruntime", "UINT8", True),
        ("python", "UINT8", True),
        ("OpenVINO", "UINT8", True),
    ],
)
async def test_binary_form_is_used_where_it_is_known(platform: str, datatype: str, binary: bool) -> None:
    """Triton's and OpenVINO's platforms know it, and FP16 has no other form."""
    model = taking(datatype, [1, -1, -1, 3], platform=platform)
    picture = make_picture(6)
    async with asking(model, {"scale": "unit"} if datatype == "FP16" else {}) as (endpoint, vendor):
        await endpoint.predict(picture.body, picture.media_type, Disclosure(1, 0))
    assert ("inference-header-content-length" in vendor.seen[-1].headers) == binary


async def test_a_server_that_states_nothing_is_described_by_the_user() -> None:
    """MLServer and KServe state no tensors unless told; then no output is asked for by name."""
    model = Model(encoded_picture, lambda p: {"y": logits_of(p)[None]}, [], [])
    picture = make_picture(6)
    options = {"input": "image", "datatype": "BYTES", "shape": [1], "answer": "scores"}
    async with asking(model, options) as (endpoint, vendor):
        stored = await endpoint.predict(picture.body, picture.media_type, FULL)
        answer = endpoint.read(stored.blob, 12, 16, FULL)
    assert "outputs" not in json.loads(vendor.seen[-1].body)
    assert np.array_equal(answer.labels, truth(picture.pixels))


BYTES_IN = [spec("image", "BYTES", [1])]
SCORES_OUT = [spec("y", "FP32", [1, 3, -1, -1])]


@pytest.mark.parametrize(
    ("inputs", "outputs", "options", "remedy"),
    [
        ([], SCORES_OUT, {}, "`input`, `datatype` and `shape`"),
        ([*BYTES_IN, spec("size", "INT64", [2])], SCORES_OUT, {}, "'image', 'size': write `input`"),
        (BYTES_IN, SCORES_OUT, {"input": "picture"}, "no input 'picture', but 'image'"),
        ([spec("image", "FP32", [1, 3, -1, -1])], SCORES_OUT, {}, "`scale"),
        ([spec("image", "FP16", [1, 3, -1, -1])], SCORES_OUT, {}, "`scale"),
        ([spec("image", "UINT8", [1, 3, -1, -1])], SCORES_OUT, {"scale": "unit"}, "take `scale`"),
        (BYTES_IN, SCORES_OUT, {"mean": [0, 0, 0], "std": [1, 1, 1]}, "take `scale`"),
        ([spec("image", "INT64", [1, 3, -1, -1])], SCORES_OUT, {}, "`datatype`"),
        ([spec("image", "UINT8", [-1, -1, -1, -1])], SCORES_OUT, {}, "`shape ="),
        ([spec("image", "UINT8", [8, 3, -1, -1])], SCORES_OUT, {}, "`shape ="),
        ([spec("image", "UINT8", [1, 4, 9, 9])], SCORES_OUT, {}, "`shape ="),
        ([spec("image", "UINT8", [1, 3, 0, 9])], SCORES_OUT, {}, "`shape ="),
        ([spec("image", "BYTES", [4])], SCORES_OUT, {}, "`shape = "),
        (BYTES_IN, [*SCORES_OUT, spec("z", "FP32", [1, 7])], {}, "'y', 'z': write `output`"),
        (BYTES_IN, SCORES_OUT, {"output": "z"}, "no output 'z', but 'y'"),
        (BYTES_IN, [], {}, "`answer ="),
        (BYTES_IN, [spec("y", "INT64", [1, -1, -1])], {"answer": "scores"}, "`answer`"),
        (BYTES_IN, [spec("y", "FP32", [1, 19, 64, 64])], {}, "3 classes are named: correct `classes`"),
        (BYTES_IN, [spec("y", "FP32", [1, 3, 64, 64])], {"layout": "nhwc"}, "`layout`"),
    ],
)
async def test_what_the_metadata_leaves_open_is_asked_of_the_user(
    inputs: list[dict[str, object]],
    outputs: list[dict[str, object]],
    options: dict[str, object],
    remedy: str,
) -> None:
    """Before the first image, in one line that names the key to write, and the names to choose from."""
    model = Model(encoded_picture, lambda p: {}, inputs, outputs)
    async with asking(model, options) as (endpoint, vendor):
        with pytest.raises(SettingsError) as failure:
            await endpoint.info()
    assert remedy in str(failure.value)
    assert "--teacher-config" in str(failure.value)
    assert "\n" not in str(failure.value)
    assert vendor.images == 0


async def test_classes_are_the_user_s_to_say() -> None:
    """No metadata has names, unless a server puts them into its parameters: then they must agree."""
    outputs = spec("y", "FP32", [1, -1, -1, -1])
    async with asking(answering(lambda p: p, outputs), classes=None) as (endpoint, _):
        with pytest.raises(SettingsError, match="classes ="):
            await endpoint.info()
    stating = answering(lambda p: p, outputs, extra={"parameters": {"classes": ["a", "b"]}})
    async with asking(stating, classes=None) as (endpoint, _):
        info = await endpoint.info()
        assert info.classes == ("a", "b")
        assert len(info.colors) == 2
    async with asking(stating) as (endpoint, _):
        with pytest.raises(SettingsError, match="2 classes, and 3 are named"):
            await endpoint.info()


@pytest.mark.parametrize("classes", ['["a"', '"a"', '["a", "a"]', '["a", 1]', '["a"]', "7", '["a", ""]'])
async def test_names_that_are_none_are_not_believed(classes: str) -> None:
    """A parameter called `classes` may mean something else."""
    model = answering(lambda p: p, spec("y", "FP32", []), extra={"parameters": {"classes": classes}})
    async with asking(model, classes=None) as (endpoint, _):
        with pytest.raises(SettingsError, match="classes ="):
            await endpoint.info()


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"scale": "half"}, "scale"),
        ({"outputs": "y"}, "unknown key 'outputs'"),
        ({"mean": [0, 0, 0]}, "mean and std"),
        ({"scale": "unit", "mean": [0, 0, 0], "std": [1, 1, 1]}, "scale, or mean and std"),
        ({"mean": [0, 0, 0], "std": [1, 0, 1]}, "std must be positive"),
        ({"datatype": "FP64"}, "datatype"),
        ({"layout": "chw"}, "layout"),
        ({"binary": "never"}, "binary"),
    ],
)
def test_wrong_options_are_told_at_once(options: dict[str, object], remedy: str) -> None:
    """Before anything is sent, with the key's name."""
    config = config_from({"openinference": options}, "test.toml")
    with pytest.raises(SettingsError, match=remedy):
        connect(Access("http://127.0.0.1:9/v2/models/net", config=config), deadline_s=1, connections=1)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"name": 1}',
        b'{"name": "n", "inputs": {}}',
        b'{"name": "n", "inputs": [{}]}',
        b'{"name": "n", "inputs": [1]}',
        b'{"name": "n", "inputs": [{"name": "x", "datatype": "FP32", "shape": ["a"]}]}',
        b"[" * 100_000,
        b'{"name": "n", "platform": "corte", "parameters": {"disclosure": "all", "classes": ["a", "b", "c"]},'
        b'"inputs": [{"name": "x", "datatype": "BYTES"}]}',
    ],
)
async def test_metadata_that_is_none_is_told(body: bytes) -> None:
    """Whatever is at the URL, it does not speak this protocol."""

    async def answer(request: Request, given_: bytes) -> Response:
        return Response(body, 200)

    with replay(answer) as vendor:
        access = Access(f"{vendor.url}/v2/models/net", config=config_from(NAMES, "test.toml"))
        endpoint = connect(access, deadline_s=9, connections=1)
        try:
            with pytest.raises(BrokeContract, match="check --teacher-url"):
                await endpoint.info()
        finally:
            await endpoint.aclose()


@pytest.mark.parametrize(
    ("datatype", "shape", "options", "most"),
    [
        ("UINT8", [1, -1, -1, 3], {"binary": True}, (64 << 20) // 3),
        ("FP32", [1, 3, -1, -1], {"binary": True, "scale": "unit"}, (64 << 20) // 12),
        ("UINT8", [1, -1, -1, 3], {}, (64 << 20) // 12),
        ("UINT8", [1, 9, 9, 3], {}, 64_000_000),
        ("BYTES", [1], {}, 64_000_000),
    ],
)
async def test_a_raw_picture_must_fit_the_payload(
    datatype: str, shape: list[int], options: dict[str, object], most: int
) -> None:
    """64 MiB, Triton's default, bound the pixels of a tensor of any size; a fixed input has no such bound."""
    async with asking(taking(datatype, shape), options) as (endpoint, _):
        assert (await endpoint.info()).limits.max_pixels == most


async def test_our_own_service_has_no_fp16_in_json() -> None:
    """At the level full its scores need the binary form; a user who forbids it is told before an image."""
    model = taking("BYTES", [1], platform="corte", extra={"parameters": {"disclosure": "full"}})
    async with asking(model, {"binary": False}) as (endpoint, vendor):
        with pytest.raises(SettingsError, match="take `binary` out"):
            await endpoint.info()
    assert vendor.images == 0
