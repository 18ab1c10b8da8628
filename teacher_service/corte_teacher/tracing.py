"""Traces of requests, sent over OTLP/HTTP: the extra `otel`. Import this only where traces are asked for.

One server span a request, with one child a stage. Spans name no key and no image. The caller's span is the
parent where the request brought a traceparent (W3C Trace Context). Importing this raises StartError when the
extra is not installed.
"""

import logging
import queue
import threading
from urllib.parse import urlsplit

from corte_teacher.errors import StartError
from corte_teacher.record import STAGES, Record

try:
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as exc:
    raise StartError(f"traces need: pip install 'corte-teacher[otel]' ({exc})") from exc

log = logging.getLogger(__name__)

_WAITING = 1024  # records without spans yet: about 1 MB
_CLOSE_S = 3.0  # for the last spans: a part of the 30 s that Kubernetes gives to a stopping process
_ABORT_S = 0.5


class Traces:
    """An Observer whose spans are made in one thread and sent by another, or dropped where nobody takes them.

    The eight spans of a request take 0.1 ms and, on a busy machine, 0.8 ms: not in the event loop. `lost`
    counts the requests that were dropped because too many others waited for their spans.
    """

    def __init__(self, exporter: OTLPSpanExporter) -> None:
        named = Resource.create({SERVICE_NAME: "corte-teacher"}).merge(OTELResourceDetector().detect())
        self._exporter = exporter
        self._provider = TracerProvider(resource=named, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("corte_teacher")
        self._propagator = TraceContextTextMapPropagator()
        self.lost = 0
        self._waiting: queue.Queue[Record | None] = queue.Queue(_WAITING)
        self._maker = threading.Thread(target=self._make_all, name="corte-traces", daemon=True)
        self._maker.start()

    def __call__(self, record: Record) -> None:
        """Leave one request to the thread that makes spans."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Send what waits, for 3 s at most; what is not taken by then is dropped. Blocking."""
        sending = threading.Thread(target=self._finish, daemon=True)
        sending.start()
        sending.join(_CLOSE_S)
        if sending.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # ends the wait between two attempts
            sending.join(_ABORT_S)
        if self.lost:
            log.warning("requests without spans, because too many waited: %d", self.lost)

    def _make_all(self) -> None:
        while (record := self._waiting.get()) is not None:
            try:
                self._make(record)
            except Exception:  # the thread's edge: one request without spans must not cost all others theirs
                log.exception("%s: no spans", record.request_id, extra={"request_id": record.request_id})

    def _make(self, record: Record) -> None:
        context = Context()
        if record.parent is not None:
            context = self._propagator.extract({"traceparent": record.parent}, context)
        started = round(record.started * 1e9)
        ended = started + round(record.took * 1e9)
        span = self._tracer.start_span(
            record.route, context, SpanKind.SERVER, attributes=_attributes(record), start_time=started
        )
        if span.is_recording():
            if record.status >= 500:
                span.set_status(StatusCode.ERROR)
            self._stages(span, record, started, ended)
        span.end(ended)

    def _finish(self) -> None:
        self._waiting.put(None)
        self._maker.join()
        self._provider.shutdown()

    def _stages(self, span: Span, record: Record, started: int, ended: int) -> None:
        """The children, end to end in the order of STAGES; none outlasts its parent, in ns since 1970."""
        context = set_span_in_context(span, Context())
        passed, begin = 0.0, started
        for stage in STAGES:
            if stage in record.stages:
                passed += record.stages[stage]
                end = min(started + round(passed * 1e9), ended)
                self._tracer.start_span(stage, context, start_time=begin).end(end)
                begin = end


def tracer(endpoint: str | None) -> Traces:
    """An Observer that sends spans to `endpoint`, a whole URL as http://collector:4318/v1/traces.

    None leaves it to the standard variables: OTEL_EXPORTER_OTLP_ENDPOINT, and those for headers, sampling,
    time-outs and batches. Raises StartError when the endpoint is not a URL or the SDK refuses a variable.
    """
    if endpoint is not None and (
        urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).netloc
    ):
        raise StartError(f"{endpoint!r} takes no traces: name a URL as http://collector:4318/v1/traces")
    try:
        return Traces(OTLPSpanExporter(endpoint=endpoint))
    except ValueError as exc:
        raise StartError(f"an OTEL_* variable is wrong: {exc}") from exc


def _attributes(record: Record) -> dict[str, str | int]:
    found: dict[str, str | int] = {
        "http.response.status_code": record.status,
        "corte.code": record.code,
        "corte.pixels": record.pixels,
    }
    if record.level is not None:
        found["corte.level"] = record.level
    if record.revision is not None:
        found["corte.revision"] = record.revision
    return found
