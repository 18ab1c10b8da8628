"""The pipeline behind one bare FastAPI route: what HTTP costs at the least. Usage: PORT.

One `async def` route, one thread for the model, uvicorn with uvloop and httptools, no access log.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, Request, Response

from peers.pipeline import Pipeline


def main() -> None:
    """Serve until SIGTERM."""
    pipeline = Pipeline()
    thread = ThreadPoolExecutor(1)
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        body = await request.body()
        labels = await asyncio.get_running_loop().run_in_executor(thread, pipeline.answer, body)
        return Response(labels, media_type="application/octet-stream")

    uvicorn.run(
        app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )


if __name__ == "__main__":
    main()
