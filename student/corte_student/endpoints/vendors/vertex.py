"""Google Vertex AI online prediction: what goes in and comes out is up to the deployed container.

    https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.endpoints/rawPredict
        any body in, the container's bytes out, `X-Vertex-AI-Deployed-Model-Id` beside them
    https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.endpoints/predict
        {"instances": [..]} in, {"predictions": [..], "deployedModelId", "modelVersionId"} out
    https://cloud.google.com/vertex-ai/docs/predictions/choose-endpoint-type
        10 MB a request at a dedicated endpoint, 1.5 MB at a shared one
    https://cloud.google.com/apis/design/errors
        {"error": {"code", "message", "status", "details"}}, google.rpc.RetryInfo among the details

Strategy: a service described by the user, as of kind custom, with the same tables `request` and `answer`;
this file adds what is the same at every endpoint. Expressions in `answer` count from the whole body, so those
of predict begin with `predictions[0]`.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from corte_protocol import MalformedFrame
from corte_student.endpoints.answers import Received
from corte_student.endpoints.config import Strict, TeacherConfig, checked
from corte_student.endpoints.dialect import Reply, Verdict
from corte_student.endpoints.hints import LONGEST_S
from corte_student.endpoints.signing import GoogleSigner, HeaderKey, Signer
from corte_student.endpoints.vendors.custom import Custom, Errors
from corte_student.endpoints.vendors.described import AnswerSpec, found, parsed
from corte_student.endpoints.vendors.described_request import Request
from corte_student.endpoints.vendors.hosted import asked, described, room
from corte_student.endpoints.vendors.spoken import Spoken, limits_of
from corte_student.endpoints.verdicts import ordinary
from corte_student.errors import Refused, SettingsError

_SOURCE: Final = "--teacher-config [vertex"
_MODEL: Final = "x-vertex-ai-deployed-model-id"
_PATH: Final = re.compile(
    r"(/v1(?:beta1)?/projects/[^/]+/locations/[^/]+/endpoints/[^/:]+)(?::(rawPredict|predict))?"
)
_SHARED: Final = "-aiplatform.googleapis.com"
_MAX_SHARED: Final = 1_500_000
_MAX_DEDICATED: Final = 10_000_000
_INSTANCE: Final[dict[str, Any]] = {"instances": [{"b64": "$image_base64"}]}
_DELAY: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")

Method = Literal["rawPredict", "predict"]


class Options(Strict):
    """`[vertex]` in --teacher-config. `request` and `answer` are those of kind custom."""

    method: Method | None = None
    request: dict[str, Any] = Field(default_factory=dict)
    answer: dict[str, Any]


@dataclass(frozen=True)
class Vertex(Custom):
    """One endpoint. `url` ends in :rawPredict or :predict."""

    name: ClassVar[str] = "vertex"
    version: ClassVar[int] = 1
    kept_headers: ClassVar[tuple[str, ...]] = (_MODEL,)

    method: Method

    def judge(self, reply: Reply) -> Verdict | None:
        """As described; then by Google's own status."""
        return super().judge(reply) or _failure(reply)

    def stated_version(self, received: Received) -> str | None:
        """As described, else the deployed model that answered, with the version of its model."""
        told = super().stated_version(received)
        if told is not None or self.method == "rawPredict":
            return told or received.headers.get(_MODEL) or None
        try:
            ids = found("[deployedModelId, modelVersionId]", parsed(received.body))
        except MalformedFrame:
            return None
        return " ".join(str(one) for one in ids or () if one) or received.headers.get(_MODEL) or None


def build(url: str, config: TeacherConfig, key: SecretStr | None) -> Spoken:
    """What is spoken at https://HOST/v1/projects/P/locations/R/endpoints/E[:rawPredict|:predict].

    A key is an access token; without one, Application Default Credentials are asked. Raises SettingsError.
    """
    options = checked(Options, config.options, f"{_SOURCE}]")
    endpoint, method = _route(url, options.method)
    request = described(options.request, f"{_SOURCE}.request]")
    answer = checked(AnswerSpec, options.answer, f"{_SOURCE}.answer]")
    if method == "predict":
        request = _instances(request)
        if answer.format != "json":
            raise SettingsError(f'{_SOURCE}.answer]: predict answers JSON: write format = "json" and `mask`')
    classes, colors = answer.completed(*config.listed("vertex"), f"{_SOURCE}.answer]")
    shared = (urlsplit(url).hostname or "").endswith(_SHARED)
    dialect = Vertex(
        identity=f"{endpoint}:{method} {asked(request)}",
        classes=classes,
        colors=colors,
        level=answer.level,
        limits=limits_of(config, room(request, _MAX_SHARED if shared else _MAX_DEDICATED)),
        url=f"{endpoint}:{method}",
        request=request,
        answer=answer,
        poll=None,
        errors=Errors(),
        method=method,
    )
    signer: Signer = GoogleSigner() if key is None else HeaderKey(key)
    return Spoken(dialect, signer)


def _route(url: str, wanted: Method | None) -> tuple[str, Method]:
    """The endpoint's URL and the method, of which the URL may name one."""
    parts = urlsplit(url)
    route = _PATH.fullmatch(parts.path)
    if route is None:
        raise SettingsError(
            "--teacher-url of kind vertex is https://HOST/v1/projects/PROJECT/locations/REGION/endpoints/ENDPOINT"
        )
    named: Method | None = None
    if route[2] is not None:
        named = "predict" if route[2] == "predict" else "rawPredict"
    if wanted is not None and named not in (None, wanted):
        raise SettingsError(f"--teacher-url names {named}, --teacher-config {wanted}: keep one")
    return f"{parts.scheme}://{parts.netloc}{route[1]}", wanted or named or "rawPredict"


def _instances(request: Request) -> Request:
    """The request of predict: `template` as written, else one instance that is the picture."""
    if "body" not in request.model_fields_set:
        return request.model_copy(update={"body": "json", "template": _INSTANCE})
    if request.body != "json" or "instances" not in request.template:
        raise SettingsError(
            f'{_SOURCE}.request]: predict takes body = "json" and a template with `instances`'
        )
    return request


def _failure(reply: Reply) -> Verdict | None:
    if 200 <= reply.status < 300:
        return None
    status, delay_s = _told(reply.body)
    if delay_s is not None and reply.status in (429, 503):
        verdict = ordinary(reply, has_key=True, one_image=True)
        return verdict and replace(verdict, wait_s=delay_s)
    if reply.status == 401 or status == "API_KEY_INVALID":
        return Verdict(
            f"refuses the access token ({reply.status}): it may have ended, put a new one into "
            "CORTE_TEACHER_KEY, or unset that and run `gcloud auth application-default login`",
            Refused,
        )
    if reply.status == 403:
        return Verdict(
            "does not let this account ask (403): give it the role Vertex AI User",
            Refused,
        )
    if reply.status == 400 and status == "FAILED_PRECONDITION":
        return Verdict("cannot answer (400): check that a model is deployed to the endpoint", Refused)
    return None


def _told(body: bytes) -> tuple[str | None, float | None]:
    """The error's status, or the reason that is more telling; and the seconds of google.rpc.RetryInfo."""
    try:
        document = parsed(body)
    except MalformedFrame:
        return None, None
    reason = found("error.details[?reason=='API_KEY_INVALID'].reason | [0]", document)
    status = reason or found("error.status", document)
    delay = found("error.details[?retryDelay].retryDelay | [0]", document)
    seconds = _DELAY.fullmatch(delay) if isinstance(delay, str) else None
    return (
        status if isinstance(status, str) else None,
        None if seconds is None else min(float(seconds[1]), LONGEST_S),
    )
