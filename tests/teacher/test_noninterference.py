"""Two models that agree on what a level discloses cannot be told apart at it, in any byte of any answer."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corte_protocol import Disclosure, Limits, TeacherInfo
from corte_protocol.types import Float16, UInt8, quantise
from corte_teacher.app import create_app
from corte_teacher.backends import Planes
from corte_teacher.batching import Batches
from corte_teacher.model import Model
from corte_teacher.service import Service
from corte_teacher.settings import Settings
from loopback import served
from teacher.conftest import encoded

CLASSES = 5
SIZE = (4, 6)
LEVELS = ("labels", "confidence", "margin", "topk:3", "full")


@dataclass
class Chosen:
    """A backend that answers with what it was given last."""

    planes: Planes | None = None

    def predict(self, pixels: UInt8) -> Planes:
        """The planes, whatever the image."""
        assert self.planes is not None
        return self.planes


def planes_of(seed: int) -> tuple[UInt8, Float16]:
    """A legal full answer: classes [C, H, W] best first, float16 scores that descend and add up to one."""
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.full(CLASSES, rng.uniform(0.1, 2.0)), SIZE).transpose(2, 0, 1)
    order = np.argsort(-scores, axis=0, kind="stable")
    ordered = np.take_along_axis(scores, order, 0) * 0.999
    return order.astype(np.uint8), ordered.astype(np.float16)


def other_model(classes: UInt8, scores: Float16, level: Disclosure, seed: int) -> tuple[UInt8, Float16]:
    """An answer with the same `level`, and with all else as different as it can be."""
    rng = np.random.default_rng(seed)
    k = level.top_k
    rest = rng.permuted(classes[k:], axis=0)
    if level.prob_bits == 16:
        return classes, scores
    if level.prob_bits == 8:
        grid = quantise(scores[:k]).astype(np.float32)
        moved = ((grid + rng.uniform(0, 0.9, grid.shape)) / 255).astype(np.float16)
        kept = np.where(quantise(moved) == quantise(scores[:k]), moved, scores[:k])
        top = -np.sort(-kept, axis=0)
    else:
        top = np.sort(rng.uniform(0.2, 1.0, (k, *SIZE)), axis=0)[::-1].astype(np.float16)
    tail = top[-1:] * rng.uniform(0, 1, (1, *SIZE)).astype(np.float16)
    tails = np.repeat(tail.astype(np.float16), CLASSES - k, axis=0)
    return np.concatenate([classes[:k], rest]), np.concatenate([top, tails]).astype(np.float16)


@contextmanager
def service_at(policy: str) -> Iterator[tuple[str, Chosen]]:
    """A real server at a policy, and the backend whose answer the test chooses."""
    backend = Chosen()
    names = tuple(f"class {n}" for n in range(CLASSES))
    info = TeacherInfo(
        1, "t", "r", names, ((0, 0, 0),) * CLASSES, Disclosure.parse(policy, CLASSES), Limits(10_000, 1000)
    )
    service = Service(Settings(open=True), Model(Batches(backend), info), None)
    service.ready = True
    try:
        with served(create_app(service)) as url:
            yield url, backend
    finally:
        service.close()


def raw(url: str, path: str, body: bytes, kind: str) -> bytes:
    """Every byte of the answer to one request."""
    parts = urlsplit(url)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
    with socket.create_connection((parts.hostname, parts.port or 0), 20) as connection:
        connection.sendall(head.encode() + b"connection: close\r\n\r\n" + body)
        pieces = []
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


ALLOWED = [
    (level, policy)
    for policy in LEVELS
    for level in LEVELS
    if Disclosure.parse(policy, CLASSES).allows(Disclosure.parse(level, CLASSES))
]


@pytest.fixture(scope="module", params=ALLOWED, ids="-at-".join)
def asked_at(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, str, Chosen]]:
    """Each level at each policy that allows it."""
    level, policy = request.param
    with service_at(policy) as (url, backend):
        yield level, policy, url, backend


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=st.integers(0, 1 << 32), two=st.integers(0, 1 << 32))
def test_what_is_not_disclosed_changes_no_byte(
    asked_at: tuple[str, str, str, Chosen], monkeypatch: pytest.MonkeyPatch, one: int, two: int
) -> None:
    """Over random scores: status line, headers and body are the same bytes for both models."""
    level, _, url, backend = asked_at
    monkeypatch.setattr("corte_teacher.answers.secrets.token_hex", lambda _: "0" * 16)
    body = encoded(np.zeros((*SIZE, 3), np.uint8))
    classes, scores = planes_of(one)
    disclosed = Disclosure.parse(level, CLASSES)
    answer: dict[str, list[bytes]] = {}
    for planes in ((classes, scores), other_model(classes, scores, disclosed, two)):
        backend.planes = planes
        asks: list[tuple[str, bytes, str]] = [(f"/v1/predict?disclosure={level}", body, "image/png")]
        asks.append(("/v2/models/teacher/infer", _open_inference(body, level), "application/json"))
        for path, content, kind in asks:
            answer.setdefault(path, []).append(raw(url, path, content, kind))
    for path, (first, second) in answer.items():
        assert first.startswith(b"HTTP/1.1 200"), first[:200]
        assert first == second, path


def test_the_test_can_fail() -> None:
    """Where a level does disclose the difference, the bytes differ."""
    body = encoded(np.zeros((*SIZE, 3), np.uint8))
    classes, scores = planes_of(1)
    with service_at("full") as (url, backend):
        seen = []
        for planes in ((classes, scores), other_model(classes, scores, Disclosure(1, 0), 2)):
            backend.planes = planes
            seen.append(raw(url, "/v1/predict?disclosure=margin", body, "image/png")[-300:])
    assert seen[0] != seen[1]


def _open_inference(body: bytes, level: str) -> bytes:
    import base64
    import json

    outputs: list[dict[str, Any]] = [{"name": "classes"}]
    if level not in ("labels", "full"):  # FP16 has no form in JSON
        outputs.append({"name": "scores"})
    data = [base64.b64encode(body).decode()]
    tensor: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
    tensor["parameters"] = {"content_type": "base64"}
    message = {"inputs": [tensor], "outputs": outputs, "parameters": {"disclosure": level}}
    return json.dumps(message).encode()
