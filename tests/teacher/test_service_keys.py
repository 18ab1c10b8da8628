"""Keys at a running service: ceilings, budgets, places of their own; changes count without a restart."""

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from corte_protocol import decode_info
from corte_protocol.types import UInt8
from corte_teacher.keys import Grant, change_grant, create_key, revoke_key, rotate_key
from serving import running_teacher
from teacher.test_service import ask, assert_problem, read

Encode = Callable[..., bytes]
PIXELS = 21 * 34


@pytest.fixture
def key_path(tmp_path: Path) -> Path:
    """Where a test's keys are."""
    return tmp_path / "keys.json"


@pytest.fixture
def url(tiny: Path, key_path: Path) -> Iterator[str]:
    """A service at `margin` whose keys a test may change; it starts with one that nobody uses."""
    create_key(key_path, "first")
    with running_teacher(["--backend", "onnx", "--model", str(tiny), "--keys", str(key_path)]) as found:
        yield found


def known(url: str, key: str, *, is_known: bool = True) -> bool:
    """Whether within five seconds the service knows the key, or no longer knows it."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        status = httpx.get(f"{url}/v1/info", headers={"authorization": f"Bearer {key}"}).status_code
        if (status == 200) == is_known:
            return True
        time.sleep(0.1)
    return False


def test_keys_change_without_a_restart(url: str, key_path: Path, pixels: UInt8, encode: Encode) -> None:
    """A new key opens, both keys of a rotation open, a revoked one is refused, all within seconds."""
    alice = create_key(key_path, "alice")
    assert known(url, alice)
    second = rotate_key(key_path, "alice", timedelta(hours=1))
    assert known(url, second) and known(url, alice)
    for key in (alice, second):
        assert read(ask(url, encode(pixels), key=key)).classes.shape[0] == 2
    revoke_key(key_path, "alice")
    assert known(url, alice, is_known=False) and known(url, second, is_known=False)


def test_a_file_that_cannot_be_read_changes_nothing(url: str, key_path: Path) -> None:
    """Keys in force stay in force while the file is broken or gone, and the service lives."""
    alice = create_key(key_path, "alice")
    assert known(url, alice)
    good = key_path.read_text()
    key_path.write_text("{ broken")
    time.sleep(1.5)
    assert known(url, alice)
    key_path.unlink()
    time.sleep(1.5)
    assert known(url, alice)
    key_path.write_text(good)
    revoke_key(key_path, "alice")
    assert known(url, alice, is_known=False)


def test_an_expired_key_is_refused(tiny: Path, key_path: Path) -> None:
    """A key ends at its time, without anybody's doing."""
    create_key(key_path, "first")
    ends = datetime.now(UTC) + timedelta(seconds=6)
    brief = create_key(key_path, "brief", expires=ends)
    with running_teacher(["--backend", "onnx", "--model", str(tiny), "--keys", str(key_path)]) as url:
        assert known(url, brief)
        time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()))
        assert known(url, brief, is_known=False)


def test_a_key_has_a_ceiling_of_its_own(url: str, key_path: Path, pixels: UInt8, encode: Encode) -> None:
    """The info of a key says its own level and limits; more is forbidden, nothing asked means that level."""
    key = create_key(key_path, "low", Grant(disclosure="confidence", pixels_per_day=5000))
    assert known(url, key)
    info = decode_info(httpx.get(f"{url}/v1/info", headers={"authorization": f"Bearer {key}"}).content)
    assert str(info.disclosure) == "confidence"
    assert info.limits.max_pixels == 5000
    assert str(read(ask(url, encode(pixels), key=key)).disclosure) == "confidence"
    assert str(read(ask(url, encode(pixels), key=key, query="?disclosure=labels")).disclosure) == "labels"
    assert_problem(ask(url, encode(pixels), key=key, query="?disclosure=margin"), "forbidden")


def test_a_spent_budget_is_429_until_its_window_ends(
    url: str, key_path: Path, pixels: UInt8, encode: Encode
) -> None:
    """RateLimit headers count down; beyond the budget: 429, Retry-After; a larger one counts at once."""
    key = create_key(key_path, "small", Grant(pixels_per_day=2 * PIXELS))
    assert known(url, key)
    bodies = [encode(pixels), encode(255 - pixels), encode(pixels // 2)]
    left = []
    for body in bodies[:2]:
        answer = ask(url, body, key=key)
        assert read(answer)
        assert answer.headers["ratelimit-policy"] == f'"day";q={2 * PIXELS};w=86400;qu="pixels"'
        left.append(int(answer.headers["ratelimit"].split("r=")[1].split(";")[0]))
    assert left == [PIXELS, 0]
    refused = ask(url, bodies[2], key=key)
    assert_problem(refused, "quota")
    assert 1 <= int(refused.headers["retry-after"]) <= 86400
    assert "r=0" in refused.headers["ratelimit"]
    for _ in range(3):
        assert read(ask(url, bodies[0], key=key))  # the same content again is not billed, three times
    assert_problem(ask(url, bodies[0], key=key), "quota")
    change_grant(key_path, "small", Grant(pixels_per_day=20 * PIXELS))
    until = time.monotonic() + 5
    while (status := ask(url, bodies[2], key=key).status_code) != 200 and time.monotonic() < until:
        time.sleep(0.1)
    assert status == 200


def test_what_was_spent_survives_a_restart(tiny: Path, key_path: Path, pixels: UInt8, encode: Encode) -> None:
    """A service that starts again remembers what a key has spent."""
    key = create_key(key_path, "small", Grant(pixels_per_day=PIXELS))
    args = ["--backend", "onnx", "--model", str(tiny), "--keys", str(key_path)]
    with running_teacher(args) as url:
        assert read(ask(url, encode(pixels), key=key))
    with running_teacher(args) as url:
        assert_problem(ask(url, encode(255 - pixels), key=key), "quota")


def test_a_refusal_is_not_billed(url: str, key_path: Path, pixels: UInt8, encode: Encode) -> None:
    """What is refused before it is decoded costs no pixel."""
    key = create_key(key_path, "small", Grant(pixels_per_day=PIXELS))
    assert known(url, key)
    assert_problem(ask(url, b"no image", key=key), "malformed")
    assert_problem(ask(url, encode(pixels), "text/plain", key=key), "media-type")
    assert_problem(ask(url, encode(pixels), key=key, query="?disclosure=full"), "forbidden")
    assert read(ask(url, encode(pixels), key=key))


def test_a_keys_own_places_are_counted_from_the_first_byte(
    url: str, key_path: Path, pixels: UInt8, encode: Encode
) -> None:
    """A body that is still on its way holds the only place of its key: 429, and room again afterwards."""
    key = create_key(key_path, "one", Grant(concurrency=1))
    assert known(url, key)
    head = f"POST /v1/predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0)) as slow:
        slow.sendall(f"{head}content-type: image/png\r\ncontent-length: 1000\r\n\r\nabc".encode())
        until = time.monotonic() + 5
        while (refused := ask(url, encode(pixels), key=key)).status_code == 200 and time.monotonic() < until:
            time.sleep(0.05)
        assert_problem(refused, "busy-key")
        assert int(refused.headers["retry-after"]) >= 1
    until = time.monotonic() + 5
    while (again := ask(url, encode(pixels), key=key)).status_code != 200 and time.monotonic() < until:
        time.sleep(0.05)
    assert read(again)


SLOW = """
import time
import numpy as np
class Slow:
    def predict(self, pixels):
        time.sleep(3.0 if pixels.mean() < 1 else 0.3)
        shape = (1, *pixels.shape[:2])
        return np.zeros(shape, np.uint8), np.ones(shape, np.float16)
def build(model, card, k):
    return Slow()
"""


@pytest.fixture
def slow_url(tiny: Path, tmp_path: Path, key_path: Path) -> Iterator[str]:
    """A service that takes 0.3 s an image and 3 s a black one; the key file is the test's."""
    (tmp_path / "slow_backend.py").write_text(SLOW)
    create_key(key_path, "first")
    args = ["--card", str(tiny.with_suffix(".toml")), "--disclosure", "labels", "--keys", str(key_path)]
    env = {"PYTHONPATH": str(tmp_path)}
    with running_teacher([*args, "--backend", "slow_backend:build"], env) as found:
        yield found


def test_what_waits_together_is_accounted_one_by_one(
    slow_url: str, key_path: Path, pixels: UInt8, encode: Encode
) -> None:
    """Of twelve images at once a budget for five pays five, and two bodies that are none cost nothing."""
    key = create_key(key_path, "small", Grant(pixels_per_day=5 * PIXELS))
    assert known(slow_url, key)
    bodies = [encode(pixels // (n + 1)) for n in range(12)]
    bodies[3:3] = [b"no image", b"no image"]
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: ask(slow_url, body, key=key), bodies))
    counts = Counter(answer.status_code for answer in answers)
    assert counts == {200: 5, 429: 7, 400: 2}
    for answer in answers:
        if answer.status_code == 429:
            assert_problem(answer, "quota")
            assert "r=0" in answer.headers["ratelimit"]


def test_of_what_is_given_up_a_group_is_billed_at_most(
    slow_url: str, key_path: Path, pixels: UInt8, encode: Encode
) -> None:
    """Of 24 requests whose sender leaves while a black image is answered, ten are on its bill at most.

    They are the black one, one decoded ahead, and a group of eight of which another is decoded.
    """
    key = create_key(key_path, "small", Grant(pixels_per_day=100 * PIXELS))
    assert known(slow_url, key)
    address = httpx.URL(slow_url)
    with ExitStack() as stack:
        for n in range(24):
            body = encode(pixels // (n + 1) if n else 0 * pixels)
            head = (
                f"POST /v1/predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
                f"content-type: image/png\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            connection = socket.create_connection((address.host, address.port), 20)
            stack.enter_context(connection).sendall(head.encode() + body)
            time.sleep(0 if n else 0.5)  # the black one is with the model
        time.sleep(0.5)
    answer = ask(slow_url, encode(255 - pixels), key=key)
    assert read(answer)
    left = int(answer.headers["ratelimit"].split("r=")[1].split(";")[0])
    assert 89 * PIXELS <= left <= 98 * PIXELS
