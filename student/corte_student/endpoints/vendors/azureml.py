"""Azure Machine Learning online endpoints: what goes in and comes out is up to the deployed score.py.

    https://learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints
        statuses: 404 without traffic, 408 past `request_timeout_ms`, 424 for what the model answers, 429
    https://learn.microsoft.com/azure/machine-learning/how-to-safely-rollout-online-endpoints
        the header `azureml-model-deployment`, which picks a deployment; answers carry it too
    https://learn.microsoft.com/azure/machine-learning/how-to-authenticate-online-endpoint
        a key or a token, both as bearer
    https://learn.microsoft.com/azure/machine-learning/how-to-deploy-advanced-entry-script
        `@rawhttp` takes the picture's own bytes; other scripts take JSON

Strategy: a service described by the user, as of kind custom, with the same tables `request` and `answer`;
this file adds what is the same at every endpoint. Triton behind such an endpoint is of kind openinference.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field, SecretStr

from corte_protocol import Disclosure
from corte_student.endpoints.answers import Received, Sent
from corte_student.endpoints.config import Strict, TeacherConfig, checked
from corte_student.endpoints.dialect import Call, Reply, Verdict
from corte_student.endpoints.vendors.custom import Custom, Errors
from corte_student.endpoints.vendors.described import AnswerSpec
from corte_student.endpoints.vendors.hosted import asked, described, room
from corte_student.endpoints.vendors.inner import model_failed
from corte_student.endpoints.vendors.spoken import Spoken, bearer, limits_of
from corte_student.endpoints.verdicts import TRIES_ON_FAILURE
from corte_student.errors import ImageRefused, Refused

_SOURCE: Final = "--teacher-config [azureml"
_DEPLOYMENT: Final = "azureml-model-deployment"
_INNER: Final = "ms-azureml-model-error-statuscode"
_MAX_BODY: Final = 10_000_000


class Options(Strict):
    """`[azureml]` in --teacher-config. `request` and `answer` are those of kind custom."""

    deployment: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]{2,31}$")] | None = None
    request: dict[str, Any] = Field(default_factory=dict)
    answer: dict[str, Any]


@dataclass(frozen=True)
class AzureMl(Custom):
    """One endpoint, or one `deployment` of it."""

    name: ClassVar[str] = "azureml"
    version: ClassVar[int] = 1
    kept_headers: ClassVar[tuple[str, ...]] = (_DEPLOYMENT,)

    deployment: str | None

    def call(self, image: Sent, level: Disclosure) -> Call:
        """As described, to the deployment."""
        call = super().call(image, level)
        if self.deployment is None:
            return call
        return replace(call, headers={**call.headers, _DEPLOYMENT: self.deployment})

    def judge(self, reply: Reply) -> Verdict | None:
        """As described; then by the status that the model answered, where it is not the endpoint's own."""
        return super().judge(reply) or _failure(reply)

    def stated_version(self, received: Received) -> str | None:
        """As described, else the deployment that answered."""
        return super().stated_version(received) or received.headers.get(_DEPLOYMENT) or None


def build(url: str, config: TeacherConfig, key: SecretStr | None) -> Spoken:
    """What is spoken at https://ENDPOINT.REGION.inference.ml.azure.com/score. Raises SettingsError."""
    options = checked(Options, config.options, f"{_SOURCE}]")
    request = described(options.request, f"{_SOURCE}.request]")
    answer = checked(AnswerSpec, options.answer, f"{_SOURCE}.answer]")
    classes, colors = answer.completed(*config.listed("azureml"), f"{_SOURCE}.answer]")
    dialect = AzureMl(
        identity=f"{url} {options.deployment or ''} {asked(request)}",
        classes=classes,
        colors=colors,
        level=answer.level,
        limits=limits_of(config, room(request, _MAX_BODY)),
        url=url,
        request=request,
        answer=answer,
        poll=None,
        errors=Errors(),
        deployment=options.deployment,
    )
    return Spoken(dialect, bearer(key))


def _failure(reply: Reply) -> Verdict | None:
    if reply.status == 424:
        inner = reply.headers.get(_INNER, "")
        return model_failed(reply, int(inner) if inner.isascii() and inner.isdigit() else None)
    if reply.status == 408:
        return Verdict(
            "the teacher took too long over this image (408): raise request_timeout_ms of its deployment",
            ImageRefused,
            again=True,
            billed=True,
            pace="overloaded",
            tries=TRIES_ON_FAILURE,
        )
    if reply.status == 404:
        return Verdict(
            "has no deployment that takes requests (404): check --teacher-url, "
            "and `deployment` in --teacher-config",
            Refused,
        )
    return None
