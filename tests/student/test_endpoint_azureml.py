"""Azure Machine Learning online endpoints, replayed as Microsoft documents them.

https://learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints#http-status-codes
https://learn.microsoft.com/azure/machine-learning/how-to-safely-rollout-online-endpoints
https://learn.microsoft.com/azure/machine-learning/how-to-deploy-advanced-entry-script
"""

import base64
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corte_protocol import Disclosure
from corte_protocol.types import UInt8
from corte_student.endpoints.config import config_from
from corte_student.endpoints.connecting import guess_kind
from corte_student.endpoints.vendors import spoken_by
from corte_student.errors import AnswerLost, BrokeContract, ImageRefused, Refused, SettingsError, TeacherError
from id_pictures import pixels_of, png
from pictures import make_picture
from replaying import Replay
from student.dialect_contract import CLASSES, KEY, DialectContract, truth

URL = "https://streets.westeurope.inference.ml.azure.com/score"
MASK: Mapping[str, object] = {"mask": "mask"}


def model_error(inner: int | str | None) -> Response:
    """A 424, with what the container answered in headers."""
    headers = {"ms-azureml-model-error-reason": "model_error"}
    if inner is not None:
        headers["ms-azureml-model-error-statuscode"] = str(inner)
    return Response(b"an exception of score.py", 424, headers, "text/plain")


class AzureContract(DialectContract):
    """What any score.py owes."""

    kind = "azureml"
    path = "/score"
    level = Disclosure(1, 0)

    def scored(self, request: Request, labels: UInt8) -> Response:
        """What score.py makes of the labels."""
        raise NotImplementedError

    def picture_in(self, request: Request, body: bytes) -> bytes:
        """The picture's bytes in a request."""
        return body

    async def answer(self, request: Request, body: bytes) -> Response:
        """The scoring route."""
        if self.stranger(request):
            return self.unauthorized()
        if request.url.path != "/score" or request.method != "POST":
            return Response(status_code=404)
        response = self.scored(request, truth(pixels_of(self.picture_in(request, body))))
        response.headers["azureml-model-deployment"] = request.headers.get("azureml-model-deployment", "blue")
        response.headers["x-ms-server-version"] = "azmlinfsrv/1.4.0"
        return response

    def unauthorized(self) -> Response:
        """Unauthorized."""
        return JSONResponse({"error": {"code": "UserError", "message": f"bad key {KEY}"}}, 401)

    def throttled(self) -> Response:
        """Too many pending requests."""
        return Response(b"Too many pending requests", 429)

    def refused_image(self) -> Response:
        """score.py answered 400."""
        return model_error(400)

    def overloaded(self) -> Response:
        """The container answered 503."""
        return model_error(503)


class TestRawHttp(AzureContract):
    """`@rawhttp`: the picture in, a PNG of ids out, from one deployment."""

    config: ClassVar[Mapping[str, object]] = {
        "classes": list(CLASSES),
        "azureml": {"deployment": "green", "answer": {"format": "image"}},
    }

    def scored(self, request: Request, labels: UInt8) -> Response:
        """AMLResponse with bytes."""
        if request.headers.get("azureml-model-deployment") != "green":
            return Response(status_code=404)
        return Response(png(labels), 200, media_type="image/png")

    async def test_the_picture_goes_to_the_deployment_as_it_is(self, vendor: Replay) -> None:
        """Its own bytes and type."""
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        assert vendor.seen[0].body == make_picture(1).body
        assert vendor.seen[0].headers["content-type"] == "image/png"
        assert vendor.seen[0].headers["azureml-model-deployment"] == "green"

    async def test_a_model_that_failed_may_have_been_billed(self, vendor: Replay) -> None:
        """Where requests are paid for, it is not asked again."""
        vendor.faults.append(model_error(500))
        async with self.endpoint(vendor, paid=True) as endpoint:
            with pytest.raises(AnswerLost):
                await self.ask(endpoint)
        assert vendor.images == 1

    @pytest.mark.parametrize("inner", [500, 408, None, "", "many", 200])
    async def test_a_model_that_fails_is_tried_again(self, vendor: Replay, inner: int | str | None) -> None:
        """Where nobody pays, whatever the header says."""
        vendor.faults.append(model_error(inner))
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        assert vendor.images == 2

    async def test_too_slow_three_times_costs_the_image(self, vendor: Replay) -> None:
        """408 is `request_timeout_ms`, which the message names; the next image is asked."""
        vendor.faults.extend(Response(status_code=408) for _ in range(3))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(ImageRefused, match="request_timeout_ms"):
                await self.ask(endpoint)
            await self.ask(endpoint)
        assert vendor.images == 4

    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    async def test_what_passes_is_asked_again(self, vendor: Replay, status: int) -> None:
        """Failures of the service, managed or on Kubernetes."""
        vendor.faults.append(Response(status_code=status))
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        assert vendor.images == 2

    @pytest.mark.parametrize(
        ("fault", "raised", "words"),
        [
            (lambda: model_error(415), ImageRefused, "will not take this image"),
            (lambda: model_error(500), ImageRefused, "the model behind it"),
            (lambda: model_error(401), Refused, r"\(424\).*answers 401"),
            (lambda: model_error(404), Refused, r"\(424\).*answers 404"),
            (lambda: Response(status_code=404), Refused, "has no deployment that takes requests"),
            (lambda: Response(status_code=401), Refused, "check CORTE_TEACHER_KEY"),
            (lambda: Response(status_code=403), Refused, "403"),
            (lambda: Response(status_code=413), ImageRefused, "will not take this image"),
            (lambda: Response(b"", 200), BrokeContract, "no prediction"),
            (lambda: JSONResponse({"mask": "x"}), BrokeContract, "no prediction"),
        ],
    )
    async def test_each_failure_has_its_meaning(
        self, vendor: Replay, fault: Any, raised: type[TeacherError], words: str
    ) -> None:
        """Status, and the status that the model answered, tell what the user can do."""
        vendor.faults.extend(fault() for _ in range(3))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(raised, match=words) as failure:
                await self.ask(endpoint)
        assert type(failure.value) is raised


class TestJson(AzureContract):
    """A score.py that takes and gives JSON, as those that Azure generates: `input_data` in."""

    config: ClassVar[Mapping[str, object]] = {
        "classes": list(CLASSES),
        "azureml": {
            "request": {
                "body": "json",
                "template": {"input_data": {"columns": ["image"], "index": [0], "data": ["$image_base64"]}},
            },
            "answer": MASK,
        },
    }

    def picture_in(self, request: Request, body: bytes) -> bytes:
        """Base64 in `data`."""
        assert request.headers["content-type"] == "application/json"
        return base64.b64decode(json.loads(body)["input_data"]["data"][0], validate=True)

    def scored(self, request: Request, labels: UInt8) -> Response:
        """One base64 PNG."""
        return JSONResponse({"mask": base64.b64encode(png(labels)).decode()})

    async def test_the_deployment_that_answered_is_the_revision(self, vendor: Replay) -> None:
        """Traffic goes to another: another revision; nothing said: none."""
        body = {"mask": base64.b64encode(png(truth(make_picture(1).pixels))).decode()}
        async with self.endpoint(vendor) as endpoint:
            first = await self.ask(endpoint)
            vendor.faults.append(JSONResponse(body, headers={"azureml-model-deployment": "green"}))
            second = await self.ask(endpoint)
            vendor.faults.append(JSONResponse(body))
            third = await self.ask(endpoint)
        assert len({first.revision, second.revision, third.revision}) == 3
        assert third.revision == "unstated"
        assert "azureml-model-deployment" not in vendor.seen[0].headers

    async def test_a_failed_run_inside_a_success_is_not_kept(self, vendor: Replay) -> None:
        """score.py catches its exception and returns its text."""
        vendor.faults.append(JSONResponse({"error": "CUDA out of memory"}))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(BrokeContract, match="no prediction"):
                await self.ask(endpoint)


def spoken(options: Mapping[str, object], url: str = URL, **common: object) -> Any:
    """What is spoken, without a network."""
    config = config_from({"classes": ["a", "b"], **common, "azureml": dict(options)}, "t")
    return spoken_by("azureml", url, config, SecretStr(KEY))


def test_the_host_alone_tells_the_kind() -> None:
    """No --teacher-kind is needed."""
    assert guess_kind(URL) == "azureml"


def test_a_deployment_is_a_teacher_of_its_own() -> None:
    """The description of the answer makes no difference, the request does."""
    image = {"answer": {"format": "image"}}
    template = {"body": "json", "template": {"x": "$image_base64"}}
    identities = [
        spoken(options).dialect.identity
        for options in (
            {"answer": MASK},
            image,
            {**image, "deployment": "blue"},
            {**image, "request": template},
        )
    ]
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3


def test_base64_leaves_less_room() -> None:
    """10 MB a request, unless the user knows better."""
    request = {"body": "json", "template": {"x": "$image_base64"}}
    assert spoken({"answer": MASK}).dialect.limits.max_body_bytes == 10_000_000
    assert 7_400_000 < spoken({"answer": MASK, "request": request}).dialect.limits.max_body_bytes < 7_500_000
    assert spoken({"answer": MASK}, max_body_bytes=99).dialect.limits.max_body_bytes == 99


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "answer"),
        ({"answer": {"mask": "["}}, r"\[azureml.answer\].*mask"),
        ({"answer": MASK, "deploy": "x"}, "deploy"),
        ({"answer": MASK, "deployment": "a b"}, "deployment"),
        ({"answer": MASK, "request": {"query": {"a": 1}}}, r"\[azureml.request\].*query"),
        ({"answer": MASK, "request": {"body": "json"}}, r"\[azureml.request\].*template"),
        ({"answer": {"mask": "m", "ids": {"1": "tree"}}}, "tree"),
    ],
)
def test_wrong_settings_name_the_key(options: Mapping[str, object], words: str) -> None:
    """Before anything is sent."""
    with pytest.raises(SettingsError, match=words):
        spoken(options)


def test_classes_are_needed() -> None:
    """No score.py states them."""
    with pytest.raises(SettingsError, match="classes"):
        spoken_by("azureml", URL, config_from({"azureml": {"answer": dict(MASK)}}, "t"), None)
