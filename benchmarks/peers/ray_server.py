"""The pipeline behind Ray Serve. Usage: PORT.

One replica, no batching, no dashboard, no access log; the rest is set by variables (servers.py): Ray's own
throughput settings, and HAProxy, which comes with ray[serve], in front of the replica.
"""

import signal
import sys

import ray  # type: ignore[import-not-found]
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from peers.pipeline import Pipeline


class Street:
    """Ray's deployment around the pipeline."""

    def __init__(self) -> None:
        self.pipeline = Pipeline()

    async def __call__(self, request: Request) -> Response:
        """The label map of a JPEG; the replica has nothing else to do meanwhile."""
        labels = self.pipeline.answer(await request.body())
        return Response(labels, media_type="application/octet-stream")


def main() -> None:
    """Serve until SIGTERM."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
        configure_logging=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    deployment = serve.deployment(
        Street,
        num_replicas=1,
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 1},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    serve.run(deployment.bind(), name="street", route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
