"""SageMaker's built-in semantic segmentation and containers of one's own, replayed as AWS documents them.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
https://docs.aws.amazon.com/sagemaker/latest/APIReference/CommonErrors.html
https://docs.aws.amazon.com/sagemaker/latest/dg/semantic-segmentation.html
"""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image as Pillow
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corte_protocol import Disclosure, InvalidValue, ProtocolError
from corte_protocol.types import UInt8
from corte_student.endpoints import Access, Endpoint, connect
from corte_student.endpoints.config import config_from
from corte_student.errors import AnswerLost, BrokeContract, ImageRefused, Refused, TeacherError
from id_pictures import pixels_of, png
from pictures import make_picture
from replaying import Replay
from sagemaker_wire import (
    REGION,
    environment,
    error,
    likelihoods,
    model_error,
    recordio,
    well_signed,
)
from student.dialect_contract import CLASSES, KEY, DialectContract, truth


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the environment, with the contract's key as the secret."""
    environment(monkeypatch, tmp_path)


class SageMakerContract(DialectContract):
    """What both answers of the algorithm owe."""

    kind = "sagemaker"
    path = "/endpoints/streets"
    options: ClassVar[Mapping[str, object]] = {}

    def opened(self, vendor: Replay, *, key: str | None = KEY, paid: bool = False) -> Endpoint:
        """The key is in the environment; it does not go through Access."""
        return self.opened_with(vendor, {}, paid=paid)

    def opened_with(self, vendor: Replay, options: Mapping[str, object], *, paid: bool = False) -> Endpoint:
        """The same with more in `[sagemaker]`."""
        table = {"region": REGION, **self.options, **options}
        config = config_from({"classes": list(CLASSES), "sagemaker": table}, "test.toml")
        access = Access(vendor.url + self.path, self.kind, config, paid=paid)
        return connect(access, deadline_s=20, connections=4)

    def answered(self, labels: UInt8) -> Response:
        """What the algorithm makes of the labels."""
        raise NotImplementedError

    async def answer(self, request: Request, body: bytes) -> Response:
        """InvokeEndpoint."""
        if not well_signed(request, body):
            return self.unauthorized()
        if request.method != "POST" or request.url.path != "/endpoints/streets/invocations":
            return error(404, "UnknownOperationException")
        return self.answered(truth(pixels_of(body)))

    def unauthorized(self) -> Response:
        """CommonErrors."""
        return error(403, "UnrecognizedClientException", f"The security token {KEY} is invalid.")

    def throttled(self) -> Response:
        """CommonErrors: a 400."""
        return error(400, "ThrottlingException", None)

    def refused_image(self) -> Response:
        """The container could not decode it."""
        return model_error(400)

    def overloaded(self) -> Response:
        """InvokeEndpoint."""
        return error(503, "ServiceUnavailable", "The service is unavailable. Try your call again.")


class TestPng(SageMakerContract):
    """`Accept: image/png`."""

    level = Disclosure(1, 0)

    def answered(self, labels: UInt8) -> Response:
        """A PNG with a palette whose indices are class ids."""
        headers = {"x-Amzn-Invoked-Production-Variant": "AllTraffic"}
        return Response(png(labels, palette=True), 200, headers, "image/png")

    async def test_the_picture_goes_out_with_its_own_bytes_and_all_headers(self, vendor: Replay) -> None:
        """A PNG under the generic type; options as the documented headers; nothing is encoded anew."""
        picture = make_picture(1)
        options = {"target_variant": "blue", "inference_component": "ic-1", "custom_attributes": "trace=7"}
        endpoint = self.opened_with(vendor, options)
        try:
            await self.ask(endpoint)
        finally:
            await endpoint.aclose()
        sent = vendor.seen[0]
        assert sent.body == picture.body
        assert sent.headers["content-type"] == "application/x-image"
        assert sent.headers["accept"] == "image/png"
        assert sent.headers["x-amzn-sagemaker-target-variant"] == "blue"
        assert sent.headers["x-amzn-sagemaker-inference-component"] == "ic-1"
        assert sent.headers["x-amzn-sagemaker-custom-attributes"] == "trace=7"

    async def test_a_jpeg_is_named_as_such(self, vendor: Replay) -> None:
        """The documented type goes with the documented format."""
        target = io.BytesIO()
        Pillow.fromarray(make_picture(1).pixels).save(target, "JPEG")
        async with self.endpoint(vendor) as endpoint:
            await endpoint.predict(target.getvalue(), "image/jpeg", self.level)
        assert vendor.seen[0].headers["content-type"] == "image/jpeg"
        assert vendor.seen[0].body == target.getvalue()

    async def test_the_type_can_be_chosen(self, vendor: Replay) -> None:
        """For containers that insist on another."""
        endpoint = self.opened_with(vendor, {"request": {"content_type": "image/png"}})
        try:
            await self.ask(endpoint)
        finally:
            await endpoint.aclose()
        assert vendor.seen[0].headers["content-type"] == "image/png"

    async def test_a_wrong_secret_is_told_as_credentials(
        self, vendor: Replay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server computes another signature, and the message names what to check."""
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(Refused, match=r"AWS credentials \(403\).*AWS_PROFILE"):
                await self.ask(endpoint)

    async def test_without_credentials_nothing_is_sent(
        self, vendor: Replay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The message says how to give some."""
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(Refused, match="no AWS credentials"):
                await self.ask(endpoint)
        assert not vendor.seen

    async def test_temporary_credentials_send_their_token(
        self, vendor: Replay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The session token is a signed header."""
        monkeypatch.setenv("AWS_SESSION_TOKEN", "session")
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        assert vendor.seen[0].headers["x-amz-security-token"] == "session"

    async def test_grey_masks_read_like_those_with_a_palette(self, vendor: Replay) -> None:
        """A palette is decoration."""
        picture = make_picture(2)
        vendor.faults.append(Response(png(truth(picture.pixels)), 200, media_type="image/png"))
        async with self.endpoint(vendor) as endpoint:
            stored = await endpoint.predict(picture.body, picture.media_type, self.level)
            answer = endpoint.read(stored.blob, 12, 16, self.level)
        assert np.array_equal(answer.labels, truth(picture.pixels))

    async def test_an_id_beyond_the_classes_is_named(self, vendor: Replay) -> None:
        """It is kept, and can be read once the classes are right."""
        vendor.faults.append(Response(png(np.full((12, 16), 7, np.uint8)), 200, media_type="image/png"))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            with pytest.raises(InvalidValue, match="7"):
                endpoint.read(stored.blob, 12, 16, self.level)

    async def test_a_mask_of_another_size_is_scaled_by_nearest_neighbour(self, vendor: Replay) -> None:
        """Half the size: every id covers two by two pixels."""
        ids = (np.arange(6 * 8) % 3).reshape(6, 8).astype(np.uint8)
        vendor.faults.append(Response(png(ids), 200, media_type="image/png"))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            answer = endpoint.read(stored.blob, 12, 16, self.level)
        assert np.array_equal(answer.labels, ids.repeat(2, axis=0).repeat(2, axis=1))

    async def test_the_variant_is_the_stated_version(self, vendor: Replay) -> None:
        """Another variant is another revision."""
        labels = truth(make_picture(1).pixels)
        async with self.endpoint(vendor) as endpoint:
            first = await self.ask(endpoint)
            vendor.faults.append(
                Response(png(labels), 200, {"x-Amzn-Invoked-Production-Variant": "b"}, "image/png")
            )
            second = await self.ask(endpoint)
            vendor.faults.append(Response(png(labels), 200, media_type="image/png"))
            third = await self.ask(endpoint)
        assert len({first.revision, second.revision, third.revision}) == 3
        assert third.revision == "unstated"

    @pytest.mark.parametrize("inner", [429, 503])
    async def test_a_busy_model_is_waited_for(self, vendor: Replay, inner: int) -> None:
        """Nothing was computed: asked again also where requests are paid for."""
        vendor.faults.append(model_error(inner))
        async with self.endpoint(vendor, paid=True) as endpoint:
            await self.ask(endpoint)
        assert vendor.images == 2

    @pytest.mark.parametrize("inner", [500, 0, 504])
    async def test_a_model_that_failed_may_have_been_billed(self, vendor: Replay, inner: int) -> None:
        """Where requests are paid for, it is not asked again."""
        vendor.faults.append(model_error(inner))
        async with self.endpoint(vendor, paid=True) as endpoint:
            with pytest.raises(AnswerLost):
                await self.ask(endpoint)
        assert vendor.images == 1

    async def test_a_model_that_fails_on_one_image_costs_that_image(self, vendor: Replay) -> None:
        """Three failures of one image are the image's own."""
        vendor.faults.extend(model_error(500) for _ in range(3))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(ImageRefused):
                await self.ask(endpoint)
            await self.ask(endpoint)
        assert vendor.images == 4

    @pytest.mark.parametrize(
        ("fault", "raised", "words"),
        [
            (lambda: model_error(415), ImageRefused, "will not take this image"),
            (lambda: model_error(401), Refused, "the model behind it answers 401"),
            (lambda: model_error(404), Refused, "the model behind it answers 404"),
            (
                lambda: error(400, "ValidationError", "Request 1-2 has oversize body."),
                ImageRefused,
                "too large",
            ),
            (
                lambda: error(400, "ValidationError", "Endpoint x of account 1 not found."),
                Refused,
                "endpoint's name",
            ),
            (
                lambda: error(413, "RequestEntityTooLargeException", "HTTP content length exceeded"),
                ImageRefused,
                "will not take this image",
            ),
            (lambda: error(403, "AccessDeniedException", "User: x"), Refused, "sagemaker:InvokeEndpoint"),
            (lambda: error(403, "ExpiredTokenException", "expired"), Refused, "renew an expired session"),
            (lambda: error(403, "InvalidSignatureException", "x"), Refused, "this machine's clock"),
            (lambda: error(400, "IncompleteSignature", "x"), Refused, "AWS credentials"),
            (lambda: error(400, "RequestExpired", "x"), Refused, "this machine's clock"),
            (lambda: error(401, "NotAuthorized", "x"), Refused, "sagemaker:InvokeEndpoint"),
            (lambda: Response("no JSON", 403), Refused, "AWS credentials"),
            (
                lambda: Response(json.dumps({"__type": "com.amazon.coral#AccessDeniedException"}), 400),
                Refused,
                "sagemaker:InvokeEndpoint",
            ),
            (lambda: Response(b"{}", 424), ImageRefused, "it failed|says so"),
            (lambda: Response(b"", 200), BrokeContract, "no prediction"),
            (lambda: Response(b"[" * 40_000, 400), ImageRefused, "will not take this image"),
        ],
    )
    async def test_each_failure_has_its_meaning(
        self, vendor: Replay, fault: Any, raised: type[TeacherError], words: str
    ) -> None:
        """Status, code and the status inside tell what the user can do."""
        vendor.faults.extend(fault() for _ in range(3))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(raised, match=words) as failure:
                await self.ask(endpoint)
        assert type(failure.value) is raised

    @pytest.mark.parametrize(
        "fault",
        [
            lambda: error(429, "ModelNotReadyException", "wait"),
            lambda: error(530, "InternalDependencyException", "x"),
            lambda: error(500, "InternalFailure", "x"),
            lambda: Response(json.dumps({"code": "TooManyRequestsException"}), 400),
        ],
    )
    async def test_what_passes_is_asked_again(self, vendor: Replay, fault: Any) -> None:
        """Failures of the service itself, where nobody pays a request."""
        vendor.faults.append(fault())
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        assert vendor.images == 2


class TestProtobuf(SageMakerContract):
    """`Accept: application/x-protobuf`."""

    level = Disclosure(len(CLASSES), 16)
    options: ClassVar[Mapping[str, object]] = {"accept": "protobuf"}

    def answered(self, labels: UInt8) -> Response:
        """Probabilities of all classes in RecordIO."""
        return Response(recordio(likelihoods(labels)), 200, media_type="application/x-protobuf")

    async def test_every_class_has_its_probability(self, vendor: Replay) -> None:
        """Best first, as float16."""
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            answer = endpoint.read(stored.blob, 12, 16, self.level)
        assert vendor.seen[0].headers["accept"] == "application/x-protobuf"
        assert answer.probs is not None
        assert answer.probs.dtype == np.float16
        expected = np.array([0.625, 0.25, 0.125], np.float16)[:, None, None]
        assert np.array_equal(answer.probs, np.broadcast_to(expected, answer.probs.shape))

    async def test_only_what_is_needed_is_read(self, vendor: Replay) -> None:
        """A narrow need gives at least that."""
        need = Disclosure(2, 8)
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            answer = endpoint.read(stored.blob, 12, 16, need)
        assert answer.disclosure.allows(need)

    @pytest.mark.parametrize("count", [2, 4])
    async def test_another_number_of_classes_is_told(self, vendor: Replay, count: int) -> None:
        """Kept, and the message gives both numbers."""
        scores = np.full((count, 12, 16), 1 / count, np.float32)
        vendor.faults.append(Response(recordio(scores), 200))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            with pytest.raises(InvalidValue, match=f"{count} classes.*3"):
                endpoint.read(stored.blob, 12, 16, self.level)

    @pytest.mark.parametrize(
        "shape", [(1, 3, 12, 17), (3, 12, 16, 1, 1), (2, 3, 12, 8), (1, 3, 0, 16), (192,)]
    )
    async def test_a_shape_that_does_not_fit_is_no_prediction(
        self, vendor: Replay, shape: tuple[int, ...]
    ) -> None:
        """Never reshaped by force."""
        scores = likelihoods(truth(make_picture(1).pixels))
        vendor.faults.append(Response(recordio(scores, shape), 200))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            with pytest.raises(ProtocolError):
                endpoint.read(stored.blob, 12, 16, self.level)

    async def test_both_names_of_the_type_can_be_asked_for(self, vendor: Replay) -> None:
        """The developer guide says recordio-protobuf, the notebook protobuf."""
        endpoint = self.opened_with(vendor, {"accept": "recordio-protobuf"})
        try:
            assert (await self.ask(endpoint)).level == self.level
        finally:
            await endpoint.aclose()
        assert vendor.seen[0].headers["accept"] == "application/x-recordio-protobuf"

    @pytest.mark.parametrize("scale", [2.0, 0.5, -1.0, float("nan"), float("inf")])
    async def test_numbers_that_are_no_probabilities_are_not_taken_for_some(
        self, vendor: Replay, scale: float
    ) -> None:
        """No softmax is guessed."""
        scores = likelihoods(truth(make_picture(1).pixels)) * np.float32(scale)
        vendor.faults.append(Response(recordio(scores), 200))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            with pytest.raises(InvalidValue, match="no probabilities"):
                endpoint.read(stored.blob, 12, 16, self.level)

    @pytest.mark.parametrize(("size", "fits"), [((6, 8), True), ((24, 32), True), ((12, 12), False)])
    async def test_probabilities_of_another_size_are_scaled_in_proportion_only(
        self, vendor: Replay, size: tuple[int, int], fits: bool
    ) -> None:
        """Constant planes stay constant; what is cropped or stretched is no answer to this image."""
        scores = likelihoods(np.ones(size, np.uint8))
        vendor.faults.append(Response(recordio(scores), 200))
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            if not fits:
                with pytest.raises(InvalidValue, match="12 x 12 for an image of 12 x 16"):
                    endpoint.read(stored.blob, 12, 16, self.level)
                return
            answer = endpoint.read(stored.blob, 12, 16, self.level)
        assert (answer.labels == 1).all()
        assert answer.probs is not None
        assert np.allclose(answer.probs[0], 0.625, atol=1e-3)

    async def test_what_is_stored_tells_how_to_read_it(self, vendor: Replay) -> None:
        """`accept` can be changed: both kinds of answers are the same teacher's, and stay readable."""
        picture = make_picture(1)
        async with self.endpoint(vendor) as endpoint:
            wide = await self.ask(endpoint)
            described = await endpoint.info()
        narrow = self.opened_with(vendor, {"accept": "png"})
        try:
            assert (await narrow.info()).teacher == described.teacher
            answer = narrow.read(wide.blob, 12, 16, Disclosure(1, 0))
        finally:
            await narrow.aclose()
        assert np.array_equal(answer.labels, truth(picture.pixels))

    async def test_a_mask_is_not_taken_for_probabilities(self, vendor: Replay) -> None:
        """The other answer of the algorithm names the option."""
        vendor.faults.append(Response(png(np.zeros((12, 16), np.uint8)), 200, media_type="image/png"))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(BrokeContract, match="accept"):
                await self.ask(endpoint)


class TestOwnContainer(SageMakerContract):
    """A container of one's own, described as for kind custom."""

    level = Disclosure(1, 0)
    options: ClassVar[Mapping[str, object]] = {
        "request": {"body": "json", "template": {"image": "$image_base64"}},
        "answer": {"mask": "output.mask", "version": "output.model"},
    }

    async def answer(self, request: Request, body: bytes) -> Response:
        """JSON in, JSON out."""
        if not well_signed(request, body):
            return self.unauthorized()
        assert request.headers["content-type"] == "application/json"
        assert request.headers["accept"] == "application/json"
        picture = base64.b64decode(json.loads(body)["image"], validate=True)
        mask = base64.b64encode(png(truth(pixels_of(picture)))).decode()
        headers = {"x-Amzn-Invoked-Production-Variant": "AllTraffic"}
        return JSONResponse({"output": {"mask": mask, "model": "7"}}, headers=headers)

    async def test_its_own_version_goes_before_the_variant(self, vendor: Replay) -> None:
        """The variant says less."""
        mask = base64.b64encode(png(truth(make_picture(1).pixels))).decode()
        async with self.endpoint(vendor) as endpoint:
            first = await self.ask(endpoint)
            vendor.faults.append(JSONResponse({"output": {"mask": mask, "model": "7"}}))
            assert (await self.ask(endpoint)).revision == first.revision
            vendor.faults.append(JSONResponse({"output": {"mask": mask, "model": "8"}}))
            assert (await self.ask(endpoint)).revision != first.revision
