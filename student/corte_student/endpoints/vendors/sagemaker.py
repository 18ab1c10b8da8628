"""Amazon SageMaker endpoints: the built-in semantic segmentation algorithm, or a container of one's own.

    https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html
        the route, its headers and errors, 6,291,456 bytes a body, `x-Amzn-Invoked-Production-Variant`
    https://docs.aws.amazon.com/sagemaker/latest/APIReference/CommonErrors.html
        throttling is a 400; what is wrong with credentials is mostly a 403
    https://docs.aws.amazon.com/sagemaker/latest/dg/semantic-segmentation.html
        takes `image/jpeg`; answers a PNG of class ids, or the probability of each class for each pixel
    https://sagemaker-examples.readthedocs.io/en/latest/introduction_to_amazon_algorithms/semantic_segmentation_pascalvoc/semantic_segmentation_pascalvoc.html
        `Accept` is `image/png` or `application/x-protobuf`: one RecordIO record of `target` and `shape`
    https://smithy.io/2.0/aws/protocols/aws-restjson1-protocol.html#operation-error-serialization
        how an error is named

Rule 1: requests are signed (SigV4) with AWS's own credentials, never with CORTE_TEACHER_KEY. Rule 2: no
picture is encoded anew. The algorithm documents JPEG alone for inference; a PNG goes to it as
`application/x-image`, the type that it documents for training, or as `content_type` in [sagemaker.request]
says. Rule 3: an error is told by its name, since its status is often 400. Rule 4: a container of one's own is
described as for kind custom, in [sagemaker.request] and [sagemaker.answer].
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Final, Literal, cast
from urllib.parse import urlsplit

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field, SecretStr

from corte_protocol import Disclosure, InvalidValue, Prediction
from corte_student.endpoints import masks, recordio
from corte_student.endpoints.answers import Received, Sent
from corte_student.endpoints.config import Strict, TeacherConfig, checked
from corte_student.endpoints.dialect import Call, Reply, Verdict
from corte_student.endpoints.signing import AwsSigner
from corte_student.endpoints.vendors.custom import Custom, Errors
from corte_student.endpoints.vendors.described import AnswerSpec
from corte_student.endpoints.vendors.hosted import asked, described, room
from corte_student.endpoints.vendors.sagemaker_failures import failure
from corte_student.endpoints.vendors.spoken import Spoken, limits_of
from corte_student.errors import BrokeContract, SettingsError

_SOURCE: Final = "--teacher-config [sagemaker"
_VARIANT: Final = "x-amzn-invoked-production-variant"
_MAX_BODY: Final = 6_291_456
_PROTOBUF: Final = {
    "protobuf": "application/x-protobuf",
    "recordio-protobuf": "application/x-recordio-protobuf",
}
_RECORDIO: Final = b"\x0a\x23\xd7\xce"
_HOST: Final = re.compile(r"(?:.+\.)?runtime(?:-fips)?\.sagemaker(?:-fips)?\.([a-z0-9-]+)\.[a-z.]+")
_PATH: Final = re.compile(r"/endpoints/[A-Za-z0-9](-*[A-Za-z0-9])*")
_NO_PREDICTION: Final = Verdict(
    "answered with something that is no prediction: check --teacher-kind and `accept` in --teacher-config",
    BrokeContract,
    billed=True,
)

Floats = npt.NDArray[np.floating]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9](-*[A-Za-z0-9])*$", max_length=63)]
Attributes = Annotated[str, Field(pattern=r"^[\x21-\x7e]+$", max_length=1024)]


class Options(Strict):
    """`[sagemaker]` in --teacher-config.

    `accept`: what the built-in algorithm answers, ids or probabilities, whose type AWS names in two ways.
    `answer`, and `request` with it, describe a container of one's own instead.
    """

    accept: Literal["png", "protobuf", "recordio-protobuf"] | None = None
    region: Name | None = None
    service: Name = "sagemaker"
    target_variant: Name | None = None
    inference_component: Name | None = None
    custom_attributes: Attributes | None = None
    request: dict[str, Any] = Field(default_factory=dict)
    answer: dict[str, Any] | None = None


@dataclass(frozen=True)
class SageMaker(Custom):
    """One endpoint. `url` ends in /invocations; `scores`: the type of probabilities, where they are asked."""

    name: ClassVar[str] = "sagemaker"
    version: ClassVar[int] = 1
    kept_headers: ClassVar[tuple[str, ...]] = (_VARIANT,)

    options: Options
    scores: str | None

    def call(self, image: Sent, level: Disclosure) -> Call:
        """InvokeEndpoint."""
        call, options = super().call(image, level), self.options
        told = {
            "Accept": self.scores,
            "X-Amzn-SageMaker-Target-Variant": options.target_variant,
            "X-Amzn-SageMaker-Inference-Component": options.inference_component,
            "X-Amzn-SageMaker-Custom-Attributes": options.custom_attributes,
        }
        headers = {**call.headers, **{name: value for name, value in told.items() if value is not None}}
        if (
            options.answer is None
            and headers["Content-Type"] == "image/png"
            and not self.request.content_type
        ):
            headers["Content-Type"] = "application/x-image"
        if self.scores is None:
            return replace(call, headers=headers)
        # a float32 and its tag are 5 bytes; twice that, since there may be more classes than are told
        most = 10 * len(self.classes) * image.height * image.width + (1 << 20)
        return replace(call, headers=headers, max_bytes=most)

    def judge(self, reply: Reply) -> Verdict | None:
        """By its form where it answers, by the error's name where it does not."""
        if self.scores is not None and 200 <= reply.status < 300:
            return None if reply.body.startswith(_RECORDIO) else _NO_PREDICTION
        return super().judge(reply) or failure(reply)

    def stated_version(self, received: Received) -> str | None:
        """As described, else the production variant that answered."""
        return super().stated_version(received) or received.headers.get(_VARIANT) or None

    def read(self, received: Received, height: int, width: int, need: Disclosure) -> Prediction:
        """As described, or the `need.top_k` best classes with their probabilities."""
        # what is stored tells: `accept` may have been changed since
        if not received.body.startswith(_RECORDIO):
            return super().read(received, height, width, need)
        scores = self._probabilities(received.body)
        if scores.shape[1:] != (height, width):
            scores = _fitted(scores, height, width)
        return Prediction(*masks.ranked(masks.within_one(scores), need.top_k), "unread")

    def _probabilities(self, body: bytes) -> Floats:
        """`target` in the shape that `shape` states, float [C, h, w]."""
        record = recordio.read_record(recordio.payloads(body)[0], max_values=len(body))
        target, sides = (record.tensor(name).values for name in ("target", "shape"))
        shape = [int(side) for side in sides]
        told = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
        if target.dtype.kind != "f" or len(told) != 3 or min(told) < 1 or math.prod(told) != target.size:
            raise InvalidValue(
                f"{target.size} numbers of the shape {shape[:8]} are no probabilities of an image"
            )
        if told[0] != len(self.classes):
            raise InvalidValue(
                f"probabilities of {told[0]} classes, and {len(self.classes)} are stated: "
                "correct classes in --teacher-config"
            )
        scores = cast(Floats, target.reshape(told))
        if not masks.normalised(scores):
            raise InvalidValue("the numbers are no probabilities: they do not add up to one")
        return scores


def build(url: str, config: TeacherConfig, key: SecretStr | None) -> Spoken:
    """What is spoken at https://runtime.sagemaker.REGION.amazonaws.com/endpoints/NAME[/invocations].

    Raises SettingsError.
    """
    options = checked(Options, config.options, f"{_SOURCE}]")
    if key is not None:
        raise SettingsError(
            "a teacher of kind sagemaker is asked with AWS credentials: unset CORTE_TEACHER_KEY, "
            "and set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    endpoint, region = _route(url, options.region)
    request = described(options.request, f"{_SOURCE}.request]")
    if options.answer is not None and options.accept is not None:
        raise SettingsError(
            f"{_SOURCE}]: accept is for the built-in algorithm, answer for any other: keep one"
        )
    answer = checked(AnswerSpec, options.answer or {"format": "image"}, f"{_SOURCE}.answer]")
    names, colors = config.listed("sagemaker")
    scores = _PROTOBUF.get(options.accept or "png")
    classes, colors = answer.completed(names, colors, f"{_SOURCE}.answer]")
    which = f"{options.target_variant or ''} {options.inference_component or ''}"
    dialect = SageMaker(
        identity=f"{endpoint} {which} {asked(request)}",
        classes=classes,
        colors=colors,
        level=answer.level if scores is None else Disclosure(len(classes), 16),
        limits=limits_of(config, room(request, _MAX_BODY)),
        url=f"{endpoint}/invocations",
        request=request,
        answer=answer,
        poll=None,
        errors=Errors(),
        options=options,
        scores=scores,
    )
    return Spoken(dialect, AwsSigner(options.service, region))


def _fitted(scores: Floats, height: int, width: int) -> Floats:
    """Probabilities on the image's grid, bilinearly, if the sides are in proportion, within a pixel."""
    rows, columns = scores.shape[1:]
    if abs(columns * height - rows * width) > max(height, width):
        raise InvalidValue(f"probabilities of {rows} x {columns} for an image of {height} x {width}")
    return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in scores])


def _route(url: str, region: str | None) -> tuple[str, str]:
    """The endpoint's URL without /invocations, and its region."""
    endpoint = url.removesuffix("/invocations")
    parts = urlsplit(endpoint)
    if not _PATH.fullmatch(parts.path):
        raise SettingsError(
            "--teacher-url of kind sagemaker is https://runtime.sagemaker.REGION.amazonaws.com/endpoints/NAME"
        )
    host = _HOST.fullmatch(parts.hostname or "")
    if region is None and host is None:
        raise SettingsError(
            f"the AWS region is not in {parts.hostname}: write `region` into [sagemaker] of --teacher-config"
        )
    return endpoint, region or (host[1] if host else "")
