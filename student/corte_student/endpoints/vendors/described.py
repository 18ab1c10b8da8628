"""What an answer looks like, declared in TOML: for services that have no format of their own.

    format      transport       encoding        what is there
    image                       id-png          the body is a PNG of class ids
    image                       palette-png     the body is a PNG of colours
    json        base64, data-uri, url           one PNG at `mask`, of either kind
    json        array           id-png          rows of class ids at `mask`
    json        any             class-masks     one mask an item of `items`, each with a `label`
    json                        coco-rle        the same, masks run-length encoded as COCO does

Rule 1: expressions are JMESPath (https://jmespath.org/specification.html); those of an item count from the
item. Rule 2: `judge` looks just closely enough that nothing but an answer is kept; all decoding is
`reading.read_answer`, which can be done again under a better description. Rule 3: what an answer leaves
without a class is void, and no confidence is made up.
"""

import json
import re
from datetime import UTC, datetime
from itertools import combinations
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urljoin, urlsplit

import jmespath
from jmespath.exceptions import JMESPathError
from pydantic import AfterValidator, Field, StrictBool, StrictInt, StrictStr, model_validator

from corte_protocol import Disclosure, MalformedFrame
from corte_protocol.types import VOID_NAME
from corte_student.endpoints.answers import Received
from corte_student.endpoints.config import Strict
from corte_student.endpoints.dialect import MAX_JSON, Link, Reply, Rgb, Verdict
from corte_student.endpoints.hints import wait_of
from corte_student.errors import BrokeContract, ImageRefused, Refused, SettingsError, Unavailable


def _expression(text: str) -> str:
    try:
        jmespath.compile(text)
    except JMESPathError as exc:
        raise ValueError(f"{text!r} is no JMESPath expression") from exc
    return text


Expression = Annotated[str, AfterValidator(_expression)]
"""JMESPath, checked when the file is read."""
Code = StrictBool | StrictInt | StrictStr
Id = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Color = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]

_VISIBLE: Final = re.compile(r"[\x21-\x7e]{1,8192}")
_PNG: Final = b"\x89PNG\r\n\x1a\n"
MASK: Final = "mask"
CONFIDENCE: Final = "confidence"
"""Names of linked files; the mask of an item has its place behind it: mask.0"""
NO_PREDICTION: Final = Verdict(
    "answered with something that is no prediction: check --teacher-kind, and the answer's description in "
    "--teacher-config",
    BrokeContract,
    billed=True,
)


class AnswerSpec(Strict):
    """The table that describes an answer. Every key has one line in `examples/teachers/custom.toml`.

    `ids` and `palette` give the class of a stored id or colour; without `ids`, the id is the place in
    `classes`. `threshold`: above it, of 255, a pixel belongs to a mask. `stretched`: a mask of other
    proportions covers the whole image. Where `error` finds none of `ok` (without `ok`: finds anything) the
    answer is a failure, which passes if in `retry` and concerns the image if in `refused_image`.
    """

    format: Literal["json", "image"] = "json"
    mask: Expression | None = None
    transport: Literal["base64", "data-uri", "url", "array"] = "base64"
    encoding: Literal["id-png", "palette-png", "class-masks", "coco-rle"] = "id-png"
    items: Expression | None = None
    label: Expression | None = None
    score: Expression | None = None
    threshold: Annotated[int, Field(ge=0, le=254)] = 127
    confidence: Expression | None = None
    ids: dict[Id, str] = Field(default_factory=dict)
    palette: dict[Color, str] = Field(default_factory=dict)
    tolerance: Annotated[int, Field(ge=0, le=127)] = 0
    void_ids: tuple[Id, ...] = ()
    void_labels: tuple[str, ...] = ()
    ignore_unknown: bool = False
    stretched: bool = False
    version: Expression | None = None
    error: Expression | None = None
    ok: tuple[Code, ...] = ()
    retry: tuple[Code, ...] = ()
    refused_image: tuple[Code, ...] = ()

    @property
    def level(self) -> Disclosure:
        """What every answer holds: labels, or confidence where it is stated for each pixel."""
        return Disclosure(1, 0 if self.confidence is None else 8)

    def completed(
        self, classes: tuple[str, ...], colors: tuple[Rgb, ...], source: str
    ) -> tuple[tuple[str, ...], tuple[Rgb, ...]]:
        """The dialect's classes and colours: with void, where pixels can be left without a class.

        Raises SettingsError for a name in `ids` or `palette` that is none of `classes`; `source` names the
        table.
        """
        if VOID_NAME in classes:
            raise SettingsError(
                f"{source}: {VOID_NAME!r} is added where it is needed: leave it out of `classes`"
            )
        for table, names in (("ids", self.ids.values()), ("palette", self.palette.values())):
            if unknown := sorted({name for name in names if name not in (*classes, VOID_NAME)}):
                raise SettingsError(
                    f"{source}: {table} names {', '.join(map(repr, unknown))}, which `classes` does not list"
                )
        named = (*self.ids.values(), *self.palette.values())
        if self.items is None and not (self.void_ids or self.ignore_unknown or VOID_NAME in named):
            return classes, colors
        return (*classes, VOID_NAME), (*colors, (0, 0, 0))

    def max_bytes(self, height: int, width: int) -> int:
        """More bytes than any such answer to an image of this size should have."""
        # a number a pixel, spaced out, and one for its confidence; or a dozen masks that hardly compress
        return min((4 << 20) + 48 * height * width, 4 * MAX_JSON)

    def judge(self, reply: Reply) -> Verdict | None:
        """Whether a reply of any status holds no prediction, or tells an error of its own.

        None: it seems to be an answer, or the ordinary table rules.
        """
        good = 200 <= reply.status < 300
        if self.format == "image":
            return NO_PREDICTION if good and not reply.body.startswith(_PNG) else None
        try:
            document = parsed(reply.body)
        except MalformedFrame:
            return NO_PREDICTION if good else None
        told = self._told(document, reply)
        if told is not None or not good:
            return told
        if self.items is not None:
            return None if isinstance(found(self.items, document), list) else NO_PREDICTION
        assert self.mask is not None
        kind = list if self.transport == "array" else str
        return None if isinstance(found(self.mask, document), kind) else NO_PREDICTION

    def links(self, received: Received) -> tuple[Link, ...]:
        """The files that hold the masks, where `transport` is url; none for what is no answer."""
        if self.transport != "url" or self.format == "image":
            return ()
        try:
            document = parsed(received.body)
        except MalformedFrame:
            return ()
        wanted = [(CONFIDENCE, found(self.confidence, document))]
        if self.items is None:
            wanted.append((MASK, found(self.mask, document)))
        else:
            items = found(self.items, document)
            for place, item in enumerate(items if isinstance(items, list) else ()):
                wanted.append((f"{MASK}.{place}", found(self.mask, item)))
        # a small file may stand in the answer itself
        return tuple(
            Link(name, url) for name, url in wanted if isinstance(url, str) and not url.startswith("data:")
        )

    def stated_version(self, received: Received) -> str | None:
        """What `version` finds, if it is a text or a number."""
        if self.version is None:
            return None
        try:
            value = found(self.version, parsed(received.body))
        except MalformedFrame:
            return None
        told = isinstance(value, str | int) and not isinstance(value, bool) and value != ""
        return str(value) if told else None

    def _told(self, document: Any, reply: Reply) -> Verdict | None:
        """An error that the body tells: of any status where it is listed, else only inside a success."""
        if self.error is None:
            return None
        code = found(self.error, document)
        good = 200 <= reply.status < 300
        if code in self.retry:
            wait_s = wait_of(reply.headers, datetime.now(UTC))
            return Verdict("asks to come again later", Unavailable, again=True, wait_s=wait_s, pace="refused")
        if code in self.refused_image:
            return Verdict(
                "the teacher will not take this image: its answer says so", ImageRefused, billed=good
            )
        if not good or (code in self.ok if self.ok else not code):
            return None
        if code is None:
            return NO_PREDICTION
        number = f" {code}" if type(code) is int else ""  # a text might echo anything
        return Verdict(
            f"answers with an error of its own{number}: look it up in its documentation, and list it under "
            "`retry` or `refused_image` in --teacher-config if it is one of those",
            Refused,
            billed=True,
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        itemised = self.encoding in ("class-masks", "coco-rle")
        if self.encoding == "palette-png" and (not self.palette or self.transport == "array"):
            raise ValueError("encoding = palette-png needs a palette of colours, and a PNG")
        colors = [bytes.fromhex(color[1:]) for color in self.palette]
        for one, other in combinations(colors, 2):
            if max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 2 * self.tolerance:
                raise ValueError(
                    f"palette: with a tolerance of {self.tolerance}, #{one.hex()} could be #{other.hex()}"
                )
        if self.format == "image":
            if itemised or any((self.mask, self.items, self.confidence, self.version, self.error)):
                raise ValueError("format = image: the body is the mask itself, and nothing else is in it")
            return self
        if self.mask is None:
            raise ValueError('mask: say where the mask is, such as mask = "predictions[0].mask"')
        if self.encoding == "coco-rle" and self.transport == "url":
            raise ValueError("encoding = coco-rle stands in the answer itself: transport is not url")
        if itemised and (self.items is None or self.label is None):
            raise ValueError(f"encoding = {self.encoding} needs items, and label of an item")
        if not itemised and any((self.items, self.label, self.score, self.void_labels)):
            raise ValueError(
                f"encoding = {self.encoding}: items, label, score and void_labels are for class-masks "
                "and coco-rle"
            )
        if self.error is None and (self.ok or self.retry or self.refused_image):
            raise ValueError("error: say where the code is that ok, retry and refused_image list")
        return self


def parsed(body: bytes) -> Any:
    """A body's JSON. Raises MalformedFrame."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise MalformedFrame("the answer is not JSON") from exc


def next_url(base: str, value: Any) -> str | None:
    """Where a reply says to look next, relative to `base` or not; None for what is no URL."""
    if not isinstance(value, str) or not _VISIBLE.fullmatch(value):
        return None
    try:
        url = urljoin(base, value)
        _ = urlsplit(url).port  # parsed when read
    except ValueError:
        return None
    return url


def found(expression: str | None, document: Any) -> Any:
    """What a JMESPath expression finds; None where it finds nothing or does not fit the answer."""
    if expression is None:
        return None
    try:
        return jmespath.search(expression, document)
    except JMESPathError:
        return None
