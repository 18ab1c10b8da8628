"""One vendor's way to ask and to answer, as values: no dialect opens a socket.

    Call        what is sent
    Reply       what came back, whatever its status
    Verdict     why a reply is a failure, and what follows from it
    Dialect     what an adapter implements; `foreign.ForeignEndpoint` does the rest

Rule 1: a dialect is frozen; what it learns of a service makes a new one. Rule 2: `read` needs nothing but the
stored answer and the classes, so it works offline and years later. Rule 3: a score that was not given is
not there; none is invented.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from corte_protocol import Disclosure, Limits, Prediction
from corte_student.endpoints.answers import Received, Sent
from corte_student.errors import TeacherError

Pace = Literal["answered", "refused", "overloaded", "lost"]
Rgb = tuple[int, int, int]
MAX_JSON: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `url` is absolute; the key and signatures are added as it leaves. At most `max_bytes`
    come back.
    """

    method: str
    url: str
    max_bytes: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer; header names in lower case, `media_type` without parameters."""

    status: int
    headers: Mapping[str, str]
    media_type: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A failure: `why` in fixed words, the `error` it becomes where it is not asked `again`.

    `billed`: it may have been billed. `wait_s`: how long to wait at least. `pace`: what it says of the load.
    `tries`: how often one image is tried before the failure counts as its own.
    """

    why: str
    error: type[TeacherError]
    again: bool = False
    billed: bool = False
    wait_s: float | None = None
    pace: Pace = "answered"
    tries: int | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A file to fetch before an answer is whole."""

    name: str
    url: str = field(repr=False)
    max_bytes: int = MAX_JSON


@dataclass(frozen=True)
class Dialect:
    """What an adapter states and does. `classes` by id; `level` is what every answer holds.

    `identity` is what tells this teacher from others (URL and model): only its digest is kept anywhere.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Of the parser: told with every stored answer."""
    kept_headers: ClassVar[tuple[str, ...]] = ()
    """Response headers, lower case, that `read` or `stated_version` need."""

    identity: str
    classes: tuple[str, ...]
    colors: tuple[Rgb, ...]
    level: Disclosure
    limits: Limits

    def about(self) -> Call | None:
        """A free question about the service, asked before the first image; None where there is none."""
        return None

    def learned(self, reply: Reply) -> "Dialect":
        """This dialect, with what the reply to `about` says."""
        return self

    def call(self, image: Sent, level: Disclosure) -> Call:
        """The question about one image."""
        raise NotImplementedError

    def judge(self, reply: Reply) -> Verdict | None:
        """A failure that the ordinary table would not see or would misread, a 200 included; None: the table
        rules.
        """
        return None

    def follow(self, reply: Reply) -> tuple[Call, float] | None:
        """The next request, and the seconds before it, where the answer is not ready yet."""
        return None

    def links(self, received: Received) -> tuple[Link, ...]:
        """Files that the answer points to."""
        return ()

    def stated_version(self, received: Received) -> str | None:
        """The model's version where the answer states one."""
        return None

    def read(self, received: Received, height: int, width: int, need: Disclosure) -> Prediction:
        """The prediction in an answer to an image of `height` x `width`, at least as wide as `need` asks.

        Raises ProtocolError (InvalidValue, MalformedFrame). The revision in it is replaced by the caller.
        """
        raise NotImplementedError
