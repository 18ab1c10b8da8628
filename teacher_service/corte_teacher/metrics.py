"""Prometheus metrics of a service: what its requests took, how they ended, what waits now.

The number of series is bounded: routes are patterns (`_MOST_ROUTES` of them, all others are "unknown"), codes
are those of `errors.WIRE`, keys are names that an administrator gave. No value comes from a client.
"""

from collections.abc import Callable, Iterator
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.metrics_core import InfoMetricFamily
from prometheus_client.registry import Collector

from corte_protocol.errors import WIRE
from corte_teacher.errors import StartError
from corte_teacher.record import STAGES, Record

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32)
_CODES = frozenset(WIRE) | {"ok", "gone"}  # "gone": the sender left, of which nobody could be told
_MOST_ROUTES = 64
_UNKNOWN = "unknown"


class Metrics:
    """The metrics of one service on a registry of their own.

    `queue` is how many requests wait, `places` how many are inside, `ready` whether new ones are taken,
    `revision` the model's. They are called when somebody reads the metrics, in that reader's thread; a gauge
    whose callback is None is left out.
    """

    def __init__(
        self,
        queue: Callable[[], int],
        ready: Callable[[], bool],
        revision: Callable[[], str],
        places: Callable[[], int] | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "corte_requests", "Requests by how they ended.", ("route", "code"), registry=self.registry
        )
        self._pixels = Counter(
            "corte_pixels", "Pixels of admitted images by key.", ("key",), registry=self.registry
        )
        self._seconds = Histogram(
            "corte_request_seconds",
            "Time of whole requests.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        stages = Histogram(
            "corte_stage_seconds",
            "Time of the parts of requests about an image.",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "corte_batch_images",
            "Images in the forward that a request was part of, once a request.",
            buckets=_BATCHES,
            registry=self.registry,
        )
        self._of_stage = {stage: stages.labels(stage) for stage in STAGES}
        self._of_route: dict[str, Histogram] = {_UNKNOWN: self._seconds.labels(_UNKNOWN)}
        self._of_end: dict[tuple[str, str], Counter] = {}
        self._of_key: dict[str, Counter] = {}
        self._gauge("corte_queue_requests", "Requests that wait.", queue)
        self._gauge("corte_places_taken", "Requests inside.", places)
        self._gauge("corte_ready", "1 where new requests are taken, else 0.", ready)
        self.registry.register(_ModelInfo(revision))
        ProcessCollector(registry=self.registry)

    def observe(self, record: Record) -> None:
        """Count one request; an Observer."""
        route = record.route
        seconds = self._of_route.get(route)
        if seconds is None:
            route, seconds = self._new_route(route)
        ended = self._of_end.get((route, record.code))
        if ended is None:
            ended = self._new_end(route, record.code)
        ended.inc()
        seconds.observe(record.took)
        for stage, took in record.stages.items():
            self._of_stage[stage].observe(took)
        if record.batch:
            self._batch.observe(record.batch)
        if record.pixels:
            pixels = self._of_key.get(record.owner)
            if pixels is None:
                pixels = self._of_key[record.owner] = self._pixels.labels(record.owner or "open")
            pixels.inc(record.pixels)

    def _new_route(self, route: str) -> tuple[str, Histogram]:
        if len(self._of_route) >= _MOST_ROUTES:
            return _UNKNOWN, self._of_route[_UNKNOWN]
        found = self._of_route[route] = self._seconds.labels(route)
        return route, found

    def _new_end(self, route: str, code: str) -> Counter:
        if code not in _CODES:
            return self._requests.labels(route, _UNKNOWN)
        found = self._of_end[route, code] = self._requests.labels(route, code)
        return found

    def _gauge(self, name: str, text: str, value: Callable[[], float] | None) -> None:
        if value is not None:
            Gauge(name, text, registry=self.registry).set_function(value)


class _ModelInfo(Collector):
    """`corte_model_info`, read when asked for: the model may be replaced while the service runs."""

    def __init__(self, revision: Callable[[], str]) -> None:
        self._revision = revision

    def collect(self) -> Iterator[InfoMetricFamily]:
        """One sample: the revision that answers now."""
        yield InfoMetricFamily("corte_model", "The model that answers.", {"revision": self._revision()})


class MetricsServer:
    """The page that Prometheus reads, answered in threads of its own, at `port`."""

    def __init__(self, server: WSGIServer) -> None:
        self._server = server
        self.port = server.server_port

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def serve_metrics(metrics: Metrics, host: str = "127.0.0.1", port: int = 0) -> MetricsServer:
    """Serve `metrics` at http://host:port/metrics, without a key; port 0 is any free one.

    The page names the holders of keys and their use: keep it on loopback or a private network. Raises
    StartError when the address cannot be had.
    """
    try:
        server, _ = start_http_server(port, host, metrics.registry)
    except OSError as exc:
        raise StartError(
            f"cannot serve metrics on {host}:{port}: {exc.strerror or exc}: choose another --metrics-port or "
            "--metrics-host"
        ) from exc
    return MetricsServer(server)
