"""SageMaker's built-in semantic segmentation, replayed as AWS documents it; the signature is checked anew.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
https://docs.aws.amazon.com/sagemaker/latest/APIReference/CommonErrors.html
https://docs.aws.amazon.com/sagemaker/latest/dg/semantic-segmentation.html
https://docs.aws.amazon.com/sagemaker/latest/dg/cdf-training.html (the Record message)
https://github.com/dmlc/dmlc-core/blob/main/include/dmlc/recordio.h (the frame around it)
"""

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response

from corte_protocol import Disclosure, InvalidValue, ProtocolError
from corte_protocol.types import UInt8
from corte_student.endpoints import Access, Endpoint, connect
from corte_student.endpoints.answers import Received, Sent
from corte_student.endpoints.config import config_from
from corte_student.endpoints.connecting import guess_kind
from corte_student.endpoints.vendors import spoken_by
from corte_student.errors import AnswerLost, BrokeContract, ImageRefused, Refused, SettingsError, TeacherError
from dialect_contract import CLASSES, KEY, DialectContract, truth
from pictures import make_picture
from replaying import Replay

ID = "AKIDEXAMPLE"
REGION = "eu-west-1"
HOST = "https://runtime.sagemaker.eu-west-1.amazonaws.com"


def pixels_of(body: bytes) -> UInt8:
    """The picture that arrived, uint8 [H, W, 3]."""
    return np.asarray(Pillow.open(io.BytesIO(body)).convert("RGB"))


def png(ids: UInt8, *, mode: str = "P") -> bytes:
    """Class ids as a PNG: with a palette, as the algorithm's own labels, or grey."""
    picture = Pillow.fromarray(ids)
    if mode == "P":
        picture = picture.copy()
        picture.putpalette([255 - i // 3 for i in range(768)])
    target = io.BytesIO()
    picture.save(target, "PNG")
    return target.getvalue()


def varint(number: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def chunk(field: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(field << 3 | 2) + varint(len(data)) + data


def feature(name: str, value: bytes) -> bytes:
    """One entry of `map<string, Value> features = 1`."""
    return chunk(1, chunk(1, name.encode()) + chunk(2, value))


def recordio(scores: "np.ndarray[Any, np.dtype[np.float32]]", shape: tuple[int, ...] | None = None) -> bytes:
    """`target` (float32_tensor = 2) and `shape` (int32_tensor = 7) in one Record in one RecordIO frame."""
    numbers = b"".join(varint(size) for size in shape or (1, *scores.shape))
    target = chunk(2, chunk(1, scores.astype("<f4").tobytes()))
    record = feature("target", target) + feature("shape", chunk(7, chunk(1, numbers)))
    return struct.pack("<II", 0xCED7230A, len(record)) + record + b"\0" * (-len(record) % 4)


def likelihoods(labels: UInt8) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Probabilities [C, H, W] whose best class is `labels`: 0.625, then 0.25 and 0.125."""
    order = (labels[None] + np.arange(len(CLASSES))[:, None, None]) % len(CLASSES)
    scores = np.empty(order.shape, np.float32)
    values = np.array([0.625, 0.25, 0.125], np.float32)[:, None, None]
    np.put_along_axis(scores, order, np.broadcast_to(values, order.shape), axis=0)
    return scores


def error(status: int, code: str, message: str | None = None, **fields: object) -> Response:
    """An error of the restJson1 protocol, its code in the header."""
    return Response(
        json.dumps({"message": message, **fields}),
        status,
        {"x-amzn-ErrorType": f"{code}:http://internal.amazon.com/coral/com.amazonaws.sagemaker/"},
        "application/json",
    )


def model_error(inner: int) -> Response:
    """The container's failure as InvokeEndpoint documents it."""
    return error(
        424,
        "ModelError",
        f'Received client error ({inner}) from primary with message "it said so"',
        OriginalStatusCode=inner,
        OriginalMessage="it said so",
        LogStreamArn="arn:aws:logs:eu-west-1:111122223333:log-group:/aws/sagemaker/Endpoints/streets",
    )


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials from the environment alone, whatever this machine has."""
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)


def well_signed(request: Request, body: bytes, service: str = "sagemaker") -> bool:
    """Whether the signature is that of what arrived, computed anew from the secret by botocore."""
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    told = dict(part.strip().split("=", 1) for part in rest.split(",")) if rest else {}
    date = request.headers.get("x-amz-date", "")
    if (
        scheme != "AWS4-HMAC-SHA256"
        or told["Credential"] != f"{ID}/{date[:8]}/{REGION}/{service}/aws4_request"
    ):
        return False
    names = told["SignedHeaders"].split(";")
    if not {"host", "content-type", "accept", "x-amz-date"} <= set(names):
        return False
    headers = {name: request.headers[name] for name in names}
    again = AWSRequest(method=request.method, url=str(request.url), data=body, headers=headers)
    again.context["timestamp"] = date
    signer = SigV4Auth(Credentials(ID, KEY), service, REGION)
    signature: str = signer.signature(signer.string_to_sign(again, signer.canonical_request(again)), again)
    return signature == told["Signature"]


class SageMakerContract(DialectContract):
    """What both answers of the algorithm owe."""

    kind = "sagemaker"
    path = "/endpoints/streets"
    options: dict[str, object] = {}

    @property
    def settings(self) -> dict[str, object]:
        """The --teacher-config."""
        return {"classes": list(CLASSES), "sagemaker": {"region": REGION, **self.options}}

    def opened(
        self, vendor: Replay, *, key: str | None = KEY, paid: bool = False, **options: object
    ) -> Endpoint:
        """The key is in the environment; it does not go through Access."""
        config = config_from(
            {"classes": list(CLASSES), "sagemaker": {"region": REGION, **self.options, **options}}, "t"
        )
        return connect(
            Access(vendor.url + self.path, self.kind, config, paid=paid), deadline_s=20, connections=4
        )

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
        return Response(png(labels), 200, {"x-Amzn-Invoked-Production-Variant": "AllTraffic"}, "image/png")

    async def test_the_picture_goes_out_with_its_own_bytes_and_all_headers(self, vendor: Replay) -> None:
        """A PNG under the generic type; options as the documented headers; nothing is encoded anew."""
        picture = make_picture(1)
        options = {"target_variant": "blue", "inference_component": "ic-1", "custom_attributes": "trace=7"}
        endpoint = self.opened(vendor, **options)
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
        endpoint = self.opened(vendor, content_type="image/png")
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
        vendor.faults.append(Response(png(truth(picture.pixels), mode="L"), 200, media_type="image/png"))
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
    options = {"accept": "protobuf"}

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

    async def test_a_mask_is_not_taken_for_probabilities(self, vendor: Replay) -> None:
        """The other answer of the algorithm names the option."""
        vendor.faults.append(Response(png(np.zeros((12, 16), np.uint8)), 200, media_type="image/png"))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(BrokeContract, match="accept"):
                await self.ask(endpoint)


@pytest.fixture(scope="module")
def dialects() -> Iterator[dict[str, Any]]:
    """The two dialects, without a network."""
    given_options = {"png": Disclosure(1, 0), "protobuf": Disclosure(3, 16)}
    yield {
        accept: spoken_by(
            "sagemaker",
            f"{HOST}/endpoints/streets",
            config_from({"classes": list(CLASSES), "sagemaker": {"accept": accept}}, "t"),
            None,
        ).dialect
        for accept in given_options
    }


@given(data=st.data())
def test_damaged_answers_never_pass_for_predictions_of_another_shape(
    dialects: Any, data: st.DataObject
) -> None:
    """Whatever a byte changes: a prediction of the image's size, or a ProtocolError."""
    accept = data.draw(st.sampled_from(["png", "protobuf"]))
    labels = truth(make_picture(1, height=3, width=4).pixels)
    whole = png(labels) if accept == "png" else recordio(likelihoods(labels))
    at = data.draw(st.integers(0, len(whole) - 1))
    body = whole[:at] + data.draw(st.binary(max_size=3)) + whole[at + data.draw(st.integers(0, 3)) :]
    dialect = dialects[accept]
    received = Received("sagemaker", 1, "", body)
    try:
        answer = dialect.read(received, 3, 4, dialect.level)
    except ProtocolError:
        return
    assert answer.classes.shape[1:] == (3, 4)
    assert answer.disclosure.allows(dialect.level)


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("runtime.sagemaker.us-east-1.amazonaws.com", "us-east-1"),
        ("runtime-fips.sagemaker.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("runtime.sagemaker.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("runtime.sagemaker.eu-west-1.api.aws", "eu-west-1"),
        ("vpce-1a-2b.runtime.sagemaker.eu-west-1.vpce.amazonaws.com", "eu-west-1"),
    ],
)
async def test_the_region_is_read_from_the_host(host: str, region: str) -> None:
    """It ends up in the scope of the signature, with and without /invocations in the URL."""
    for suffix in ("", "/invocations"):
        config = config_from({"classes": list(CLASSES), "sagemaker": {}}, "t")
        spoken = spoken_by("sagemaker", f"https://{host}/endpoints/streets{suffix}", config, None)
        picture = make_picture(1)
        call = spoken.dialect.call(Sent(picture.body, "image/png", 12, 16), Disclosure(1, 0))
        assert call.url == f"https://{host}/endpoints/streets/invocations"
        assert f"/{region}/sagemaker/aws4_request" in (await spoken.signer.sign(call))["Authorization"]


def test_the_host_alone_tells_the_kind() -> None:
    """No --teacher-kind is needed."""
    assert guess_kind(f"{HOST}/endpoints/streets") == "sagemaker"


def test_another_variant_is_another_teacher() -> None:
    """Answers of two variants are not mixed in one ledger; the path's ending makes no difference."""
    identities = [
        spoken_by("sagemaker", url, config_from({"classes": ["a", "b"], "sagemaker": options}, "t"), None)
        for url, options in (
            (f"{HOST}/endpoints/x", {}),
            (f"{HOST}/endpoints/x/invocations", {}),
            (f"{HOST}/endpoints/x", {"target_variant": "blue"}),
            (f"{HOST}/endpoints/y", {}),
        )
    ]
    assert identities[0].dialect.identity == identities[1].dialect.identity
    assert len({one.dialect.identity for one in identities}) == 3


def test_limits_are_the_documented_ones_unless_the_user_says_otherwise() -> None:
    """BodyBlob: 6,291,456 bytes."""
    plain: dict[str, object] = {"classes": ["a", "b"], "sagemaker": {}}
    for told, most in (({}, 6_291_456), ({"max_body_bytes": 25_000_000}, 25_000_000)):
        spoken = spoken_by("sagemaker", f"{HOST}/endpoints/x", config_from({**plain, **told}, "t"), None)
        assert spoken.dialect.limits.max_body_bytes == most


@pytest.mark.parametrize(
    ("url", "config", "words"),
    [
        (f"{HOST}/endpoints/x", {"sagemaker": {}}, "classes"),
        (f"{HOST}/endpoints/x", {"classes": ["a", "b"], "sagemaker": {"acept": "png"}}, "acept"),
        (f"{HOST}/endpoints/x", {"classes": ["a", "b"], "sagemaker": {"accept": "json"}}, "accept"),
        (
            f"{HOST}/endpoints/x",
            {"classes": ["a", "b"], "sagemaker": {"target_variant": "a b"}},
            "target_variant",
        ),
        (
            f"{HOST}/endpoints/x",
            {"classes": ["a", "b"], "sagemaker": {"custom_attributes": "a\nb"}},
            "custom",
        ),
        (f"{HOST}/endpoints/x", {"classes": ["a", "b"], "sagemaker": {"region": "../x"}}, "region"),
        (f"{HOST}/models/x", {"classes": ["a", "b"], "sagemaker": {}}, "/endpoints/NAME"),
        ("https://gateway.example.com/endpoints/x", {"classes": ["a", "b"], "sagemaker": {}}, "region"),
    ],
)
def test_wrong_settings_name_the_key(url: str, config: dict[str, object], words: str) -> None:
    """Before anything is sent."""
    with pytest.raises(SettingsError, match=words):
        spoken_by("sagemaker", url, config_from(config, "t"), None)


def test_a_key_that_would_not_be_used_is_refused() -> None:
    """CORTE_TEACHER_KEY is of no use here, and its text is not repeated."""
    config = config_from({"classes": ["a", "b"], "sagemaker": {}}, "t")
    with pytest.raises(SettingsError, match="unset CORTE_TEACHER_KEY") as failure:
        spoken_by("sagemaker", f"{HOST}/endpoints/x", config, SecretStr(KEY))
    assert KEY not in str(failure.value)
