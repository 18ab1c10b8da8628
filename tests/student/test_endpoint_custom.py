"""Vendors described in TOML alone: Clarifai as it documents itself, and one with polling and run lengths.

https://docs.clarifai.com/api-guide/predict/images
https://docs.clarifai.com/resources/api-overview/api-outputs
https://docs.clarifai.com/resources/api-overview/status-codes/
https://docs.clarifai.com/api-guide/api-overview/rate-limits
https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c (run lengths)
"""

import base64
import io
import json
import tomllib
from collections.abc import Mapping
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as Pillow
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corte_protocol import VOID, Disclosure, InvalidValue, ProtocolError
from corte_protocol.types import UInt8
from corte_student.classmap import ClassMap
from corte_student.endpoints import Access, connect
from corte_student.endpoints.answers import Sent
from corte_student.endpoints.config import config_from
from corte_student.endpoints.vendors import spoken_by
from corte_student.errors import AnswerLost, BrokeContract, ImageRefused, Refused, SettingsError
from pictures import make_picture
from replaying import Replay, replay
from student.dialect_contract import CLASSES, KEY, DialectContract, truth

TEACHERS = Path(__file__).parents[2] / "examples" / "teachers"
LABELS = Disclosure(1, 0)
VOID_RLE = {"size": [12, 16], "counts": [192]}


def example(name: str, *, every_s: float | None = None) -> dict[str, Any]:
    """A file of examples/teachers with the contract's classes, and another pace."""
    values = tomllib.loads((TEACHERS / name).read_text())
    if every_s is not None:
        values["custom"]["poll"]["every_s"] = every_s
    return {**values, "classes": list(CLASSES)}


def pixels_of(body: bytes) -> UInt8:
    """The picture in encoded bytes, uint8 [H, W, 3]."""
    return np.asarray(Pillow.open(io.BytesIO(body)).convert("RGB"))


def png(values: npt.NDArray[Any], mode: str | None = None) -> bytes:
    """A PNG of uint8 [H, W] or [H, W, 3]."""
    target = io.BytesIO()
    picture = Pillow.fromarray(values)
    (picture if mode is None else picture.convert(mode)).save(target, "PNG")
    return target.getvalue()


def text(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode("ascii")


def run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed counts: down the columns, zeros first."""
    counts, value, run = [], False, 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            counts.append(run)
            value, run = pixel, 0
        run += 1
    return [*counts, run]


def compressed(counts: list[int]) -> str:
    """rleToString of maskApi.c, digit by digit."""
    out = ""
    for place, count in enumerate(counts):
        number = count - counts[place - 2] if place > 2 else count
        while True:
            digit = number & 31
            number >>= 5
            more = number != -1 if digit & 16 else number != 0
            out += chr(48 + digit + (32 if more else 0))
            if not more:
                break
    return out


class TestClarifai(DialectContract):
    """examples/teachers/clarifai.toml, its classes aside, word for word."""

    kind = "custom"
    level = LABELS
    config: ClassVar[Mapping[str, object]] = example("clarifai.toml")
    path_there = "/v2/users/clarifai/apps/main/models/image-general-segmentation/outputs"

    def stranger(self, request: Request) -> bool:
        """Clarifai's keys come after the word Key."""
        return request.headers.get("authorization") != f"Key {KEY}"

    def outputs(self, labels: UInt8, *more: dict[str, Any]) -> Response:
        """The documented answer: one region a concept, its mask a PNG."""
        regions = [
            {
                "id": f"region{place}",
                "region_info": {"mask": {"image": {"base64": text(png((labels == place) * np.uint8(255)))}}},
                "data": {
                    "concepts": [{"id": f"ai_{place}", "name": name, "value": 0.2198, "app_id": "main"}]
                },
            }
            for place, name in enumerate(CLASSES)
            if (labels == place).any()
        ]
        output = {
            "id": "a03a4b326e3041e88983a88b58c41f2b",
            "status": {"code": 10000, "description": "Ok"},
            "created_at": "2025-02-28T09:41:55.568082659Z",
            "model": {"id": "image-general-segmentation", "model_version": {"id": "1581820110264581908ce"}},
            "data": {"regions": [*regions, *more]},
        }
        status = {"code": 10000, "description": "Ok", "req_id": "20ab5bcf0566429f9b350e50372456ce"}
        return JSONResponse({"status": status, "outputs": [output]})

    async def answer(self, request: Request, body: bytes) -> Response:
        """PostModelOutputs."""
        if self.stranger(request):
            return self.unauthorized()
        if request.method != "POST" or request.url.path != self.path_there:
            return self.failed(11101, "Resource does not exist", 404)
        image = json.loads(body)["inputs"][0]["data"]["image"]["base64"]
        return self.outputs(truth(pixels_of(base64.b64decode(image, validate=True))))

    def failed(self, code: int | str, description: str, status: int) -> Response:
        """Whatever fails says so in the same place."""
        return JSONResponse({"status": {"code": code, "description": description, "req_id": "1"}}, status)

    def unauthorized(self) -> Response:
        """11009 CONN_KEY_NOT_FOUND."""
        return self.failed(11009, "API key not found", 401)

    def throttled(self) -> Response:
        """The code as a name, as the page about rate limits shows it."""
        return self.failed("CONN_THROTTLED", "Making too many requests", 429)

    def refused_image(self) -> Response:
        """21313 MODEL_PREDICTION_FAILED, inside a success."""
        mixed = {"code": 10010, "description": "Mixed Success", "req_id": "1"}
        output = {"status": {"code": 21313, "description": "Model prediction failed"}}
        return JSONResponse({"status": mixed, "outputs": [output]})

    def overloaded(self) -> Response:
        """21352: the model is queued for deployment, inside a success."""
        return self.failed(21352, "Model is currently in queue to be deployed.", 200)

    @pytest.mark.parametrize("code", [11005, 10030, 21351])
    async def test_what_passes_inside_a_success_is_asked_again(self, vendor: Replay, code: int) -> None:
        """Also where requests are paid for."""
        vendor.faults.append(self.failed(code, "later", 200))
        async with self.endpoint(vendor, paid=True) as endpoint:
            await self.ask(endpoint)
        assert vendor.images == 2

    async def test_an_error_that_is_not_listed_ends_the_asking(self, vendor: Replay) -> None:
        """With its number, and without the vendor's text, which may echo anything."""
        vendor.faults.append(self.failed(11007, f"scopes of {KEY}", 200))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(Refused, match=r"error of its own 11007.*refused_image") as failure:
                await self.ask(endpoint)
        assert KEY not in str(failure.value)

    async def test_an_error_by_name_is_told_without_it(self, vendor: Replay) -> None:
        """A name is text."""
        vendor.faults.append(self.failed(f"BAD {KEY}", "", 200))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(Refused, match="error of its own: look it up") as failure:
                await self.ask(endpoint)
        assert KEY not in str(failure.value)

    async def test_pixels_that_no_region_covers_are_void(self, vendor: Replay) -> None:
        """As are those of the concept unlabeled, and of concepts that were not asked for."""
        labels = np.full((12, 16), 9, np.uint8)
        labels[:4] = 1
        unlabelled = {
            "region_info": {"mask": {"image": {"base64": text(png(np.full((12, 16), 255, np.uint8)))}}},
            "data": {"concepts": [{"name": "unlabeled", "value": 0.5}]},
        }
        vendor.faults.append(self.outputs(labels, unlabelled))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            answer = endpoint.read(stored.blob, 12, 16, LABELS)
            mapped = ClassMap.identity(await endpoint.info()).apply(answer).labels
        assert (mapped[:4] == 1).all()
        assert (mapped[4:] == VOID).all()

    async def test_an_image_without_regions_is_all_void(self, vendor: Replay) -> None:
        """Protobuf leaves an empty list out."""
        body = {"status": {"code": 10000}, "outputs": [{"status": {"code": 10000}, "data": {}}]}
        vendor.faults.append(JSONResponse(body))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            answer = endpoint.read(stored.blob, 12, 16, LABELS)
            assert (ClassMap.identity(await endpoint.info()).apply(answer).labels == VOID).all()

    async def test_the_models_version_is_the_revision(self, vendor: Replay) -> None:
        """Stated in every answer."""
        async with self.endpoint(vendor) as endpoint:
            assert (await self.ask(endpoint)).revision != "unstated"


class TestInvented(DialectContract):
    """examples/teachers/custom.toml: made while we wait, run lengths, scores, codes of its own."""

    kind = "custom"
    level = LABELS
    config: ClassVar[Mapping[str, object]] = example("custom.toml", every_s=0.1)

    @pytest.fixture(autouse=True)
    def _jobs(self) -> None:
        self.jobs: dict[str, tuple[int, UInt8]] = {}
        self.looks = 2
        self.ending = "finished"

    async def answer(self, request: Request, body: bytes) -> Response:
        """A job, and its state at each look."""
        if self.stranger(request):
            return self.unauthorized()
        if request.method == "GET":
            looked, labels = self.jobs[request.url.path]
            self.jobs[request.url.path] = (looked + 1, labels)
            if looked < self.looks:
                return JSONResponse({"state": "running", "links": {"self": request.url.path}})
            if self.ending != "finished":
                return JSONResponse({"state": self.ending, "reason": f"it echoes {KEY}"})
            return JSONResponse({"state": "finished", **self.segments(labels)})
        assert request.url.path == "/v1/models/streets/segment"
        sent = json.loads(body)
        assert sent["options"] == {"masks": "rle"}
        head, _, data = sent["input"]["picture"].partition(",")
        assert head == "data:image/png;base64"
        pixels = pixels_of(base64.b64decode(data, validate=True))
        assert (sent["input"]["height"], sent["input"]["width"]) == pixels.shape[:2]
        job = f"/v1/jobs/{len(self.jobs)}"
        self.jobs[job] = (0, truth(pixels))
        return JSONResponse({"state": "queued", "links": {"self": job}}, 202)

    def segments(self, labels: UInt8) -> dict[str, Any]:
        """One run-length encoded mask a class, every other one compressed."""
        found = []
        for place, name in enumerate(CLASSES):
            counts: list[int] | str = run_lengths(labels == place)
            if place % 2 and isinstance(counts, list):
                counts = compressed(counts)
            found.append({"class": {"name": name}, "rle": {"size": list(labels.shape), "counts": counts}})
        return {"result": {"segments": found, "model": {"version": "7"}}}

    def unauthorized(self) -> Response:
        return JSONResponse({"error": {"code": "NO_KEY"}}, 401)

    def throttled(self) -> Response:
        return JSONResponse({"error": {"code": "BUSY"}}, 400)

    def refused_image(self) -> Response:
        return JSONResponse({}, 410)

    def overloaded(self) -> Response:
        return JSONResponse({}, 409)

    async def test_it_is_looked_for_with_the_key_until_it_is_done(self, vendor: Replay) -> None:
        """One question that costs, and as many looks as it takes."""
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        assert [one.method for one in vendor.seen] == ["POST", "GET", "GET", "GET"]
        assert all(one.headers["authorization"] == f"Bearer {KEY}" for one in vendor.seen)

    async def test_a_job_that_failed_concerns_its_image(self, vendor: Replay) -> None:
        """The reason is not repeated."""
        self.ending = "failed"
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(ImageRefused, match="failed on it") as failure:
                await self.ask(endpoint)
        assert KEY not in str(failure.value)

    async def test_another_host_is_never_asked_with_the_key(self, vendor: Replay) -> None:
        """Where the answer would lead elsewhere."""
        with replay(self.answer) as other:
            body = {"state": "queued", "links": {"self": f"{other.url}/v1/jobs/0"}}
            vendor.faults.append(JSONResponse(body, 202))
            async with self.endpoint(vendor) as endpoint:
                with pytest.raises(BrokeContract, match="another host"):
                    await self.ask(endpoint)
            assert other.seen == []

    @pytest.mark.parametrize(
        "body",
        [
            *(
                {"state": "queued", "links": {"self": at}}
                for at in ("http://[::1", "/a\x00", "http://h:port/", "")
            ),
            *({"state": "queued"}, {"state": "queued", "links": {"self": 7}}, {}, [], 1),
        ],
    )
    async def test_a_job_without_a_place_is_no_answer(self, vendor: Replay, body: object) -> None:
        """Nor is any other JSON."""
        vendor.faults.append(JSONResponse(body))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(BrokeContract, match="no prediction"):
                await self.ask(endpoint)

    async def test_an_answer_at_once_is_not_looked_for(self, vendor: Replay) -> None:
        """Small pictures may be done before the first answer."""
        labels = truth(make_picture(1).pixels)
        vendor.faults.append(JSONResponse({"state": "finished", **self.segments(labels)}))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            assert np.array_equal(endpoint.read(stored.blob, 12, 16, LABELS).labels, labels)
        assert len(vendor.seen) == 1

    async def test_what_takes_too_long_is_lost_and_not_asked_again(self, vendor: Replay) -> None:
        """It may have been billed."""
        self.looks = 10**6
        config = config_from(self.config, "test.toml")
        access = Access(vendor.url, "custom", config, SecretStr(KEY))
        endpoint = connect(access, deadline_s=0.4, connections=1)
        with pytest.raises(AnswerLost, match="deadline_s"):
            await self.ask(endpoint)
        await endpoint.aclose()
        assert vendor.images == 1

    async def test_the_higher_score_wins_where_masks_overlap(self, vendor: Replay) -> None:
        """Whatever their order; one without a score is below all."""
        whole = {"size": [12, 16], "counts": [0, 192]}
        left = {"size": [12, 16], "counts": [0, 96, 96]}
        found = [
            {"class": {"name": "car"}, "rle": left, "confidence": 0.9},
            {"class": {"name": "road"}, "rle": whole, "confidence": 0.4},
            {"class": {"name": "sky"}, "rle": whole},
            {"class": {"name": "background"}, "rle": whole, "confidence": 1.0},
        ]
        vendor.faults.append(JSONResponse({"state": "finished", "result": {"segments": found}}))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            labels = endpoint.read(stored.blob, 12, 16, LABELS).labels
        assert (labels[:, :8] == CLASSES.index("car")).all()
        assert (labels[:, 8:] == CLASSES.index("road")).all()

    @pytest.mark.parametrize(
        ("segment", "words"),
        [
            (
                {"class": {"name": "dragon"}, "rle": {"size": [12, 16], "counts": [192]}},
                "'dragon'.*add it to classes",
            ),
            ({"class": {}, "rle": {"size": [12, 16], "counts": [192]}}, "label of item 0"),
            ({"class": {"name": "car"}, "rle": "x"}, "size and counts"),
            ({"class": {"name": "car"}, "rle": {"size": [12, 16], "counts": [191]}}, "191"),
            ({"class": {"name": "car"}, "rle": {"size": [24, 16], "counts": [384]}}, "stretched"),
            (
                {"class": {"name": "car"}, "rle": {"size": [12, 16], "counts": [192]}, "confidence": "?"},
                "score",
            ),
        ],
    )
    async def test_a_segment_that_makes_no_sense_is_kept_and_told(
        self, vendor: Replay, segment: object, words: str
    ) -> None:
        """It was paid for, and can be read under a better description."""
        vendor.faults.append(JSONResponse({"state": "finished", "result": {"segments": [segment]}}))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            with pytest.raises(ProtocolError, match=words):
                endpoint.read(stored.blob, 12, 16, LABELS)

    async def test_a_mended_description_reads_what_was_stored_before(self, vendor: Replay) -> None:
        """The same teacher: its identity does not hang on how answers are read."""
        segment = {"class": {"name": "dragon"}, "rle": {"size": [12, 16], "counts": [0, 192]}}
        vendor.faults.append(JSONResponse({"state": "finished", "result": {"segments": [segment]}}))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            before = await endpoint.info()
        config = config_from({**self.config, "classes": [*CLASSES, "dragon"]}, "test.toml")
        endpoint = connect(Access(vendor.url, "custom", config), deadline_s=1, connections=1)
        after = await endpoint.info()
        labels = endpoint.read(stored.blob, 12, 16, LABELS).labels
        await endpoint.aclose()
        assert (labels == 3).all()
        assert before.teacher == after.teacher


class TestImage(DialectContract):
    """The plainest vendor: a picture in, a PNG of ids out, the key in a header of its own."""

    kind = "custom"
    level = LABELS
    config: ClassVar[Mapping[str, object]] = {
        "classes": list(CLASSES),
        "custom": {
            "request": {
                "method": "PUT",
                "path": "/segment",
                "query": {"api-version": "2026-11-01", "scale": 1.5},
                "headers": {"X-Region": "eu", "accept": "image/png;q=1"},
            },
            "auth": {"header": "x-api-key", "prefix": ""},
            "answer": {"format": "image", "ids": {7: "road", 26: "car", 23: "sky"}},
            "errors": {"again": [423], "refused": [400], "billed": [423, 502]},
        },
    }

    def stranger(self, request: Request) -> bool:
        """Another header than usual."""
        return request.headers.get("x-api-key") != KEY or "authorization" in request.headers

    async def answer(self, request: Request, body: bytes) -> Response:
        """Cityscapes' own ids."""
        if self.stranger(request):
            return self.unauthorized()
        assert request.method == "PUT"
        assert dict(request.query_params) == {"api-version": "2026-11-01", "scale": "1.5"}
        assert request.headers["x-region"] == "eu"
        assert request.headers["content-type"] == "image/png"
        assert request.headers.getlist("accept") == ["image/png;q=1"]
        ids = np.array([7, 26, 23], np.uint8)[truth(pixels_of(body))]
        return Response(png(ids), media_type="image/png")

    def unauthorized(self) -> Response:
        return Response(b"no", 403)

    def throttled(self) -> Response:
        return Response(b"", 429, {"Retry-After": "0"})

    def refused_image(self) -> Response:
        return Response(b"", 415)

    def overloaded(self) -> Response:
        return Response(b"", 503)

    async def test_a_status_that_may_be_billed_is_not_sent_twice(self, vendor: Replay) -> None:
        """Where requests are paid for; else it is asked again."""
        vendor.faults.append(Response(b"", 423))
        async with self.endpoint(vendor, paid=True) as endpoint:
            with pytest.raises(AnswerLost, match="423"):
                await self.ask(endpoint)
        vendor.faults.append(Response(b"", 423))
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        assert vendor.images == 3

    async def test_a_status_may_end_the_asking(self, vendor: Replay) -> None:
        """400 concerns the image elsewhere."""
        vendor.faults.append(Response(b"", 400))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(Refused, match=r"refuses the request \(400\)"):
                await self.ask(endpoint)

    async def test_an_id_without_a_class_is_named_with_the_remedy(self, vendor: Replay) -> None:
        """It is kept."""
        vendor.faults.append(Response(png(np.full((12, 16), 8, np.uint8))))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            with pytest.raises(InvalidValue, match=r"id 8, which has no class: see classes, ids"):
                endpoint.read(stored.blob, 12, 16, LABELS)

    async def test_a_jpeg_is_sent_as_one(self, vendor: Replay) -> None:
        """By its own media type."""
        vendor.faults.append(Response(png(np.full((12, 16), 7, np.uint8))))
        target = io.BytesIO()
        Pillow.fromarray(make_picture(1).pixels).save(target, "JPEG")
        async with self.endpoint(vendor) as endpoint:
            await endpoint.predict(target.getvalue(), "image/jpeg", LABELS)
        assert vendor.seen[0].headers["content-type"] == "image/jpeg"
        assert vendor.seen[0].body == target.getvalue()


class TestForm(TestImage):
    """The same as a form, which answers with an array of rows and a confidence for each pixel."""

    level = Disclosure(1, 8)
    config: ClassVar[Mapping[str, object]] = {
        "classes": list(CLASSES),
        "custom": {
            "request": {"body": "multipart", "field": "file", "fields": {"mode": "fast"}},
            "answer": {"transport": "array", "mask": "out.ids", "confidence": "out.shares", "void_ids": [-1]},
            "errors": {"again": [423], "refused": [400], "billed": [423]},
        },
    }

    def stranger(self, request: Request) -> bool:
        """The usual header."""
        return request.headers.get("authorization") != f"Bearer {KEY}"

    async def answer(self, request: Request, body: bytes) -> Response:
        """Parsed by the server's own form parser."""
        if self.stranger(request):
            return self.unauthorized()
        form = parse_form(request, body)
        assert form.pop("mode") == (None, None, b"fast")
        name, media_type, picture = form.pop("file")
        assert (name, media_type, form) == ("image.png", "image/png", {})
        labels = truth(pixels_of(picture))
        shares = np.where(labels == 0, 0.25, 1.0)
        return JSONResponse({"out": {"ids": [labels.tolist()], "shares": shares.tolist()}})

    def rows(self, ids: object, shares: object = None) -> Response:
        """An answer."""
        return JSONResponse({"out": {"ids": ids, "shares": shares}})

    async def test_an_id_without_a_class_is_named_with_the_remedy(self, vendor: Replay) -> None:
        """Any whole number."""
        vendor.faults.append(self.rows(np.full((12, 16), 1000).tolist(), np.ones((12, 16)).tolist()))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            with pytest.raises(InvalidValue, match="id 1000, which has no class"):
                endpoint.read(stored.blob, 12, 16, self.level)

    async def test_a_jpeg_is_sent_as_one(self, vendor: Replay) -> None:
        """In its part of the form."""
        target = io.BytesIO()
        Pillow.fromarray(make_picture(1).pixels).save(target, "JPEG")
        vendor.faults.append(self.rows(np.zeros((12, 16), int).tolist(), np.ones((12, 16)).tolist()))
        async with self.endpoint(vendor) as endpoint:
            await endpoint.predict(target.getvalue(), "image/jpeg", LABELS)
        assert (
            b'filename="image.jpg"\r\nContent-Type: image/jpeg\r\n\r\n' + target.getvalue()
            in vendor.seen[0].body
        )

    async def test_confidences_are_on_the_wires_grid(self, vendor: Replay) -> None:
        """Floored, as everywhere; the void pixel has what was given."""
        ids, shares = np.zeros((12, 16), int), np.full((12, 16), 0.999)
        ids[0, 0] = -1
        shares[0, 1] = 0.0
        vendor.faults.append(self.rows(ids.tolist(), shares.tolist()))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            answer = endpoint.read(stored.blob, 12, 16, self.level)
            labels = ClassMap.identity(await endpoint.info()).apply(answer).labels
        assert answer.confidence is not None
        assert answer.confidence[0, 1] == 0
        assert answer.confidence[5, 5] == 254
        assert labels[0, 0] == VOID
        assert labels[5, 5] == 0

    @pytest.mark.parametrize(
        ("ids", "shares", "words"),
        [
            ([[0, 1], [0]], 1, "rows"),
            ([["a"]], 1, "rows"),
            ([[0.5] * 16] * 12, 1, "whole numbers"),
            ([0, 1], 1, "no map"),
            ([[[0, 1], [1, 0]]] * 2, 1, "no map"),
            ([[None] * 16] * 12, 1, "no map"),
            ([], 1, "no map"),
            ([[10**30] * 16] * 12, 1, "no map"),
            ([[0] * 16] * 12, None, "rows of numbers"),
            ([[0] * 16] * 12, [[1.5] * 16] * 12, "between 0 and 1"),
            ([[0] * 16] * 12, [[float("nan")] * 16] * 12, "no map"),
            ([[0] * 16] * 12, [[0.5] * 8] * 12, "stretched"),
        ],
    )
    async def test_rows_that_make_no_sense_are_kept_and_told(
        self, vendor: Replay, ids: object, shares: object, words: str
    ) -> None:
        """Whatever JSON allows."""
        body = json.dumps({"out": {"ids": ids, "shares": shares}})
        vendor.faults.append(Response(body, media_type="application/json"))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            with pytest.raises(ProtocolError, match=words):
                endpoint.read(stored.blob, 12, 16, self.level)


def parse_form(request: Request, body: bytes) -> dict[str, tuple[str | None, str | None, bytes]]:
    """A form by Python's own parser of MIME: name to (file name, media type, content)."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    assert message.is_multipart()
    form: dict[str, tuple[str | None, str | None, bytes]] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        assert isinstance(name, str)
        media_type = part.get_content_type() if "content-type" in part else None
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        form[name] = (part.get_filename(), media_type, content)
    return form


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "answer"),
    ({"answer": {"format": "image"}, "reply": {}}, "unknown key 'reply'; known are request, auth, answer"),
    ({"answer": {}}, r"custom\.answer\].*mask: say where"),
    ({"answer": {"format": "image", "mask": "a"}}, "nothing else is in it"),
    ({"answer": {"mask": "a["}}, r"'a\[' is no JMESPath"),
    ({"answer": {"mask": "a", "maks": "b"}}, "unknown key 'maks'; known are format, mask"),
    ({"answer": {"mask": "a", "encoding": "class-masks", "label": "b"}}, "needs items"),
    ({"answer": {"mask": "a", "encoding": "coco-rle", "items": "b"}}, "label"),
    ({"answer": {"mask": "a", "items": "b", "label": "c"}}, "are for class-masks"),
    ({"answer": {"mask": "a", "void_labels": ["b"]}}, "are for class-masks"),
    ({"answer": {"mask": "a", "encoding": "palette-png"}}, "needs a palette"),
    ({"answer": {"mask": "a", "encoding": "palette-png", "palette": {"red": "road"}}}, "palette"),
    ({"answer": {"format": "image", "encoding": "palette-png", "palette": {"#ff0000": "rood"}}}, "'rood'"),
    (
        {
            "answer": {
                "format": "image",
                "encoding": "palette-png",
                "palette": {"#ff0000": "road", "#fe0000": "car"},
                "tolerance": 1,
            }
        },
        "#ff0000 could be #fe0000",
    ),
    ({"answer": {"format": "image", "ids": {"1": "rood"}}}, "ids names 'rood'"),
    ({"answer": {"format": "image", "ids": {"one": "road"}}}, "ids.one"),
    ({"answer": {"mask": "a", "retry": [1]}}, "error: say where"),
    (
        {"answer": {"mask": "a", "encoding": "coco-rle", "transport": "url", "items": "b", "label": "c"}},
        "stands in the answer itself",
    ),
    ({"answer": {"format": "image"}, "request": {"body": "json"}}, "picture is nowhere in it"),
    ({"answer": {"format": "image"}, "request": {"template": {"x": "$image_base64"}}}, "template is sent"),
    ({"answer": {"format": "image"}, "request": {"fields": {"x": "y"}}}, "fields are sent"),
    (
        {"answer": {"format": "image"}, "request": {"body": "multipart", "content_type": "x"}},
        "a form has its own",
    ),
    ({"answer": {"format": "image"}, "request": {"path": "segment"}}, "path"),
    ({"answer": {"format": "image"}, "request": {"path": "/a?key=b"}}, "path"),
    ({"answer": {"format": "image"}, "request": {"path": "/a b"}}, "path"),
    ({"answer": {"format": "image"}, "request": {"method": "GET"}}, "method"),
    ({"answer": {"format": "image"}, "request": {"headers": {"X-A": "b\r\nX-C: d"}}}, "headers.X-A"),
    ({"answer": {"format": "image"}, "request": {"headers": {"Host": "x"}}}, "Host is not for"),
    ({"answer": {"format": "image"}, "request": {"body": "multipart", "field": 'a"b'}}, "field"),
    ({"answer": {"format": "image"}, "auth": {"header": "X Key"}}, "header"),
    ({"answer": {"format": "image"}, "auth": {"prefix": "a\n"}}, "prefix"),
    ({"answer": {"format": "image"}, "errors": {"again": [409], "refused": [409]}}, "409 has two meanings"),
    ({"answer": {"format": "image"}, "errors": {"again": [200]}}, "again"),
    ({"answer": {"mask": "a"}, "poll": {"url": "a", "status": "b", "done": []}}, "done"),
    ({"answer": {"mask": "a"}, "poll": {"url": "a", "status": "b", "done": ["c"], "every_s": 0}}, "every_s"),
]


@pytest.mark.parametrize(("tables", "words"), WRONG)
def test_wrong_settings_name_the_key(tables: dict[str, Any], words: str) -> None:
    """Before anything is sent."""
    config = config_from({"classes": list(CLASSES), "custom": tables}, "t")
    with pytest.raises(SettingsError, match=words):
        spoken_by("custom", "https://x.example", config, None)


@pytest.mark.parametrize(
    "request_",
    [
        {"headers": {"Authorization": KEY}},
        {"headers": {"x-api-key": KEY}},
        {"headers": {"X-Auth-Token": KEY}},
        {"headers": {"Cookie": KEY}},
        {"headers": {"Ocp-Apim-Subscription-Key": KEY}},
        {"query": {"api_key": KEY}},
        {"query": {"sig": KEY}},
        {"query": {"accessKey": KEY}},
        {"body": "multipart", "fields": {"token": KEY}},
        {"body": "json", "template": {"image": "$image_base64", "auth": {"api_key": KEY}}},
        {"body": "json", "template": [{"image": "$image_base64"}, {"password": KEY}]},
    ],
)
def test_what_is_named_like_a_secret_is_refused(request_: dict[str, Any]) -> None:
    """Wherever it stands, and it is not repeated."""
    tables = {"request": request_, "answer": {"format": "image"}}
    config = config_from({"classes": list(CLASSES), "custom": tables}, "t")
    with pytest.raises(SettingsError, match="CORTE_TEACHER_KEY") as failure:
        spoken_by("custom", "https://x.example", config, None)
    chain: BaseException | None = failure.value
    while chain is not None:
        assert KEY not in str(chain)
        chain = chain.__cause__ or chain.__context__


@pytest.mark.parametrize("name", ["max_tokens", "keypoints", "X-Region", "design", "author", "api-version"])
def test_what_only_sounds_like_a_secret_is_not(name: str) -> None:
    """A query by that name."""
    tables = {"request": {"query": {name: 1}}, "answer": {"format": "image"}}
    config = config_from({"classes": list(CLASSES), "custom": tables}, "t")
    spoken = spoken_by("custom", "https://x.example", config, None)
    picture = make_picture(1)
    call = spoken.dialect.call(Sent(picture.body, "image/png", 12, 16), LABELS)
    assert call.url == f"https://x.example?{name}=1"


def test_classes_and_models_have_their_place() -> None:
    """Void is added by itself, and a model's name belongs to the request."""
    answer = {"custom": {"answer": {"format": "image"}}}
    for values, words in (
        (answer, "classes"),
        ({**answer, "classes": ["road", "(void)"]}, "is added where it is needed"),
        ({**answer, "classes": ["road", "car"], "model": "x"}, "model"),
    ):
        with pytest.raises(SettingsError, match=words):
            spoken_by("custom", "https://x.example", config_from(values, "t"), None)


def test_the_template_is_filled_wherever_it_asks() -> None:
    """Numbers stay numbers where they stand alone; names of keys are left."""
    template = {
        "$height": ["$height", "$width", "$height x $width", {"deep": ["<$image_base64>"]}],
        "uri": "$image_data_uri",
        "same": [1, 2.5, True, "text", "$other"],
    }
    tables = {"request": {"body": "json", "template": template}, "answer": {"format": "image"}}
    config = config_from({"classes": list(CLASSES), "custom": tables}, "t")
    spoken = spoken_by("custom", "https://x.example", config, None)
    call = spoken.dialect.call(Sent(b"pixels", "image/png", 12, 16), LABELS)
    assert call.content is not None
    assert json.loads(call.content) == {
        "$height": [12, 16, "12 x 16", {"deep": ["<cGl4ZWxz>"]}],
        "uri": "data:image/png;base64,cGl4ZWxz",
        "same": [1, 2.5, True, "text", "$other"],
    }
    assert call.headers["Content-Type"] == "application/json"


def test_another_request_is_another_teacher() -> None:
    """Answers to different requests are not mixed in one ledger; another description changes nothing."""

    def identity(request: dict[str, Any], answer: dict[str, Any]) -> str:
        tables = {"request": request, "answer": {"format": "image", **answer}}
        config = config_from({"classes": list(CLASSES), "custom": tables}, "t")
        return spoken_by("custom", "https://x.example", config, None).dialect.identity

    plain = identity({}, {})
    assert identity({"method": "POST"}, {"ids": {"1": "road"}, "ignore_unknown": True}) == plain
    assert len({plain, identity({"path": "/a"}, {}), identity({"query": {"a": 1}}, {})}) == 3
