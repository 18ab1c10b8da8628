"""The pipeline behind LitServe. Usage: PORT.

One worker, one API process, no batching (the default), no time-out. The body is declared as bytes, which is
LitServe's only way to take a body that is neither JSON nor a form; its queue stays the default one, since the
`fast_queue` took more processor time here. Its GZip middleware cannot be turned off, but our client does not
ask for compression.
"""

import sys
from typing import Annotated, Any

import litserve  # type: ignore[import-not-found]
from fastapi import Body, Response

from peers.pipeline import Pipeline

Jpeg = Annotated[bytes, Body(media_type="image/jpeg")]


class Street(litserve.LitAPI):  # type: ignore[misc]
    """LitServe's hooks around the pipeline."""

    def setup(self, device: Any) -> None:
        """Load the model, in the worker."""
        self.pipeline = Pipeline()

    def decode_request(self, request: Jpeg) -> bytes:
        """The body as it came."""
        return request

    def predict(self, x: bytes) -> bytes:
        """The label map."""
        return self.pipeline.answer(x)

    def encode_response(self, output: bytes) -> Response:
        """Raw bytes."""
        return Response(output, media_type="application/octet-stream")


def main() -> None:
    """Serve until killed."""
    server = litserve.LitServer(Street(), accelerator="cpu", devices=1, workers_per_device=1, timeout=False)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
        loop="uvloop",
        http="httptools",
    )


if __name__ == "__main__":
    main()
