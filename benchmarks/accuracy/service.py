"""Processes of a benchmark: a teacher service on loopback, and locks that end with who holds them.

Strategy: the kernel cleans up. A lock is flock(2), released by any kill; a service is told by the kernel
when the process that started it dies, so that a killed queue leaves nothing behind.
"""

import ctypes
import fcntl
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_READY = "listening on "


class Taken(Exception):
    """Another process holds the lock."""


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `path` exclusively; the file stays. Raises Taken where another process has it and not `wait`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as exc:
            raise Taken(str(path)) from exc
        yield


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies (prctl(2)); elsewhere than on Linux do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def serving(flags: Sequence[str]) -> Iterator[str]:
    """`corte-teacher serve FLAGS` on a free port of loopback; yields its URL. In the main thread only."""
    command = [sys.executable, "-m", "corte_teacher", "serve", "--open", "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if _READY in line:
                break
        else:
            raise RuntimeError("the teacher did not start")
        # read on, so that a full pipe never stops the service
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield line.split(_READY)[1].split()[0]
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
