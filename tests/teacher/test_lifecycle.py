"""From start to end: deadlines, drains, swaps under load, what the operator sees, and what is refused."""

import asyncio
import json
import resource
import shutil
import signal
import socket
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from corte_protocol import Disclosure
from corte_protocol.types import UInt8
from corte_teacher.backends import find_source, load_backend
from corte_teacher.card import Card
from corte_teacher.keys import create_key
from loopback import free_port
from serving import running_teacher, teacher_process
from teacher.test_service import ask, assert_problem, read
from teacher.tiny_models import as_toml, card_data, write_model

Encode = Callable[..., bytes]

SLEEPY = """
import time
import numpy as np
class Sleepy:
    def predict(self, pixels):
        if pixels.shape[0] == 7:
            raise RuntimeError("no such size")
        if pixels.shape[0] == 22:
            self.tried = getattr(self, "tried", 0) + 1
            time.sleep(1.5 if self.tried == 1 else 0)
        if pixels.shape[0] == 21:
            time.sleep(0.4)
        shape = (1, *pixels.shape[:2])
        return np.zeros(shape, np.uint8), np.ones(shape, np.float16)
def build(model, card, k):
    return Sleepy()
"""


@pytest.fixture(scope="module")
def sleepy(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of a service whose forward takes 0.4 s at 21 pixels of height."""
    folder = tmp_path_factory.mktemp("sleepy")
    (folder / "sleepy_backend.py").write_text(SLEEPY)
    args = ["--backend", "sleepy_backend:build", "--card", str(tiny.with_suffix(".toml")), "--open"]
    return [*args, "--disclosure", "confidence"], {"PYTHONPATH": str(folder)}


def forwards(port: int) -> int:
    """Images that the model was asked about, as the metrics tell."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        lines = page.read().decode().splitlines()
    counted = [x for x in lines if x.startswith('corte_stage_seconds_count{stage="forward"}')]
    return int(float(counted[0].split()[-1])) if counted else 0


def test_a_term_signal_loses_nothing(
    sleepy: tuple[list[str], dict[str, str]], pixels: UInt8, encode: Encode
) -> None:
    """After SIGTERM readiness is off at once, requests are still answered, those in flight too; status 0."""
    args, env = sleepy
    with teacher_process(args, env | {"CORTE_TEACHER_DRAIN_S": "1.5"}) as teacher:
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(ask, teacher.url, encode(pixels)) for _ in range(4)]
            time.sleep(0.2)
            teacher.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            assert_problem(httpx.get(f"{teacher.url}/readyz"), "not-ready")
            assert httpx.get(f"{teacher.url}/healthz").status_code == 200
            late = ask(teacher.url, encode(pixels[:5]))
            assert read(late) and late.headers["connection"] == "close"
            assert all(read(a.result()) for a in answers)
        assert teacher.process.wait(20) == 0


def test_a_second_signal_does_not_wait(sleepy: tuple[list[str], dict[str, str]]) -> None:
    """A drain of minutes is cut short by a second signal, and still ends with status 0."""
    args, env = sleepy
    with teacher_process(args, env | {"CORTE_TEACHER_DRAIN_S": "300"}) as teacher:
        teacher.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        teacher.process.send_signal(signal.SIGTERM)
        assert teacher.process.wait(20) == 0


async def test_requests_whose_senders_left_are_not_computed(
    sleepy: tuple[list[str], dict[str, str]], pixels: UInt8, encode: Encode
) -> None:
    """Of thirty waiting requests that are cancelled, at most the one in flight and the next are computed."""
    args, env = sleepy
    port = free_port()
    with teacher_process([*args, "--metrics-port", str(port)], env) as teacher:
        body, headers = encode(pixels), {"content-type": "image/png"}
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=40)) as client:
            asks = [
                asyncio.create_task(client.post(f"{teacher.url}/v1/predict", content=body, headers=headers))
                for _ in range(30)
            ]
            await asyncio.sleep(0.3)
            for task in asks:
                task.cancel()
            await asyncio.gather(*asks, return_exceptions=True)
        await asyncio.sleep(2.0)
        assert forwards(port) <= 2
        assert read(ask(teacher.url, encode(pixels[:5])))


def test_a_deadline_that_cannot_be_met_is_told_in_time(
    sleepy: tuple[list[str], dict[str, str]], pixels: UInt8, encode: Encode
) -> None:
    """With a deadline of a second, who cannot be answered hears 503 with Retry-After before it has passed."""
    args, env = sleepy

    def asked(_: int) -> tuple[httpx.Response, float]:
        began = time.monotonic()
        headers = {"content-type": "image/png", "x-deadline-ms": "1000"}
        answer = httpx.post(f"{url}/v1/predict", content=encode(pixels), headers=headers, timeout=20)
        return answer, time.monotonic() - began

    with running_teacher(args, env) as url:
        read(ask(url, encode(pixels)))  # so that the service knows how long a forward takes
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(asked, range(8)))
    refused = [(a, took) for a, took in answers if a.status_code != 200]
    assert 4 <= len(refused) <= 7
    for answer, took in refused:
        assert_problem(answer, "deadline")
        assert int(answer.headers["retry-after"]) >= 1
        assert took < 3  # the deadline, and room for a busy machine


def test_the_model_is_swapped_without_a_gap(tmp_path: Path, pixels: UInt8, encode: Encode) -> None:
    """After SIGHUP the new file answers under a new revision; none mixes two, a broken file is not taken."""
    card = Card.model_validate(card_data())
    model = tmp_path / "model.onnx"
    (tmp_path / "model.toml").write_text(as_toml(card_data()))
    write_model(model, card)
    seen: dict[str, set[bytes]] = {}
    args = ["--backend", "onnx", "--model", str(model), "--open"]
    with teacher_process(args) as teacher:

        def asked(_: int) -> None:
            answer = ask(teacher.url, encode(pixels))
            got = read(answer)
            assert got.revision == answer.headers["corte-revision"]
            seen.setdefault(got.revision, set()).add(got.classes.tobytes())

        def until(revisions: int) -> bool:
            ends = time.monotonic() + 20
            with ThreadPoolExecutor(4) as pool:
                while len(seen) < revisions and time.monotonic() < ends:
                    list(pool.map(asked, range(8)))
            return len(seen) == revisions

        assert until(1)
        model.write_bytes(b"broken")
        teacher.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        asked(0)
        assert len(seen) == 1
        write_model(tmp_path / "next.onnx", card, scale=-3.0)
        shutil.move(tmp_path / "next.onnx", model)
        teacher.process.send_signal(signal.SIGHUP)
        assert until(2)
        assert all(len(answers) == 1 for answers in seen.values())
        assert len(set.union(*seen.values())) == 2


def test_what_the_operator_sees(tiny: Path, tmp_path: Path, pixels: UInt8, encode: Encode) -> None:
    """Metrics on a port of their own, an audit line a question, a log line a request, one request id.

    Bytes that are no HTTP, which no route ever saw, are counted and logged like any other refusal.
    """
    keys, audit = tmp_path / "keys.json", tmp_path / "audit.jsonl"
    key = create_key(keys, "alice")
    port = free_port()
    args = ["--backend", "onnx", "--model", str(tiny), "--keys", str(keys), "--audit-log", str(audit)]
    args += ["--metrics-port", str(port), "--log-format", "json", "--log-level", "info"]
    with teacher_process(args) as teacher:
        answer = ask(teacher.url, encode(pixels), key=key)
        assert read(answer)
        assert_problem(httpx.get(f"{teacher.url}/metrics"), "not-found")
        with socket.create_connection(("127.0.0.1", httpx.URL(teacher.url).port)) as wrong:
            wrong.sendall(b"no HTTP\r\n\r\n")
            assert wrong.recv(4096).startswith(b"HTTP/1.1 400 ")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            metrics = page.read().decode()
        audit.rename(tmp_path / "audit.1")
        teacher.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert read(ask(teacher.url, encode(pixels), key=key))
    assert f'corte_pixels_total{{key="alice"}} {21.0 * 34}' in metrics
    assert 'corte_requests_total{code="bad-request",route="unknown"} 1.0' in metrics
    for stage in ("read", "decode", "queue", "forward", "disclose", "encode", "send"):
        assert f'corte_stage_seconds_count{{stage="{stage}"}} 1.0' in metrics
    first, second = (json.loads(f.read_text()) for f in (tmp_path / "audit.1", audit))
    assert first["request_id"] == answer.headers["x-request-id"] != second["request_id"]
    assert first["key"] == "alice" and first["pixels"] == 21 * 34 and first["digest"] == second["digest"]
    logged = [json.loads(line) for line in teacher.lines if line.startswith("{")]
    assert any(line.get("request_id") == first["request_id"] for line in logged)
    assert any(line.get("code") == "bad-request" for line in logged)
    assert key not in "".join(teacher.lines) + audit.read_text() + metrics


def test_the_stages_add_up(open_teacher: str, tiny: Path, pixels: UInt8, encode: Encode) -> None:
    """The seven stages are the whole of a request's time, within 3 %."""
    port = free_port()
    args = ["--backend", "onnx", "--model", str(tiny), "--open", "--metrics-port", str(port)]
    with running_teacher(args) as url:
        for _ in range(20):
            assert read(ask(url, encode(pixels)))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            lines = page.read().decode().splitlines()
    stages = sum(float(x.split()[-1]) for x in lines if x.startswith("corte_stage_seconds_sum"))
    whole = sum(
        float(x.split()[-1]) for x in lines if x.startswith('corte_request_seconds_sum{route="/v1/predict"')
    )
    assert abs(stages / whole - 1) < 0.03


def test_as_many_files_as_connections(tiny: Path) -> None:
    """The limit of open files is raised for the connections allowed, and where it cannot be, that is told."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))  # the service inherits it
        for connections, told in ((200, False), (hard, True)):
            args = ["--backend", "onnx", "--model", str(tiny), "--open"]
            with teacher_process([*args, "--max-connections", str(connections)]) as teacher:
                allowed, _ = resource.prlimit(teacher.process.pid, resource.RLIMIT_NOFILE)
            assert allowed >= (hard if told else connections)
            assert any("lower --max-connections" in line for line in teacher.lines) == told
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_answers_come_on_the_quantum(tiny: Path, pixels: UInt8, encode: Encode) -> None:
    """With a latency quantum no answer comes before it has passed."""
    args = ["--backend", "onnx", "--model", str(tiny), "--open", "--latency-quantum-ms", "300"]
    with running_teacher(args) as url:
        for _ in range(3):
            began = time.monotonic()
            assert read(ask(url, encode(pixels)))
            assert time.monotonic() - began >= 0.3


def test_the_document_is_served_only_where_asked_for(tiny: Path) -> None:
    """--docs serves OpenAPI 3.1 that names every route a client has, and nothing of the software."""
    with running_teacher(["--backend", "onnx", "--model", str(tiny), "--open", "--docs"]) as url:
        document = httpx.get(f"{url}/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {"/v1/predict", "/v1/info", "/healthz", "/readyz"} <= set(document["paths"])
    assert "FastAPI" not in json.dumps(document)


def test_workers_are_refused_with_a_reason(tiny: Path) -> None:
    """--workers says why not, and what to do instead."""
    with (
        pytest.raises(RuntimeError, match=r"--workers is not offered: .*replicas behind a proxy"),
        running_teacher(["--backend", "onnx", "--model", str(tiny), "--open", "--workers", "2"]),
    ):
        pass


def test_sizes_are_tried_before_the_service_is_ready(sleepy: tuple[list[str], dict[str, str]]) -> None:
    """A size that the operator names and the model does not answer ends the start."""
    args, env = sleepy
    with (
        pytest.raises(RuntimeError, match=r"the model does not answer: .*no such size"),
        running_teacher([*args, "--sizes", "5x9,7x9"], env),
    ):
        pass


def test_one_slow_answer_is_not_held_against_later_ones(
    sleepy: tuple[list[str], dict[str, str]], encode: Encode
) -> None:
    """After one forward of 1.5 s an idle service still tries a request that has a second, and answers it."""
    args, env = sleepy
    body = encode(np.zeros((22, 34, 3), np.uint8))
    with running_teacher(args, env) as url:
        assert read(ask(url, body))
        headers = {"content-type": "image/png", "x-deadline-ms": "1000"}
        assert read(httpx.post(f"{url}/v1/predict", content=body, headers=headers, timeout=20))


def test_a_large_image_is_answered_in_tiles(tmp_path: Path, encode: Encode) -> None:
    """With [tiles] in the card a larger image comes back at its size, as the tiled backend answers it."""
    data = card_data(tiles={"height": 32, "width": 48, "overlap": 8})
    (tmp_path / "model.toml").write_text(as_toml(data))
    model = write_model(tmp_path / "model.onnx", Card.model_validate(data))
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    tiled = load_backend(find_source("onnx", model, None), Disclosure(2, 8), 1)
    assert type(tiled).__name__ == "TiledBackend"
    with running_teacher(["--backend", "onnx", "--model", str(model), "--open"]) as url:
        got = read(ask(url, encode(image)))
    assert np.array_equal(got.classes, tiled.predict(image)[0])
