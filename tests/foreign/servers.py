"""Servers that others wrote, for our own client: each a process of its own on a loopback socket."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from corte_teacher.backends.street import files
from foreign.environments import KSERVE, command, environment

_READY = "listening on "


@contextmanager
def running_kserve(*, timeout: float = 120.0) -> Iterator[str]:
    """Run kserve_server.py on the embedded street model, yield its base URL, end it with SIGTERM.

    The socket listens before KServe answers, so a first request may wait, but is not refused. Raises
    RuntimeError with all that the server printed if it ends or stays silent instead.
    """
    model, _ = files()
    process = subprocess.Popen(
        [*command(environment("kserve", KSERVE), "kserve_server.py"), str(model)],
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    told = threading.Event()
    reader = threading.Thread(target=_collect, args=(process.stdout, lines, told), daemon=True)
    reader.start()
    try:
        told.wait(timeout)
        url = next((line.split(_READY, 1)[1].strip() for line in lines if _READY in line), None)
        if url is None:
            raise RuntimeError(f"the server did not get ready:\n{''.join(lines)}")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)
        process.stdout.close()


@pytest.fixture(scope="module")
def foreign_server() -> Iterator[str]:
    """The base URL of KServe's server with the models `street` and `street-pixels` (kserve_server.py)."""
    with running_kserve() as url:
        yield url


def _collect(stream: IO[str], lines: list[str], told: threading.Event) -> None:
    """Keep reading, so that a full pipe stops nobody; set `told` at the ready line or the end."""
    for line in stream:
        lines.append(line)
        if _READY in line:
            told.set()
    told.set()
