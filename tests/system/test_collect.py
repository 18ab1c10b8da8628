"""Collecting as a user does it: killed, throttled, on a budget, planned, and then training with the network
off.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from starlette.responses import Response

from corte_protocol import Image
from corte_student.ledger import Ledger
from faulty_teacher import FaultyTeacher, faulty_teacher, problem, raw

pytestmark = pytest.mark.run

KILLS = 20


def save_images(folder: Path, count: int, *, size: tuple[int, int] = (12, 16), seed: int = 0) -> Path:
    """Noise images 000.png..."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Pillow.fromarray(pixels).save(folder / f"{index:04}.png")
    return folder


def command(verb: str, url: str, images: Path, ledger: Path, *more: object) -> list[str]:
    """`corte-student VERB` on these images, as a process of its own."""
    words = ["--teacher-url", url, "--images", images, "--ledger", ledger, *more]
    return [sys.executable, "-m", "corte_student", verb, *map(str, words)]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("CORTE_")}


def run(*words: str, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        words, capture_output=True, text=True, env=environment(), timeout=timeout, check=False
    )


def collect(
    url: str, images: Path, ledger: Path, *more: object, code: int = 0
) -> "subprocess.CompletedProcess[str]":
    """Run `collect` to its end, which must be `code`."""
    done = run(*command("collect", url, images, ledger, *more))
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def sent(done: "subprocess.CompletedProcess[str]") -> int:
    """The requests that a collection says it sent."""
    found = re.search(r"requests sent (\d+),", done.stderr)
    assert found is not None, done.stderr
    return int(found[1])


@pytest.fixture
def teacher() -> Iterator[FaultyTeacher]:
    with faulty_teacher() as running:
        yield running


@pytest.mark.slow
def test_twenty_kills_cost_nothing_but_what_was_under_way(teacher: FaultyTeacher, tmp_path: Path) -> None:
    """SIGKILL at twenty random points of collecting 200 images: whatever was stored is never asked again.

    The draw is seeded; how far the process is when it dies still differs from run to run.
    """
    images = save_images(tmp_path / "images", 200)
    ledger = tmp_path / "ledger.sqlite"
    draw = random.Random(4)
    under_way = 0
    for kill in range(KILLS):
        before = teacher.asked.total()
        process = subprocess.Popen(
            command("collect", teacher.url, images, ledger, "--set", "in_flight=4"),
            env=environment(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wanted = before + draw.randint(1, 8)
        while teacher.asked.total() < wanted and process.poll() is None:
            pass
        assert process.poll() is None, f"it was done before kill {kill}"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        opened = Ledger.open(ledger)
        stored = opened.counts().answers
        opened.close()
        lost = teacher.asked.total() - under_way - stored
        assert 0 <= lost <= 4, "no more is lost than was in flight"
        under_way += lost
    done = collect(teacher.url, images, ledger)
    assert len(teacher.asked) == 200
    assert teacher.asked.total() == 200 + under_way
    assert max(teacher.asked.values()) <= 1 + KILLS
    again = collect(teacher.url, images, ledger)
    assert sent(done) > 0 and sent(again) == 0
    assert teacher.asked.total() == 200 + under_way


def test_a_kill_costs_nothing_but_what_was_under_way(tmp_path: Path) -> None:
    """Killed with four in flight: every other image is asked once, those four again; then none."""
    images = save_images(tmp_path / "images", 24)
    ledger = tmp_path / "ledger.sqlite"
    with faulty_teacher(hold_after=9) as teacher:
        process = subprocess.Popen(
            command("collect", teacher.url, images, ledger, "--set", "in_flight=4"),
            env=environment(),
            stderr=subprocess.DEVNULL,
        )
        while teacher.asked.total() < 13:
            assert process.poll() is None
        process.kill()
        process.wait(30)
        before = Counter(teacher.asked)
        teacher.go_on.set()
        first = collect(teacher.url, images, ledger)
        again = collect(teacher.url, images, ledger)
    asked_again = {digest for digest, count in teacher.asked.items() if count > 1}
    assert len(teacher.asked) == 24 and max(teacher.asked.values()) <= 2
    assert asked_again <= set(before) and len(asked_again) <= 4
    assert sent(first) == 24 - 13 + len(asked_again) and sent(again) == 0


def test_sigint_brings_what_is_under_way_home(tmp_path: Path) -> None:
    """Ctrl-C: requests in flight are awaited and stored, the exit is 130, and nothing is asked twice."""
    images = save_images(tmp_path / "images", 16)
    ledger = tmp_path / "ledger.sqlite"
    with faulty_teacher(hold_after=3) as teacher:
        process = subprocess.Popen(
            command("collect", teacher.url, images, ledger, "--set", "in_flight=2"),
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        while teacher.asked.total() < 5:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        teacher.go_on.set()
        _, told = process.communicate(timeout=60)
        assert process.returncode == 130, told
        collect(teacher.url, images, ledger)
    assert set(teacher.asked.values()) == {1} and len(teacher.asked) == 16


@pytest.mark.parametrize(
    "limit", [("--budget", "0.010usd", "--price-per-1k", "1usd"), ("--max-requests", 10)]
)
def test_spending_stops_at_the_cap_over_concurrency_and_restarts(
    teacher: FaultyTeacher, tmp_path: Path, limit: tuple[object, ...]
) -> None:
    """Ten are allowed: ten arrive, by eight at a time, by three starts, by two processes at once; then exit
    3.
    """
    images = save_images(tmp_path / "images", 40)
    ledger = tmp_path / "ledger.sqlite"
    words = command("collect", teacher.url, images, ledger, *limit)
    both = [subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 3, told
        assert "error: " in told and ("--budget" in told or "--max-requests" in told)
    collect(teacher.url, images, ledger, *limit, code=3)
    assert teacher.attempts == 10
    assert set(teacher.asked.values()) == {1}
    done = collect(teacher.url, images, ledger)
    assert sent(done) == 30 and set(teacher.asked.values()) == {1}


def test_retries_do_not_pass_the_cap(teacher: FaultyTeacher, tmp_path: Path) -> None:
    """Failures that may have been billed are on the bill: with them, no more requests arrive than are
    allowed.
    """
    images = save_images(tmp_path / "images", 12)

    async def gateway(request: object) -> Response:
        return Response(b"", 502)

    teacher.faults.extend([problem("overloaded", {"Retry-After": "0"})] * 3 + [gateway] * 4)
    collect(teacher.url, images, tmp_path / "ledger.sqlite", "--max-requests", "8", code=3)
    refused, unsure = 3, 4
    assert teacher.attempts - refused == 8
    assert teacher.asked.total() == 8 - unsure


def test_training_goes_on_from_what_a_budget_paid_for(teacher: FaultyTeacher, tmp_path: Path) -> None:
    """`train` on a budget exits 3; with the rest collected, `train --offline` ends, the teacher gone."""
    images = save_images(tmp_path / "images", 12, size=(32, 32))
    ledger = tmp_path / "ledger.sqlite"
    small = ["--encoder", "test_byobnet", "--steps", "8"]
    for value in ("init=random", "batch=2", "height=32", "width=32", "in_flight=2", "checkpoint_every=1"):
        small += ["--set", value]
    train = command("train", teacher.url, images, ledger, "--out", tmp_path / "run", *small)
    stopped = run(*train, "--max-requests", "5")
    assert stopped.returncode == 3, stopped.stderr
    assert "--max-requests" in stopped.stderr.splitlines()[-1]
    assert teacher.attempts == 5
    collect(teacher.url, images, ledger)
    assert teacher.attempts == 12
    teacher.key = "closed"  # whoever asks now is refused
    done = run(*train, "--resume", "--offline")
    assert done.returncode == 0, done.stderr
    assert "offline" in done.stderr and "requests sent 0, served by the ledger" in done.stderr
    assert teacher.attempts == 12


def test_plan_asks_three_and_counts_the_rest(teacher: FaultyTeacher, tmp_path: Path) -> None:
    """Duplicates, unreadable files and what the ledger holds are told apart; the three probes are kept."""
    images = save_images(tmp_path / "images", 20)
    (images / "copy.png").write_bytes((images / "0003.png").read_bytes())
    with Pillow.open(images / "0004.png") as picture:
        picture.save(images / "same.bmp")
    (images / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    ledger = tmp_path / "ledger.sqlite"
    words = command(
        "plan", teacher.url, images, ledger, "--price-per-1k", "2.5usd", "--no-training", "--json"
    )
    first = json.loads(run(*words).stdout)
    assert teacher.attempts == 3
    assert first["images"] == 23 and first["duplicates"] == 2 and first["unreadable"] == 1
    assert first["requests"] == 20 and first["asked_now"] == 3
    assert (first["cost"], first["currency"]) == (50_000, "usd")
    assert first["bytes_up"] == sum(len(body) for body in bodies(images))
    second = json.loads(run(*words).stdout)
    assert second["in_ledger"] == 3 and second["requests"] == 17
    collect(teacher.url, images, ledger)
    assert json.loads(run(*words).stdout)["requests"] == 0
    assert set(teacher.asked.values()) == {1}


def bodies(images: Path) -> list[bytes]:
    """What is sent of the distinct images."""
    from corte_student.data.folder import read_picture

    pictures = [read_picture(path) for path in sorted(images.glob("0*.png"))]
    assert len({Image(p.pixels).digest for p in pictures}) == len(pictures)
    return [p.body for p in pictures]


def test_where_requests_are_paid_what_may_be_billed_is_not_sent_twice(
    teacher: FaultyTeacher, tmp_path: Path
) -> None:
    """A 502 sets its image aside and stays on the bill; the next run asks it, one request more."""
    images = save_images(tmp_path / "images", 4)
    ledger = tmp_path / "ledger.sqlite"
    teacher.faults.append(raw(b"", 502))
    priced = ("--price-per-1k", "1usd", "--set", "in_flight=1")
    first = collect(teacher.url, images, ledger, *priced)
    assert teacher.attempts == 4 and "may have been billed" in first.stderr
    assert "spent 0.004 usd" in first.stderr
    second = collect(teacher.url, images, ledger, *priced)
    assert sent(second) == 1 and teacher.attempts == 5 and set(teacher.asked.values()) == {1}


def test_the_doctors_question_is_in_the_books_at_its_price(teacher: FaultyTeacher, tmp_path: Path) -> None:
    """What a price in the teacher's file says counts for every verb that asks."""
    images = save_images(tmp_path / "images", 1)
    config = tmp_path / "teacher.toml"
    config.write_text('price = { currency = "usd", per_1k = 2 }\n')
    words = ["--teacher-url", teacher.url, "--teacher-config", config, "--ledger", tmp_path / "l.sqlite"]
    asked = ["doctor", *words, "--image", images / "0000.png"]
    done = run(sys.executable, "-m", "corte_student", *map(str, asked))
    assert done.returncode == 0, done.stderr
    opened = Ledger.open(tmp_path / "l.sqlite")
    spent = opened.spending().money()
    opened.close()
    assert spent == "0.002 usd"
