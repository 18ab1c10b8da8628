"""Hugging Face, task image-segmentation: the router's provider hf-inference, and dedicated endpoints.

    https://huggingface.co/docs/inference-providers/tasks/image-segmentation
        the picture's bytes in, or JSON {"inputs", "parameters"}; [{"label", "mask", "score"}] out
    https://github.com/huggingface/transformers/blob/main/src/transformers/pipelines/image_segmentation.py
        a semantic model gives one mask for each class it sees, their scores null; the others one a segment
    https://huggingface.co/docs/inference-endpoints/guides/autoscaling
        503 while a replica starts, `X-Scale-Up-Timeout` to be held instead
    https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/utils/_http.py
        429 with `RateLimit: "api";r=0;t=55`, which counts before Retry-After
    https://github.com/huggingface/transformers/issues/32665
        503 {"error": "Model .. is currently loading", "estimated_time": 20.0}
    https://github.com/huggingface/huggingface-inference-toolkit
        the container of dedicated endpoints: whatever fails is 400 {"error": text}, out of memory too
    https://github.com/elastic/elasticsearch/issues/112033 - a paused endpoint: 400 Bad Request: Invalid state

Rule 1: a segment's score decides who is in front, and is no confidence of its pixels. Rule 2: a 400 concerns
the image unless its text is known to mean the model. Rule 3: no answer states the model's version; `revision`
in --teacher-config is the user's own name for it.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from corte_protocol import Disclosure, MalformedFrame, Prediction
from corte_student.endpoints.answers import Received, Sent
from corte_student.endpoints.config import Strict, TeacherConfig, checked
from corte_student.endpoints.dialect import Call, Dialect, Reply, Verdict
from corte_student.endpoints.hints import LONGEST_S, hint_of
from corte_student.endpoints.vendors.described import AnswerSpec, found, parsed
from corte_student.endpoints.vendors.reading import read_answer
from corte_student.endpoints.vendors.spoken import Spoken, bearer, limits_of
from corte_student.endpoints.verdicts import TRIES_ON_FAILURE, ordinary
from corte_student.errors import BrokeContract, ImageRefused, Refused, SettingsError

_SOURCE: Final = "--teacher-config [huggingface]"
_ROUTER: Final = "router.huggingface.co"
_NAME: Final = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_MODEL: Final = re.compile(rf"{_NAME}(?:/{_NAME})?")
_PATH: Final = re.compile(rf"(?:/hf-inference(?:/models(?:/({_MODEL.pattern}))?)?)?")
_MAX_BODY: Final = 10_000_000  # this project's choice: no limit is published
_UNSUPPORTED: Final = re.compile(r"\b(?:model|task)\b[^\n]{0,200} not supported")
_PARAMETERS: Final = frozenset({"subtask", "threshold", "mask_threshold", "overlap_mask_area_threshold"})

Share = Annotated[float, Field(ge=0, le=1)]


class Options(Strict):
    """`[huggingface]` in --teacher-config. The first four are the task's own parameters.

    `scale_up_timeout_s`: so long a dedicated endpoint holds a request while it wakes up. `bill_to`: the
    organisation that pays the router. A label of `void_labels` is void, so is any unknown one with
    `ignore_unknown`.
    """

    subtask: Literal["semantic", "panoptic", "instance"] | None = None
    threshold: Share | None = None
    mask_threshold: Share | None = None
    overlap_mask_area_threshold: Share | None = None
    scale_up_timeout_s: Annotated[int, Field(ge=1, le=3600)] | None = None
    bill_to: Annotated[str, Field(pattern=rf"^{_NAME}$", max_length=96)] | None = None
    void_labels: tuple[str, ...] = ()
    ignore_unknown: bool = False


@dataclass(frozen=True)
class HuggingFace(Dialect):
    """One model behind the router, or one dedicated endpoint."""

    name: ClassVar[str] = "huggingface"
    version: ClassVar[int] = 1

    url: str
    dedicated: bool
    parameters: Mapping[str, object]
    headers: Mapping[str, str]
    answer: AnswerSpec

    def call(self, image: Sent, level: Disclosure) -> Call:
        """The picture's own bytes, or JSON where there are parameters."""
        media_type, content = image.media_type, image.body
        if self.parameters:
            coded = base64.b64encode(image.body).decode("ascii")
            media_type = "application/json"
            content = json.dumps({"inputs": coded, "parameters": self.parameters}).encode()
        headers = {"Accept": "application/json", **self.headers, "Content-Type": media_type}
        most = self.answer.max_bytes(image.height, image.width)
        return Call("POST", self.url, most, headers, content)

    def judge(self, reply: Reply) -> Verdict | None:
        """Masks, or why there are none."""
        if 200 <= reply.status < 300:
            return _no_masks(reply)
        if reply.status in (429, 503):
            return _later(reply)
        return _refusal(reply, dedicated=self.dedicated)

    def read(self, received: Received, height: int, width: int, need: Disclosure) -> Prediction:
        """Masks painted on each other, the higher score in front; what none covers is void."""
        return read_answer(self.answer, received, height, width, self.classes)


def build(url: str, config: TeacherConfig, key: SecretStr | None) -> Spoken:
    """What is spoken at https://router.huggingface.co/hf-inference/models/ORG/NAME, or at the URL of a
    dedicated endpoint. Raises SettingsError.
    """
    options = checked(Options, config.options, _SOURCE)
    target, dedicated = _target(url, config.model)
    answer = AnswerSpec(
        encoding="class-masks",
        items="@",
        label="label",
        mask="mask",
        score="score",
        void_labels=options.void_labels,
        ignore_unknown=options.ignore_unknown,
    )
    classes, colors = answer.completed(*config.listed("huggingface"), _SOURCE)
    parameters = options.model_dump(include=set(_PARAMETERS), exclude_none=True)
    dialect = HuggingFace(
        identity=f"{target} {json.dumps(parameters, sort_keys=True)}",
        classes=classes,
        colors=colors,
        level=answer.level,
        limits=limits_of(config, _MAX_BODY * 3 // 4 if parameters else _MAX_BODY),
        url=target,
        dedicated=dedicated,
        parameters=parameters,
        headers=_headers(options, dedicated=dedicated),
        answer=answer,
    )
    return Spoken(dialect, bearer(key))


def _target(url: str, model: str | None) -> tuple[str, bool]:
    """The URL to ask, and whether it is a dedicated endpoint's."""
    parts = urlsplit(url)
    if parts.hostname != _ROUTER and not parts.path.startswith("/hf-inference"):
        if model is not None:
            raise SettingsError("model: a dedicated endpoint holds one model, its URL says all: take it out")
        return url, True
    route = _PATH.fullmatch(parts.path)
    if route is None:
        raise SettingsError(
            "--teacher-url of kind huggingface is a dedicated endpoint's, or "
            f"https://{_ROUTER}/hf-inference/models/ORG/NAME"
        )
    if model is not None and route[1] not in (None, model):
        raise SettingsError(f"--teacher-url names {route[1]}, --teacher-config {model}: keep one")
    named = route[1] or model
    if named is None or not _MODEL.fullmatch(named):
        raise SettingsError('write model = "org/name" into --teacher-config, or the whole URL of the model')
    return f"{parts.scheme}://{parts.netloc}/hf-inference/models/{named}", False


def _headers(options: Options, *, dedicated: bool) -> dict[str, str]:
    """The headers of `options`. Raises SettingsError for one that means nothing there."""
    headers = {}
    if options.scale_up_timeout_s is not None:
        if not dedicated:
            raise SettingsError(
                f"{_SOURCE}: scale_up_timeout_s: only dedicated endpoints scale up: take it out"
            )
        headers["X-Scale-Up-Timeout"] = str(options.scale_up_timeout_s)
    if options.bill_to is not None:
        if dedicated:
            raise SettingsError(f"{_SOURCE}: bill_to: a dedicated endpoint bills its owner: take it out")
        headers["X-HF-Bill-To"] = options.bill_to
    return headers


def _no_masks(reply: Reply) -> Verdict | None:
    """What a success is, if not a list of labels with masks. An empty list is one: nothing was found."""
    try:
        items: Any = parsed(reply.body)
    except MalformedFrame:
        items = None
    labelled = isinstance(items, list) and all(
        isinstance(item, dict) and isinstance(item.get("label"), str) for item in items
    )
    if labelled and all(isinstance(item.get("mask"), str) for item in items):
        return None
    why = (
        "answers with labels and no masks: check that its task is image-segmentation"
        if labelled
        else "answered with something that is no prediction: check --teacher-kind and the model"
    )
    return Verdict(why, BrokeContract, billed=True)


def _later(reply: Reply) -> Verdict | None:
    """429 and 503 with what they say about the wait; None where they say nothing of their own."""
    verdict = ordinary(reply, has_key=True, one_image=True)
    assert verdict is not None
    if reply.status == 503:
        seconds = _estimate(reply.body)
        if seconds is None:
            return None
        # what the load balancer says may be longer
        wait_s = max(seconds, verdict.wait_s or 0.0)
        return replace(verdict, why="it answers 503: it is still loading the model", wait_s=wait_s)
    hint = hint_of(reply.headers, datetime.now(UTC))
    return None if hint is None or hint.remaining else replace(verdict, wait_s=hint.reset_s)


def _estimate(body: bytes) -> float | None:
    """`estimated_time`, seconds, if it is one."""
    try:
        value = found("estimated_time", parsed(body))
    except MalformedFrame:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(min(value, LONGEST_S)) if number and value >= 0 else None


def _refusal(reply: Reply, *, dedicated: bool) -> Verdict | None:
    """What the ordinary table would misread; the text is looked at, and never repeated."""
    status, text = reply.status, reply.body[:4096].decode("utf-8", "replace").lower()
    if status in (400, 500) and "out of memory" in text:
        return Verdict(
            f"the teacher's memory is too small for this image ({status}): send smaller ones, or raise it",
            ImageRefused,
            again=True,
            billed=True,
            pace="overloaded",
            tries=TRIES_ON_FAILURE,
        )
    if status == 400 and "invalid state" in text:
        return Verdict("is paused (400): resume the endpoint at Hugging Face", Refused)
    if (status == 400 and _UNSUPPORTED.search(text)) or (status in (404, 410) and not dedicated):
        return Verdict(
            f"does not serve this model ({status}): look on its page whether HF Inference is among its "
            "providers, or deploy it to a dedicated endpoint",
            Refused,
        )
    if status == 404:
        return Verdict("knows no such endpoint (404): copy its URL into --teacher-url again", Refused)
    if status == 403:
        right = "read this endpoint" if dedicated else "make calls to Inference Providers"
        return Verdict(f"does not let this key ask (403): give the token the right to {right}", Refused)
    return None
