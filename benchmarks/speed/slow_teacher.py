"""A teacher of known latency for the benchmarks of asking: native protocol, any number of requests at once.

Usage: python -m speed.slow_teacher SECONDS. It prints its URL, and answers labels: red modulo three.
"""

import asyncio
import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import uvicorn
from PIL import Image as Pillow
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from corte_protocol import Disclosure, Limits, Prediction, TeacherInfo, encode_info, encode_prediction
from corte_protocol.routes import FRAME_TYPE, INFO, PREDICT

_CLASSES = ("road", "car", "sky")
_INFO = TeacherInfo(
    1,
    "slow",
    "r1",
    _CLASSES,
    ((128, 64, 128), (0, 0, 142), (70, 130, 180)),
    Disclosure(1, 0),
    Limits(1 << 24, 1 << 24),
)


@contextmanager
def slow_teacher(latency_s: float) -> Iterator[str]:
    """Run one in a process of its own; its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "speed.slow_teacher", str(latency_s)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


async def _serve(latency_s: float) -> None:
    async def info(request: Request) -> Response:
        return Response(encode_info(_INFO), media_type="application/json")

    async def predict(request: Request) -> Response:
        body, _ = await asyncio.gather(request.body(), asyncio.sleep(latency_s))
        with Pillow.open(io.BytesIO(body)) as picture:
            labels = np.asarray(picture.convert("RGB"))[:, :, 0] % len(_CLASSES)
        frame = encode_prediction(Prediction(labels[None].astype(np.uint8), None, "r1"))
        return Response(frame, media_type=FRAME_TYPE)

    app = Starlette(routes=[Route(INFO, info), Route(PREDICT, predict, methods=["POST"])])
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", flush=True)
    await serving


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1])))
