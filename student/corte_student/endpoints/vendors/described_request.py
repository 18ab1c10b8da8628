"""How a picture is sent, described in TOML: the picture itself, JSON made from a template, or a form.

Forms are multipart/form-data, https://datatracker.ietf.org/doc/html/rfc7578. Rule 1: what is named like a
secret is refused wherever it stands. Rule 2: the only file name that is ever sent says nothing.
"""

import base64
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from corte_student.endpoints.answers import Sent
from corte_student.endpoints.config import Strict

_SECRET: Final = re.compile(
    r"(?:^|[^a-z])(?:auth|sig|[a-z]*(?:key|token|secret|cookie|credentials?|password|signature|"
    r"authorization|authentication))(?:$|[^a-z])",
    re.IGNORECASE,
)
_OURS: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
        "user-agent",
    }
)
_PICTURE: Final = ("$image_base64", "$image_data_uri")


def _public(name: str) -> str:
    if _SECRET.search(name):
        raise ValueError(f"{name} looks like a secret: the key comes from CORTE_TEACHER_KEY alone")
    return name


def _header(name: str) -> str:
    if name.lower() in _OURS:
        raise ValueError(f"{name} is not for `headers` (content_type is a key of its own)")
    return _public(name)


Token = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$")]  # RFC 9110, section 5.6.2
Header = Annotated[Token, AfterValidator(_header)]
Public = Annotated[Token, AfterValidator(_public)]
Text = Annotated[str, Field(pattern=r"^[\x20-\x7e]*$", max_length=1024)]
FormName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\[\]-]{1,64}$"), AfterValidator(_public)]


class Request(Strict):
    """`[custom.request]`. `path` and `query` are appended to --teacher-url; `template` is the JSON to send.

    In it "$image_base64", "$image_data_uri", "$height" and "$width" are replaced wherever they stand.
    """

    method: Literal["POST", "PUT"] = "POST"
    path: Annotated[str, Field(pattern=r"^(/[^?#\s\\]*)?$")] = ""
    query: dict[Public, str | int | float] = Field(default_factory=dict)
    headers: dict[Header, Text] = Field(default_factory=dict)
    body: Literal["image", "json", "multipart"] = "image"
    content_type: Text | None = None
    template: dict[str, JsonValue] | list[JsonValue] = Field(default_factory=dict)
    field: FormName = "image"
    fields: dict[FormName, Text] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.body == "json":
            if not any(name in json.dumps(self.template) for name in _PICTURE):
                raise ValueError(
                    f"template: the picture is nowhere in it: write {' or '.join(map(repr, _PICTURE))}"
                )
            for name in _told(self.template):
                _public(name)
        elif self.template:
            raise ValueError('template is sent with body = "json" alone')
        if self.body != "multipart" and self.fields:
            raise ValueError('fields are sent with body = "multipart" alone')
        if self.body == "multipart" and self.content_type:
            raise ValueError("content_type: a form has its own")
        return self


def body_of(request: Request, image: Sent) -> tuple[str, bytes]:
    """Content type and content of the request about `image`."""
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


def _told(template: Any) -> Iterator[str]:
    """The names under which a template states a text of its own."""
    if isinstance(template, dict):
        yield from (name for name, inner in template.items() if isinstance(inner, str) and "$" not in inner)
        template = list(template.values())
    if isinstance(template, list):
        for inner in template:
            yield from _told(inner)


def _form(request: Request, image: Sent) -> tuple[str, bytes]:
    """multipart/form-data: the text fields, then the picture under a name that says nothing."""
    boundary = secrets.token_hex(16)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="'
    texts = "".join(f'{head}{name}"\r\n\r\n{value}\r\n' for name, value in request.fields.items())
    file = "image.jpg" if image.media_type == "image/jpeg" else "image.png"
    picture = f'{head}{request.field}"; filename="{file}"\r\nContent-Type: {image.media_type}\r\n\r\n'
    content = b"".join(((texts + picture).encode(), image.body, f"\r\n--{boundary}--\r\n".encode()))
    return f"multipart/form-data; boundary={boundary}", content
