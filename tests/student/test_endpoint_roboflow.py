"""Roboflow's semantic segmentation, replayed as documented and as its open-source server answers.

https://docs.roboflow.com/deploy/serverless/instance-segmentation/semantic-segmentation
https://github.com/roboflow/inference (core/entities/responses/inference.py, http/error_handlers.py)
"""

import base64
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corte_protocol import Disclosure, InvalidValue
from corte_protocol.types import UInt8
from corte_student.endpoints.config import config_from
from corte_student.endpoints.vendors import spoken_by
from corte_student.errors import Refused, SettingsError
from id_pictures import pixels_of, png
from pictures import make_picture
from replaying import Replay
from student.dialect_contract import CLASSES, KEY, DialectContract, truth

CONFIDENCE = Disclosure(1, 8)
_SHIFT = 1
"""The vendor's ids are not ours: 0 is its own background."""


def coded(plane: UInt8) -> str:
    return base64.b64encode(png(plane)).decode()


def answered(labels: UInt8, **left_out: object) -> dict[str, Any]:
    """The documented answer; the confidence of a pixel is 200 minus its label."""
    predictions: dict[str, Any] = {
        "segmentation_mask": coded((labels + _SHIFT).astype(np.uint8)),
        "class_map": {"0": "background", **{str(i + _SHIFT): name for i, name in enumerate(CLASSES)}},
        "confidence_mask": coded((200 - labels).astype(np.uint8)),
        "present_class_ids": sorted({int(i) + _SHIFT for i in np.unique(labels)}),
    }
    for name in left_out:
        del predictions[name]
    height, width = labels.shape
    return {
        "inference_id": "b3e1",
        "time": 0.08,
        "image": {"width": width, "height": height},
        "predictions": predictions,
    }


class TestRoboflow(DialectContract):
    """Labels and the confidence of each pixel."""

    kind = "roboflow"
    level = CONFIDENCE
    path = "/city/3"
    config: ClassVar[Mapping[str, object]] = {"classes": list(CLASSES)}

    async def answer(self, request: Request, body: bytes) -> Response:
        """The inference route."""
        if self.stranger(request):
            return self.unauthorized()
        if request.url.path != "/city/3" or request.query_params["confidence"] != "0":
            return JSONResponse({"message": "Requested Roboflow resource not found."}, 404)
        assert request.headers["content-type"] == "application/x-www-form-urlencoded"
        labels = truth(pixels_of(base64.b64decode(body, validate=True)))
        return self.told(labels)

    def told(self, labels: UInt8) -> Response:
        """The whole answer."""
        return JSONResponse(answered(labels), headers={"x-model-id": "city/3"})

    def unauthorized(self) -> Response:
        """A wrong key."""
        return JSONResponse({"message": f"Unauthorized access to roboflow API {KEY}"}, 401)

    def throttled(self) -> Response:
        """The rate limit."""
        return JSONResponse({"message": "Too many requests"}, 429)

    def refused_image(self) -> Response:
        """An image that cannot be read."""
        return JSONResponse({"message": "Could not load input image. Cause: ..."}, 400)

    def overloaded(self) -> Response:
        """A model that is being loaded."""
        message = "Model is temporarily not ready - retry request."
        return JSONResponse({"message": message}, 503, {"Retry-After": "1"})


class TestWithConfidence(TestRoboflow):
    """What is particular to answers with a confidence mask."""

    async def test_the_confidence_is_the_vendors_own(self, vendor: Replay) -> None:
        """In steps of 1/255, untouched."""
        picture = make_picture(4)
        height, width, _ = picture.pixels.shape
        async with self.endpoint(vendor) as endpoint:
            stored = await endpoint.predict(picture.body, picture.media_type, CONFIDENCE)
            answer = endpoint.read(stored.blob, height, width, CONFIDENCE)
        assert answer.confidence is not None
        assert np.array_equal(answer.confidence, 200 - truth(picture.pixels))

    async def test_a_missing_confidence_is_not_made_up(self, vendor: Replay) -> None:
        """An answer without one is kept, and says which option reads it."""
        labels = truth(make_picture(1).pixels)
        vendor.faults.append(JSONResponse(answered(labels, confidence_mask=None)))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            with pytest.raises(InvalidValue, match="confidence = false"):
                endpoint.read(stored.blob, labels.shape[0], labels.shape[1], CONFIDENCE)

    async def test_a_class_that_is_not_listed_is_named(self, vendor: Replay) -> None:
        """The background is a class like any other: list it, or say that what is not listed is void."""
        labels = truth(make_picture(1).pixels)
        document = answered(labels)
        document["predictions"]["segmentation_mask"] = coded(np.zeros_like(labels))
        vendor.faults.append(JSONResponse(document))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            with pytest.raises(InvalidValue, match="'background': add it to classes"):
                endpoint.read(stored.blob, labels.shape[0], labels.shape[1], CONFIDENCE)

    @pytest.mark.parametrize(("status", "words"), [(402, "out of credit"), (423, "billing page")])
    async def test_a_plan_that_is_used_up_ends_the_asking(
        self, vendor: Replay, status: int, words: str
    ) -> None:
        """No image is to blame."""
        vendor.faults.append(JSONResponse({"message": "Not enough credits"}, status))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(Refused, match=words):
                await self.ask(endpoint)
        assert vendor.images == 1


class TestLabels(TestRoboflow):
    """An older server, without a confidence mask; what is not listed is void."""

    level = Disclosure(1, 0)
    config: ClassVar[Mapping[str, object]] = {
        "classes": list(CLASSES),
        "roboflow": {"confidence": False, "ignore_unknown": True},
    }

    def told(self, labels: UInt8) -> Response:
        """The older answer."""
        return JSONResponse(answered(labels, confidence_mask=None, present_class_ids=None))


@pytest.mark.parametrize(
    ("values", "url", "words"),
    [
        ({"classes": ["a"]}, "https://serverless.roboflow.com", "PROJECT/VERSION"),
        ({}, "https://serverless.roboflow.com/city/3", "does not say its classes"),
        (
            {"classes": ["a"], "roboflow": {"api_key": "x"}},
            "https://serverless.roboflow.com/city/3",
            "api_key",
        ),
    ],
)
def test_settings_that_cannot_work(values: dict[str, object], url: str, words: str) -> None:
    """Each says the key and what to write."""
    with pytest.raises(SettingsError, match=words):
        spoken_by("roboflow", url, config_from(values, "t.toml"), None)
