"""A vendor described in TOML: how the picture is sent, where the mask is in the answer, what failures mean.

    [custom.request]    method, path, query, headers, and the body: the picture itself, JSON or a form
    [custom.auth]       the header that carries the key
    [custom.answer]     where the mask is and what its numbers mean (`reading.AnswerSpec`)
    [custom.poll]       where answers are made while we wait
    [custom.errors]     statuses that mean something else here than elsewhere

`examples/teachers/custom.toml` explains every key. Forms are multipart/form-data,
https://datatracker.ietf.org/doc/html/rfc7578.

Rule 1: no secret stands in the file: a header or a query that looks like one is refused, the key comes from
CORTE_TEACHER_KEY. Rule 2: the request, not the answer's description, tells one teacher from another, so that a
description mended reads the same stored answers. Rule 3: what is asked while an answer is made stays on the
host of --teacher-url, where the key may go.
"""

import base64
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Literal, Self
from urllib.parse import urlencode, urljoin

from pydantic import AfterValidator, Field, JsonValue, SecretStr, StrictInt, StrictStr, model_validator

from corte_protocol import Disclosure, MalformedFrame, Prediction
from corte_student.endpoints.answers import Received, Sent
from corte_student.endpoints.config import Strict, TeacherConfig, checked
from corte_student.endpoints.dialect import MAX_JSON, Call, Dialect, Link, Reply, Verdict
from corte_student.endpoints.hints import wait_of
from corte_student.endpoints.signing import Anonymous, HeaderKey
from corte_student.endpoints.vendors.reading import (
    NO_PREDICTION,
    AnswerSpec,
    Code,
    Expression,
    found,
    parsed,
    read_answer,
)
from corte_student.endpoints.vendors.spoken import Spoken, limits_of
from corte_student.endpoints.verdicts import ordinary
from corte_student.errors import ImageRefused, Refused, SettingsError, Unavailable

_SOURCE: Final = "--teacher-config [custom]"
_MAX_BODY: Final = 20 << 20
_SECRET: Final = re.compile(r"auth|key|token|secret|cookie|credential|password|signature|^sig$", re.IGNORECASE)
_OURS: Final = frozenset(
    {"accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding", "user-agent"}
)
_PICTURE: Final = ("$image_base64", "$image_data_uri")


def _public(name: str) -> str:
    if _SECRET.search(name):
        raise ValueError(f"{name} looks like a secret: the key comes from CORTE_TEACHER_KEY, see [custom.auth]")
    if name.lower() in _OURS:
        raise ValueError(f"{name} is not for this table (content_type is a key of its own)")
    return name


Token = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$")]  # RFC 9110, section 5.6.2
Public = Annotated[Token, AfterValidator(_public)]
Text = Annotated[str, Field(pattern=r"^[\x20-\x7e]*$", max_length=1024)]
FormName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\[\]-]{1,64}$")]
Status = Annotated[int, Field(ge=400, le=599)]


class Request(Strict):
    """`[custom.request]`. `path` is appended to --teacher-url; `template` is the JSON that is sent."""

    method: Literal["POST", "PUT"] = "POST"
    path: Annotated[str, Field(pattern=r"^(/[^?#\s\\]*)?$")] = ""
    query: dict[Public, str | int | float] = Field(default_factory=dict)
    headers: dict[Public, Text] = Field(default_factory=dict)
    body: Literal["image", "json", "multipart"] = "image"
    content_type: Text | None = None
    template: dict[str, JsonValue] = Field(default_factory=dict)
    field: FormName = "image"
    fields: dict[FormName, Text] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.body == "json":
            if not any(name in json.dumps(self.template) for name in _PICTURE):
                raise ValueError(f"template: the picture is nowhere in it: write {' or '.join(map(repr, _PICTURE))}")
        elif self.template:
            raise ValueError('template is sent with body = "json" alone')
        if self.body != "multipart" and self.fields:
            raise ValueError('fields are sent with body = "multipart" alone')
        if self.body == "multipart" and self.content_type:
            raise ValueError("content_type: a form has its own")
        return self


class Auth(Strict):
    """`[custom.auth]`: the header that carries the key."""

    header: Token = "Authorization"
    prefix: Text = "Bearer "


class Poll(Strict):
    """`[custom.poll]`: an answer whose `status` is none of `done` and `failed` is looked for again at `url`."""

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
        content_type, content = _body(request, image)
        headers = {"Accept": accept, **request.headers, "Content-Type": content_type}
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
        return None if isinstance(found(self.poll.url, parsed(reply.body)), str) else NO_PREDICTION

    def follow(self, reply: Reply) -> tuple[Call, float] | None:
        """Where to look next, until the answer is done."""
        status = self._progress(reply)
        if self.poll is None or status is None or status in self.poll.done:
            return None
        url = urljoin(self.url, found(self.poll.url, parsed(reply.body)))
        return Call("GET", url, MAX_JSON, {"Accept": "application/json", **self.request.headers}), self.poll.every_s

    def links(self, received: Received) -> tuple[Link, ...]:
        """As described."""
        return self.answer.links(received)

    def stated_version(self, received: Received) -> str | None:
        """As described."""
        return self.answer.stated_version(received)

    def read(self, received: Received, height: int, width: int, need: Disclosure) -> Prediction:
        """As described."""
        return read_answer(self.answer, received, height, width, self.classes)

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
        raise SettingsError("model: a teacher of kind custom has its model in [custom.request]: write it there")
    tables = checked(Tables, config.options, _SOURCE)
    request = checked(Request, tables.request, f"{_SOURCE[:-1]}.request]")
    auth = checked(Auth, tables.auth, f"{_SOURCE[:-1]}.auth]")
    answer = checked(AnswerSpec, tables.answer, f"{_SOURCE[:-1]}.answer]")
    errors = checked(Errors, tables.errors, f"{_SOURCE[:-1]}.errors]")
    poll = None if tables.poll is None else checked(Poll, tables.poll, f"{_SOURCE[:-1]}.poll]")
    classes, colors = answer.completed(*config.listed("custom"), f"{_SOURCE[:-1]}.answer]")
    target = url + request.path + (f"?{urlencode(request.query)}" if request.query else "")
    asked = json.dumps(request.model_dump(exclude_defaults=True), sort_keys=True)
    dialect = Custom(
        f"{url} {asked}", classes, colors, answer.level, limits_of(config, _MAX_BODY),
        target, request, answer, poll, errors,
    )  # fmt: skip
    return Spoken(dialect, Anonymous() if key is None else HeaderKey(key, auth.header, auth.prefix))


def _body(request: Request, image: Sent) -> tuple[str, bytes]:
    """Content type and content."""
    if request.body == "image":
        return request.content_type or image.media_type, image.body
    if request.body == "multipart":
        return _form(request, image)
    coded = base64.b64encode(image.body).decode("ascii")
    texts = {
        "$image_base64": coded,
        "$image_data_uri": f"data:{image.media_type};base64,{coded}",
        "$height": str(image.height),
        "$width": str(image.width),
    }
    numbers = {"$height": image.height, "$width": image.width}
    return (
        request.content_type or "application/json",
        json.dumps(_filled(request.template, texts, numbers)).encode(),
    )


def _filled(value: Any, texts: Mapping[str, str], numbers: Mapping[str, int]) -> Any:
    """The template with the picture in it: a text that is `$height` alone becomes a number."""
    if isinstance(value, dict):
        return {name: _filled(inner, texts, numbers) for name, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, texts, numbers) for inner in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    if value in numbers:
        return numbers[value]
    for name, text in texts.items():
        value = value.replace(name, text)
    return value


def _form(request: Request, image: Sent) -> tuple[str, bytes]:
    """multipart/form-data: the text fields, then the picture under a name that says nothing."""
    boundary = secrets.token_hex(16)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="'
    texts = "".join(f'{head}{name}"\r\n\r\n{value}\r\n' for name, value in request.fields.items())
    file = "image.jpg" if image.media_type == "image/jpeg" else "image.png"
    picture = f'{head}{request.field}"; filename="{file}"\r\nContent-Type: {image.media_type}\r\n\r\n'
    content = b"".join(((texts + picture).encode(), image.body, f"\r\n--{boundary}--\r\n".encode()))
    return f"multipart/form-data; boundary={boundary}", content
