"""Roboflow's semantic segmentation, replayed as its documentation and its open server have it.

https://docs.roboflow.com/models/supported-models/roboflow-2
https://docs.roboflow.com/deploy/serverless/instance-segmentation/semantic-segmentation
https://docs.roboflow.com/deployment/production-checklist
https://github.com/roboflow/inference (core/interfaces/http/error_handlers.py, the messages)
"""

import base64
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corte_protocol import Disclosure, InvalidValue
from corte_protocol.types import VOID_NAME, UInt8
from corte_student.endpoints import Access, Endpoint, connect
from corte_student.endpoints.config import config_from
from corte_student.endpoints.connecting import guess_kind
from corte_student.endpoints.vendors import spoken_by
from corte_student.errors import (
    BrokeContract,
    ImageRefused,
    Refused,
    SettingsError,
    TeacherError,
    Unavailable,
)
from id_pictures import pixels_of, png
from pictures import make_picture
from replaying import Replay
from student.dialect_contract import CLASSES, KEY, DialectContract, truth

LABELS, CONFIDENCE = Disclosure(1, 0), Disclosure(1, 8)
VOID_ID = len(CLASSES)
URL = "https://serverless.roboflow.com/acme-streets/3"
THEIRS = {"0": "background", "1": "sky", "2": "road", "3": "car"}
"""Their names, in their order; background is what none of ours is."""
STORED = np.array([2, 3, 1, 0], np.uint8)
"""Their id of our class, and of void."""


def coded(values: UInt8) -> str:
    """A PNG as base64."""
    return base64.b64encode(png(values)).decode("ascii")


def body_of(ids: UInt8, confidence: UInt8 | None, class_map: object = None) -> dict[str, Any]:
    """An answer: `ids` are theirs."""
    height, width = ids.shape
    image = {"width": width, "height": height}
    predictions: dict[str, Any] = {
        "segmentation_mask": coded(ids),
        "class_map": THEIRS if class_map is None else class_map,
        "image": image,
    }
    if confidence is not None:
        predictions["confidence_mask"] = coded(confidence)
        predictions["present_class_ids"] = np.unique(ids).tolist()
    return {
        "inference_id": "b3e1c1b6-5a5b-4e53-b3f1-0f8f0f1b9f3a",
        "time": 0.0812,
        "image": image,
        "predictions": predictions,
    }


def sure(labels: UInt8) -> UInt8:
    """A confidence for each pixel, never none: 2 to 255."""
    pixels: UInt8 = (np.arange(labels.size) % 254 + 2).astype(np.uint8).reshape(labels.shape)
    return pixels


def failed(status: int, message: str, headers: Mapping[str, str] | None = None, **more: object) -> Response:
    """Their errors."""
    return JSONResponse({"message": f"{message} {KEY}", **more}, status, headers)


def reader(classes: tuple[str, ...] = CLASSES, **options: object) -> Endpoint:
    """An endpoint that never sends anything."""
    config = config_from({"classes": list(classes), "roboflow": options}, "t")
    return connect(Access(URL, config=config), deadline_s=1, connections=1)


class RoboflowContract(DialectContract):
    """What all their servers share."""

    kind = "roboflow"
    path = "/acme-streets/3"
    level = CONFIDENCE
    config: ClassVar[Mapping[str, object]] = {
        "classes": list(CLASSES),
        "roboflow": {"void_labels": ["background"]},
    }
    confident: ClassVar[bool] = True

    async def answer(self, request: Request, body: bytes) -> Response:
        """The model's route."""
        if self.stranger(request):
            return self.unauthorized()
        assert (request.url.path, request.method) == ("/acme-streets/3", "POST")
        assert dict(request.query_params) == {"confidence": "0", "disable_active_learning": "true"}
        assert request.headers["content-type"] == "application/x-www-form-urlencoded"
        labels = truth(pixels_of(base64.b64decode(body, validate=True)))
        answer = body_of(STORED[labels], sure(labels) if self.confident else None)
        return JSONResponse(answer, headers={"x-model-id": "acme-streets/3", "x-processing-time": "0.081"})

    def unauthorized(self) -> Response:
        """A wrong key."""
        return failed(401, "Unauthorized access to roboflow API - check API key")

    def throttled(self) -> Response:
        """More than its 20 requests a second."""
        return Response(b"", 429)

    def refused_image(self) -> Response:
        """No picture to them."""
        return failed(400, "Could not load input image. Cause: Malformed base64 input image.")

    def overloaded(self) -> Response:
        """Loading the model."""
        return failed(503, "Model is temporarily not ready - retry request.", {"Retry-After": "1"})


class TestServerless(RoboflowContract):
    """With a confidence for each pixel."""

    async def test_confidence_is_theirs_to_the_pixel(self, vendor: Replay) -> None:
        """In units of 1/255, as they send it."""
        picture = make_picture(1)
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            answer = endpoint.read(stored.blob, 12, 16, CONFIDENCE)
        assert answer.probs is not None
        assert answer.probs.dtype == np.uint8
        assert np.array_equal(answer.probs[0], sure(truth(picture.pixels)))

    async def test_the_model_that_answered_is_the_revision(self, vendor: Replay) -> None:
        """A slug may come to mean another model; nothing said: none."""
        body = body_of(STORED[truth(make_picture(1).pixels)], np.full((12, 16), 9, np.uint8))
        async with self.endpoint(vendor) as endpoint:
            first = await self.ask(endpoint)
            vendor.faults.append(JSONResponse(body, headers={"x-model-id": "acme-streets/4"}))
            second = await self.ask(endpoint)
            vendor.faults.append(JSONResponse(body))
            third = await self.ask(endpoint)
        assert len({first.revision, second.revision, third.revision}) == 3
        assert third.revision == "unstated"

    async def test_an_answer_without_confidence_is_kept_and_told(self, vendor: Replay) -> None:
        """None is invented; it was paid for, and can be read once the option is set."""
        labels = truth(make_picture(1).pixels)
        vendor.faults.append(JSONResponse(body_of(STORED[labels], None)))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            with pytest.raises(InvalidValue, match="no confidence_mask: write confidence = false"):
                endpoint.read(stored.blob, 12, 16, LABELS)
        again = reader(confidence=False, void_labels=["background"]).read(stored.blob, 12, 16, LABELS)
        assert np.array_equal(again.labels, labels)
        assert again.probs is None

    @pytest.mark.parametrize("wait", ["30", "31.5"])
    async def test_a_wait_beyond_the_deadline_is_told(self, vendor: Replay, wait: str) -> None:
        """Retry-After of a 503, as of a 429."""
        for status in (503, 429):
            vendor.faults.append(failed(status, "later", {"Retry-After": wait}))
            async with self.endpoint(vendor) as endpoint:
                with pytest.raises(Unavailable, match=r"to be asked again in 3[0-2] s"):
                    await self.ask(endpoint)
        assert vendor.images == 2

    @pytest.mark.parametrize(
        ("status", "message", "raised", "words"),
        [
            (400, "Required Roboflow API key is missing.", Refused, "set CORTE_TEACHER_KEY"),
            (400, "Invalid Model ID sent in request.", Refused, "knows no such model"),
            (400, "Error with model input. Cause: too small", ImageRefused, "will not take this image"),
            (402, "Not enough credits to perform this request.", Refused, "out of credit"),
            (403, "Unauthorized access to roboflow API", Refused, "check its scopes"),
            (404, "Requested Roboflow resource not found.", Refused, "check project and version"),
            (413, "too large", ImageRefused, "will not take this image"),
            (423, "paused", Refused, "until a bill is paid"),
            (500, "Model package is broken.", Refused, "cannot run this model"),
            (500, "Service misconfiguration.", Refused, "cannot run this model"),
            (
                500,
                "Model configuration related to pre- or post-processing is invalid.",
                Refused,
                "cannot run this model",
            ),
            (500, "Could not negotiate model package - x", Refused, "cannot run this model"),
            (501, "Could not find requested ONNX Runtime Provider.", BrokeContract, "501"),
        ],
    )
    async def test_each_failure_has_its_meaning(
        self, vendor: Replay, status: int, message: str, raised: type[TeacherError], words: str
    ) -> None:
        """Asked once, told without their text."""
        vendor.faults.append(failed(status, message, error_type="X", help_url="https://x"))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(raised, match=words) as failure:
                await self.ask(endpoint)
        assert type(failure.value) is raised
        assert KEY not in str(failure.value)
        assert vendor.images == 1

    @pytest.mark.parametrize(
        ("status", "message"),
        [
            (500, "Internal error."),
            (502, "Internal error. Request to Roboflow API failed."),
            (503, "Internal error. Could not connect to Roboflow API."),
            (504, "Timeout when attempting to connect to Roboflow API."),
        ],
    )
    async def test_what_passes_is_asked_again(self, vendor: Replay, status: int, message: str) -> None:
        """Where nobody pays."""
        vendor.faults.append(failed(status, message))
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        assert vendor.images == 2

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ({"predictions": [{"x": 1, "class": "car"}], "image": {}}, "finds objects"),
            ({"predictions": []}, "finds objects"),
            ({"predictions": {"car": {"confidence": 0.9}}}, "no prediction"),
            ({"predictions": {"segmentation_mask": "iVBOR"}}, "no prediction"),
            ({"predictions": {"segmentation_mask": 7, "class_map": {}}}, "no prediction"),
            ({"predictions": {"segmentation_mask": "iVBOR", "class_map": ["car"]}}, "no prediction"),
            ({"predictions": "none"}, "no prediction"),
            ({"message": "Internal error."}, "no prediction"),
            ([], "no prediction"),
            (None, "no prediction"),
        ],
    )
    async def test_what_is_no_prediction_is_not_kept(self, vendor: Replay, body: object, words: str) -> None:
        """JSON of another kind of model."""
        vendor.faults.append(JSONResponse(body))
        async with self.endpoint(vendor, paid=True) as endpoint:
            with pytest.raises(BrokeContract, match=words):
                await self.ask(endpoint)
        assert vendor.images == 1


class TestOwnServer(RoboflowContract):
    """An old server of one's own: no confidence; the model is named in the config."""

    path = ""
    level = LABELS
    config: ClassVar[Mapping[str, object]] = {
        "model": "acme-streets/3",
        "classes": list(CLASSES),
        "roboflow": {"confidence": False, "ignore_unknown": True},
    }
    confident = False


def spoken(url: str = URL, **values: Any) -> Any:
    """What is spoken there."""
    return spoken_by("roboflow", url, config_from({"classes": list(CLASSES), **values}, "t"), SecretStr(KEY))


@pytest.mark.parametrize(
    ("url", "model", "target"),
    [
        (URL, None, URL),
        ("https://serverless.roboflow.com", "acme-streets/3", URL),
        (
            "https://serverless.roboflow.com/acme/streets-slug",
            None,
            "https://serverless.roboflow.com/acme/streets-slug",
        ),
        ("http://localhost:9001", "acme-streets/3", "http://localhost:9001/acme-streets/3"),
        ("https://gpus.example/roboflow", "acme-streets/3", "https://gpus.example/roboflow/acme-streets/3"),
        ("https://gpus.example/roboflow/acme/3", None, "https://gpus.example/roboflow/acme/3"),
    ],
)
def test_the_url_or_the_model_says_where(url: str, model: str | None, target: str) -> None:
    """The same route at every server; the key is in none."""
    assert spoken(url, model=model).dialect.url == target


@pytest.mark.parametrize(
    ("url", "values", "words"),
    [
        ("https://serverless.roboflow.com", {}, "PROJECT/VERSION"),
        ("https://serverless.roboflow.com/acme-streets", {}, "PROJECT/VERSION"),
        ("https://serverless.roboflow.com/acme streets/3", {}, "PROJECT/VERSION"),
        (URL, {"model": "acme-streets/4"}, "keep one"),
        ("https://serverless.roboflow.com", {"model": "acme-streets"}, "project/version"),
        ("https://serverless.roboflow.com", {"model": "../x"}, "project/version"),
        ("https://serverless.roboflow.com", {"model": "a/3?api_key=x"}, "project/version"),
        (URL, {"roboflow": {"api_key": KEY}}, "unknown key 'api_key'; known are confidence"),
        (URL, {"roboflow": {"confidence": "maybe"}}, "confidence"),
        (URL, {"classes": None}, "write `classes ="),
        (URL, {"classes": ["road", VOID_NAME]}, "is added where it is needed"),
    ],
)
def test_wrong_settings_name_the_key(url: str, values: dict[str, Any], words: str) -> None:
    """Before anything is sent; never with a key in it."""
    with pytest.raises(SettingsError, match=words) as failure:
        spoken(url, **values)
    assert KEY not in str(failure.value)


def test_the_model_alone_is_the_teacher() -> None:
    """How its answers are read makes no difference."""
    tables: list[dict[str, object]] = [
        {},
        {"confidence": False},
        {"void_labels": ["x"], "ignore_unknown": True},
    ]
    assert len({spoken(roboflow=table).dialect.identity for table in tables}) == 1
    assert spoken().dialect.identity != spoken(URL[:-1] + "4").dialect.identity


def test_base64_leaves_less_room() -> None:
    """20 MB a request, 5 MB at the elder hosts, unless the user knows better."""
    assert spoken().dialect.limits.max_body_bytes == 15_000_000
    assert spoken("https://segment.roboflow.com/acme/3").dialect.limits.max_body_bytes == 3_750_000
    assert spoken(max_body_bytes=99).dialect.limits.max_body_bytes == 99


@pytest.mark.parametrize("host", ["serverless", "segment", "outline", "detect"])
def test_the_host_alone_tells_the_kind(host: str) -> None:
    """No --teacher-kind is needed."""
    assert guess_kind(f"https://{host}.roboflow.com/acme/3") == "roboflow"
