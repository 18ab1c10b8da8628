"""The HTTP surface: routes, lifespan, and one place where failures become answers.

Every failure is a row of `errors.WIRE` in an RFC 9457 problem document, or in the shape of the dialect that
the path belongs to. The text of an exception goes to the log with the request's id, never to the client.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corte_protocol import CorteError, TeacherInfo, encode_info, encode_prediction
from corte_protocol.errors import WIRE
from corte_protocol.routes import (
    FRAME_TYPE,
    HEALTH,
    INFO,
    PREDICT,
    PROBLEM_TYPE,
    READY,
    REQUEST_ID_HEADER,
    REVISION_HEADER,
)
from corte_teacher.admission import (
    asked_level,
    read_body,
    read_image,
    require_image,
    require_key,
    require_ready,
)
from corte_teacher.backends import Backend
from corte_teacher.dialects import openinference
from corte_teacher.inference import Inference, Question
from corte_teacher.keys import KeyRing
from corte_teacher.settings import Settings

log = logging.getLogger(__name__)

_HEADERS = {
    "unauthorized": {"www-authenticate": "Bearer"},
    "timeout": {"connection": "close"},
    "overloaded": {"retry-after": "1"},
    "not-ready": {"retry-after": "1"},
}


def create_app(settings: Settings, backend: Backend, info: TeacherInfo, keys: KeyRing | None) -> FastAPI:
    """The service on one model; `keys` None means open. `app.state.ready` ends with the first forward."""
    inference = Inference(backend, info, places=settings.queue, timeout_s=settings.answer_timeout_s)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.ready = asyncio.ensure_future(inference.try_out())
        try:
            yield
        finally:
            app.state.ready.cancel()
            await asyncio.to_thread(inference.close)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    app.add_middleware(Answers)
    app.add_exception_handler(HTTPException, _unrouted)

    @app.get(HEALTH)
    async def health() -> Response:
        return Response("ok\n", media_type="text/plain")

    @app.get(READY)
    async def ready() -> Response:
        require_ready(app.state.ready)
        return Response("ready\n", media_type="text/plain")

    @app.get(INFO)
    async def tell(request: Request) -> Response:
        require_key(request, keys)
        return Response(encode_info(info), media_type="application/json")

    @app.post(PREDICT)
    async def predict(request: Request) -> Response:
        require_key(request, keys)
        asked = asked_level(request, info.disclosure, len(info.classes))
        require_ready(app.state.ready)
        require_image(request)
        body = await read_body(request, info.limits, settings.body_timeout_s)
        frame = await inference.answer(
            lambda: Question(read_image(body, info.limits), asked, encode_prediction)
        )
        return Response(frame, media_type=FRAME_TYPE, headers={REVISION_HEADER: info.revision})

    openinference.install(app, inference, info, keys, settings.body_timeout_s)
    return app


class Answers:
    """ASGI middleware around all routes: gives each request its id and turns each failure into a problem."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"].append((REQUEST_ID_HEADER.encode(), request_id.encode()))
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except ClientDisconnect:
            log.debug("%s: the client went away", request_id)
        except Exception as exc:  # the edge of the process: nothing may pass it but a row of the table
            code = getattr(exc, "code", "internal") if isinstance(exc, CorteError) else "internal"
            if code == "internal":
                log.exception("%s: failed", request_id)
            else:
                log.info("%s: %s: %s", request_id, code, exc)
            if started:
                raise
            await _refusal(code, scope)(scope, receive, send_named)


def _refusal(code: str, scope: Scope) -> Response:
    """One row of `errors.WIRE`, in the shape that the path's clients read."""
    if openinference.owns(scope["path"]):
        answer = openinference.failure(WIRE[code])
    else:
        answer = problem(code, scope["state"]["request_id"])
    answer.headers.update(_HEADERS.get(code, {}))
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


async def _unrouted(request: Request, exc: Exception) -> Response:
    """Starlette's own refusals: no such route, or not with that method."""
    assert isinstance(exc, HTTPException)
    code = {404: "not-found", 405: "method"}.get(exc.status_code, "internal")
    answer = _refusal(code, request.scope)
    for name, value in (exc.headers or {}).items():
        answer.headers[name] = value
    return answer
