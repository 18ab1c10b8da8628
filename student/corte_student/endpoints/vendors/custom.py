"""A vendor described in TOML: how the picture is sent, where the mask is in the answer, what failures mean.

    [custom.request]    method, path, query, headers, and the body: the picture itself, JSON or a form
    [custom.auth]       the header that carries the key
    [custom.answer]     where the mask is and what its numbers mean (`reading.AnswerSpec`)
    [custom.poll]       where answers are made while we wait
    [custom.errors]     statuses that mean something else here than elsewhere

`examples/teachers/custom.toml` explains every key.

Rule 1: no secret stands in the file: a header or a query that looks like one is refused, the key comes from
CORTE_TEACHER_KEY. Rule 2: the request, not the answer's description, tells one teacher from another, so that
a description mended reads the same stored answers. Rule 3: what is asked while an answer is made stays on
the host of --teacher-url, where the key may go.
"""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Self
from urllib.parse import urlencode

from pydantic import Field, SecretStr, model_validator

from corte_protocol import Disclosure, MalformedFrame, Prediction
from corte_student.endpoints.answers import Received, Sent
from corte_student.endpoints.config import Strict, TeacherConfig, checked
from corte_student.endpoints.dialect import MAX_JSON, Call, Dialect, Link, Reply, Verdict
from corte_student.endpoints.hints import wait_of
from corte_student.endpoints.signing import Anonymous, HeaderKey
from corte_student.endpoints.vendors.described import (
    NO_PREDICTION,
    AnswerSpec,
    Code,
    Expression,
    found,
    next_url,
    parsed,
)
from corte_student.endpoints.vendors.described_request import Request, Text, Token, body_of
from corte_student.endpoints.vendors.reading import read_answer
from corte_student.endpoints.vendors.spoken import Spoken, limits_of
from corte_student.endpoints.verdicts import ordinary
from corte_student.errors import ImageRefused, Refused, SettingsError, Unavailable

__all__ = ["Custom", "Errors", "Request", "build"]

_SOURCE: Final = "--teacher-config [custom"
_MAX_BODY: Final = 20 << 20
Status = Annotated[int, Field(ge=400, le=599)]


class Auth(Strict):
    """`[custom.auth]`: the header that carries the key."""

    header: Token = "Authorization"
    prefix: Text = "Bearer "


class Poll(Strict):
    """`[custom.poll]`: an answer whose `status` is none of `done` and `failed` is looked for at `url`."""

    url: Expression
    status: Expression
    done: Annotated[tuple[Code, ...], Field(min_length=1)]
    failed: tuple[Code, ...] = ()
    every_s: Annotated[float, Field(ge=0.1, le=60)] = 1.0


class Errors(Strict):
    """`[custom.errors]`: what a status means here; `billed` are those whose request may cost all the same."""

    again: tuple[Status, ...] = ()
    refused_image: tuple[Status, ...] = ()
    refused: tuple[Status, ...] = ()
    billed: tuple[Status, ...] = ()

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        told = (*self.again, *self.refused_image, *self.refused)
        if twice := sorted({status for status in told if told.count(status) > 1}):
            raise ValueError(f"{twice[0]} has two meanings: keep one")
        return self


class Tables(Strict):
    """`[custom]`: the tables there are."""

    request: dict[str, Any] = Field(default_factory=dict)
    auth: dict[str, Any] = Field(default_factory=dict)
    answer: dict[str, Any]
    poll: dict[str, Any] | None = None
    errors: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Custom(Dialect):
    """One service that is described by the user."""

    name: ClassVar[str] = "custom"
    version: ClassVar[int] = 1

    url: str
    request: Request
    answer: AnswerSpec
    poll: Poll | None
    errors: Errors

    def call(self, image: Sent, level: Disclosure) -> Call:
        """The picture in the body that the file asks for."""
        request = self.request
        accept = "application/json" if self.answer.format == "json" or self.poll else "image/png"
        content_type, content = body_of(request, image)
        headers = {**self._headers(accept), "Content-Type": content_type}
        most = self.answer.max_bytes(image.height, image.width)
        return Call(request.method, self.url, most, headers, content)

    def judge(self, reply: Reply) -> Verdict | None:
        """First what the body tells, then what the status means here, then the ordinary table."""
        if not 200 <= reply.status < 300:
            return self.answer.judge(reply) or self._meaning(reply)
        status = self._progress(reply)
        if self.poll is None or status is None or status in self.poll.done:
            return self.answer.judge(reply)
        if status in self.poll.failed:
            return Verdict("the teacher took this image and failed on it", ImageRefused, billed=True)
        return None if self._next(self.poll, reply) else NO_PREDICTION

    def follow(self, reply: Reply) -> tuple[Call, float] | None:
        """Where to look next, until the answer is done."""
        status = self._progress(reply)
        if self.poll is None or status is None or status in self.poll.done:
            return None
        url = self._next(self.poll, reply)
        assert url is not None, "judged before"
        return Call("GET", url, MAX_JSON, self._headers("application/json")), self.poll.every_s

    def links(self, received: Received) -> tuple[Link, ...]:
        """As described."""
        return self.answer.links(received)

    def stated_version(self, received: Received) -> str | None:
        """As described."""
        return self.answer.stated_version(received)

    def read(self, received: Received, height: int, width: int, need: Disclosure) -> Prediction:
        """As described."""
        return read_answer(self.answer, received, height, width, self.classes)

    def _headers(self, accept: str) -> dict[str, str]:
        """The user's, and `accept` where they say nothing of it."""
        stated = any(name.lower() == "accept" for name in self.request.headers)
        return {**({} if stated else {"Accept": accept}), **self.request.headers}

    def _next(self, poll: Poll, reply: Reply) -> str | None:
        return next_url(self.url, found(poll.url, parsed(reply.body)))

    def _progress(self, reply: Reply) -> Any:
        """What `poll.status` finds; None where nothing is polled or nothing is found."""
        if self.poll is None:
            return None
        try:
            return found(self.poll.status, parsed(reply.body))
        except MalformedFrame:  # the mask itself, or no answer
            return None

    def _meaning(self, reply: Reply) -> Verdict | None:
        status, errors = reply.status, self.errors
        billed = status in errors.billed
        if status in errors.again:
            wait_s = wait_of(reply.headers, datetime.now(UTC))
            why = f"it answers {status}: not now"
            return Verdict(why, Unavailable, again=True, billed=billed, wait_s=wait_s, pace="refused")
        if status in errors.refused_image:
            return Verdict(f"the teacher will not take this image ({status})", ImageRefused, billed=billed)
        if status in errors.refused:
            return Verdict(f"refuses the request ({status})", Refused, billed=billed)
        verdict = ordinary(reply, has_key=True, one_image=True) if billed else None
        return verdict and replace(verdict, billed=True)


def build(url: str, config: TeacherConfig, key: SecretStr | None) -> Spoken:
    """What the file describes, at `url` + `path`. Raises SettingsError."""
    if config.model is not None:
        raise SettingsError(
            "model: a teacher of kind custom has its model in [custom.request]: write it there"
        )
    tables = checked(Tables, config.options, f"{_SOURCE}]")
    request = checked(Request, tables.request, f"{_SOURCE}.request]")
    auth = checked(Auth, tables.auth, f"{_SOURCE}.auth]")
    answer = checked(AnswerSpec, tables.answer, f"{_SOURCE}.answer]")
    errors = checked(Errors, tables.errors, f"{_SOURCE}.errors]")
    poll = None if tables.poll is None else checked(Poll, tables.poll, f"{_SOURCE}.poll]")
    classes, colors = answer.completed(*config.listed("custom"), f"{_SOURCE}.answer]")
    target = url + request.path + (f"?{urlencode(request.query)}" if request.query else "")
    asked = json.dumps(request.model_dump(exclude_defaults=True), sort_keys=True)
    dialect = Custom(
        f"{url} {asked}", classes, colors, answer.level, limits_of(config, _MAX_BODY),
        target, request, answer, poll, errors,
    )  # fmt: skip
    return Spoken(dialect, Anonymous() if key is None else HeaderKey(key, auth.header, auth.prefix))
