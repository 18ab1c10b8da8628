"""The comparison of servers: its statistics, its client, and what it counts as a server."""

import math
import os
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from corte_protocol import Prediction, encode_prediction
from loopback import served
from peers import processes, slices
from peers.client import Cell, Job, judge_frames, measure
from peers.intervals import paired, percentile, ratio_of
from peers.making import make_work, picture
from peers.pipeline import Pipeline
from peers.report import Direct, Measured, Results, Standing, page, raw
from peers.servers import BARE, OURS, environment_of_benchmarks, our_service, running
from peers.work import GRAPH, GRAPH_FILE, HEIGHT, MARK_AT, WIDTH, Work

RATIOS = st.lists(st.lists(st.floats(0.5, 3.0), min_size=1, max_size=6), min_size=1, max_size=3)


@settings(max_examples=25)
@given(RATIOS)
def test_a_ratio_lies_in_its_interval_and_its_inverse_in_the_inverse(strata: list[list[float]]) -> None:
    """Whoever is called the base, the comparison says the same."""
    ratio = ratio_of(strata)
    inverse = ratio_of([[1 / value for value in values] for values in strata])
    slack = 1 + 1e-9
    assert ratio.low <= ratio.value * slack and ratio.value <= ratio.high * slack
    assert inverse.value == pytest.approx(1 / ratio.value)
    assert inverse.low == pytest.approx(1 / ratio.high)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 runs of 20 noisy rounds, some 95 % of the intervals hold the ratio that all were drawn from."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        ratio = ratio_of([np.exp(rng.normal(math.log(1.08), 0.1, 20)).tolist()])
        held += ratio.low <= 1.08 <= ratio.high
    assert 176 <= held <= 198


def test_strata_weigh_the_same_and_rounds_that_lack_a_partner_are_left_out() -> None:
    """Three rounds of one number of clients do not outvote one of another."""
    assert ratio_of([[2.0, 2.0, 2.0], [0.5]]).value == pytest.approx(1.0)
    assert paired({0: 3.0, 1: 2.0, 2: 9.0}, {1: 1.0, 0: 2.0, 5: 7.0}) == [1.5, 2.0]
    assert [percentile([4.0, 1.0, 3.0, 2.0], share) for share in (0.5, 0.75, 0.99)] == [2.0, 3.0, 4.0]


@pytest.mark.parametrize("strata", [[], [[1.0], []], [[1.0, math.inf]], [[0.0]]])
def test_what_has_no_ratio_is_refused(strata: list[list[float]]) -> None:
    """A server that answered nothing gets no number."""
    with pytest.raises(ValueError, match=r"round|positive"):
        ratio_of(strata)


def red(jpeg: bytes) -> bytes:
    """The label map of the test's server: the red channel."""
    return np.asarray(Pillow.open(BytesIO(jpeg)))[..., 0].tobytes()


def test_the_client_tells_right_from_wrong_from_failed() -> None:
    """Every answer is judged, no two requests are the same bytes, and a closed connection is opened again."""
    pictures = tuple(picture(seed) for seed in range(4))
    truth = tuple(red(jpeg) for jpeg in pictures)
    work = Work(pictures, (*truth[:3], bytes(HEIGHT * WIDTH)))
    seen: list[bytes] = []

    async def answer(request: Request) -> Response:
        body = await request.body()
        seen.append(body)
        labels = red(body)
        if labels == truth[1]:
            return Response("no", 503)
        return Response(labels, headers={"connection": "close"} if labels == truth[2] else None)

    with served(Starlette(routes=[Route("/predict", answer, methods=["POST"])])) as url:
        port = int(url.rpartition(":")[2])
        cell = measure(Job(port, "/predict", {}, False, "", os.getpid(), 3, 1.0, 0.1), work)
    assert cell.right > 0 and cell.wrong > 0 and set(cell.failed) == {"503"}
    assert 0 < cell.within <= cell.right == len(cell.latencies)
    assert cell.right + cell.wrong + cell.failed["503"] <= len(seen) == len(set(seen))
    assert cell.client_cpu_s > 0


def test_a_server_that_is_not_there_is_a_failure_and_no_endless_loop() -> None:
    """Each client fails once, and nothing is counted as an answer."""
    work = Work((picture(0),), (bytes(HEIGHT * WIDTH),))
    cell = measure(Job(1, "/predict", {}, False, "", os.getpid(), 2, 5.0, 0.0), work)
    assert cell.failed == {"ConnectionRefusedError": 2}
    assert cell.right == 0 and math.isinf(cell.cost_ms)


def test_a_frame_is_judged_by_the_labels_in_it() -> None:
    """Bytes that are no frame, or a frame of other labels, are wrong; a right one is right every time."""
    labels = np.arange(HEIGHT * WIDTH, dtype=np.int64).reshape(1, HEIGHT, WIDTH) % 9
    right = labels.astype(np.uint8)
    other = right.copy()
    other[0, 5, 7] ^= 1
    judge = judge_frames([right.tobytes()])
    frame = encode_prediction(Prediction(right, None, "r"))
    for _ in range(2):
        assert judge(0, memoryview(frame))
        assert not judge(0, memoryview(encode_prediction(Prediction(other, None, "r"))))
        assert not judge(0, memoryview(right.tobytes()))


def test_nothing_that_a_server_starts_gets_away(tmp_path: Path) -> None:
    """An orphan in a session of its own is counted, halted and ended with the rest."""
    burn = f"{sys.executable} -c 'sum(range(5_000_000))'"
    script = f"(setsid sh -c '{burn.replace(chr(39), chr(34))}; touch burnt; sleep 60' &); sleep 60"
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "peers.supervise", "sh", "-c", script],
        env=environment_of_benchmarks(),
        cwd=tmp_path,
        stdin=subprocess.PIPE,
    )
    assert supervisor.stdin is not None
    deadline = time.monotonic() + 30
    # the shell, its sleep, the orphan and its sleep
    while len(pids := processes.descendants(supervisor.pid)) != 4 or not (tmp_path / "burnt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert processes.cpu_ns(supervisor.pid) > 20_000_000
    assert processes.memory(supervisor.pid)[1] == 4
    processes.stop(supervisor.pid)
    assert {state(pid) for pid in pids} == {"T"}
    supervisor.stdin.close()
    assert supervisor.wait(20) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def state(pid: int) -> str:
    """One letter, as proc(5) lists them; waits until a signal that was sent has arrived."""
    time.sleep(0.05)
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_service_and_the_peers_pipeline_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the peers run, the backend by itself and the service over HTTP agree in every byte."""
    work = make_work(tmp_path, pictures=3)
    monkeypatch.setenv(GRAPH, str(tmp_path / GRAPH_FILE))
    pipeline = Pipeline()
    for jpeg, truth in zip(work.pictures, work.truth, strict=True):
        assert pipeline.answer(jpeg[:MARK_AT] + b"12345678" + jpeg[MARK_AT + 8 :]) == truth
        assert len(set(truth)) > 1
    service = our_service(tmp_path)
    with running(service, tmp_path, work) as server:
        asked = Job(
            server.port, service.path, dict(service.headers), True, str(tmp_path), server.root, 2, 0.5, 0.1
        )
        cell = measure(asked, work)
        refused = measure(replace(asked, headers={}), work)
    assert cell.right > 0 and cell.wrong == 0 and cell.failed == {}
    assert cell.server_cpu_s > 0
    assert set(refused.failed) == {"401"} and refused.right == 0


def cell_of(cost_ms: float, right: int = 100) -> Cell:
    """A cell of that cost."""
    return Cell(1.0, right, right, 0, {}, [1.0] * right, cost_ms * right / 1000, 0.01, 0.0)


def test_slices_are_of_both_servers_and_judged_as_pairs(tmp_path: Path) -> None:
    """Each pair holds both servers' cost, and the page says whether the bar is met."""
    work = make_work(tmp_path, 2)
    ours = our_service(tmp_path)
    asked = Namespace(slices=4, seconds=0.2, clients=[2], seed=0)
    with ExitStack() as stack:
        servers = [stack.enter_context(running(replace(ours, name=n), tmp_path, work)) for n in (OURS, BARE)]
        pairs = slices.slices(servers, tmp_path, work, 2, asked)
    assert len(pairs) == 4
    assert all(pair.ours_ms > 0 and pair.bare_ms > 0 for pair in pairs)
    for ours_ms, told in ((10.9, "met"), (11.1, "not met")):
        rows = [slices.Pair(2, ours_ms, 10.0)] * 4
        assert f"| {ours_ms / 10:.3f} [{ours_ms / 10:.3f}, {ours_ms / 10:.3f}]: {told} |" in slices.page(
            rows, asked, datetime.now(UTC), "a machine"
        )


def test_the_page_says_whether_the_bar_is_met() -> None:
    """The verdict goes by the upper bound, for each number of clients and pooled; failures are shown."""
    measured = [
        Measured(server, clients, number, cell_of(cost + number))
        for number in range(9)
        for clients, ours in ((1, 10.5), (8, 14.0))
        for server, cost in ((OURS, ours), (BARE, 10.0))
    ]
    measured += [
        Measured("ray", clients, number, replace(cell_of(30.0, 0), failed={"gave up": 1}))
        for number in range(9)
        for clients in (1, 8)
    ]
    names = (OURS, BARE, "ray")
    results = Results(
        datetime(2026, 11, 24, tzinfo=UTC),
        "a machine",
        1.0,
        measured,
        [Direct(100, 0.9, 0)] * 9,
        [Standing(name, "as it comes", 1.0, 0.001, 1 << 27, 1) for name in names],
    )
    text = page(results)
    lines = text.splitlines()
    assert next(line for line in lines if line.startswith("- 1 client")).endswith(": met")
    assert next(line for line in lines if line.startswith("- 8 client")).endswith("not met")
    assert next(line for line in lines if line.startswith("- pooled")).endswith("not met")
    assert "18 failed" in text
    assert len(raw(results).splitlines()) == len(measured) + 9
