"""The HTTP surface: routes. Refusals are made in `answers.py`, work is done in `service.py`."""

from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException

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


class _Direct(APIRoute):
    """A route whose function takes the request and no more: nothing is to be taken apart before it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function itself (FastAPI's hook for this: Custom Request and APIRoute class)."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


def create_app(service: Service) -> FastAPI:
    """The routes of one service, which is its maker's to close."""

    app = FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, telemetry=_NO_TELEMETRY
    )
    app.router.route_class = _Direct
    app.add_middleware(Answers, service=service)
    app.add_exception_handler(HTTPException, unrouted)

    @app.get(HEALTH)
    async def health(request: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    @app.get(READY)
    async def ready(request: Request) -> Response:
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
            return Question(open_picture(body, info.limits), asked, encode_prediction)

        frame = await ask(service, request, caller, current, info, read)
        return Response(frame, media_type=FRAME_TYPE, headers={REVISION_HEADER: info.revision})

    openinference.install(app, service)
    if service.settings.docs:
        openapi.install(app)
    return app
