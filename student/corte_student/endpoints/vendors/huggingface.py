"""Hugging Face, task image-segmentation: the router's `hf-inference` and dedicated endpoints.

    https://huggingface.co/docs/inference-providers/tasks/image-segmentation
        one mask a class, base64 PNG of 0 and 255; `score` is null for semantic models
    https://huggingface.co/docs/inference-endpoints/guides/autoscaling
        503 while an endpoint wakes up, X-Scale-Up-Timeout to be held until it has
    https://huggingface.co/docs/hub/rate-limits
        429 with RateLimit: "api";r=0;t=55

Rule 1: labels only. A segment's score is one number for all its pixels, so it settles overlaps and is no
confidence. Rule 2: what no mask covers is void. Rule 3: masks are told apart by their labels' names, which
`classes` must list. Rule 4: no class list and no model version come from the service: both are the user's.
"""

import json
import re
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, SecretStr

from corte_protocol import MalformedFrame
from corte_student.endpoints.config import Strict, TeacherConfig, checked
from corte_student.endpoints.dialect import Reply, Verdict
from corte_student.endpoints.vendors.custom import Custom, Errors
from corte_student.endpoints.vendors.described import AnswerSpec, parsed
from corte_student.endpoints.vendors.described_request import Request
from corte_student.endpoints.vendors.spoken import Spoken, bearer, limits_of
from corte_student.errors import Refused, SettingsError, Unavailable

_SOURCE: Final = "--teacher-config [huggingface]"
_MAX_BODY: Final = 10 << 20
"""No limit is published: what the router was seen to take, and more than any JPEG of a street camera."""
_ROUTER: Final = "router.huggingface.co"
_MODEL: Final = re.compile(r"[\w.-]+/[\w.-]+")
_LONGEST_WAIT_S: Final = 600.0


class Options(Strict):
    """`subtask` and `threshold` go to the pipeline; `scale_up_s`: how long a sleeping endpoint may take to
    wake.
    """

    subtask: Literal["semantic", "instance", "panoptic"] | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    scale_up_s: Annotated[int, Field(ge=0, le=600)] | None = None
    bill_to: Annotated[str, Field(pattern=r"^[\w.-]{1,96}$")] | None = None
    ignore_unknown: bool = False


class HuggingFace(Custom):
    """A list of {label, mask, score}."""

    name: ClassVar[str] = "huggingface"
    version: ClassVar[int] = 1

    def judge(self, reply: Reply) -> Verdict | None:
        """A model that loads says how long; all else as described."""
        if reply.status == 503 and (wait_s := _loading_s(reply)) is not None:
            return Verdict(
                "it is loading the model (503)", Unavailable, again=True, wait_s=wait_s, pace="overloaded"
            )
        if reply.status in (400, 404) and _unsupported(reply):
            return Verdict(
                f"does not run this model for image segmentation ({reply.status}): check --teacher-url",
                Refused,
            )
        return super().judge(reply)


def build(url: str, config: TeacherConfig, key: SecretStr | None) -> Spoken:
    """What is spoken at a model's URL, or at the router with `model` in the config. Raises SettingsError."""
    options = checked(Options, config.options, _SOURCE)
    if config.model is not None:
        if not _MODEL.fullmatch(config.model):
            raise SettingsError(f"model: {config.model!r} is no OWNER/NAME of the Hub")
        url = f"{url.removesuffix('/models')}/models/{config.model}"
    elif _ROUTER in url and "/models/" not in url:
        raise SettingsError('model: the router serves many: write model = "OWNER/NAME" into --teacher-config')
    request = _request(options)
    answer = AnswerSpec(
        format="json",
        items="@",
        label="label",
        mask="mask",
        score="score",
        transport="base64",
        encoding="class-masks",
        ignore_unknown=options.ignore_unknown,
    )
    classes, colors = answer.completed(*config.listed("huggingface"), _SOURCE)
    asked = json.dumps(request.template, sort_keys=True)
    dialect = HuggingFace(
        identity=f"{url} {asked}",
        classes=classes,
        colors=colors,
        level=answer.level,
        limits=limits_of(config, _MAX_BODY),
        url=url,
        request=request,
        answer=answer,
        poll=None,
        errors=Errors(),
    )
    return Spoken(dialect, bearer(key))


def _request(options: Options) -> Request:
    """The image's own bytes; with parameters JSON, as huggingface_hub sends them."""
    headers = {}
    if options.scale_up_s is not None:
        headers["X-Scale-Up-Timeout"] = str(options.scale_up_s)
    if options.bill_to is not None:
        headers["X-HF-Bill-To"] = options.bill_to
    given = {"subtask": options.subtask, "threshold": options.threshold}
    parameters: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not parameters:
        return Request(headers=headers)
    template: dict[str, Any] = {"inputs": "$image_base64", "parameters": parameters}
    return Request(headers=headers, body="json", template=template)


def _loading_s(reply: Reply) -> float | None:
    """Seconds that a loading model is said to take; None where nothing of the kind is said."""
    seconds = _field(reply, "estimated_time")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        return None
    return min(float(seconds), _LONGEST_WAIT_S)


def _unsupported(reply: Reply) -> bool:
    text = _field(reply, "error")
    return isinstance(text, str) and "not supported" in text.lower()


def _field(reply: Reply, name: str) -> Any:
    try:
        document = parsed(reply.body)
    except MalformedFrame:
        return None
    return document.get(name) if isinstance(document, dict) else None
