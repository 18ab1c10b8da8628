"""Hugging Face, replayed as it documents itself: the router's hf-inference and a dedicated endpoint.

https://huggingface.co/docs/inference-providers/tasks/image-segmentation
https://huggingface.co/docs/inference-endpoints/guides/autoscaling
https://huggingface.co/docs/hub/rate-limits
https://github.com/huggingface/huggingface-inference-toolkit (the container of dedicated endpoints)
"""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as Pillow
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corte_protocol import Disclosure
from corte_protocol.types import VOID_NAME, UInt8
from corte_student.endpoints.config import config_from
from corte_student.endpoints.connecting import guess_kind
from corte_student.endpoints.vendors import spoken_by
from corte_student.errors import (
    AnswerLost,
    BrokeContract,
    ImageRefused,
    Refused,
    SettingsError,
    TeacherError,
    Unavailable,
)
from id_pictures import pixels_of
from pictures import make_picture
from replaying import Replay
from student.dialect_contract import CLASSES, KEY, DialectContract, truth

LABELS = Disclosure(1, 0)
VOID_ID = len(CLASSES)
ROUTER = "https://router.huggingface.co/hf-inference/models/acme/streets"
DEDICATED = "https://jpj7k2q4j805b727.us-east-1.aws.endpoints.huggingface.cloud"


def mask_png(region: npt.NDArray[np.bool_], mode: str = "L") -> str:
    """A region as the pipeline draws it: PNG, mode L, 0 or 255, base64."""
    target = io.BytesIO()
    Pillow.fromarray(region * np.uint8(255)).convert(mode).save(target, "PNG")
    return base64.b64encode(target.getvalue()).decode("ascii")


def item(label: str, region: npt.NDArray[np.bool_], score: float | None = None) -> dict[str, object]:
    """One element of the output."""
    return {"score": score, "label": label, "mask": mask_png(region)}


def segments(labels: UInt8) -> list[dict[str, object]]:
    """A semantic model's answer: a mask for each class that is there, no scores."""
    return [item(name, labels == place) for place, name in enumerate(CLASSES) if (labels == place).any()]


def loading(seconds: object) -> Response:
    """The answer while a model is loaded."""
    return JSONResponse({"error": "Model acme/streets is currently loading", "estimated_time": seconds}, 503)


def limited(wait_s: int, **headers: str) -> Response:
    """The Hub's 429."""
    fields = {
        "ratelimit": f'"api";r=0;t={wait_s}',
        "ratelimit-policy": '"fixed window";"api";q=500;w=300',
        **headers,
    }
    return JSONResponse({"error": "Too Many Requests"}, 429, fields)


class HuggingFaceContract(DialectContract):
    """What both ways share."""

    kind = "huggingface"
    level = LABELS

    def unauthorized(self) -> Response:
        """As the Hub's errors are."""
        words = f"Invalid credentials in Authorization header: {KEY}"
        return JSONResponse({"error": words}, 401, {"X-Error-Message": words})

    def refused_image(self) -> Response:
        """The container's only status."""
        return JSONResponse({"error": f"cannot identify image file, {KEY}"}, 400)


class TestRouter(HuggingFaceContract):
    """A semantic model of hf-inference: the picture's bytes in, one mask a class out."""

    path = "/hf-inference/models/acme/streets"
    config: ClassVar[Mapping[str, object]] = {"classes": list(CLASSES)}

    async def answer(self, request: Request, body: bytes) -> Response:
        """The model's route."""
        if self.stranger(request):
            return self.unauthorized()
        if request.url.path != self.path or request.method != "POST":
            return JSONResponse({"error": "Not Found"}, 404)
        assert request.headers["content-type"] == "image/png"
        return JSONResponse(segments(truth(pixels_of(body))))

    def throttled(self) -> Response:
        """With the wait in `RateLimit`."""
        return limited(1)

    def overloaded(self) -> Response:
        """Loading, nearly done."""
        return loading(0.5)

    async def test_the_pictures_own_bytes_are_sent(self, vendor: Replay) -> None:
        """And JSON is asked for, no picture: the container cannot draw one."""
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        assert vendor.seen[0].body == make_picture(1).body
        assert vendor.seen[0].headers["accept"] == "application/json"
        assert not {"x-scale-up-timeout", "x-hf-bill-to"} & set(vendor.seen[0].headers)

    @pytest.mark.parametrize("estimate", [20.0, 20, 20.4])
    async def test_loading_is_waited_for_as_long_as_it_says(self, vendor: Replay, estimate: float) -> None:
        """Beyond the deadline it ends at once, and says how long."""
        vendor.faults.append(loading(estimate))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(Unavailable, match="still loading the model, to be asked again in 20 s"):
                await self.ask(endpoint)
        assert vendor.images == 1

    async def test_the_longer_wait_counts(self, vendor: Replay) -> None:
        """Of the estimate and Retry-After."""
        fault = loading(0.1)
        fault.headers["retry-after"] = "40"
        vendor.faults.append(fault)
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(Unavailable, match="40 s"):
                await self.ask(endpoint)

    async def test_an_absurd_estimate_is_at_most_a_day(self, vendor: Replay) -> None:
        """Larger than any float, even."""
        vendor.faults.append(
            Response(b'{"estimated_time": 1' + b"0" * 400 + b"}", 503, media_type="application/json")
        )
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(Unavailable, match="86400 s"):
                await self.ask(endpoint)

    @pytest.mark.parametrize("estimate", [None, "soon", True, -1, float("nan"), [20]])
    async def test_an_estimate_that_is_none_is_as_if_not_sent(self, vendor: Replay, estimate: object) -> None:
        """Then it is an ordinary 503."""
        body = json.dumps({"error": "503 Service Unavailable", "estimated_time": estimate}).encode()
        vendor.faults.append(Response(body, 503, {"retry-after": "40"}))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(Unavailable, match="overloaded or not ready, to be asked again in 40 s"):
                await self.ask(endpoint)

    async def test_rate_limit_goes_before_retry_after(self, vendor: Replay) -> None:
        """As in their own client; without it, Retry-After counts."""
        vendor.faults.append(limited(50, **{"retry-after": "1"}))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(TeacherError, match="50 s"):
                await self.ask(endpoint)
        vendor.faults.append(Response(b"", 429, {"retry-after": "45"}))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(TeacherError, match="45 s"):
                await self.ask(endpoint)
        assert vendor.images == 2

    async def test_429_without_a_wait_is_asked_again_soon(self, vendor: Replay) -> None:
        """As some providers behind the router answer."""
        vendor.faults.append(Response(b"", 429))
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        assert vendor.images == 2

    @pytest.mark.parametrize(
        ("status", "error", "raised", "words"),
        [
            (400, "Model not supported by provider hf-inference", Refused, "does not serve this model"),
            (
                400,
                "The requested model 'acme/streets' is not supported by any provider you have enabled.",
                Refused,
                "does not serve this model",
            ),
            (400, "Task image-segmentation not supported for acme/streets", Refused, "does not serve"),
            (400, 'Content type "image/png" not supported.', ImageRefused, "will not take this image"),
            (404, "Not Found", Refused, r"\(404\): look on its page"),
            (410, "https://api-inference.huggingface.co is no longer supported.", Refused, "410"),
            (402, "You have exceeded your monthly included credits.", Refused, "out of credit"),
            (403, "no permission", Refused, "the right to make calls to Inference Providers"),
            (413, "too large", ImageRefused, "will not take this image"),
            (422, "bad parameters", ImageRefused, "will not take this image"),
        ],
    )
    async def test_each_failure_has_its_meaning(
        self, vendor: Replay, status: int, error: str, raised: type[TeacherError], words: str
    ) -> None:
        """Asked once, told without the vendor's text."""
        vendor.faults.append(JSONResponse({"error": f"{error} {KEY}"}, status))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(raised, match=words) as failure:
                await self.ask(endpoint)
        assert type(failure.value) is raised
        assert KEY not in str(failure.value)
        assert vendor.images == 1

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ([{"label": "street", "score": 0.9}], "no masks: check that its task"),
            ([{"label": "car", "score": 0.9, "box": {"xmin": 1}}], "no masks: check that its task"),
            ([{"label": "car", "score": 0.9, "mask": None}], "no masks: check that its task"),
            ({"error": "CUDA out of memory"}, "no prediction"),
            ([{"generated_text": "a street"}], "no prediction"),
            ([["car"]], "no prediction"),
            ("[]", "no prediction"),
            (7, "no prediction"),
            (None, "no prediction"),
        ],
    )
    async def test_what_is_no_prediction_is_not_kept(self, vendor: Replay, body: object, words: str) -> None:
        """JSON of another task, or an error inside a success."""
        vendor.faults.append(JSONResponse(body))
        async with self.endpoint(vendor, paid=True) as endpoint:
            with pytest.raises(BrokeContract, match=words):
                await self.ask(endpoint)
        assert vendor.images == 1


class TestDedicated(HuggingFaceContract):
    """A panoptic model at a URL of its own, with parameters: segments, scores, overlaps."""

    config: ClassVar[Mapping[str, object]] = {
        "classes": list(CLASSES),
        "huggingface": {"subtask": "panoptic", "threshold": 0.5, "scale_up_timeout_s": 600},
    }

    async def answer(self, request: Request, body: bytes) -> Response:
        """The container's only route."""
        if self.stranger(request):
            return self.unauthorized()
        assert (request.url.path, request.method) == ("/", "POST")
        assert request.headers["content-type"] == "application/json"
        assert request.headers["x-scale-up-timeout"] == "600"
        sent = json.loads(body)
        assert sent["parameters"] == {"subtask": "panoptic", "threshold": 0.5}
        labels = truth(pixels_of(base64.b64decode(sent["inputs"], validate=True)))
        upper = np.zeros(labels.shape, np.bool_)
        upper[: labels.shape[0] // 2] = True
        elements = [item("sky", np.ones(labels.shape, np.bool_), 0.4)]
        for place, name in enumerate(CLASSES):
            elements += [item(name, (labels == place) & part, 0.6 + place / 10) for part in (upper, ~upper)]
        return JSONResponse(elements)

    def throttled(self) -> Response:
        """Without a wait."""
        return Response(b"", 429)

    def overloaded(self) -> Response:
        """Scaled to zero, waking up."""
        return JSONResponse({"error": "503 Service Unavailable"}, 503)

    @pytest.mark.parametrize(
        ("status", "error", "raised", "words"),
        [
            (400, "Bad Request: Invalid state", Refused, "is paused"),
            (403, "forbidden", Refused, "the right to read this endpoint"),
            (404, "Not Found", Refused, "knows no such endpoint"),
            (400, "images do not match", ImageRefused, "will not take this image"),
            (400, "Body needs to provide a inputs key", ImageRefused, "will not take this image"),
        ],
    )
    async def test_each_failure_has_its_meaning(
        self, vendor: Replay, status: int, error: str, raised: type[TeacherError], words: str
    ) -> None:
        """Asked once, told without the vendor's text."""
        vendor.faults.append(JSONResponse({"error": f"{error} {KEY}"}, status))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(raised, match=words) as failure:
                await self.ask(endpoint)
        assert type(failure.value) is raised
        assert KEY not in str(failure.value)
        assert vendor.images == 1

    async def test_no_memory_left_passes(self, vendor: Replay) -> None:
        """The container says 400 for it as well; asked again, three times at most."""
        full = {"error": "CUDA out of memory. Tried to allocate 2.00 GiB."}
        vendor.faults.append(JSONResponse(full, 400))
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
            assert vendor.images == 2
            vendor.faults.extend(JSONResponse(full, 400) for _ in range(3))
            with pytest.raises(ImageRefused, match="memory is too small"):
                await self.ask(endpoint)
        assert vendor.images == 5

    async def test_no_memory_left_may_have_been_billed(self, vendor: Replay) -> None:
        """So where requests are paid for, it is not asked again."""
        vendor.faults.append(JSONResponse({"error": "CUDA out of memory."}, 400))
        async with self.endpoint(vendor, paid=True) as endpoint:
            with pytest.raises(AnswerLost):
                await self.ask(endpoint)
        assert vendor.images == 1


def spoken(url: str, key: str | None = KEY, **values: object) -> Any:
    """What is spoken there."""
    config = config_from({"classes": list(CLASSES), **values}, "t")
    return spoken_by("huggingface", url, config, None if key is None else SecretStr(key))


@pytest.mark.parametrize(
    ("url", "model", "target"),
    [
        (ROUTER, None, ROUTER),
        (ROUTER, "acme/streets", ROUTER),
        ("https://router.huggingface.co", "acme/streets", ROUTER),
        ("https://router.huggingface.co/hf-inference", "acme/streets", ROUTER),
        ("https://router.huggingface.co/hf-inference/models", "acme/streets", ROUTER),
        ("https://router.huggingface.co", "segmenter", ROUTER.replace("acme/streets", "segmenter")),
        (DEDICATED, None, DEDICATED),
        (f"{DEDICATED}/predict", None, f"{DEDICATED}/predict"),
    ],
)
def test_the_url_or_the_model_says_where(url: str, model: str | None, target: str) -> None:
    """The router needs a model's name, a dedicated endpoint is its URL; the host tells the kind."""
    dialect = spoken(url, model=model).dialect
    assert dialect.url == target
    assert dialect.dedicated == (target.startswith(DEDICATED))
    assert guess_kind(url) == "huggingface"


@pytest.mark.parametrize(
    ("url", "values", "words"),
    [
        (ROUTER, {"model": "acme/other"}, "names acme/streets, --teacher-config acme/other"),
        ("https://router.huggingface.co", {}, 'write model = "org/name"'),
        ("https://router.huggingface.co", {"model": "../../together"}, 'write model = "org/name"'),
        ("https://router.huggingface.co/together/v1", {}, "hf-inference/models/ORG/NAME"),
        (f"{ROUTER}/pipeline/image-segmentation", {}, "hf-inference/models/ORG/NAME"),
        (DEDICATED, {"model": "acme/streets"}, "a dedicated endpoint holds one model"),
        (ROUTER, {"huggingface": {"scale_up_timeout_s": 60}}, "scale_up_timeout_s: only dedicated"),
        (DEDICATED, {"huggingface": {"bill_to": "acme"}}, "bill_to"),
        (ROUTER, {"huggingface": {"bill_to": "a\r\nb: c"}}, "bill_to"),
        (DEDICATED, {"huggingface": {"scale_up_timeout_s": 0}}, "scale_up_timeout_s"),
        (ROUTER, {"huggingface": {"treshold": 0.5}}, "unknown key 'treshold'; known are subtask, threshold"),
        (ROUTER, {"huggingface": {"threshold": 50}}, "threshold"),
        (ROUTER, {"huggingface": {"subtask": "depth"}}, "subtask"),
        (ROUTER, {"classes": None}, "write `classes ="),
        (ROUTER, {"classes": ["road", VOID_NAME]}, "is added where it is needed"),
    ],
)
def test_wrong_settings_name_the_key(url: str, values: dict[str, object], words: str) -> None:
    """Before anything is sent."""
    with pytest.raises(SettingsError, match=words):
        spoken(url, KEY, **values)


def test_parameters_are_another_teacher() -> None:
    """What changes the answers; not how long it is waited for or how they are read."""
    tables: list[dict[str, object]] = [
        {},
        {"scale_up_timeout_s": 9, "ignore_unknown": True, "void_labels": ["x"]},
        {"subtask": "semantic"},
        {"threshold": 0.0},
    ]
    identities = [spoken(DEDICATED, huggingface=table).dialect.identity for table in tables]
    assert identities[0] == identities[1]
    assert len({*identities, spoken(ROUTER).dialect.identity}) == 4


def test_an_organisation_can_pay() -> None:
    """By the header that their client sends."""
    assert spoken(ROUTER, huggingface={"bill_to": "acme"}).dialect.headers == {"X-HF-Bill-To": "acme"}


def test_without_a_key_nobody_is_named() -> None:
    """A public endpoint takes none."""
    assert not spoken(DEDICATED, key=None).signer.has_key


def test_base64_leaves_less_room() -> None:
    """Where there are parameters; the user may know better."""
    assert spoken(ROUTER).dialect.limits.max_body_bytes == 10_000_000
    assert spoken(ROUTER, huggingface={"threshold": 0.5}).dialect.limits.max_body_bytes == 7_500_000
    assert spoken(ROUTER, max_body_bytes=99).dialect.limits.max_body_bytes == 99
