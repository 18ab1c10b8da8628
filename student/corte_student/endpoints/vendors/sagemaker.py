"""Amazon SageMaker real-time endpoints that run the built-in semantic segmentation algorithm.

    https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
        the route, its headers and errors, 6,291,456 bytes a body, `x-Amzn-Invoked-Production-Variant`
    https://docs.aws.amazon.com/sagemaker/latest/APIReference/CommonErrors.html
        throttling is a 400; what is wrong with credentials is a 403
    https://docs.aws.amazon.com/sagemaker/latest/dg/semantic-segmentation.html
        takes `image/jpeg`; answers a PNG of class ids, or the probability of each class for each pixel
    https://sagemaker-examples.readthedocs.io/en/latest/introduction_to_amazon_algorithms/semantic_segmentation_pascalvoc/semantic_segmentation_pascalvoc.html
        `Accept` is `image/png` or `application/x-protobuf`: one RecordIO record of `target` and `shape`

Rule 1: requests are signed (SigV4) with AWS's own credentials, never with CORTE_TEACHER_KEY. Rule 2: no
picture is encoded anew. The algorithm documents JPEG alone; a PNG goes out as `application/x-image`, the type
that it documents for training data, or as `content_type` says. Rule 3: an error is told by its code
(`x-amzn-ErrorType`, else `__type` or `code` in the body), since its status is often 400.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from corte_protocol import Disclosure, InvalidValue, Prediction
from corte_student.endpoints.answers import Received, Sent
from corte_student.endpoints.config import Strict, TeacherConfig, checked
from corte_student.endpoints.dialect import Call, Dialect, Reply, Verdict
from corte_student.endpoints.hints import wait_of
from corte_student.endpoints.signing import AwsSigner
from corte_student.endpoints.vendors.inner import model_failed
from corte_student.endpoints.vendors.spoken import Spoken, limits_of
from corte_student.errors import BrokeContract, ImageRefused, Refused, SettingsError, Unavailable

_VARIANT: Final = "x-amzn-invoked-production-variant"
_MAX_BODY: Final = 6_291_456
_ACCEPT: Final = {"png": "image/png", "protobuf": "application/x-protobuf"}
_MAGIC: Final = {"png": b"\x89PNG\r\n\x1a\n", "protobuf": b"\x0a\x23\xd7\xce"}
_HOST: Final = re.compile(r"(?:.+\.)?runtime(?:-fips)?\.sagemaker(?:-fips)?\.([a-z0-9-]+)\.[a-z.]+")
_PATH: Final = re.compile(r"/endpoints/[A-Za-z0-9](-*[A-Za-z0-9])*")
_THROTTLED: Final = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
    }
)
_TOO_LARGE: Final = re.compile(r"oversize|too large|exceed|content length", re.IGNORECASE)
_NO_PREDICTION: Final = Verdict(
    "answered with something that is no prediction: check --teacher-kind and `accept` in --teacher-config",
    BrokeContract,
    billed=True,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9](-*[A-Za-z0-9])*$", max_length=63)]
Text = Annotated[str, Field(pattern=r"^[\x21-\x7e]+$", max_length=1024)]


class Options(Strict):
    """`[sagemaker]` in --teacher-config. `accept`: what the algorithm answers."""

    accept: Literal["png", "protobuf"] = "png"
    content_type: Text | None = None
    region: Name | None = None
    service: Name = "sagemaker"
    target_variant: Name | None = None
    inference_component: Name | None = None
    custom_attributes: Text | None = None


@dataclass(frozen=True)
class SageMaker(Dialect):
    """One endpoint. `url` ends in /invocations."""

    name: ClassVar[str] = "sagemaker"
    version: ClassVar[int] = 1
    kept_headers: ClassVar[tuple[str, ...]] = (_VARIANT,)

    url: str
    options: Options

    def call(self, image: Sent, level: Disclosure) -> Call:
        """InvokeEndpoint with the picture's own bytes."""
        options = self.options
        jpeg = image.media_type == "image/jpeg"
        headers = {
            "Content-Type": options.content_type or ("image/jpeg" if jpeg else "application/x-image"),
            "Accept": _ACCEPT[options.accept],
            "X-Amzn-SageMaker-Target-Variant": options.target_variant,
            "X-Amzn-SageMaker-Inference-Component": options.inference_component,
            "X-Amzn-SageMaker-Custom-Attributes": options.custom_attributes,
        }
        pixels = image.height * image.width
        # float32 one by one with a tag each are 5 bytes; twice that, since the classes may be more than are told
        most = 10 * len(self.classes) * pixels if options.accept == "protobuf" else 4 * pixels
        return Call(
            "POST",
            self.url,
            most + (1 << 20),
            {name: value for name, value in headers.items() if value is not None},
            image.body,
        )

    def judge(self, reply: Reply) -> Verdict | None:
        """By magic bytes where it answers, by the error's code where it does not."""
        if 200 <= reply.status < 300:
            return None if reply.body.startswith(_MAGIC[self.options.accept]) else _NO_PREDICTION
        return _failure(reply)

    def stated_version(self, received: Received) -> str | None:
        """The production variant that answered."""
        return received.headers.get(_VARIANT) or None


def build(url: str, config: TeacherConfig, key: SecretStr | None) -> Spoken:
    """What is spoken at https://runtime.sagemaker.REGION.amazonaws.com/endpoints/NAME[/invocations].

    Raises SettingsError.
    """
    options = checked(Options, config.options, "--teacher-config [sagemaker]")
    if key is not None:
        raise SettingsError(
            "a teacher of kind sagemaker is asked with AWS credentials: unset CORTE_TEACHER_KEY, "
            "and set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    plain = url.removesuffix("/invocations")
    parts = urlsplit(plain)
    if not _PATH.fullmatch(parts.path):
        raise SettingsError(
            "--teacher-url of kind sagemaker is https://runtime.sagemaker.REGION.amazonaws.com/endpoints/NAME"
        )
    host = _HOST.fullmatch(parts.hostname or "")
    region = options.region or (host[1] if host else None)
    if region is None:
        raise SettingsError(
            f"the AWS region is not in {parts.hostname}: write `region` into [sagemaker] of --teacher-config"
        )
    classes, colors = config.listed("sagemaker")
    level = Disclosure(1, 0) if options.accept == "png" else Disclosure(len(classes), 16)
    asked = f"{plain} {options.target_variant or ''} {options.inference_component or ''}".rstrip()
    dialect = SageMaker(
        asked, classes, colors, level, limits_of(config, _MAX_BODY), f"{plain}/invocations", options
    )
    return Spoken(dialect, AwsSigner(options.service, region))


def _failure(reply: Reply) -> Verdict | None:
    body = _fields(reply.body)
    code = _code(reply, body)
    if code == "ModelError" or (not code and reply.status == 424):
        inner = body.get("OriginalStatusCode")
        return model_failed(reply, inner if isinstance(inner, int) else None)
    if code in _THROTTLED:
        return _again(reply, "it allows no more for now", "refused")
    if code == "ModelNotReadyException":
        return _again(reply, "its model is being loaded", "overloaded")
    if reply.status == 530:
        return _again(reply, "a service that it depends on failed", "overloaded", billed=True)
    if code in ("AccessDeniedException", "AccessDenied", "NotAuthorized"):
        return Verdict(
            f"does not let these AWS credentials ask ({reply.status}): allow them sagemaker:InvokeEndpoint",
            Refused,
        )
    if reply.status in (401, 403) or code in ("IncompleteSignature", "RequestExpired"):
        return Verdict(
            f"refuses the AWS credentials ({reply.status}): check AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, renew an expired session, and set this machine's clock",
            Refused,
        )
    if code in ("ValidationError", "ValidationException"):
        if _TOO_LARGE.search(str(body.get("message") or body.get("Message"))):
            return Verdict("the teacher will not take this image (400): it is too large", ImageRefused)
        return Verdict(
            "refuses the request (400): check the endpoint's name in --teacher-url, "
            "and target_variant and inference_component in --teacher-config",
            Refused,
        )
    return None


def _again(
    reply: Reply, why: str, pace: Literal["refused", "overloaded"], *, billed: bool = False
) -> Verdict:
    wait_s = wait_of(reply.headers, datetime.now(UTC))
    return Verdict(
        f"it answers {reply.status}: {why}", Unavailable, again=True, billed=billed, wait_s=wait_s, pace=pace
    )


def _fields(body: bytes) -> dict[str, object]:
    """The error's JSON object; nothing of what is none."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _code(reply: Reply, body: dict[str, object]) -> str:
    """The error's bare name: `ns#Name:url` in a header or in the body (AWS restJson1 protocol).

    https://smithy.io/2.0/aws/protocols/aws-restjson1-protocol.html#operation-error-serialization
    """
    told = reply.headers.get("x-amzn-errortype") or body.get("__type") or body.get("code") or ""
    return str(told).partition(":")[0].rpartition("#")[2]
