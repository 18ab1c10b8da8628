"""The endpoint for CoRTe's own service: one POST an image, one frame back, checked before anyone sees it."""

import asyncio
import json

from corte_protocol import (
    Disclosure,
    LimitExceeded,
    Prediction,
    ProtocolError,
    TeacherInfo,
    VersionMismatch,
    decode_info,
    decode_prediction,
)
from corte_protocol.codec import MAX_INFO_BYTES
from corte_protocol.errors import WIRE
from corte_protocol.routes import DISCLOSURE_QUERY, FRAME_TYPE, INFO, PREDICT
from corte_student.endpoints.answers import FREE, Meter, Stored
from corte_student.endpoints.dialect import Call, Reply, Verdict
from corte_student.endpoints.endpoint import read_frame
from corte_student.endpoints.pictures import size_of
from corte_student.endpoints.sending import Sender
from corte_student.endpoints.verdicts import ordinary
from corte_student.errors import BrokeContract

_INFO_PATIENCE_S = 5.0
_FRAME_HEAD_BYTES = 1 << 16


class CorteEndpoint:
    """Speaks the native dialect of corte-teacher."""

    def __init__(self, sender: Sender, *, has_key: bool) -> None:
        self._sender = sender
        self._has_key = has_key

    @property
    def down(self) -> bool:
        """Whether the breaker is open."""
        return self._sender.down

    async def info(self) -> TeacherInfo:
        """`GET /v1/info`. Where nobody listens it gives up in seconds: a person is waiting."""
        url = self._sender.url
        call = Call("GET", url + INFO, MAX_INFO_BYTES)
        reply = await self._sender.send(call, self._judge_info, nobody_s=_INFO_PATIENCE_S)
        try:
            return decode_info(reply.body)
        except VersionMismatch as exc:
            raise BrokeContract(f"{url}: {exc}") from exc
        except ProtocolError as exc:
            raise BrokeContract(
                f"what {url}{INFO} answers is no CoRTe info ({exc}): check --teacher-url and --teacher-kind"
            ) from exc

    async def predict(
        self, body: bytes, media_type: str, disclosure: Disclosure, meter: Meter = FREE
    ) -> Stored:
        """`POST /v1/predict`. The frame holds exactly what was asked for, or an error says why not."""
        height, width = await asyncio.to_thread(size_of, body)
        call = Call(
            "POST",
            f"{self._sender.url}{PREDICT}?{DISCLOSURE_QUERY}={disclosure}",
            _bound(height * width, disclosure),
            {"Content-Type": media_type},
            body,
        )
        reply = await self._sender.send(call, self._judge_image, meter)
        if reply.media_type != FRAME_TYPE:
            raise BrokeContract(f"{self._sender.url} answered another media type than {FRAME_TYPE}")
        revision = await asyncio.to_thread(_checked, reply.body, height, width, disclosure)
        return Stored(reply.body, revision, disclosure)

    def read(self, blob: bytes, height: int, width: int, need: Disclosure) -> Prediction:
        """A stored frame. Raises ProtocolError."""
        return read_frame(blob, height, width, need)

    async def aclose(self) -> None:
        """Close the pool."""
        await self._sender.aclose()

    def _judge_info(self, reply: Reply) -> Verdict | None:
        return self._judge(reply, one_image=False)

    def _judge_image(self, reply: Reply) -> Verdict | None:
        return self._judge(reply, one_image=True)

    def _judge(self, reply: Reply, *, one_image: bool) -> Verdict | None:
        """A service's own words are never repeated, only the fixed texts of `WIRE`."""
        code = None if reply.status == 200 else _code(reply.body)
        title = WIRE[code].title if code else None
        return ordinary(reply, has_key=self._has_key, one_image=one_image, title=title)


def _bound(pixels: int, disclosure: Disclosure) -> int:
    """The most bytes that an answer of this size and level may have, incompressible planes included."""
    planes = pixels * disclosure.top_k * (1 + disclosure.prob_bits // 8)
    return planes + planes // 128 + _FRAME_HEAD_BYTES


def _code(body: bytes) -> str | None:
    """The `code` of a problem document, where it is one that both sides know."""
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return None
    code = problem.get("code") if isinstance(problem, dict) else None
    return code if isinstance(code, str) and code in WIRE else None


def _checked(frame: bytes, height: int, width: int, disclosure: Disclosure) -> str:
    """The revision of a frame that holds what was asked for. Raises BrokeContract."""
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
    if answer.disclosure != disclosure:
        raise BrokeContract(f"the teacher was asked for {disclosure} and answered {answer.disclosure}")
    return answer.revision
