"""Hugging Face's image-segmentation task, replayed as documented.

https://huggingface.co/docs/inference-providers/tasks/image-segmentation
https://huggingface.co/docs/hub/rate-limits
"""

import base64
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corte_protocol import Disclosure, InvalidValue
from corte_protocol.types import VOID_NAME, UInt8
from corte_student.endpoints.config import config_from
from corte_student.endpoints.vendors import spoken_by
from corte_student.errors import Refused, SettingsError
from id_pictures import pixels_of, png
from pictures import make_picture
from replaying import Replay
from student.dialect_contract import CLASSES, KEY, DialectContract, truth

LABELS = Disclosure(1, 0)
ROUTER = "https://router.huggingface.co/hf-inference"


def segment(mask: UInt8, label: str, score: float | None = None) -> dict[str, Any]:
    """One element of the answer."""
    picture = png((mask.astype(np.uint8) * 255).astype(np.uint8))
    return {"score": score, "label": label, "mask": base64.b64encode(picture).decode()}


def segments(labels: UInt8) -> list[dict[str, Any]]:
    """One mask for each class present, as a semantic model's pipeline makes them."""
    return [segment(labels == i, name) for i, name in enumerate(CLASSES) if (labels == i).any()]


class TestRaw(DialectContract):
    """The image's own bytes to a model's URL."""

    kind = "huggingface"
    level = LABELS
    path = "/models/nvidia/segformer-b0"
    config: ClassVar[Mapping[str, object]] = {"classes": list(CLASSES)}

    def image_in(self, request: Request, body: bytes) -> bytes:
        """The picture in a request."""
        assert request.headers["content-type"] == "image/png"
        return body

    async def answer(self, request: Request, body: bytes) -> Response:
        """The pipeline."""
        if self.stranger(request):
            return self.unauthorized()
        if request.url.path != "/models/nvidia/segformer-b0" or request.headers.get("accept") == "image/png":
            return JSONResponse({"error": "Not Found"}, 404)
        return JSONResponse(segments(truth(pixels_of(self.image_in(request, body)))))

    def unauthorized(self) -> Response:
        """A wrong token."""
        return JSONResponse({"error": f"Invalid username or password {KEY}"}, 401)

    def throttled(self) -> Response:
        """The Hub's rate limit, without Retry-After."""
        headers = {"ratelimit": '"api";r=0;t=1', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}
        return JSONResponse({"error": "Too Many Requests"}, 429, headers)

    def refused_image(self) -> Response:
        """Any failure of the default container."""
        return JSONResponse({"error": "cannot identify image file"}, 400)

    def overloaded(self) -> Response:
        """A model that loads."""
        return JSONResponse(
            {"error": "Model nvidia/segformer-b0 is currently loading", "estimated_time": 0.2}, 503
        )

    async def test_an_unknown_label_is_named_with_the_remedy(self, vendor: Replay) -> None:
        """The answer is kept, reading it says what to add."""
        picture = make_picture(1)
        height, width, _ = picture.pixels.shape
        vendor.faults.append(JSONResponse([segment(np.ones((height, width), np.uint8), "zebra")]))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            with pytest.raises(InvalidValue, match="'zebra': add it to classes"):
                endpoint.read(stored.blob, height, width, LABELS)

    async def test_overlaps_go_to_the_higher_score_and_gaps_to_void(self, vendor: Replay) -> None:
        """Panoptic segments may overlap and leave pixels; a score settles which, and is no confidence."""
        height, width, _ = make_picture(1).pixels.shape
        left, middle = np.zeros((2, height, width), np.uint8)
        left[:, :8], middle[:, 4:12] = 1, 1
        vendor.faults.append(JSONResponse([segment(left, "road", 0.6), segment(middle, "car", 0.9)]))
        async with self.endpoint(vendor) as endpoint:
            names = (await endpoint.info()).classes
            stored = await self.ask(endpoint)
            answer = endpoint.read(stored.blob, height, width, LABELS)
        assert answer.probs is None
        row = [names[i] for i in answer.labels[0].tolist()]
        assert row == ["road"] * 4 + ["car"] * 8 + [VOID_NAME] * 4

    async def test_a_model_that_cannot_do_it_ends_the_asking(self, vendor: Replay) -> None:
        """It is no fault of the image."""
        vendor.faults.append(JSONResponse({"error": "Task image-segmentation not supported for X"}, 400))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(Refused, match="--teacher-url"):
                await self.ask(endpoint)


class TestParameters(TestRaw):
    """JSON with parameters, and the router with the model's name in the config."""

    path = ""
    config: ClassVar[Mapping[str, object]] = {
        "classes": list(CLASSES),
        "model": "nvidia/segformer-b0",
        "huggingface": {"subtask": "semantic", "threshold": 0.5, "scale_up_s": 60},
    }

    def image_in(self, request: Request, body: bytes) -> bytes:
        """The picture in the JSON."""
        document = json.loads(body)
        assert document["parameters"] == {"subtask": "semantic", "threshold": 0.5}
        assert request.headers["x-scale-up-timeout"] == "60"
        return base64.b64decode(document["inputs"], validate=True)


@pytest.mark.parametrize(
    ("values", "url", "words"),
    [
        ({"classes": ["a"]}, ROUTER, 'write model = "OWNER/NAME"'),
        ({"classes": ["a"], "model": "../x?y"}, ROUTER, "no OWNER/NAME"),
        ({}, f"{ROUTER}/models/a/b", "does not say its classes"),
        (
            {"classes": ["a"], "huggingface": {"subtasc": "x"}},
            f"{ROUTER}/models/a/b",
            "unknown key 'subtasc'",
        ),
        ({"classes": ["a", VOID_NAME]}, f"{ROUTER}/models/a/b", "leave it out"),
    ],
)
def test_settings_that_cannot_work(values: dict[str, object], url: str, words: str) -> None:
    """Each says the key and what to write."""
    with pytest.raises(SettingsError, match=words.replace("(", r"\(")):
        spoken_by("huggingface", url, config_from(values, "t.toml"), None)
