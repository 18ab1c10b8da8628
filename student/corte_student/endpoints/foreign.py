"""Any service that is not ours, behind the one Endpoint: a dialect says how, this asks, fetches and keeps.

Rule 1: an answer is kept as it came before anybody reads it. Rule 2: an answer that a dialect's `judge`
finds no answer at all is never kept. Rule 3: a service that states no model version has the revision
`unstated`; one that states it in its answers is pinned by the first of them.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace

from corte_protocol import (
    Disclosure,
    InvalidValue,
    Prediction,
    ProtocolError,
    TeacherInfo,
    decode_prediction,
    encode_prediction,
)
from corte_protocol.routes import FRAME_TYPE, PROTOCOL_VERSION
from corte_student.endpoints.answers import (
    FREE,
    KEEP_BYTES,
    Linked,
    Meter,
    Received,
    Sent,
    Stored,
    class_digest,
    decoded,
)
from corte_student.endpoints.dialect import Dialect, Link, Reply, Verdict
from corte_student.endpoints.http import Broken, Links
from corte_student.endpoints.pictures import size_of
from corte_student.endpoints.sending import Sender
from corte_student.endpoints.verdicts import ordinary
from corte_student.errors import AnswerLost, Unavailable

UNSTATED = "unstated"
"""The revision of a teacher that does not say which model answers."""
_INFO_PATIENCE_S = 5.0
_LINK_TRIES = 4
_LINK_PAUSE_S = 0.5


class ForeignEndpoint:
    """One teacher that speaks `dialect`."""

    def __init__(
        self,
        sender: Sender,
        dialect: Dialect,
        links: Links,
        *,
        has_key: bool,
        revision: str | None = None,
        keep_bytes: int = KEEP_BYTES,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._sender, self._dialect, self._links = sender, dialect, links
        self._has_key, self._revision = has_key, revision
        self._keep_bytes, self._sleep = keep_bytes, sleep
        self._learning = asyncio.Lock()
        self._known = False

    @property
    def down(self) -> bool:
        """Whether the breaker is open."""
        return self._sender.down

    async def info(self) -> TeacherInfo:
        """What is known of the teacher: by its own word where it has one, else by the user's."""
        await self._learn(anew=True)
        dialect = self._dialect
        return TeacherInfo(
            PROTOCOL_VERSION,
            digest(f"{dialect.name} {dialect.identity}"),
            self._revision or UNSTATED,
            dialect.classes,
            dialect.colors,
            dialect.level,
            dialect.limits,
        )

    def assume(self, info: TeacherInfo) -> None:
        """Take on what it said of itself before, where it cannot be asked: to read what is stored."""
        self._dialect = replace(self._dialect, classes=info.classes, colors=info.colors)

    async def predict(
        self, body: bytes, media_type: str, disclosure: Disclosure, meter: Meter = FREE
    ) -> Stored:
        """Ask about one image; what comes back is kept whole, links included."""
        await self._learn()
        height, width = await asyncio.to_thread(size_of, body)
        sent = Sent(body, media_type, height, width)
        call = await asyncio.to_thread(self._dialect.call, sent, disclosure)
        reply = await self._sender.send(call, self._judge_image, meter)
        reply = await self._followed(reply)
        return await self._kept(reply, height, width, disclosure)

    def read(self, blob: bytes, height: int, width: int, need: Disclosure) -> Prediction:
        """The prediction in a stored answer. Raises ProtocolError; blocking, and needs no network."""
        received = Received.unpack(blob)
        if received.adapter != self._dialect.name:
            raise InvalidValue(
                f"the answer was stored by the adapter {received.adapter!r}, not {self._dialect.name!r}"
            )
        if received.media_type == FRAME_TYPE:
            if received.headers.get("classes") != class_digest(self._dialect.classes):
                raise InvalidValue("the answer was stored decoded, under another list of classes")
            return decode_prediction(received.body, max_pixels=height * width)
        prediction = self._dialect.read(received, height, width, need)
        if int(prediction.classes.max()) >= len(self._dialect.classes):
            raise InvalidValue(
                f"the answer names class {int(prediction.classes.max())}, "
                f"and {len(self._dialect.classes)} classes are stated"
            )
        return replace(prediction, revision=self._revision_of(received))

    async def aclose(self) -> None:
        """Close both pools."""
        await self._sender.aclose()
        await self._links.aclose()

    async def _learn(self, *, anew: bool = False) -> None:
        async with self._learning:
            if self._known and not anew:
                return
            question = self._dialect.about()
            if question is not None:
                reply = await self._sender.send(question, self._judge_about, nobody_s=_INFO_PATIENCE_S)
                self._dialect = self._dialect.learned(reply)
            self._known = True

    def _judge_image(self, reply: Reply) -> Verdict | None:
        return self._dialect.judge(reply) or ordinary(reply, has_key=self._has_key, one_image=True)

    def _judge_about(self, reply: Reply) -> Verdict | None:
        return ordinary(reply, has_key=self._has_key, one_image=False)

    async def _followed(self, reply: Reply) -> Reply:
        """The end of an answer that is made while we wait; it is paid for, so a failure to look is no other
        failure.
        """
        try:
            async with asyncio.timeout(self._sender.deadline_s):
                while (more := self._dialect.follow(reply)) is not None:
                    following, pause_s = more
                    await self._sleep(pause_s)
                    reply = await self._sender.send(following, self._judge_image, free=True)
        except (TimeoutError, Unavailable) as exc:
            raise AnswerLost(
                "the teacher took the image and did not finish in time: raise deadline_s, then run again"
            ) from exc
        return reply

    async def _kept(self, reply: Reply, height: int, width: int, need: Disclosure) -> Stored:
        dialect = self._dialect
        headers = {name: reply.headers[name] for name in dialect.kept_headers if name in reply.headers}
        received = Received(dialect.name, dialect.version, reply.media_type, reply.body, headers)
        for link in dialect.links(received):
            linked = (*received.linked, await self._fetched(link))
            received = replace(received, linked=linked)
        revision = self._revision_of(received)
        size = len(received.body) + sum(len(part.body) for part in received.linked)
        if size <= self._keep_bytes:
            return Stored(await asyncio.to_thread(received.pack), revision, dialect.level)
        return await asyncio.to_thread(self._reduced, received, height, width, need, revision)

    def _reduced(
        self, received: Received, height: int, width: int, need: Disclosure, revision: str
    ) -> Stored:
        """A very large answer as the frame of what was asked; what cannot be decoded is kept whole after
        all.
        """
        try:
            prediction = self._dialect.read(received, height, width, need).narrow(need)
        except ProtocolError:
            return Stored(received.pack(), revision, self._dialect.level)
        frame = encode_prediction(replace(prediction, revision=revision))
        packed = decoded(received.adapter, received.version, frame, self._dialect.classes).pack()
        return Stored(packed, revision, need)

    async def _fetched(self, link: Link) -> Linked:
        """A linked file, now: such links expire. Fetching is free, so it is tried again."""
        for attempt in range(_LINK_TRIES):
            if attempt:
                await self._sleep(_LINK_PAUSE_S * 2**attempt)
            reply = await self._links.fetch(link.url, link.max_bytes)
            if isinstance(reply, Broken):
                continue
            verdict = ordinary(reply, has_key=False, one_image=False)
            if verdict is None:
                return Linked(link.name, reply.media_type, reply.body)
            if not verdict.again:
                break
        raise AnswerLost("a file that the answer links to cannot be fetched: run again to ask again")

    def _revision_of(self, received: Received) -> str:
        if self._revision is not None:
            return self._revision
        stated = self._dialect.stated_version(received)
        return UNSTATED if stated is None else digest(stated)


def digest(text: str) -> str:
    """An opaque name."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
