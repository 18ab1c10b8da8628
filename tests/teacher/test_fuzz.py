"""A fuzzer of whole requests that are nearly right, over raw sockets: nothing leaks, nothing is 500."""

import json
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from corte_protocol.types import UInt8
from corte_teacher.keys import create_key
from internals import leaks
from serving import running_teacher
from teacher.openinference_requests import LENGTH, binary_image, inner
from teacher.test_service import ask, read

Encode = Callable[..., bytes]
COUNT = 3000


@pytest.fixture(scope="module")
def keyed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of a keyed service with its document served, and a key."""
    path = tmp_path_factory.mktemp("fuzz") / "keys.json"
    key = create_key(path, "alice")
    args = ["--backend", "onnx", "--model", str(tiny), "--keys", str(path), "--docs", "--max-pixels", "10000"]
    with running_teacher([*args, "--max-body-bytes", "200000"]) as url:
        yield url, key


class Fuzzer:
    """Requests made of right ones, each with one to four things wrong with it."""

    def __init__(self, seed: int, key: str, images: list[bytes]) -> None:
        self._random = random.Random(seed)
        self._key = key
        self._images = images

    def request(self) -> bytes:
        """One request, head and body."""
        pick = self._random
        if pick.random() < 0.5:
            path, body = "/v1/predict", pick.choice(self._images)
            headers = {"content-type": "image/png"}
        elif pick.random() < 0.5:
            path, headers = "/v2/models/teacher/infer", {}
            body, more = binary_image(pick.choice(self._images))
            headers |= more
        else:
            path, headers = "/v2/models/teacher/infer", {"content-type": "application/json"}
            body = json.dumps(inner(pick.choice(self._images))).encode()
        parts: dict[str, Any] = {
            "method": "POST",
            "path": path,
            "headers": headers | {"authorization": f"Bearer {self._key}", "host": "x"},
            "body": body,
        }
        for _ in range(pick.randint(1, 4)):
            pick.choice((self._bend_body, self._bend_path, self._bend_header, self._bend_method))(parts)
        lines = [f"{parts['method']} {parts['path']} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in parts["headers"].items()]
        lines += ["connection: close"]
        if "content-length" not in parts["headers"]:
            lines.append(f"content-length: {len(parts['body'])}")
        head = "\r\n".join(lines).encode("latin-1", "replace")
        return b"\r\n\r\n".join((head, parts["body"]))

    def _bend_body(self, parts: dict[str, Any]) -> None:
        pick, body = self._random, bytearray(parts["body"])
        way = pick.randrange(5)
        if way == 0:
            body = body[: pick.randrange(len(body) + 1)]
        elif way == 1:
            for _ in range(pick.randint(1, 20)):
                if body:
                    body[pick.randrange(len(body))] = pick.randrange(256)
        elif way == 2:
            at = pick.randrange(len(body) + 1)
            body[at:at] = pick.randbytes(pick.randrange(300))
        elif way == 3:
            body = bytearray(pick.randbytes(pick.randrange(3000)))
        else:
            at = pick.randrange(len(body) + 1)
            body[at : at + 8] = pick.choice(
                (b"null", b"-1", b"[[[[", b"1e999", b'"\\ud800"', b"\xff\xfe", b"{}")
            )
        parts["body"] = bytes(body)

    def _bend_path(self, parts: dict[str, Any]) -> None:
        words = (
            "?disclosure=labels", "?disclosure=full", "?disclosure=topk:0", "?disclosure=%00", "?x=1", "/..",
            "//", "/%2e%2e/etc/passwd", "?disclosure=" + "9" * 400, "/versions/1/infer", "?x=y&x",
            "#a", "/v1/info", "/docs", "?" + "a=1&" * 200, "/%ff%fe",
        )  # fmt: skip
        parts["path"] += self._random.choice(words)

    def _bend_header(self, parts: dict[str, Any]) -> None:
        pick = self._random
        name = pick.choice(
            ("content-type", "content-length", "authorization", LENGTH, "content-encoding", "x-deadline-ms",
             "expect", "transfer-encoding", "accept", "traceparent", "upgrade", "x-" + "y" * 500)
        )  # fmt: skip
        value = pick.choice(
            ("", "0", "-1", "99999999999", "image/jpeg", "gzip", "chunked", "é" * 10, "1.5", "Bearer",
             "Bearer ct_a_b",
             "100-continue", "application/json", "websocket", "\x01", "a" * 3000, "00-" + "0" * 32)
        )  # fmt: skip
        parts["headers"][name] = value

    def _bend_method(self, parts: dict[str, Any]) -> None:
        parts["method"] = self._random.choice(
            ("POST", "GET", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "F00", "post")
        )


def exchanged(url: str, request: bytes) -> bytes:
    """All that the service says to one request within a second: some requests promise more than they send."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port or 0), 1.0) as connection:
        pieces = []
        try:
            connection.sendall(request)
            while piece := connection.recv(1 << 16):
                pieces.append(piece)
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            pass  # refused before all was sent, or nothing came; what was said counts
    return b"".join(pieces)


def test_no_fuzzed_request_leaks_or_breaks(keyed: tuple[str, str], pixels: UInt8, encode: Encode) -> None:
    """Every answer is one that the protocol knows, not 500, without a word of what is behind it."""
    url, key = keyed
    fuzzer = Fuzzer(5, key, [encode(pixels, kind) for kind in ("PNG", "JPEG", "WEBP")])
    counted: Counter[str] = Counter()
    requests = [fuzzer.request() for _ in range(COUNT)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda request: exchanged(url, request), requests))
    for request, answer in zip(requests, answers, strict=True):
        status = answer[9:12].decode() if answer else "none"
        counted[status] += 1
        assert not leaks(answer), (request[:500], answer[:1000])
        assert status == "503" or not status.startswith("5"), (request[:500], answer[:1000])
    assert read(ask(url, encode(pixels), key=key)).labels.shape == (21, 34)
    assert counted["none"] < COUNT * 0.1  # bodies that never came: the sender closed first
    assert (
        sum(counted[str(status)] for status in (200, 400, 401, 404, 405, 413, 415, 422, 431)) > COUNT * 0.85
    )
