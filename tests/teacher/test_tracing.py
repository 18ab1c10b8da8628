"""Traces as a collector gets them: OTLP over real HTTP."""

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from corte_teacher.errors import StartError
from corte_teacher.record import STAGES, Record
from corte_teacher.tracing import tracer
from teacher import records

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

DONE = replace(records.DONE, parent=f"00-{TRACE}-{CALLER}-01")


class Collector(ThreadingHTTPServer):
    """Takes OTLP at any path, and waits before it answers until `answering` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Collecting)
        self.answering = threading.Event()
        self.answering.set()
        self.arrived = threading.Event()
        self.paths: list[str] = []
        self.spans: list[Span] = []
        self.resources: list[Resource] = []

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.server_port}"

    def tree(self) -> list[tuple[Span, list[Span]]]:
        """The server spans in order of their start, each with its children in order of theirs."""
        found = sorted(self.spans, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))
        servers = [span for span in found if span.kind == Span.SPAN_KIND_SERVER]
        return [
            (server, [span for span in found if span.parent_span_id == server.span_id]) for server in servers
        ]


class _Collecting(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.arrived.set()
        self.server.answering.wait(60)
        self.server.paths.append(self.path)
        for found in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.resources.append(found.resource)
            self.server.spans += [span for scope in found.scope_spans for span in scope.spans]
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield collector
    finally:
        collector.answering.set()
        collector.shutdown()
        collector.server_close()
        thread.join()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector, and no OTEL_* variable that would change what it gets."""
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    with collecting() as found:
        yield found


def sent(collector: Collector, *records: Record) -> list[tuple[Span, list[Span]]]:
    """The spans of `records` as the collector got them."""
    with closing(tracer(f"{collector.url}/v1/traces")) as observe:
        for record in records:
            observe(record)
    return collector.tree()


def attributes(found: Span | Resource) -> dict[str, object]:
    """Attributes as a plain dictionary."""
    return {item.key: getattr(item.value, item.value.WhichOneof("value") or "") for item in found.attributes}


def test_a_request_is_a_server_span_with_a_child_a_stage(collector: Collector) -> None:
    """Name, kind, attributes and the caller's parent are right; the children lie end to end and fill it."""
    [(span, children)] = sent(collector, DONE)
    assert collector.paths == ["/v1/traces"]
    assert attributes(collector.resources[0])["service.name"] == "corte-teacher"
    assert span.name == "/v1/predict"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CALLER)
    assert attributes(span) == {
        "http.response.status_code": 200,
        "corte.code": "ok",
        "corte.pixels": 714,
        "corte.level": "margin",
        "corte.revision": "sha256:1",
    }
    assert [child.name for child in children] == list(STAGES)
    assert {child.trace_id for child in children} == {span.trace_id}
    assert span.start_time_unix_nano == pytest.approx(DONE.started * 1e9, abs=1000)
    assert span.end_time_unix_nano - span.start_time_unix_nano == 280_000_000
    begin = span.start_time_unix_nano
    for child, seconds in zip(children, DONE.stages.values(), strict=True):
        assert child.start_time_unix_nano == begin
        assert child.end_time_unix_nano - begin == pytest.approx(seconds * 1e9, abs=2)
        begin = child.end_time_unix_nano
    assert abs(begin - span.end_time_unix_nano) <= 2


def test_stages_sum_to_their_span_for_any_request(collector: Collector) -> None:
    """For 60 random requests, some stages missing, the durations of the children add up to the parent's."""
    random = np.random.default_rng(7)
    records = []
    for number in range(60):
        named = [stage for stage in STAGES if random.random() < 0.8] or ["read"]
        stages = dict(zip(named, random.exponential(0.1, len(named)).tolist(), strict=True))
        started = DONE.started + number
        records.append(replace(DONE, started=started, took=sum(stages.values()), stages=stages, parent=None))
    trees = sent(collector, *records)
    assert len(trees) == 60
    for record, (span, children) in zip(records, trees, strict=True):
        assert {child.name for child in children} == set(record.stages)
        total = sum(child.end_time_unix_nano - child.start_time_unix_nano for child in children)
        assert abs(total - (span.end_time_unix_nano - span.start_time_unix_nano)) <= 2
        assert all(child.end_time_unix_nano <= span.end_time_unix_nano for child in children)
    assert len({span.trace_id for span, _ in trees}) == 60


@pytest.mark.parametrize(
    "parent", [None, "", "nonsense", f"00-{'0' * 32}-{CALLER}-01", f"ff-{TRACE}-{CALLER}-01"]
)
def test_without_a_valid_parent_the_span_is_a_root(collector: Collector, parent: str | None) -> None:
    """A traceparent that is missing or breaks W3C Trace Context starts a trace of its own."""
    [(span, _)] = sent(collector, replace(DONE, parent=parent))
    assert span.parent_span_id == b"" and span.trace_id.hex() != TRACE


def test_a_parent_that_is_not_sampled_makes_no_spans(collector: Collector) -> None:
    """The caller's decision holds; a request of somebody else is still traced."""
    unsampled = replace(DONE, parent=f"00-{TRACE}-{CALLER}-00")
    trees = sent(collector, unsampled, replace(DONE, parent=None))
    assert len(trees) == 1 and trees[0][0].trace_id.hex() != TRACE


def test_failures_of_the_service_are_errors(collector: Collector) -> None:
    """Status 503 makes an error of the span, 422 does not; a request without an image has no children."""
    bare = replace(DONE, digest=None, pixels=0, level=None, revision=None, stages={})
    refused = replace(bare, status=422, code="invalid")
    failed = replace(bare, status=503, code="overloaded", started=DONE.started + 1)
    (first, none), (second, _) = sent(collector, refused, failed)
    assert (first.status.code, second.status.code) == (Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR)
    assert none == []
    assert attributes(second) == {
        "http.response.status_code": 503,
        "corte.code": "overloaded",
        "corte.pixels": 0,
    }


def test_no_span_names_a_key_or_an_image(collector: Collector) -> None:
    """Neither the holder's name nor the digest is anywhere in what is sent."""
    [(span, children)] = sent(collector, DONE)
    everything = b"".join(found.SerializeToString() for found in [span, *children])
    everything += b"".join(found.SerializeToString() for found in collector.resources)
    assert DONE.owner.encode() not in everything
    assert DONE.digest is not None and DONE.digest.encode() not in everything


def test_the_standard_variables_hold(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an endpoint OTEL_EXPORTER_OTLP_ENDPOINT says where, and OTEL_SERVICE_NAME what it is called."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{collector.url}/base")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "street-teacher")
    with closing(tracer(None)) as observe:
        observe(DONE)
    assert collector.paths == ["/base/v1/traces"]
    assert attributes(collector.resources[0])["service.name"] == "street-teacher"


def test_a_collector_that_does_not_answer_holds_up_no_end(collector: Collector) -> None:
    """`close` comes back while the collector still keeps the first batch unanswered."""
    collector.answering.clear()
    observe = tracer(f"{collector.url}/v1/traces")
    for _ in range(200):
        observe(DONE)
    assert collector.arrived.wait(60)
    observe.close()
    assert not collector.answering.is_set() and collector.paths == []


def test_a_request_that_makes_no_spans_costs_no_other_its_own(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """A record that cannot be made into spans is logged with its id; the next one is still sent."""
    broken = replace(DONE, started=float("nan"), request_id="1" * 16)
    [(span, _)] = sent(collector, broken, DONE)
    assert span.parent_span_id.hex() == CALLER
    assert [vars(r)["request_id"] for r in caplog.records if r.name == "corte_teacher.tracing"] == ["1" * 16]


def test_a_flood_is_dropped_not_kept(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    """Of more requests than can wait for their spans some are lost, and `close` tells how many."""
    observe = tracer(f"{collector.url}/v1/traces")
    unsampled = replace(DONE, parent=f"00-{TRACE}-{CALLER}-00")
    for _ in range(1_000_000):
        observe(unsampled)
        if observe.lost:
            break
    observe.close()
    assert observe.lost == 1
    assert "too many waited: 1" in caplog.text


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no URL, a variable that is wrong and a missing extra end the start with the remedy."""
    for wrong in ("collector:4318", "ftp://collector/v1/traces", "http://"):
        with pytest.raises(StartError, match="name a URL as http://collector"):
            tracer(wrong)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    with pytest.raises(StartError, match=r"OTEL_\* variable is wrong.*max_queue_size"):
        tracer(None)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "corte_teacher.tracing")
    with pytest.raises(StartError, match=r"pip install 'corte-teacher\[otel\]'"):
        importlib.import_module("corte_teacher.tracing")
