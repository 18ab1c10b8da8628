"""Replicate: any public or private model of api.replicate.com whose output is a mask.

    https://replicate.com/docs/reference/http
        the routes, `Prefer: wait=n`, the states of a prediction and `urls.get`, 600 predictions a minute,
        429 {"detail": "Request was throttled. Expected available in 1 second."}
    https://replicate.com/docs/topics/predictions/lifecycle
        the states; `aborted` never started and is not billed, `canceled` is billed for the time it ran
    https://replicate.com/docs/topics/predictions/create-a-prediction
        a prediction not done within the wait comes back unfinished, to be looked for again
    https://replicate.com/docs/topics/predictions/output-files
        files are URLs of replicate.delivery or below, deleted after an hour
    https://github.com/replicate/replicate-javascript/blob/main/lib/util.js
        MAX_DATA_URI_SIZE, 10,000,000 bytes of files inside one request
    https://replicate.com/docs/topics/predictions/rate-limits
        429 {"detail": "Request was throttled. Your rate limit resets in ~30s."}, also at little credit

Rule 1: the picture goes inside the request, as a data URI, so nothing is left lying at a file host. Rule 2:
a prediction that failed ran, and may have been billed. Rule 3: output files are fetched at once, without the
key.
"""

import base64
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field, JsonValue, SecretStr

from corte_protocol import Disclosure, MalformedFrame, Prediction
from corte_student.endpoints.answers import Received, Sent
from corte_student.endpoints.config import Strict, TeacherConfig, checked
from corte_student.endpoints.dialect import MAX_JSON, Call, Dialect, Link, Reply, Verdict
from corte_student.endpoints.hints import LONGEST_S, wait_of
from corte_student.endpoints.vendors.described import (
    NO_PREDICTION,
    AnswerSpec,
    Expression,
    found,
    next_url,
    parsed,
)
from corte_student.endpoints.vendors.reading import read_answer
from corte_student.endpoints.vendors.spoken import Spoken, bearer, limits_of
from corte_student.errors import AnswerLost, ImageRefused, Refused, SettingsError, Unavailable

_SOURCE: Final = "--teacher-config [replicate]"
_HOSTS: Final = ("replicate.delivery", "*.replicate.delivery")
_MAX_FILE: Final = 10_000_000
_UNDER_WAY: Final = ("starting", "processing", "queued")
_WAIT: Final = re.compile(r"(?:resets in ~?|available in )(\d{1,6}(?:\.\d{1,6})?) ?s(?:ec|\b)")
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ROUTES: Final = (
    (re.compile(rf"({_NAME}/{_NAME})"), "/models/{}/predictions"),
    (re.compile(rf"deployments/({_NAME}/{_NAME})"), "/deployments/{}/predictions"),
)
_VERSION: Final = re.compile(rf"(?:{_NAME}/{_NAME}:)?[0-9a-f]{{64}}")


class Options(Strict):
    """`[replicate]`: `image_field` and `input` are the model's own inputs, `output` is where its mask is.

    `wait_s`: so long the first request is held open, 0 for not at all.
    """

    image_field: Annotated[str, Field(min_length=1)] = "image"
    input: dict[str, JsonValue] = Field(default_factory=dict)
    output: Expression = "output[0] || output"
    wait_s: Annotated[int, Field(ge=0, le=60)] = 60
    every_s: Annotated[float, Field(ge=0.1, le=60)] = 1.0
    answer: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Replicate(Dialect):
    """One model, or one version of it."""

    name: ClassVar[str] = "replicate"
    version: ClassVar[int] = 1

    url: str
    model_version: str | None
    options: Options
    answer: AnswerSpec

    def call(self, image: Sent, level: Disclosure) -> Call:
        """Create a prediction."""
        uri = f"data:{image.media_type};base64,{base64.b64encode(image.body).decode('ascii')}"
        body: dict[str, object] = {"input": {**self.options.input, self.options.image_field: uri}}
        if self.model_version is not None:
            body["version"] = self.model_version
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.options.wait_s:
            headers["Prefer"] = f"wait={self.options.wait_s}"
        # the answer repeats its input
        most = self.answer.max_bytes(image.height, image.width) + len(uri)
        return Call("POST", self.url, most, headers, json.dumps(body).encode())

    def judge(self, reply: Reply) -> Verdict | None:
        """By the state of the prediction; a throttled request says in words how long."""
        if not 200 <= reply.status < 300:
            return _failure(reply)
        state = _state(reply)
        if state == "succeeded":
            return self.answer.judge(reply)
        if state == "failed":
            return Verdict(
                "the model failed on this image, see its log at Replicate", ImageRefused, billed=True
            )
        if state in ("canceled", "aborted"):  # aborted: before it ran, which is not billed
            why = "the prediction was canceled at Replicate: run again to ask again"
            return Verdict(why, AnswerLost, billed=state == "canceled")
        return None if state in _UNDER_WAY and self._next(reply) else NO_PREDICTION

    def follow(self, reply: Reply) -> tuple[Call, float] | None:
        """The prediction's own URL until it ends."""
        if _state(reply) not in _UNDER_WAY:
            return None
        url = self._next(reply)
        assert url is not None, "judged before"
        return Call("GET", url, 2 * MAX_JSON, {"Accept": "application/json"}), self.options.every_s

    def links(self, received: Received) -> tuple[Link, ...]:
        """The output's files."""
        return self.answer.links(received)

    def stated_version(self, received: Received) -> str | None:
        """The version that ran."""
        return self.answer.stated_version(received)

    def read(self, received: Received, height: int, width: int, need: Disclosure) -> Prediction:
        """As `[replicate.answer]` describes it."""
        return read_answer(self.answer, received, height, width, self.classes)

    def _next(self, reply: Reply) -> str | None:
        return next_url(self.url, found("urls.get", parsed(reply.body)))


def build(url: str, config: TeacherConfig, key: SecretStr | None) -> Spoken:
    """What is spoken at https://api.replicate.com[/v1] about `model`. Raises SettingsError."""
    options = checked(Options, config.options, _SOURCE)
    described = {"mask": options.output, "transport": "url", "version": "version", **options.answer}
    answer = checked(AnswerSpec, described, f"{_SOURCE[:-1]}.answer]")
    if answer.format != "json":
        raise SettingsError(f"{_SOURCE[:-1]}.answer]: format: an answer of Replicate is always json")
    classes, colors = answer.completed(*config.listed("replicate"), f"{_SOURCE[:-1]}.answer]")
    path, version = _route(config.model)
    base = url if url.endswith("/v1") else f"{url}/v1"
    asked = json.dumps([config.model, options.image_field, options.input], sort_keys=True)
    limits = limits_of(config, _MAX_FILE)
    dialect = Replicate(
        f"{base} {asked}", classes, colors, answer.level, limits, base + path, version, options, answer
    )
    return Spoken(dialect, bearer(key), _HOSTS)


def _route(model: str | None) -> tuple[str, str | None]:
    """The path of a model's name, and the version to name in the body."""
    if model is None:
        raise SettingsError('write model = "owner/name:version" into --teacher-config: Replicate has many')
    if _VERSION.fullmatch(model):
        return "/predictions", model
    for pattern, path in _ROUTES:
        if match := pattern.fullmatch(model):
            return path.format(match[1]), None
    raise SettingsError(
        f"model = {model!r} is none of Replicate's: write owner/name (official models), owner/name:version, "
        "the version's 64 digits, or deployments/owner/name"
    )


def _state(reply: Reply) -> object:
    try:
        return found("status", parsed(reply.body))
    except MalformedFrame:
        return None


def _failure(reply: Reply) -> Verdict | None:
    if reply.status == 404:
        return Verdict(
            "knows no such model (404): check `model`, where one that is not official needs its version, "
            'as in "owner/name:version"',
            Refused,
        )
    if reply.status == 422:  # about the request's form, which is the same for every image
        return Verdict(
            "refuses the input (422): check `model`, and image_field and input of [replicate] "
            "in --teacher-config",
            Refused,
        )
    if reply.status != 429:
        return None
    told = _WAIT.search(reply.body[:4096].decode("utf-8", "replace"))
    waits = [w for w in (told and float(told[1]), wait_of(reply.headers, datetime.now(UTC))) if w is not None]
    wait_s = min(max(waits), LONGEST_S) if waits else None
    why = "it answers 429: it allows no more for now"
    return Verdict(why, Unavailable, again=True, wait_s=wait_s, pace="refused")
