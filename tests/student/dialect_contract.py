"""What every foreign endpoint owes, shown against a real server that replays the vendor's documented shapes.

A test of a vendor derives `DialectContract`, says how the vendor answers and fails, and inherits the rest.
"""

import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import ClassVar

import numpy as np
import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from corte_protocol import VOID, Disclosure
from corte_protocol.types import VOID_NAME, UInt8
from corte_student.classmap import ClassMap
from corte_student.endpoints import Access, Endpoint, Stored, connect
from corte_student.endpoints.config import TeacherConfig, config_from
from corte_student.errors import BrokeContract, ImageRefused, Refused, StudentError
from pictures import make_picture
from replaying import Replay, replay

KEY = "vk_Sup3rS3cret0123456789"
CLASSES = ("road", "car", "sky")


async def endless() -> AsyncIterator[bytes]:
    """300 MiB, for whoever goes on reading."""
    for _ in range(300):
        yield b"x" * (1 << 20)


def truth(pixels: UInt8) -> UInt8:
    """What every replayed vendor says of `pixels` [H, W, 3]: red modulo the classes."""
    labels: UInt8 = (pixels[:, :, 0] % len(CLASSES)).astype(np.uint8)
    return labels


class DialectContract:
    """Inherit, and give what raises NotImplementedError below."""

    kind: str
    level: Disclosure
    path = ""
    """Appended to the server's URL for --teacher-url."""
    config: ClassVar[Mapping[str, object]] = {}
    """The --teacher-config, `classes` included where the vendor does not state them."""
    garbage = b"<html>maintenance</html>"

    async def answer(self, request: Request, body: bytes) -> Response:
        """The vendor's proper behaviour: every route that the adapter uses. Check the key here:
        `self.stranger`.
        """
        raise NotImplementedError

    def unauthorized(self) -> Response:
        """The documented answer to a wrong key."""
        raise NotImplementedError

    def throttled(self) -> Response:
        """The documented answer to too many requests; waits of one second at most."""
        raise NotImplementedError

    def refused_image(self) -> Response:
        """The documented answer to an image that it cannot take."""
        raise NotImplementedError

    def overloaded(self) -> Response:
        """The documented answer when it is overloaded or waking up."""
        raise NotImplementedError

    def stranger(self, request: Request) -> bool:
        """Whether a request lacks the key, where the vendor takes it in `Authorization: Bearer`."""
        return request.headers.get("authorization") != f"Bearer {KEY}"

    @pytest.fixture
    def vendor(self) -> Iterator[Replay]:
        """The replaying server."""
        with replay(self.answer) as running:
            yield running

    def opened(self, vendor: Replay, *, key: str | None = KEY, paid: bool = False) -> Endpoint:
        """An endpoint of this kind in front of `vendor`."""
        config: TeacherConfig = config_from(self.config, "test.toml")
        secret = None if key is None else SecretStr(key)
        access = Access(vendor.url + self.path, self.kind, config, secret, paid=paid)
        return connect(access, deadline_s=20, connections=4)

    @asynccontextmanager
    async def endpoint(
        self, vendor: Replay, *, key: str | None = KEY, paid: bool = False
    ) -> AsyncIterator[Endpoint]:
        """`opened`, closed at the end."""
        endpoint = self.opened(vendor, key=key, paid=paid)
        try:
            yield endpoint
        finally:
            await endpoint.aclose()

    async def ask(self, endpoint: Endpoint, seed: int = 1) -> Stored:
        """One answer at the vendor's own level."""
        picture = make_picture(seed)
        return await endpoint.predict(picture.body, picture.media_type, self.level)

    async def test_it_states_classes_level_and_limits(self, vendor: Replay) -> None:
        """The info names the classes and the level that answers really have, the same at every call."""
        async with self.endpoint(vendor) as endpoint:
            first, second = await endpoint.info(), await endpoint.info()
        assert first == second
        assert tuple(name for name in first.classes if name != VOID_NAME) == CLASSES
        assert first.disclosure == self.level
        assert vendor.images == 0

    @pytest.mark.parametrize("size", [(12, 16), (7, 5), (1, 1)])
    async def test_an_answer_is_read_to_the_pixel(self, vendor: Replay, size: tuple[int, int]) -> None:
        """Labels are the vendor's, at the image's own size; scores are there exactly where the level says
        so.
        """
        picture = make_picture(3, height=size[0], width=size[1])
        async with self.endpoint(vendor) as endpoint:
            stored = await endpoint.predict(picture.body, picture.media_type, self.level)
            answer = endpoint.read(stored.blob, *size, self.level)
            labels = ClassMap.identity(await endpoint.info()).apply(answer).labels
        assert np.array_equal(labels[labels != VOID], truth(picture.pixels)[labels != VOID])
        assert (labels != VOID).all()
        assert answer.disclosure.allows(self.level)
        assert (answer.probs is None) == (self.level.prob_bits == 0)
        assert answer.revision == stored.revision

    async def test_what_is_stored_is_read_years_later_without_a_network(self, vendor: Replay) -> None:
        """The stored bytes alone, read by a fresh endpoint that has sent nothing, give the same answer."""
        height, width, _ = make_picture(1).pixels.shape
        async with self.endpoint(vendor) as endpoint:
            stored = await self.ask(endpoint)
            now = endpoint.read(stored.blob, height, width, self.level)
        before = len(vendor.seen)
        async with self.endpoint(vendor) as fresh:
            later = fresh.read(stored.blob, height, width, self.level)
        assert np.array_equal(now.classes, later.classes)
        assert now.revision == later.revision
        assert len(vendor.seen) == before

    async def test_a_wrong_key_ends_the_asking(self, vendor: Replay) -> None:
        """401 and its like are told with the remedy, at once and without the key."""
        vendor.faults.append(self.unauthorized())
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(Refused) as failure:
                await self.ask(endpoint)
        assert KEY not in str(failure.value)
        assert vendor.images == 1

    async def test_throttling_is_waited_for(self, vendor: Replay) -> None:
        """Too many requests is nobody's failure: it is asked again, also where requests are paid for."""
        vendor.faults.append(self.throttled())
        async with self.endpoint(vendor, paid=True) as endpoint:
            await self.ask(endpoint)
        assert vendor.images == 2

    async def test_overload_is_waited_for(self, vendor: Replay) -> None:
        """So is a service that is full or still waking up."""
        vendor.faults.append(self.overloaded())
        async with self.endpoint(vendor, paid=True) as endpoint:
            await self.ask(endpoint)
        assert vendor.images == 2

    async def test_an_image_it_cannot_take_is_set_aside(self, vendor: Replay) -> None:
        """What concerns one image is `ImageRefused`, and is not asked twice."""
        vendor.faults.append(self.refused_image())
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(ImageRefused):
                await self.ask(endpoint)
            assert vendor.images == 1
            await self.ask(endpoint)

    async def test_what_is_no_answer_is_not_kept(self, vendor: Replay) -> None:
        """A page of a proxy with the status 200 breaks the contract in `predict`: it never reaches the
        ledger.
        """
        vendor.faults.append(Response(self.garbage, 200, media_type="text/html"))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(BrokeContract):
                await self.ask(endpoint)

    async def test_an_oversized_answer_is_not_read(self, vendor: Replay) -> None:
        """Far more bytes than any answer to this image could have are cut off and told."""
        vendor.faults.append(StreamingResponse(endless(), 200))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(BrokeContract, match="larger than"):
                await self.ask(endpoint)

    async def test_the_key_is_in_no_url_message_or_log(
        self, vendor: Replay, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whatever goes wrong, and even where the vendor echoes it."""
        caplog.set_level(logging.DEBUG)
        vendor.faults.append(Response(f"bad key {KEY}".encode(), 418))
        async with self.endpoint(vendor) as endpoint:
            with pytest.raises(StudentError) as failure:
                await self.ask(endpoint)
            stored = await self.ask(endpoint)
            assert KEY not in repr(endpoint) + repr(vars(endpoint))
        chain: BaseException | None = failure.value
        while chain is not None:
            assert KEY not in f"{chain!r} {chain}"
            chain = chain.__cause__ or chain.__context__
        assert KEY not in caplog.text
        assert not any(KEY in one.target for one in vendor.seen)
        assert KEY.encode() not in stored.blob

    async def test_only_pixels_leave(self, vendor: Replay) -> None:
        """No file name, path or user is in any request."""
        async with self.endpoint(vendor) as endpoint:
            await self.ask(endpoint)
        for one in vendor.seen:
            assert one.headers["user-agent"] == "corte-student"
            assert "cookie" not in one.headers
