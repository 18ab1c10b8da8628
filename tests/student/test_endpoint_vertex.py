"""Vertex AI endpoints, replayed as Google documents them; tokens come from a real token server on loopback.

https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.endpoints/rawPredict
https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.endpoints/predict
https://cloud.google.com/vertex-ai/docs/predictions/choose-endpoint-type
https://cloud.google.com/apis/design/errors
https://developers.google.com/identity/protocols/oauth2/service-account#httprest
"""

import base64
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corte_protocol import Disclosure, InvalidValue
from corte_protocol.types import UInt8
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
from replaying import Replay, replay
from student.dialect_contract import CLASSES, KEY, DialectContract, truth

PATH = "/v1/projects/p-1/locations/europe-west4/endpoints/123"
SHARED = f"https://europe-west4-aiplatform.googleapis.com{PATH}"
DEDICATED = f"https://123.europe-west4-456.prediction.vertexai.goog{PATH}"
IMAGE: Mapping[str, object] = {"format": "image"}
MASK: Mapping[str, object] = {"mask": "predictions[0].mask"}
BARE: Mapping[str, object] = {"body": "json", "template": {"a": "$image_base64"}}


def error(code: int, status: str, message: str = "x", details: tuple[object, ...] = ()) -> Response:
    """google.rpc.Status in JSON."""
    told = {"code": code, "message": message, "status": status, "details": list(details)}
    return JSONResponse({"error": told}, code)


def retry_after(delay: str) -> dict[str, str]:
    """google.rpc.RetryInfo."""
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


class VertexContract(DialectContract):
    """What both methods owe."""

    kind = "vertex"
    path = PATH

    def unauthorized(self) -> Response:
        """UNAUTHENTICATED, as for an access token that has ended."""
        reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "ACCESS_TOKEN_EXPIRED"}
        return error(401, "UNAUTHENTICATED", f"Request had invalid credentials {KEY}.", (reason,))

    def throttled(self) -> Response:
        """RESOURCE_EXHAUSTED with a wait."""
        return error(429, "RESOURCE_EXHAUSTED", "Quota exceeded.", (retry_after("0.05s"),))

    def refused_image(self) -> Response:
        """INVALID_ARGUMENT."""
        return error(400, "INVALID_ARGUMENT", "Request payload size exceeds the limit: 1572864 bytes.")

    def overloaded(self) -> Response:
        """UNAVAILABLE."""
        return error(503, "UNAVAILABLE", "The service is currently unavailable.")


class TestRawPredict(VertexContract):
    """The container's own bytes."""

    level = Disclosure(1, 0)
    config: ClassVar[Mapping[str, object]] = {"classes": list(CLASSES), "vertex": {"answer": IMAGE}}

    async def answer(self, request: Request, body: bytes) -> Response:
        """endpoints.rawPredict of a container that answers a PNG of ids."""
        if self.stranger(request):
            return self.unauthorized()
        if request.url.path != f"{PATH}:rawPredict":
            return error(404, "NOT_FOUND")
        headers = {"X-Vertex-AI-Endpoint-Id": "123", "X-Vertex-AI-Deployed-Model-Id": "7"}
        return Response(png(truth(pixels_of(body))), 200, headers, "image/png")

    async def test_the_picture_itself_is_sent(self, vendor: Replay) -> None:
        """Its bytes and its type; the deployed model is the revision."""
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            assert stored.revision == (await self.ask(endpoint)).revision != "unstated"
        assert vendor.seen[0].body == make_picture(1).body
        assert vendor.seen[0].headers["content-type"] == "image/png"

    async def test_another_deployed_model_is_another_revision(self, vendor: Replay) -> None:
        """A traffic split mixes two models, and is told."""
        async with self.endpoint(vendor) as endpoint:
            first = await self.ask(endpoint)
            body = png(truth(make_picture(1).pixels))
            vendor.faults.append(Response(body, 200, {"X-Vertex-AI-Deployed-Model-Id": "8"}, "image/png"))
            assert (await self.ask(endpoint)).revision != first.revision

    async def test_the_wait_that_google_asks_for_is_kept(self, vendor: Replay) -> None:
        """google.rpc.RetryInfo: beyond the deadline nobody waits, and the message says for how long."""
        vendor.faults.append(error(429, "RESOURCE_EXHAUSTED", "x", (retry_after("3600s"),)))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(Unavailable, match="3600 s"):
                await self.ask(endpoint)
        assert vendor.images == 1

    @pytest.mark.parametrize(
        "details", [({"retryDelay": "soon"},), ({"retryDelay": 5},), ({"retryDelay": "1e9s"},), ("text",), ()]
    )
    async def test_a_wait_that_makes_no_sense_is_none(
        self, vendor: Replay, details: tuple[object, ...]
    ) -> None:
        """It is asked again all the same."""
        vendor.faults.append(error(503, "UNAVAILABLE", "x", details))
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        assert vendor.images == 2

    @pytest.mark.parametrize(
        ("fault", "raised", "words"),
        [
            (lambda: error(403, "PERMISSION_DENIED"), Refused, r"\(403\).*Vertex AI User"),
            (lambda: error(404, "NOT_FOUND"), Refused, "check --teacher-url"),
            (lambda: error(400, "FAILED_PRECONDITION"), Refused, "a model is deployed"),
            (
                lambda: error(400, "INVALID_ARGUMENT", "x", ({"reason": "API_KEY_INVALID"},)),
                Refused,
                "access token",
            ),
            (lambda: error(401, "UNAUTHENTICATED"), Refused, "access token.*CORTE_TEACHER_KEY"),
            (lambda: Response(b"{}", 401), Refused, "access token"),
            (lambda: Response(b"not JSON", 403), Refused, "Vertex AI User"),
            (lambda: JSONResponse([{"error": {"status": 5}}], 400), ImageRefused, "will not take this image"),
            (lambda: error(500, "INTERNAL"), ImageRefused, "it failed"),
            (lambda: Response(b"", 200), BrokeContract, "no prediction"),
            (lambda: JSONResponse({"predictions": []}), BrokeContract, "no prediction"),
        ],
    )
    async def test_each_failure_has_its_meaning(
        self, vendor: Replay, fault: Any, raised: type[TeacherError], words: str
    ) -> None:
        """Google's status tells what the user can do."""
        vendor.faults.extend(fault() for _ in range(3))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(raised, match=words) as failure:
                await self.ask(endpoint)
        assert type(failure.value) is raised


class TestPredict(VertexContract):
    """Instances in, predictions out."""

    level = Disclosure(1, 0)
    config: ClassVar[Mapping[str, object]] = {
        "classes": list(CLASSES),
        "vertex": {"method": "predict", "answer": MASK},
    }

    async def answer(self, request: Request, body: bytes) -> Response:
        """endpoints.predict."""
        if self.stranger(request):
            return self.unauthorized()
        if request.url.path != f"{PATH}:predict" or request.headers["content-type"] != "application/json":
            return error(404, "NOT_FOUND")
        document = json.loads(body)
        assert list(document) == ["instances"]
        (instance,) = document["instances"]
        picture = base64.b64decode(instance["b64"], validate=True)
        return self.predicted(truth(pixels_of(picture)))

    def predicted(self, labels: UInt8, **ids: str) -> Response:
        """PredictResponse."""
        return JSONResponse(
            {
                "predictions": [{"mask": base64.b64encode(png(labels)).decode()}],
                "deployedModelId": "7",
                "model": "projects/1/locations/europe-west4/models/456",
                "modelVersionId": "2",
                "modelDisplayName": "streets",
                **ids,
            }
        )

    async def test_the_deployed_model_and_its_version_are_the_revision(self, vendor: Replay) -> None:
        """Either of them another: another revision."""
        labels = truth(make_picture(1).pixels)
        async with self.endpoint(vendor) as endpoint:
            revisions = {(await self.ask(endpoint)).revision}
            for ids in ({"modelVersionId": "3"}, {"deployedModelId": "8"}):
                vendor.faults.append(self.predicted(labels, **ids))
                revisions.add((await self.ask(endpoint)).revision)
        assert len(revisions) == 3

    async def test_an_answer_without_a_version_has_none(self, vendor: Replay) -> None:
        """Nothing is made up."""
        mask = base64.b64encode(png(truth(make_picture(1).pixels))).decode()
        vendor.faults.append(JSONResponse({"predictions": [{"mask": mask}]}))
        async with self.endpoint(vendor) as endpoint:
            assert (await self.ask(endpoint)).revision == "unstated"

    @pytest.mark.parametrize(
        "body", [{"predictions": []}, {"predictions": [{"mask": 5}]}, {"error": "out of memory"}, [], "x"]
    )
    async def test_an_answer_without_the_mask_is_not_kept(self, vendor: Replay, body: object) -> None:
        """Errors that a container hides in a 200 included."""
        vendor.faults.append(JSONResponse(body))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(BrokeContract, match="no prediction"):
                await self.ask(endpoint)

    async def test_an_unknown_id_is_named_at_reading(self, vendor: Replay) -> None:
        """The answer is kept."""
        vendor.faults.append(self.predicted(np.full((12, 16), 9, np.uint8)))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            with pytest.raises(InvalidValue, match="9"):
                endpoint.read(stored.blob, 12, 16, self.level)


async def test_a_template_of_ones_own_is_filled_in() -> None:
    """AutoML's instance schema, with parameters, and confidence for each pixel in the answer.

    https://cloud.google.com/vertex-ai/docs/reference/rest/v1/ImageSegmentationPredictionInstance (instance),
    https://cloud.google.com/vertex-ai/docs/reference/rest/v1/ImageSegmentationPredictionResult (prediction)
    """
    picture = make_picture(1)
    labels = truth(picture.pixels)
    sure = np.full(labels.shape, 200, np.uint8)

    async def answer(request: Request, body: bytes) -> Response:
        document = json.loads(body)
        assert document["parameters"] == {"confidenceThreshold": 0.5}
        assert document["instances"][0]["mimeType"] == "image/png"
        assert base64.b64decode(document["instances"][0]["content"]) == picture.body
        texts = [base64.b64encode(png(plane)).decode() for plane in (labels, sure)]
        return JSONResponse({"predictions": [{"categoryMask": texts[0], "confidenceMask": texts[1]}]})

    options = {
        "request": {
            "body": "json",
            "template": {
                "instances": [{"content": "$image_base64", "mimeType": "image/png"}],
                "parameters": {"confidenceThreshold": 0.5},
            },
        },
        "answer": {"mask": "predictions[0].categoryMask", "confidence": "predictions[0].confidenceMask"},
    }
    with replay(answer) as vendor:
        config = config_from({"classes": list(CLASSES), "vertex": options}, "t")
        access = Access(f"{vendor.url}{PATH}:predict", "vertex", config, SecretStr(KEY))
        endpoint = connect(access, deadline_s=20, connections=4)
        try:
            level = (await endpoint.info()).disclosure
            stored = await endpoint.predict(picture.body, picture.media_type, level)
            read = endpoint.read(stored.blob, 12, 16, level)
        finally:
            await endpoint.aclose()
    assert level == Disclosure(1, 8)
    assert np.array_equal(read.labels, labels)
    assert read.probs is not None
    assert np.array_equal(read.probs[0], sure)


@pytest.fixture(scope="module")
def secret() -> str:
    """A private key, PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


class TestTokens:
    """Without a key, google-auth fetches access tokens for the service account of the environment."""

    @pytest.fixture
    def google(self, secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replay]:
        """The endpoint and the token server in one, and the account's file in the environment."""
        granted = iter(range(1, 100))

        async def answer(request: Request, body: bytes) -> Response:
            if request.url.path == "/token":
                assert b"jwt-bearer" in body
                return JSONResponse(
                    {"access_token": f"ya29.{next(granted)}", "expires_in": 3600, "token_type": "Bearer"}
                )
            if request.headers.get("authorization") != "Bearer ya29.1":
                return error(401, "UNAUTHENTICATED")
            return Response(png(truth(pixels_of(body))), 200, media_type="image/png")

        with replay(answer) as running:
            file = tmp_path / "account.json"
            account = {
                "type": "service_account",
                "client_email": "student@p-1.iam.gserviceaccount.com",
                "private_key": secret,
                "private_key_id": "1",
                "project_id": "p-1",
                "token_uri": f"{running.url}/token",
            }
            file.write_text(json.dumps(account))
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
            yield running

    def opened(self, google: Replay) -> Endpoint:
        """Without a key."""
        config = config_from({"classes": list(CLASSES), "vertex": {"answer": IMAGE}}, "t")
        return connect(Access(google.url + PATH, "vertex", config), deadline_s=20, connections=4)

    async def test_a_token_is_fetched_once_and_sent_with_every_picture(
        self, google: Replay, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It lives for an hour, and is in no log."""
        caplog.set_level(logging.DEBUG)
        endpoint = self.opened(google)
        try:
            for seed in (1, 2):
                picture = make_picture(seed)
                await endpoint.predict(picture.body, picture.media_type, Disclosure(1, 0))
        finally:
            await endpoint.aclose()
        assert [urlsplit(one.target).path for one in google.seen].count("/token") == 1
        assert len(google.seen) == 3
        assert "ya29" not in caplog.text

    @pytest.mark.parametrize("broken", ["absent", "refused"])
    async def test_no_token_is_told_with_the_remedy(
        self, google: Replay, broken: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No file, or a server that grants nothing: no picture is sent."""
        if broken == "absent":
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/account.json")
        else:
            google.faults.append(JSONResponse({"error": "invalid_grant"}, 400))
        endpoint = self.opened(google)
        picture = make_picture(1)
        try:
            with pytest.raises(Refused, match="gcloud auth application-default login"):
                await endpoint.predict(picture.body, picture.media_type, Disclosure(1, 0))
        finally:
            await endpoint.aclose()
        assert all(urlsplit(one.target).path == "/token" for one in google.seen)


@pytest.mark.parametrize("url", [SHARED, DEDICATED])
def test_the_host_alone_tells_the_kind(url: str) -> None:
    """No --teacher-kind is needed."""
    assert guess_kind(url) == "vertex"


@pytest.mark.parametrize(
    ("url", "method", "most"),
    [
        (SHARED, "rawPredict", 1_500_000),
        (DEDICATED, "rawPredict", 10_000_000),
        (f"{SHARED}:predict", None, 1_100_000),
        (DEDICATED, "predict", 7_490_000),
    ],
)
def test_limits_are_those_of_the_kind_of_endpoint(url: str, method: str | None, most: int) -> None:
    """1.5 MB or 10 MB a request, of which base64 takes a quarter."""
    options = {"answer": MASK} if method is None else {"answer": MASK, "method": method}
    spoken = spoken_by(
        "vertex", url, config_from({"classes": ["a", "b"], "vertex": options}, "t"), SecretStr(KEY)
    )
    assert most <= spoken.dialect.limits.max_body_bytes <= most * 1.03
    told = {"classes": ["a", "b"], "max_body_bytes": 5, "vertex": options}
    spoken = spoken_by("vertex", url, config_from(told, "t"), SecretStr(KEY))
    assert spoken.dialect.limits.max_body_bytes == 5


def test_what_is_asked_tells_teachers_apart() -> None:
    """The description of the answer does not: mended, it reads the same stored answers."""

    def identity(url: str, **options: object) -> str:
        config = config_from({"classes": ["a", "b"], "vertex": {"answer": MASK, **options}}, "t")
        return spoken_by("vertex", url, config, SecretStr(KEY)).dialect.identity

    same = {identity(SHARED), identity(f"{SHARED}:rawPredict"), identity(SHARED, answer=IMAGE)}
    assert len(same) == 1
    assert len({*same, identity(SHARED, method="predict"), identity(DEDICATED)}) == 3


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        (SHARED, {}, "answer"),
        (SHARED, {"answer": {}}, r"\[vertex.answer\].*mask"),
        (SHARED, {"answer": IMAGE, "metod": "predict"}, "metod"),
        (SHARED, {"answer": IMAGE, "method": "explain"}, "method"),
        (SHARED, {"answer": IMAGE, "method": "predict"}, "predict answers JSON"),
        (f"{SHARED}:predict", {"answer": MASK, "method": "rawPredict"}, "keep one"),
        (SHARED, {"answer": IMAGE, "request": {"path": "/x"}}, r"\[vertex.request\].*path"),
        (SHARED, {"answer": MASK, "method": "predict", "request": {"body": "image"}}, "instances"),
        (
            SHARED,
            {
                "answer": MASK,
                "method": "predict",
                "request": {"body": "json", "template": {"a": "$image_base64"}},
            },
            "instances",
        ),
        (SHARED, {"answer": {"format": "image", "ids": {"1": "tree"}}}, "tree"),
        (
            "https://europe-west4-aiplatform.googleapis.com/v1/endpoints/1",
            {"answer": IMAGE},
            "endpoints/ENDPOINT",
        ),
        (f"{SHARED}:explain", {"answer": IMAGE}, "endpoints/ENDPOINT"),
    ],
)
def test_wrong_settings_name_the_key(url: str, options: dict[str, object], words: str) -> None:
    """Before anything is sent."""
    with pytest.raises(SettingsError, match=words):
        spoken_by("vertex", url, config_from({"classes": ["a", "b"], "vertex": options}, "t"), SecretStr(KEY))


def test_classes_are_needed() -> None:
    """No container states them."""
    with pytest.raises(SettingsError, match="classes"):
        spoken_by("vertex", SHARED, config_from({"vertex": {"answer": IMAGE}}, "t"), SecretStr(KEY))
