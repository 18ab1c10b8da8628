"""The Open Inference dialect against servers that answer as the protocol and its implementations document.

Shapes: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
(JSON), https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
(binary data), https://docs.seldon.ai/mlserver/user-guide/content-type (base64). Errors: the texts of Triton's
http_server.cc and core, of kserve.errors, and of OpenVINO Model Server in its issues.
"""

import base64
import json
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corte_protocol import Disclosure
from corte_student.endpoints import Access, connect, guess_kind
from corte_student.endpoints.config import config_from
from corte_student.endpoints.foreign import UNSTATED
from corte_student.errors import (
    BrokeContract,
    ImageRefused,
    Refused,
    SettingsError,
    StudentError,
    Unavailable,
)
from oip_models import FULL, NAMES, TWO, Model, asking, encoded_picture, logits_of, pixels_in, softmax, spec
from pictures import make_picture
from replaying import Replay, replay
from student.dialect_contract import CLASSES, KEY, DialectContract, truth


class OpenInferenceContract(DialectContract):
    """What the servers below share."""

    kind = "openinference"
    level = FULL
    path = "/v2/models/net"
    model: ClassVar[Model]

    async def answer(self, request: Request, body: bytes) -> Response:
        """The two routes, behind a gateway that wants a key."""
        if self.stranger(request):
            return self.unauthorized()
        if request.method == "GET" and request.url.path == "/v2/models/net":
            return self.model.metadata()
        if request.method == "POST" and request.url.path == "/v2/models/net/infer":
            return self.model.infer(request, body)
        return JSONResponse({"error": "Model with name x does not exist."}, 404)

    def unauthorized(self) -> Response:
        """Triton's TRITONSERVER_ERROR_UNAUTHENTICATED, and any gateway."""
        return JSONResponse({"error": "unauthorized"}, 401)

    def throttled(self) -> Response:
        """A gateway's rate limit."""
        return JSONResponse({"error": "too many requests"}, 429, {"Retry-After": "1"})

    def refused_image(self) -> Response:
        """TRITONSERVER_ERROR_INVALID_ARG."""
        return JSONResponse({"error": "[request id: <id_unknown>] unexpected shape for input 'image'"}, 400)

    def overloaded(self) -> Response:
        """TRITONSERVER_ERROR_UNAVAILABLE (core, scheduler_utils.h)."""
        return JSONResponse({"error": "Exceeds maximum queue size"}, 503)


class TestKServe(OpenInferenceContract):
    """KServe's Python server: a picture as base64 in JSON, logits in JSON, no version."""

    config: ClassVar[Mapping[str, object]] = NAMES
    model = Model(
        encoded_picture,
        lambda pixels: {"logits": logits_of(pixels)[None]},
        [spec("image", "BYTES", [1])],
        [spec("logits", "FP32", [-1, 3, -1, -1])],
        version=None,
    )

    async def test_the_picture_is_base64(self, vendor: Replay) -> None:
        """JSON has no bytes; the version that is null is none."""
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
        entry = json.loads(vendor.seen[-1].body)["inputs"][0]
        assert entry["parameters"] == {"content_type": "base64"}
        assert base64.b64decode(entry["data"][0]) == make_picture(1).body
        assert stored.revision == UNSTATED


class TestTriton(OpenInferenceContract):
    """Triton: pixels in binary form, probabilities in FP16 in binary form."""

    config: ClassVar[Mapping[str, object]] = NAMES
    model = Model(
        pixels_in,
        lambda pixels: {"probs": softmax(logits_of(pixels))[None].astype(np.float16)},
        [spec("image", "UINT8", [-1, -1, -1, 3])],
        [spec("probs", "FP16", [-1, 3, -1, -1])],
        platform="onnxruntime_onnx",
    )

    async def test_everything_is_binary(self, vendor: Replay) -> None:
        """JSON and bytes behind it both ways; one output asked for."""
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        sent = vendor.seen[-1]
        head = json.loads(sent.body[: int(sent.headers["inference-header-content-length"])])
        assert head["inputs"][0]["parameters"] == {"binary_data_size": 12 * 16 * 3}
        assert head["outputs"] == [{"name": "probs", "parameters": {"binary_data": True}}]


class TestMLServer(OpenInferenceContract):
    """MLServer: floats in JSON, labels in JSON."""

    level = Disclosure(1, 0)
    config: ClassVar[Mapping[str, object]] = {**NAMES, "openinference": {"scale": "unit"}}
    model = Model(
        lambda tensor: np.rint(tensor.array[0].transpose(1, 2, 0) * 255).astype(np.uint8),
        lambda pixels: {"labels": truth(pixels)[None].astype(np.int64)},
        [spec("image", "FP32", [1, 3, -1, -1])],
        [spec("labels", "INT64", [1, -1, -1])],
    )


class TestOwnService(OpenInferenceContract):
    """This project's own routes: everything is learned, nothing is configured."""

    level = Disclosure(2, 8)
    path = "/v2/models/teacher"
    model = Model(
        encoded_picture,
        lambda pixels: {
            "classes": np.stack([truth(pixels), (truth(pixels) + 1) % 3])[None].astype(np.uint8),
            "scores": np.broadcast_to(
                np.array([200, 50], np.uint8)[:, None, None], (1, 2, *pixels.shape[:2])
            ),
        },
        [spec("image", "BYTES", [1]), spec("pixels", "UINT8", [1, -1, -1, 3])],
        [spec("classes", "UINT8", [1, 2, -1, -1]), spec("scores", "UINT8", [1, 2, -1, -1])],
        platform="corte",
        extra={
            "parameters": {
                "classes": json.dumps(CLASSES),
                "colors": json.dumps([[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
                "disclosure": "margin",
                "max_body_bytes": 1234,
                "max_pixels": 5678,
            }
        },
    )

    async def answer(self, request: Request, body: bytes) -> Response:
        """The same routes under the service's one name."""
        if self.stranger(request):
            return self.unauthorized()
        if request.url.path == "/v2/models/teacher":
            return self.model.metadata()
        assert request.url.path == "/v2/models/teacher/infer"
        return self.model.infer(request, body)

    async def test_colours_and_limits_are_learned_too(self, vendor: Replay) -> None:
        """They stand in the metadata's parameters."""
        async with self.endpoint(vendor) as endpoint:
            info = await endpoint.info()
        assert info.colors == ((1, 2, 3), (4, 5, 6), (7, 8, 9))
        assert (info.limits.max_body_bytes, info.limits.max_pixels) == (1234, 5678)

    async def test_scores_are_the_service_s(self, vendor: Replay) -> None:
        """Both planes come through untouched."""
        picture = make_picture(1)
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            answer = endpoint.read(stored.blob, 12, 16, self.level)
        assert np.array_equal(answer.classes[1], (truth(picture.pixels) + 1) % 3)
        assert answer.probs is not None
        assert (answer.probs[0] == 200).all()
        assert (answer.probs[1] == 50).all()


@pytest.mark.parametrize(
    ("path", "model", "asked"),
    [
        ("/v2/models/net", None, "/v2/models/net"),
        ("/v2/models/net", "net", "/v2/models/net"),
        ("/v2/models/net/versions/3", None, "/v2/models/net/versions/3"),
        ("/v2/models/net/infer", None, "/v2/models/net"),
        ("/gate/v2/models/net", None, "/gate/v2/models/net"),
        ("", "net", "/v2/models/net"),
        ("/v2", "net", "/v2/models/net"),
        ("/gate", "a/b", "/gate/v2/models/a%2Fb"),
        ("/v2/models/a%20b", "a b", "/v2/models/a%20b"),
    ],
)
async def test_the_model_is_named_in_the_url_or_the_config(path: str, model: str | None, asked: str) -> None:
    """Both ways lead to the protocol's routes, below any gateway's path."""
    seen = []

    async def answer(request: Request, body: bytes) -> Response:
        seen.append(request.scope["raw_path"].decode())
        return TWO.metadata()

    given_: dict[str, object] = {**NAMES, "openinference": {"output": "labels"}}
    if model is not None:
        given_["model"] = model
    with replay(answer) as vendor:
        config = config_from(given_, "test.toml")
        endpoint = connect(Access(vendor.url + path, config=config), deadline_s=9, connections=1)
        try:
            await endpoint.info()
        finally:
            await endpoint.aclose()
    assert seen == [asked]


@pytest.mark.parametrize(
    ("path", "model", "remedy"), [("", None, "which model"), ("/v2/models/net", "other", "keep one")]
)
def test_a_model_must_be_named_once(path: str, model: str | None, remedy: str) -> None:
    """Neither guessed nor chosen between two."""
    given_: dict[str, object] = {"openinference": {}} | ({} if model is None else {"model": model})
    config = config_from(given_, "test.toml")
    with pytest.raises(SettingsError, match=remedy):
        connect(Access(f"http://127.0.0.1:9{path}", config=config), deadline_s=1, connections=1)


def test_the_protocol_s_path_tells_the_kind() -> None:
    """A URL with /v2/models/NAME needs no --teacher-kind."""
    assert guess_kind("http://127.0.0.1:8000/v2/models/net/versions/1") == "openinference"


FAILURES = [
    (400, "[request id: <id_unknown>] Exceeds maximum queue size", Unavailable, True),
    (400, "Request timeout expired", Unavailable, True),
    (500, "InferenceError : [503] Exceeds maximum queue size", Unavailable, True),
    (503, "Model with name net is not ready.", Unavailable, True),
    (200, "Model with name net is not ready.", Unavailable, True),
    (400, "Request for unknown model: 'net' is not found", Refused, False),
    (400, "Request for unknown model: 'net' has no available versions", Refused, False),
    (404, "Model with requested name is not found", Refused, False),
    (400, "receiving FP16 data via JSON is not supported. Please use the binary data format", Refused, False),
    (500, "Failed to encode \"b'\\xff\\xd8" + "x" * (1 << 17), Refused, False),
    (
        400,
        "unexpected shape for input 'image' for model 'net'. Expected [-1,3], got [1,4]",
        ImageRefused,
        False,
    ),
    (400, "Invalid input shape - Expected: (-1,1); Actual: (1,67)", ImageRefused, False),
    (400, "failed to decode the picture", ImageRefused, False),
    (200, "cannot decode", ImageRefused, False),
    (422, "Unprocessable", ImageRefused, False),
    (413, "request is too large", ImageRefused, False),
    (403, "forbidden", Refused, False),
]


@pytest.mark.parametrize(("status", "text", "error", "again"), FAILURES)
async def test_errors_are_told_by_their_text(
    status: int, text: str, error: type[StudentError], again: bool
) -> None:
    """What passes is asked again, what a setting mends is told with it, the rest concerns the image."""
    picture = make_picture(6)
    async with asking(TWO, {"output": "labels"}) as (endpoint, vendor):
        await endpoint.info()
        vendor.faults.append(JSONResponse({"error": text}, status))
        if again:
            await endpoint.predict(picture.body, picture.media_type, Disclosure(1, 0))
            assert vendor.images == 2
            return
        with pytest.raises(error) as failure:
            await endpoint.predict(picture.body, picture.media_type, Disclosure(1, 0))
        assert vendor.images == 1
    assert text not in str(failure.value)
    assert "\n" not in str(failure.value)


async def test_a_model_that_fails_on_one_picture_loses_only_that() -> None:
    """KServe's 500 with InferenceError: tried three times, then set aside."""
    picture = make_picture(6)
    async with asking(TWO, {"output": "labels"}) as (endpoint, vendor):
        await endpoint.info()
        vendor.faults.extend(JSONResponse({"error": "RuntimeError : broken"}, 500) for _ in range(3))
        with pytest.raises(ImageRefused):
            await endpoint.predict(picture.body, picture.media_type, Disclosure(1, 0))
        await endpoint.predict(picture.body, picture.media_type, Disclosure(1, 0))


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {}),
        (b"{}", {}),
        (b"[]", {}),
        (b'{"outputs": []}', {}),
        (b'{"outputs": [{"name": "y"}]}', {}),
        (b'{"predictions": [1]}', {}),
        (b'{"outputs": [', {}),
        (b'{"model_name": "net"}xx', {"Inference-Header-Content-Length": "21"}),
        (b"{}", {"Inference-Header-Content-Length": "99"}),
        (b'{"x": "' + b"y" * (2 << 20) + b'"}', {}),
        (b'{"outputs": "' + b"y" * (2 << 20), {}),
    ],
)
async def test_an_answer_of_another_form_is_not_kept(body: bytes, headers: dict[str, str]) -> None:
    """A 200 that is no inference response breaks the contract before it can reach the ledger."""
    picture = make_picture(6)
    async with asking(TWO, {"output": "labels"}) as (endpoint, vendor):
        await endpoint.info()
        vendor.faults.append(Response(body, 200, headers))
        with pytest.raises(BrokeContract):
            await endpoint.predict(picture.body, picture.media_type, Disclosure(1, 0))


async def test_the_key_goes_to_both_routes() -> None:
    """The metadata is behind the same gateway."""
    seen = []

    async def answer(request: Request, body: bytes) -> Response:
        seen.append(request.headers.get("authorization"))
        return TWO.metadata() if request.method == "GET" else TWO.infer(request, body)

    with replay(answer) as vendor:
        config = config_from({**NAMES, "openinference": {"output": "labels"}}, "test.toml")
        access = Access(f"{vendor.url}/v2/models/net", config=config, key=SecretStr(KEY))
        endpoint = connect(access, deadline_s=9, connections=1)
        try:
            picture = make_picture(1)
            await endpoint.predict(picture.body, picture.media_type, Disclosure(1, 0))
        finally:
            await endpoint.aclose()
    assert seen == [f"Bearer {KEY}"] * 2
