"""Hostile bodies against a real service: refused one and all, soon, without memory, and without harm."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from corte_protocol.errors import WIRE
from corte_protocol.types import UInt8
from hostile_bodies import encoded, harmless_bodies, hostile_bodies, picture
from serving import teacher_process
from teacher.test_service import ask, assert_problem, read

Encode = Callable[..., bytes]
MIB = 1 << 20


def test_the_corpus_is_what_it_says() -> None:
    """At least 300 bodies, all different."""
    bodies = [(hostile.body, hostile.media_type) for hostile in hostile_bodies()]
    assert len(bodies) >= 300 and len(set(bodies)) >= 300


@pytest.mark.timeout(240)
def test_every_hostile_body_is_refused(tiny: Path, pixels: UInt8, encode: Encode) -> None:
    """Each gets its 4xx within 100 ms beyond a valid image's time; memory grows by less than 50 MiB."""
    args = ["--backend", "onnx", "--model", str(tiny), "--open"]
    args += ["--max-pixels", str(1_000_000), "--max-body-bytes", str(2 * MIB)]
    with teacher_process(args) as teacher:
        valid = encoded(np.full((1000, 1000, 3), 90, np.uint8), "PNG")
        for kind in ("PNG", "JPEG", "WEBP"):
            read(ask(teacher.url, encoded(picture(100, 100).repeat(10, 0).repeat(10, 1), kind)))
        allowed = min(_seconds(teacher.url, valid, "image/png") for _ in range(3)) + 0.1
        before = teacher.resident()
        slow = []
        for hostile in hostile_bodies():
            began = time.perf_counter()
            answer = ask(teacher.url, hostile.body, hostile.media_type)
            took = time.perf_counter() - began
            assert 400 <= answer.status_code < 500, hostile.name
            code = answer.json()["code"]
            assert WIRE[code].status == answer.status_code and not WIRE[code].retryable, hostile.name
            assert_problem(answer, code)
            if took > allowed:
                slow.append(hostile)
        grown = teacher.resident() - before
        for hostile in slow:  # again, because other work on this machine only ever adds
            assert min(_seconds(teacher.url, hostile.body, hostile.media_type) for _ in range(5)) < allowed, (
                hostile.name
            )
        assert grown < 50 * MIB
        for harmless in harmless_bodies():
            assert ask(teacher.url, harmless.body, harmless.media_type).status_code in (200, 400), (
                harmless.name
            )
        assert read(ask(teacher.url, encode(pixels))).labels.shape == (21, 34)


def _seconds(url: str, body: bytes, kind: str) -> float:
    began = time.perf_counter()
    ask(url, body, kind)
    return time.perf_counter() - began
