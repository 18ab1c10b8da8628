"""Real teacher services for tests: `corte-teacher serve` as a process of its own, on a loopback socket."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_READY = "listening on "


@dataclass(frozen=True, slots=True)
class Running:
    """A service that answers: its base URL, its process, and all that it printed so far."""

    url: str
    process: subprocess.Popen[str]
    lines: list[str]

    def resident(self) -> int:
        """Bytes of memory that it holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))

    def cpu(self) -> float:
        """Seconds of processor time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running_teacher(
    args: Sequence[str] = (), env: Mapping[str, str] | None = None, *, timeout: float = 60.0
) -> Iterator[str]:
    """The base URL of a service, until the end: see `teacher_process`."""
    with teacher_process(args, env, timeout=timeout) as teacher:
        yield teacher.url


@contextmanager
def teacher_process(
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    *,
    port: int = 0,
    timeout: float = 60.0,
) -> Iterator[Running]:
    """Run `corte-teacher serve --port PORT ARGS`, yield it once it is ready, end it with SIGTERM.

    `env` is added to this process's environment, without its own CORTE_TEACHER_ entries; unless it says
    otherwise, the service ends without serving on. Raises RuntimeError with all that the service printed if
    it ends or stays silent instead of getting ready, or if it does not end with status 0.
    """
    base = {name: value for name, value in os.environ.items() if not name.startswith("CORTE_TEACHER_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "corte_teacher", "serve", "--port", str(port), *args],
        env={**base, "CORTE_TEACHER_DRAIN_S": "0", **(env or {})},
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
        yield Running(url, process, lines)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(30)
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
