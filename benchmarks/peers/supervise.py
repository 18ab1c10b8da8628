"""Runs a command so that nothing of it gets away. Usage: COMMAND..., with a pipe as standard input.

Orphans come back here, not to init (PR_SET_CHILD_SUBREAPER, prctl(2)), so that a server and all that it ever
started are the descendants of this process, whatever sessions they open. When standard input ends, or the
command does, everything below is ended: SIGTERM first, SIGKILL after some seconds; LitServe 0.2.19 leaves
workers behind that would serve on.
"""

import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Final

from peers.processes import descendants

_CHILD_SUBREAPER: Final = 36
_GRACE_S: Final = 5.0


def main() -> int:
    """The command's exit status, or 0 where it was ended from outside."""
    if ctypes.CDLL(None, use_errno=True).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    pidfd = os.pidfd_open(command.pid)
    with selectors.DefaultSelector() as waiting:
        waiting.register(sys.stdin, selectors.EVENT_READ)
        waiting.register(pidfd, selectors.EVENT_READ)
        ended = {key.fileobj for key, _ in waiting.select()}
    status = command.wait() if pidfd in ended else 0
    _end()
    return status


def _end() -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _GRACE_S
        sent: set[int] = set()
        while time.monotonic() < deadline:
            _reap()
            left = descendants(os.getpid())
            if not left:
                return
            for pid in set(left) - sent:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    os.kill(pid, signal.SIGCONT)  # one that is stopped ends only when it goes on
                sent.add(pid)
            time.sleep(0.05)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue


if __name__ == "__main__":
    sys.exit(main())
