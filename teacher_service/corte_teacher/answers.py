"""Around all routes: each request gets its id, each failure its row of `errors.WIRE`, each end its record.

A failure is told as an RFC 9457 problem document, or in the shape of the dialect that the path belongs to.
The text of an exception goes to the log with the request's id, never to the client.
"""

import json
import logging
import math
import secrets
import time
from typing import Any

from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corte_protocol import CorteError
from corte_protocol.errors import WIRE
from corte_protocol.routes import PROBLEM_TYPE, REQUEST_ID_HEADER
from corte_teacher.dialects import openinference
from corte_teacher.errors import TeacherServiceError
from corte_teacher.job import Notes
from corte_teacher.observing import tell
from corte_teacher.quotas import headers as quota_headers
from corte_teacher.record import Record
from corte_teacher.service import Service

log = logging.getLogger(__name__)

_CLOSE = (b"connection", b"close")
_GONE = "gone"
"""The code in the record of a request whose sender went away; never sent."""
_GONE_STATUS = 499  # nginx's, because no status of HTTP says it


class Answers:
    """ASGI middleware around a service's routes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        ending = _Ending(self._service, scope, send)
        try:
            await self._app(scope, receive, ending.send)
        except ClientDisconnect:
            ending.code, ending.status = _GONE, _GONE_STATUS
        except Exception as exc:  # the edge of the process: nothing may pass it but a row of the table
            await ending.refuse(exc, scope, receive)
        finally:
            ending.tell()


class _Ending:
    """How one request ends: what was sent, and what is told about it."""

    def __init__(self, service: Service, scope: Scope, send: Send) -> None:
        self._service = service
        self._scope = scope
        self._send = send
        self._started = time.time()
        self._id = secrets.token_hex(8)
        self._notes = Notes()
        self.status = 0
        self.code = "ok"
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"], state["notes"] = self._id, self._notes

    async def send(self, message: Message) -> None:
        """Send on, with the request's id and what is left of the caller's quotas."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message["headers"]
            headers.append((REQUEST_ID_HEADER.encode(), self._id.encode()))
            if self._notes.standings:
                found = quota_headers(self._notes.standings).items()
                headers.extend((name.lower().encode(), value.encode()) for name, value in found)
            if self._service.draining and _CLOSE not in headers:
                headers.append(_CLOSE)
        await self._send(message)

    async def refuse(self, exc: Exception, scope: Scope, receive: Receive) -> None:
        """Answer with the row of the failure. Raises the failure again where an answer has begun."""
        self.code = getattr(exc, "code", "internal") if isinstance(exc, CorteError) else "internal"
        if self.code == "internal":
            log.error("%s: failed", self._id, exc_info=exc, extra={"request_id": self._id})
        else:
            log.info("%s: %s: %s", self._id, self.code, exc, extra={"request_id": self._id})
        if self.status:
            raise exc
        wait_s = exc.retry_after_s if isinstance(exc, TeacherServiceError) else None
        answer = refusal(self.code, scope, self._service.wait_s if wait_s is None else wait_s)
        await answer(scope, receive, self.send)

    def tell(self) -> None:
        """Tell the observers, once, that the request is over."""
        notes = self._notes
        notes.watch.mark("send")
        if self.status >= 400 and self.code == "ok":  # Starlette's own refusals
            self.code = {404: "not-found", 405: "method"}.get(self.status, "internal")
        record = Record(
            request_id=self._id,
            route=getattr(self._scope.get("route"), "path", "unknown"),
            started=self._started,
            took=notes.watch.total,
            status=self.status,
            code=self.code,
            owner=notes.owner,
            level=notes.level,
            revision=notes.revision,
            digest=notes.digest,
            pixels=notes.pixels,
            batch=notes.batch,
            stages=notes.watch.stages if notes.digest else {},
            parent=_header(self._scope, b"traceparent"),
        )
        tell(self._service.observers, record)


def refusal(code: str, scope: Scope, wait_s: float) -> Response:
    """One row of `errors.WIRE`, in the shape that the path's clients read."""
    if openinference.owns(scope["path"]):
        answer = openinference.failure(WIRE[code])
    else:
        answer = problem(code, scope["state"]["request_id"])
    if code == "unauthorized":
        answer.headers["www-authenticate"] = "Bearer"
    if WIRE[code].status in (429, 503):
        answer.headers["retry-after"] = str(max(1, math.ceil(wait_s)))
    if code in ("timeout", "too-large"):  # the rest of the body is not read
        answer.headers["connection"] = "close"
    return answer


def problem(code: str, request_id: str) -> Response:
    """The problem document of one row of `errors.WIRE`."""
    wire = WIRE[code]
    body = {
        "type": "about:blank",
        "title": wire.title,
        "status": wire.status,
        "code": code,
        "request_id": request_id,
    }
    return Response(json.dumps(body), wire.status, media_type=PROBLEM_TYPE)


async def unrouted(request: Request, exc: Exception) -> Response:
    """Starlette's own refusals: no such route, or not with that method."""
    assert isinstance(exc, HTTPException)
    code = {404: "not-found", 405: "method"}.get(exc.status_code, "internal")
    answer = refusal(code, request.scope, 0.0)
    for name, value in (exc.headers or {}).items():
        answer.headers[name] = value
    return answer


def _header(scope: Scope, name: bytes) -> str | None:
    found: list[tuple[bytes, bytes]] = scope["headers"]
    return next((value.decode("latin-1") for key, value in found if key == name), None)
