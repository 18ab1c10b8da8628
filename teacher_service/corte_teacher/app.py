"""The HTTP surface: routes. Refusals are made in `answers.py`, work is done in `service.py`."""

from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from corte_protocol import encode_prediction
from corte_protocol.routes import FRAME_TYPE, HEALTH, INFO, PREDICT, READY, REVISION_HEADER
from corte_teacher import openapi
from corte_teacher.admission import asked_level, require_image
from corte_teacher.answers import Answers, unrouted
from corte_teacher.asking import ask, identify
from corte_teacher.dialects import openinference
from corte_teacher.job import Question
from corte_teacher.pictures import open_picture
from corte_teacher.service import Service

_NO_TELEMETRY: Final[TelemetryConfig] = {"tracing": False, "metrics": False, "logs": False}
"""FastAPI's own would send paths and exceptions to wherever the environment says; ours is `tracing.py`."""


class _Thin:
    """An application, and a way around its layers for the one question that is asked all the time.

    FastAPI's and Starlette's middleware, router and route take 0.2 ms of the event loop's 1.2 for it.
    """

    def __init__(self, app: ASGIApp, path: str, direct: ASGIApp) -> None:
        self._app = app
        self._path = path
        self._direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] == "http" and scope["path"] == self._path and scope["method"] == "POST"
        await (self._direct if asked else self._app)(scope, receive, send)


def create_app(service: Service) -> ASGIApp:
    """The routes of one service, which is its maker's to close."""

    app = FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, telemetry=_NO_TELEMETRY
    )
    app.add_middleware(Answers, service=service)
    app.add_exception_handler(HTTPException, unrouted)

    @app.get(HEALTH)
    async def health() -> Response:
        return Response("ok\n", media_type="text/plain")

    @app.get(READY)
    async def ready() -> Response:
        service.require_traffic()
        return Response("ready\n", media_type="text/plain")

    @app.get(INFO)
    async def tell(request: Request) -> Response:
        caller = identify(service, request)
        _, encoded = service.current.infos.of(caller.grant)
        return Response(encoded, media_type="application/json")

    @app.post(PREDICT)
    async def predict(request: Request) -> Response:
        caller = identify(service, request)
        current = service.current
        info, _ = current.infos.of(caller.grant)
        asked = asked_level(request, info.disclosure, len(info.classes))
        service.require_ready()
        require_image(request)

        def read(body: bytes) -> Question[bytes]:
            quick = not asked.prob_bits  # no scores to narrow and to pack
            return Question(open_picture(body, info.limits), asked, encode_prediction, quick)

        frame = await ask(service, request, caller, current, info, read)
        return Response(frame, media_type=FRAME_TYPE, headers={REVISION_HEADER: info.revision})

    openinference.install(app, service)
    if service.settings.docs:
        openapi.install(app)

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = route
        answer = await predict(Request(scope, receive, send))
        await answer(scope, receive, send)

    route = next(route for route in app.routes if getattr(route, "path", None) == PREDICT)
    return _Thin(app, PREDICT, Answers(asked, service))
