"""What crosses between an endpoint and the ledger: a picture as sent, an answer as received.

Strategy: the ledger keeps what was paid for, not what was made of it. A native frame is stored as it is; any
other answer is stored with its media type, the headers that its meaning hangs on, the files it linked to, and
the adapter that asked, so that a better parser reads it again without a query. Only answers that are very
large (`KEEP_BYTES`) are stored decoded, as a native frame, together with the classes that its ids count.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgpack
import zstandard

from corte_protocol import Disclosure, MalformedFrame
from corte_protocol.routes import FRAME_TYPE

MAGIC: Final = b"CRA\x01"
KEEP_BYTES: Final = 8 << 20
"""Answers above this many bytes are stored decoded: 21 float32 planes of 1024 x 2048 are 176 MB, their two
best with 8-bit scores 8 MB before compression.
"""
MAX_STORED: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Sent:
    """One picture as it goes out: `height` and `width` in pixels are those of `body`."""

    body: bytes = field(repr=False)
    media_type: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Linked:
    """A file that an answer pointed to, fetched while the link was good; `name` is the adapter's own."""

    name: str
    media_type: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Received:
    """An answer as received by `adapter` (a dialect's name) at its parser's `version`."""

    adapter: str
    version: int
    media_type: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    linked: tuple[Linked, ...] = ()

    def pack(self) -> bytes:
        """The stored form."""
        fields = {
            "adapter": self.adapter,
            "version": self.version,
            "media_type": self.media_type,
            "headers": dict(self.headers),
            "body": self.body,
            "linked": [[part.name, part.media_type, part.body] for part in self.linked],
        }
        # JSON that carries base64 loses a quarter, what is compressed already next to nothing
        return MAGIC + zstandard.ZstdCompressor(level=3, write_checksum=True).compress(msgpack.packb(fields))

    @classmethod
    def unpack(cls, blob: bytes) -> "Received":
        """Read a stored form back. Raises MalformedFrame."""
        if blob[: len(MAGIC)] != MAGIC:
            raise MalformedFrame("not a stored answer of another service")
        try:
            packed = zstandard.ZstdDecompressor().decompress(blob[len(MAGIC) :], max_output_size=MAX_STORED)
            fields: dict[str, Any] = msgpack.unpackb(packed)
            linked = tuple(Linked(str(n), str(m), bytes(b)) for n, m, b in fields["linked"])
            return cls(
                str(fields["adapter"]),
                int(fields["version"]),
                str(fields["media_type"]),
                bytes(fields["body"]),
                {str(name): str(value) for name, value in fields["headers"].items()},
                linked,
            )
        except (
            zstandard.ZstdError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            msgpack.UnpackException,
        ) as exc:
            raise MalformedFrame("a stored answer of another service cannot be read") from exc


@dataclass(frozen=True, slots=True)
class Stored:
    """What `Endpoint.predict` gives: the bytes to keep, the revision that answered, the level they hold."""

    blob: bytes = field(repr=False)
    revision: str
    level: Disclosure


class Receipt(Protocol):
    """One request that was reserved before it was sent. Left alone, it counts as spent."""

    async def give_back(self) -> None:
        """It was refused before anything was computed, or never sent: nobody bills it."""
        ...


class Meter(Protocol):
    """Counts requests that cost something, before they are sent."""

    async def reserve(self) -> Receipt:
        """Durable before it returns. Raises BudgetExhausted."""
        ...


class _Free:
    async def reserve(self) -> Receipt:
        return self

    async def give_back(self) -> None:
        return


FREE: Final[Meter] = _Free()
"""The meter of requests that cost nothing."""


def decoded(adapter: str, version: int, frame: bytes, classes: tuple[str, ...]) -> Received:
    """A large answer as the native frame made of it, with the classes that its ids count."""
    return Received(adapter, version, FRAME_TYPE, frame, {"classes": class_digest(classes)})


def class_digest(classes: tuple[str, ...]) -> str:
    """A name for a list of classes, in order."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16]
