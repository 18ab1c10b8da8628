"""The endpoint for CoRTe's own service: one POST an image, one frame back, checked before anyone sees it."""

import asyncio
import io

from PIL import Image as Pillow

from corte_protocol import (
    Disclosure,
    LimitExceeded,
    ProtocolError,
    TeacherInfo,
    VersionMismatch,
    decode_info,
    decode_prediction,
)
from corte_protocol.codec import MAX_INFO_BYTES
from corte_protocol.routes import DISCLOSURE_QUERY, FRAME_TYPE, INFO, PREDICT
from corte_student.endpoints.http import HttpClient
from corte_student.errors import BrokeContract, Changed, ImageRefused

_INFO_PATIENCE_S = 5.0
_FRAME_HEAD_BYTES = 1 << 16


class CorteEndpoint:
    """Speaks the native dialect of corte-teacher."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._revision: str | None = None
        self._asking_revision = asyncio.Lock()

    async def info(self) -> TeacherInfo:
        """`GET /v1/info`. Where nobody listens it gives up in seconds: a person is waiting."""
        reply = await self._client.request("GET", INFO, max_bytes=MAX_INFO_BYTES, nobody_s=_INFO_PATIENCE_S)
        try:
            info = decode_info(reply.body)
        except VersionMismatch as exc:
            raise BrokeContract(f"{self._client.url}: {exc}") from exc
        except ProtocolError as exc:
            raise BrokeContract(
                f"what {self._client.url}{INFO} answers is not a CoRTe info ({exc}): check --teacher-url"
            ) from exc
        if self._revision is None:
            self._revision = info.revision
        return info

    async def predict(self, body: bytes, media_type: str, disclosure: Disclosure) -> bytes:
        """`POST /v1/predict`. The frame holds exactly what was asked for, or an error says why not."""
        revision = await self._expected_revision()
        height, width = await asyncio.to_thread(_size, body)
        reply = await self._client.request(
            "POST",
            PREDICT,
            params={DISCLOSURE_QUERY: str(disclosure)},
            content=body,
            media_type=media_type,
            max_bytes=_bound(height * width, disclosure),
        )
        if reply.media_type != FRAME_TYPE:
            raise BrokeContract(f"{self._client.url} answered another media type than {FRAME_TYPE}")
        await asyncio.to_thread(_check, reply.body, height, width, disclosure, revision)
        return reply.body

    async def aclose(self) -> None:
        """Close the pool."""
        await self._client.aclose()

    async def _expected_revision(self) -> str:
        if self._revision is None:
            async with self._asking_revision:
                if self._revision is None:
                    self._revision = (await self.info()).revision
        return self._revision


def _bound(pixels: int, disclosure: Disclosure) -> int:
    """The most bytes that an answer of this size and level may have, incompressible planes included."""
    planes = pixels * disclosure.top_k * (1 + disclosure.prob_bits // 8)
    return planes + planes // 128 + _FRAME_HEAD_BYTES


def _size(body: bytes) -> tuple[int, int]:
    try:
        with Pillow.open(io.BytesIO(body)) as picture:
            return picture.height, picture.width
    except OSError as exc:
        raise ImageRefused("what should be sent is no image: not sent") from exc


def _check(frame: bytes, height: int, width: int, disclosure: Disclosure, revision: str) -> None:
    try:
        answer = decode_prediction(frame, max_pixels=height * width)
    except LimitExceeded as exc:
        raise BrokeContract(f"the teacher's answer is larger than the image: {exc}") from exc
    except ProtocolError as exc:
        raise BrokeContract(f"the teacher's answer breaks the protocol: {exc}") from exc
    if answer.classes.shape[1:] != (height, width):
        raise BrokeContract(
            f"the teacher answered {answer.classes.shape[1]} x {answer.classes.shape[2]} pixels "
            f"to an image of {height} x {width}"
        )
    if answer.revision != revision:
        raise Changed(
            f"the teacher changed from revision {revision} to {answer.revision} while it was asked: "
            "start a new run, answers of the old revision stay in the ledger"
        )
    if answer.disclosure != disclosure:
        raise BrokeContract(f"the teacher was asked for {disclosure} and answered {answer.disclosure}")
