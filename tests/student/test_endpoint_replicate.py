"""Replicate, replayed as it documents itself; its files lie at a second server, with TLS of its own.

https://replicate.com/docs/reference/http
https://replicate.com/docs/topics/predictions/create-a-prediction
https://replicate.com/docs/topics/predictions/lifecycle
https://replicate.com/docs/topics/predictions/output-files
https://replicate.com/docs/topics/predictions/rate-limits
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import trustme
from PIL import Image as Pillow
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corte_protocol import VOID, Disclosure, InvalidValue
from corte_protocol.types import UInt8
from corte_student.classmap import ClassMap
from corte_student.endpoints import Endpoint
from corte_student.endpoints.answers import Sent
from corte_student.endpoints.config import config_from
from corte_student.endpoints.connecting import guess_kind
from corte_student.endpoints.foreign import ForeignEndpoint
from corte_student.endpoints.http import Http, Links
from corte_student.endpoints.pacing import Pacer
from corte_student.endpoints.sending import Manners, Sender
from corte_student.endpoints.vendors import spoken_by
from corte_student.errors import AnswerLost, BrokeContract, ImageRefused, Refused, SettingsError, TeacherError
from pictures import make_picture
from replaying import Replay, replay
from student.dialect_contract import CLASSES, KEY, DialectContract, truth

LABELS = Disclosure(1, 0)
VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"
COLORS = np.array([[128, 64, 128], [0, 0, 142], [70, 130, 180]], np.uint8)
PALETTE = {"#804080": "road", "#00008e": "car", "#4682b4": "sky"}


def png(values: UInt8) -> bytes:
    """A PNG of uint8 [H, W] or [H, W, 3]."""
    target = io.BytesIO()
    Pillow.fromarray(values).save(target, "PNG")
    return target.getvalue()


def data_uri(data: bytes) -> str:
    """As Replicate's clients write files."""
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def labels_in(uri: str) -> UInt8:
    """What the model says of the picture in a data URI."""
    head, _, coded = uri.partition(",")
    assert head == "data:image/png;base64"
    picture = Pillow.open(io.BytesIO(base64.b64decode(coded, validate=True)))
    return truth(np.asarray(picture.convert("RGB")))


class ReplicateContract(DialectContract):
    """What all ways to name a model share. `delivery` is the server with the files."""

    kind = "replicate"
    level = LABELS
    model: ClassVar[str] = "acme/streets"
    route: ClassVar[str] = "/v1/models/acme/streets/predictions"
    options: ClassVar[Mapping[str, Any]] = {
        "image_field": "picture",
        "input": {"size": "large"},
        "every_s": 0.1,
        "answer": {"encoding": "palette-png", "palette": PALETTE},
    }
    looks: ClassVar[int] = 0

    @pytest.fixture(autouse=True)
    def delivery(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Replay]:
        """replicate.delivery, on loopback under the name localhost."""
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, tuple[int, dict[str, Any]]] = {}
        self.ending = "succeeded"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        leaf = authority.issue_cert("localhost")
        leaf.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
        leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))

        async def file(request: Request, body: bytes) -> Response:
            if request.url.path not in self.files:
                return Response(b"deleted", 404)
            return Response(self.files[request.url.path], media_type="image/png")

        with replay(file, cert=(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))) as running:
            self.delivered = running
            yield running

    def opened(self, vendor: Replay, *, key: str | None = KEY, paid: bool = False) -> Endpoint:
        """As `connect` does, but that files may lie at localhost."""
        values = {"classes": list(CLASSES), "model": self.model, "replicate": dict(self.options)}
        secret = None if key is None else SecretStr(key)
        spoken = spoken_by("replicate", vendor.url, config_from(values, "test.toml"), secret)
        assert spoken.link_hosts == ("replicate.delivery", "*.replicate.delivery")
        http = Http(vendor.url, spoken.signer, connections=4)
        sender = Sender(http, Pacer(4), Manners(20, paid=paid))
        links = Links(("localhost",), private=True)
        return ForeignEndpoint(sender, spoken.dialect, links, has_key=spoken.signer.has_key)

    def delivered_as(self, name: str, data: bytes) -> str:
        """The URL of a file."""
        self.files[f"/{name}"] = data
        return f"https://localhost:{self.delivered.url.rpartition(':')[2]}/{name}"

    def output(self, labels: UInt8) -> object:
        """What the model gives: a file's URL."""
        return self.delivered_as(f"out{len(self.files)}.png", png(COLORS[labels]))

    def prediction(self, vendor: str, number: int, status: str, **more: object) -> dict[str, Any]:
        """The prediction object."""
        get = f"{vendor}/v1/predictions/p{number}"
        return {
            "id": f"p{number}",
            "model": "acme/streets",
            "version": VERSION,
            "logs": "",
            "output": None,
            "error": None,
            "status": status,
            "created_at": "2023-09-08T16:19:34.765994Z",
            "urls": {"get": get, "cancel": f"{get}/cancel"},
            **more,
        }

    async def answer(self, request: Request, body: bytes) -> Response:
        """predictions.create and predictions.get."""
        if self.stranger(request):
            return self.unauthorized()
        here = f"http://{request.headers['host']}"
        if request.method == "GET":
            looked, done = self.jobs[request.url.path]
            self.jobs[request.url.path] = (looked + 1, done)
            number = int(request.url.path.rpartition("p")[2])
            state = "processing" if looked < self.looks else self.ending
            return JSONResponse(
                self.prediction(here, number, state, **(done if state == "succeeded" else {}))
            )
        assert request.url.path == self.route
        sent = json.loads(body)
        self.check(request, sent)
        done = {"input": sent["input"], "output": self.output(labels_in(sent["input"]["picture"]))}
        number = len(self.jobs)
        self.jobs[f"/v1/predictions/p{number}"] = (1, done)
        state = "starting" if self.looks else self.ending
        return JSONResponse(
            self.prediction(here, number, state, **(done if state == "succeeded" else {})),
            201 if state == "succeeded" else 202,
        )

    def check(self, request: Request, sent: dict[str, Any]) -> None:
        """What create wants."""
        assert request.headers["prefer"] == "wait=60"
        assert set(sent) == {"input"}
        assert sent["input"]["size"] == "large"

    def problem(self, status: int, title: str, detail: str, **more: object) -> Response:
        """Replicate's problem documents."""
        return JSONResponse({"title": title, "detail": detail, "status": status, **more}, status)

    def unauthorized(self) -> Response:
        return self.problem(401, "Unauthenticated", "You did not pass a valid authentication token")

    def throttled(self) -> Response:
        return JSONResponse({"detail": "Request was throttled. Your rate limit resets in ~1s."}, 429)

    def refused_image(self) -> Response:
        """The model ran and failed."""
        failed = self.prediction("http://x", 1, "failed", error=f"E1001: out of memory, {KEY}")
        return JSONResponse(failed, 201)

    def overloaded(self) -> Response:
        return Response(b"", 503)


class TestOfficial(ReplicateContract):
    """A model by name, done within the wait, its one file a picture in colours."""

    async def test_files_are_fetched_without_the_key(self, vendor: Replay) -> None:
        """At once, since they are gone within the hour, and from Replicate's hosts alone."""
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            assert np.array_equal(
                endpoint.read(stored.blob, 12, 16, LABELS).labels, truth(make_picture(1).pixels)
            )
        assert len(self.delivered.seen) == 1
        assert "authorization" not in self.delivered.seen[0].headers

    async def test_a_file_that_is_gone_loses_the_answer(self, vendor: Replay) -> None:
        """Told as what it is: paid for, and to be asked again by another run."""
        body = self.prediction("http://x", 1, "succeeded", output=f"{self.delivered_as('a', b'')}gone.png")
        vendor.faults.append(JSONResponse(body, 201))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(AnswerLost, match="cannot be fetched"):
                await self.ask(endpoint)

    @pytest.mark.parametrize("url", ["http://replicate.delivery/a.png", "https://evil.example/a.png"])
    async def test_files_elsewhere_are_not_fetched(self, vendor: Replay, url: str) -> None:
        """Whatever an answer says."""
        vendor.faults.append(JSONResponse(self.prediction("http://x", 1, "succeeded", output=url), 201))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(BrokeContract, match="the answer links to"):
                await self.ask(endpoint)

    async def test_the_first_of_several_files_is_the_mask(self, vendor: Replay) -> None:
        """Others are not fetched."""
        labels = truth(make_picture(1).pixels)
        outputs = [self.output(labels), self.output(labels)]
        vendor.faults.append(JSONResponse(self.prediction("http://x", 1, "succeeded", output=outputs), 201))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            assert np.array_equal(endpoint.read(stored.blob, 12, 16, LABELS).labels, labels)
        assert len(self.delivered.seen) == 1

    async def test_a_small_file_may_stand_in_the_answer(self, vendor: Replay) -> None:
        """As a data URI."""
        labels = truth(make_picture(1).pixels)
        body = self.prediction("http://x", 1, "succeeded", output=data_uri(png(COLORS[labels])))
        vendor.faults.append(JSONResponse(body, 201))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            assert np.array_equal(endpoint.read(stored.blob, 12, 16, LABELS).labels, labels)
        assert self.delivered.seen == []

    async def test_the_version_that_ran_is_the_revision(self, vendor: Replay) -> None:
        """Another version is another revision."""
        async with self.endpoint(vendor) as endpoint:
            first = await self.ask(endpoint)
            body = self.prediction("http://x", 1, "succeeded", output=data_uri(png(COLORS)))
            vendor.faults.append(JSONResponse({**body, "version": "f" * 64}, 201))
            second = await self.ask(endpoint)
        assert "unstated" not in (first.revision, second.revision)
        assert first.revision != second.revision

    async def test_a_colour_without_a_class_is_named(self, vendor: Replay) -> None:
        """Kept, and told with the remedy."""
        body = self.prediction(
            "http://x", 1, "succeeded", output=data_uri(png(np.full((12, 16, 3), 7, np.uint8)))
        )
        vendor.faults.append(JSONResponse(body, 201))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            with pytest.raises(InvalidValue, match="#070707, which has no class: see classes, ids, palette"):
                endpoint.read(stored.blob, 12, 16, LABELS)

    @pytest.mark.parametrize(
        "detail",
        [
            "Request was throttled. Your rate limit resets in ~45s.",
            "Request was throttled. Expected available in 45 seconds.",
            "Request was throttled. Your rate limit for prediction creation is reduced to 6 requests per "
            "minute with a burst of 1 requests while you have less than $5.0 in credit. "
            "Your rate limit resets in ~45s.",
        ],
    )
    async def test_the_wait_is_read_from_the_words(self, vendor: Replay, detail: str) -> None:
        """Beyond the deadline it ends at once, and says how long; a shorter header does not count."""
        vendor.faults.append(JSONResponse({"detail": detail}, 429, {"Retry-After": "1"}))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(TeacherError, match="45 s"):
                await self.ask(endpoint)
        assert vendor.images == 1

    async def test_throttling_without_a_wait_is_asked_again_soon(self, vendor: Replay) -> None:
        """As any 429."""
        vendor.faults.append(JSONResponse({"detail": "Request was throttled."}, 429))
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        assert vendor.images == 2

    @pytest.mark.parametrize(
        ("status", "title", "raised", "words"),
        [
            (402, "Insufficient credit", Refused, "out of credit"),
            (404, "Not found", Refused, "owner/name:version"),
            (422, "Input validation failed", Refused, "image_field"),
        ],
    )
    async def test_what_concerns_every_image_ends_the_asking(
        self, vendor: Replay, status: int, title: str, raised: type[TeacherError], words: str
    ) -> None:
        """With what to look at, and without their text."""
        vendor.faults.append(self.problem(status, title, f"You have {KEY}"))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(raised, match=words) as failure:
                await self.ask(endpoint)
        assert KEY not in str(failure.value)
        assert vendor.images == 1

    @pytest.mark.parametrize("state", ["canceled", "aborted"])
    async def test_what_was_canceled_is_lost(self, vendor: Replay, state: str) -> None:
        """Another run asks again."""
        vendor.faults.append(JSONResponse(self.prediction("http://x", 1, state), 201))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(AnswerLost, match="canceled"):
                await self.ask(endpoint)

    @pytest.mark.parametrize(
        "body",
        [
            {},
            [],
            "succeeded",
            {"status": "succeeded"},
            {"status": "succeeded", "output": []},
            {"status": "succeeded", "output": {"mask": "https://replicate.delivery/x.png"}},
            {"status": "starting"},
            {"status": "starting", "urls": {"get": 7}},
            {"status": "starting", "urls": {"get": "https://[api.replicate.com"}},
            {"status": ["starting"]},
            {"status": "dreaming", "urls": {"get": "x"}},
        ],
    )
    async def test_what_is_no_prediction_is_not_kept(self, vendor: Replay, body: object) -> None:
        """JSON of another shape."""
        vendor.faults.append(JSONResponse(body, 201))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(BrokeContract, match="no prediction"):
                await self.ask(endpoint)


class TestVersion(ReplicateContract):
    """A community model by version, which takes longer than the request is held open; ids in its file."""

    model = f"acme/streets:{VERSION}"
    route = "/v1/predictions"
    options: ClassVar[Mapping[str, Any]] = {
        "image_field": "picture",
        "wait_s": 0,
        "every_s": 0.1,
        "output": "output.mask",
        "answer": {"void_ids": [255]},
    }
    looks = 3

    def check(self, request: Request, sent: dict[str, Any]) -> None:
        """The version is named in the body, and nobody waits."""
        assert "prefer" not in request.headers
        assert sent["version"] == self.model

    def output(self, labels: UInt8) -> object:
        """An object with the file in it."""
        return {"mask": self.delivered_as(f"out{len(self.files)}.png", png(labels)), "score": 0.5}

    async def test_it_is_looked_for_until_it_ends(self, vendor: Replay) -> None:
        """At the URL that the answer gives, with the key."""
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        assert [one.method for one in vendor.seen] == ["POST", "GET", "GET", "GET"]
        assert all(one.headers["authorization"] == f"Bearer {KEY}" for one in vendor.seen)

    async def test_it_may_fail_while_it_is_looked_for(self, vendor: Replay) -> None:
        """Which concerns the image."""
        self.ending = "failed"
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(ImageRefused, match="failed on this image"):
                await self.ask(endpoint)

    async def test_it_is_looked_for_at_the_same_host_only(self, vendor: Replay) -> None:
        """The key goes nowhere else."""
        with replay(self.answer) as other:
            vendor.faults.append(JSONResponse(self.prediction(other.url, 1, "starting"), 202))
            async with self.endpoint(vendor) as endpoint:
                with pytest.raises(BrokeContract, match="another host"):
                    await self.ask(endpoint)
            assert other.seen == []

    async def test_void_ids_are_void(self, vendor: Replay) -> None:
        """255, as in Cityscapes."""
        body = self.prediction(
            "http://x", 1, "succeeded", output={"mask": data_uri(png(np.full((12, 16), 255, np.uint8)))}
        )
        vendor.faults.append(JSONResponse(body, 201))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            answer = endpoint.read(stored.blob, 12, 16, LABELS)
            assert (ClassMap.identity(await endpoint.info()).apply(answer).labels == VOID).all()


class TestMasks(ReplicateContract):
    """A deployment whose output is a list of masks, a file each."""

    model = "deployments/acme/streets"
    route = "/v1/deployments/acme/streets/predictions"
    options: ClassVar[Mapping[str, Any]] = {
        "image_field": "picture",
        "input": {"size": "large"},
        "answer": {"encoding": "class-masks", "items": "output", "label": "label", "mask": "mask"},
    }

    def output(self, labels: UInt8) -> object:
        """Every class, white on black."""
        return [
            {
                "label": name,
                "mask": self.delivered_as(f"{len(self.files)}.png", png((labels == place) * np.uint8(255))),
            }
            for place, name in enumerate(CLASSES)
        ]


def spoken(values: dict[str, Any], url: str = "https://api.replicate.com") -> Any:
    """What is spoken there."""
    return spoken_by("replicate", url, config_from({"classes": list(CLASSES), **values}, "t"), None)


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("acme/streets", "/v1/models/acme/streets/predictions"),
        ("deployments/acme/streets", "/v1/deployments/acme/streets/predictions"),
        (VERSION, "/v1/predictions"),
        (f"acme/streets:{VERSION}", "/v1/predictions"),
    ],
)
def test_a_models_name_is_its_route(model: str, path: str) -> None:
    """With and without /v1 in the URL."""
    for url in ("https://api.replicate.com", "https://api.replicate.com/v1"):
        dialect = spoken({"model": model, "replicate": {}}, url).dialect
        call = dialect.call(Sent(b"", "image/png", 1, 1), LABELS)
        assert call.url == f"https://api.replicate.com{path}"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replicate": {}}, "write model ="),
        ({"model": "streets", "replicate": {}}, "owner/name"),
        ({"model": "acme/streets:latest", "replicate": {}}, "owner/name"),
        ({"model": "../../account", "replicate": {}}, "owner/name"),
        ({"model": "acme/streets", "replicate": {"image": "x"}}, "unknown key 'image'"),
        ({"model": "acme/streets", "replicate": {"wait_s": 61}}, "wait_s"),
        ({"model": "acme/streets", "replicate": {"output": "a["}}, "JMESPath"),
        ({"model": "acme/streets", "replicate": {"answer": {"format": "image"}}}, "answer"),
        ({"model": "acme/streets", "replicate": {"answer": {"palete": {}}}}, "unknown key 'palete'"),
    ],
)
def test_wrong_settings_name_the_key(values: dict[str, Any], words: str) -> None:
    """Before anything is sent."""
    with pytest.raises(SettingsError, match=words):
        spoken(values)


def test_other_inputs_are_another_teacher() -> None:
    """The model and what it is told; not how long it is waited for."""
    tables: list[dict[str, Any]] = [
        {},
        {"wait_s": 5, "every_s": 2.0, "answer": {"void_ids": [255]}},
        {"input": {"threshold": 0.5}},
        {"image_field": "img"},
    ]
    identities = [spoken({"model": "a/b", "replicate": table}).dialect.identity for table in tables]
    assert identities[0] == identities[1]
    assert len({*identities, spoken({"model": "a/c", "replicate": {}}).dialect.identity}) == 4


def test_the_host_alone_tells_the_kind() -> None:
    """No --teacher-kind is needed."""
    assert guess_kind("https://api.replicate.com/v1") == "replicate"
