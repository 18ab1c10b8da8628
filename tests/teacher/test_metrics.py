"""Metrics as Prometheus reads them: over HTTP, with bounded labels and values as they are now."""

import http.client
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from corte_protocol.errors import WIRE
from corte_teacher.errors import StartError
from corte_teacher.metrics import Metrics, MetricsServer, serve_metrics
from teacher.records import DONE

Page = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def made(**callbacks: Callable[[], int]) -> Metrics:
    """Metrics of a service that is ready, where nothing waits."""
    return Metrics(queue=lambda: 0, ready=lambda: True, revision=lambda: "r1", **callbacks)


def read(text: str) -> Page:
    """A page of metrics: (name, sorted labels) to value."""
    families = text_string_to_metric_families(text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def page_of(metrics: Metrics) -> Page:
    """What a reader would get now."""
    return read(generate_latest(metrics.registry).decode())


@contextmanager
def served(metrics: Metrics) -> Iterator[MetricsServer]:
    """The metrics on a free loopback port."""
    with closing(serve_metrics(metrics)) as server:
        yield server


def test_a_request_is_counted_in_every_metric() -> None:
    """Over HTTP: its end, its time, each of its seven stages, its pixels by key, its batch, the process."""
    metrics = made()
    metrics.observe(DONE)
    metrics.observe(replace(DONE, code="quota", status=429, digest=None, pixels=0, batch=0, stages={}))
    with served(metrics) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        page = read(answer.read().decode())
        connection.close()
    route = ("route", "/v1/predict")
    assert page["corte_requests_total", (("code", "ok"), route)] == 1
    assert page["corte_requests_total", (("code", "quota"), route)] == 1
    assert page["corte_request_seconds_count", (route,)] == 2
    assert page["corte_request_seconds_sum", (route,)] == pytest.approx(0.56)
    assert page["corte_pixels_total", (("key", "alice"),)] == 714
    assert page["corte_batch_images_bucket", (("le", "1.0"),)] == 0
    assert page["corte_batch_images_bucket", (("le", "2.0"),)] == page["corte_batch_images_count", ()] == 1
    for stage, seconds in DONE.stages.items():
        assert page["corte_stage_seconds_sum", (("stage", stage),)] == pytest.approx(seconds)
        assert page["corte_stage_seconds_count", (("stage", stage),)] == 1
    assert page["process_resident_memory_bytes", ()] > 0


def test_gauges_are_read_when_asked_for() -> None:
    """Queue, pixels, places, readiness and revision are those of the moment, not of the start."""
    now = {"queue": 3, "pixels": 5000, "places": 4, "ready": 0}
    revisions = ["r1"]
    metrics = Metrics(
        queue=lambda: now["queue"],
        ready=lambda: now["ready"] == 1,
        revision=lambda: revisions[-1],
        places=lambda: now["places"],
    )
    before = page_of(metrics)
    assert before["corte_queue_requests", ()] == 3
    assert before["corte_places_taken", ()] == 4
    assert before["corte_ready", ()] == 0
    assert before["corte_model_info", (("revision", "r1"),)] == 1
    now.update(queue=0, ready=1)
    revisions.append("r2")
    after = page_of(metrics)
    assert (after["corte_queue_requests", ()], after["corte_ready", ()]) == (0, 1)
    assert after["corte_model_info", (("revision", "r2"),)] == 1
    assert ("corte_model_info", (("revision", "r1"),)) not in after


def test_a_gauge_without_callback_is_left_out() -> None:
    """What the service cannot tell has no series that reads zero."""
    page = page_of(made())
    assert ("corte_queue_requests", ()) in page
    assert ("corte_places_taken", ()) not in page


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["/healthz", "/v1/predict"]),
            st.sampled_from(["ok", "gone", *WIRE]),
            st.sampled_from(["", "alice", "bob"]),
            st.integers(0, 4_000_000),
        ),
        max_size=40,
    )
)
def test_counters_are_sums(requests: list[tuple[str, str, str, int]]) -> None:
    """Requests by route and code, and pixels by key, add up; no key is called "open"."""
    metrics = made()
    for route, code, owner, pixels in requests:
        metrics.observe(replace(DONE, route=route, code=code, owner=owner, pixels=pixels))
    page = page_of(metrics)
    ends = Counter((route, code) for route, code, _, _ in requests)
    found = {labels: value for (name, labels), value in page.items() if name == "corte_requests_total"}
    assert found == {(("code", code), ("route", route)): n for (route, code), n in ends.items()}
    pixels_of: Counter[str] = Counter()
    for _, _, owner, pixels in requests:
        if pixels:
            pixels_of[owner or "open"] += pixels
    counted = {
        dict(labels)["key"]: value for (name, labels), value in page.items() if name == "corte_pixels_total"
    }
    assert counted == pixels_of


def test_labels_are_bounded() -> None:
    """A thousand unheard-of routes and codes make some series, and every request is still counted."""
    metrics = made()
    for number in range(1000):
        metrics.observe(replace(DONE, route=f"/{number}", code=f"code-{number}"))
    page = page_of(metrics)
    counted = {labels: value for (name, labels), value in page.items() if name == "corte_requests_total"}
    assert len(counted) <= 64
    assert sum(counted.values()) == 1000
    assert {dict(labels)["code"] for labels in counted} == {"unknown"}
    times = [value for (name, _), value in page.items() if name == "corte_request_seconds_count"]
    assert len(times) <= 64 and sum(times) == 1000


def test_a_taken_port_is_named() -> None:
    """The error says which port and which option; the port is free again after close."""
    metrics = made()
    with served(metrics) as server, pytest.raises(StartError) as found:
        serve_metrics(metrics, "127.0.0.1", server.port)
    assert re.match(rf".* on 127\.0\.0\.1:{server.port}: .*--metrics-port", str(found.value))
    with closing(serve_metrics(metrics, "127.0.0.1", server.port)) as again:
        assert again.port == server.port
    with pytest.raises(StartError, match="--metrics-host"):
        serve_metrics(metrics, "no-such-host.invalid", 0)


def test_only_loopback_hears_by_default() -> None:
    """A server for all addresses would answer at 127.0.0.2 too; this one does not."""
    with served(made()) as server:
        socket.create_connection(("127.0.0.1", server.port), timeout=30).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", server.port), timeout=30)
