"""Real teacher services for tests: `corte-teacher serve` as a process of its own, on a loopback socket."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

_READY = "listening on "


@contextmanager
def running_teacher(
    args: Sequence[str] = (), env: Mapping[str, str] | None = None, *, timeout: float = 60.0
) -> Iterator[str]:
    """Run `corte-teacher serve --port 0 ARGS`, yield its base URL once it is ready, end it with SIGTERM.

    `env` is added to this process's environment, without its own CORTE_TEACHER_ entries. Raises
    RuntimeError with all that the service printed if it ends or stays silent instead of getting ready,
    or if it does not end with status 0.
    """
    base = {name: value for name, value in os.environ.items() if not name.startswith("CORTE_TEACHER_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "corte_teacher", "serve", "--port", "0", *args],
        env={**base, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    found = threading.Event()
    reader = threading.Thread(target=_collect, args=(process.stdout, lines, found), daemon=True)
    reader.start()
    try:
        if not found.wait(timeout) or not (url := _url(lines)):
            raise RuntimeError(f"the teacher did not get ready:\n{''.join(lines)}")
        yield url
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        reader.join(5)
        process.stdout.close()
    if status != 0:
        raise RuntimeError(f"the teacher ended with status {status}:\n{''.join(lines)}")


def _collect(stream: IO[str], lines: list[str], found: threading.Event) -> None:
    """Keep reading, so that a full pipe never stops the service; set `found` at the ready line or the end."""
    for line in stream:
        lines.append(line)
        if _READY in line:
            found.set()
    found.set()


def _url(lines: Sequence[str]) -> str | None:
    return next((line.split(_READY, 1)[1].split()[0] for line in lines if _READY in line), None)
