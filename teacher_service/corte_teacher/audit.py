"""Who asked about what: one JSON line for each request that admitted an image, in a file that only grows.

An image is named by the SHA-256 of its body. Lines are not synced to the disk one by one: they outlive the
process, not a loss of power in the seconds after them.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from corte_teacher.errors import StartError
from corte_teacher.logs import rfc3339
from corte_teacher.record import Record

log = logging.getLogger(__name__)

_TELL_S = 60.0  # between two complaints about a file that cannot be written


class AuditLog:
    """An Observer that appends to `path`, which only its owner may read where this makes it.

    `lost` counts the lines that could not be written: those requests were answered, and the log says so once
    a minute. `clock` is in seconds. For one thread. Raises StartError when the file cannot be opened.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.lost = 0
        self._path = path
        self._clock = clock
        self._told = -_TELL_S
        self._failing = False
        self._torn = False
        try:
            self._file = _open(path)
            self._torn = _is_torn(self._file)
        except OSError as exc:
            raise StartError(
                f"the audit log {path} cannot be written: {exc.strerror}: choose another --audit-log"
            ) from exc

    def __call__(self, record: Record) -> None:
        """Append one line where an image was admitted."""
        if record.digest is None:
            return
        fields = {
            "time": rfc3339(record.started),
            "request_id": record.request_id,
            "key": record.owner or None,
            "digest": record.digest,
            "pixels": record.pixels,
            "level": record.level,
            "revision": record.revision,
            "code": record.code,
        }
        self._append(json.dumps(fields).encode() + b"\n")

    def reopen(self) -> None:
        """Open the path again, after a rotation moved the file away; the old one stays where that fails."""
        try:
            file = _open(self._path)
            torn = _is_torn(file)
        except OSError as exc:
            log.error("the audit log stays in the old file: %s: %s", self._path, exc.strerror)
            return
        self._file, self._torn, old = file, torn, self._file
        os.close(old)

    def close(self) -> None:
        """Close the file. What is told later is lost."""
        file, self._file = self._file, -1
        os.close(file)

    def _append(self, line: bytes) -> None:
        """Write in one call, so that no other writer's line can come between; begin anew after a torn one."""
        text = b"\n" + line if self._torn else line
        try:
            written = os.write(self._file, text)
        except OSError as exc:
            self._lose(exc.strerror or str(exc))
            return
        self._torn = not text[:written].endswith(b"\n")
        if written < len(text):
            self._lose("the disk took a part of a line")
        elif self._failing:
            self._failing = False
            log.warning("the audit log %s is written again; lines lost: %d", self._path, self.lost)

    def _lose(self, why: str) -> None:
        self.lost += 1
        self._failing = True
        now = self._clock()
        if now - self._told >= _TELL_S:
            self._told = now
            log.error("the audit log %s cannot be written: %s; lines lost: %d", self._path, why, self.lost)


def _open(path: Path) -> int:
    """For appending. Without blocking, because a pipe that nobody reads must not stop the event loop."""
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)


def _is_torn(file: int) -> bool:
    """Whether the last line has no end, as a full disk leaves it."""
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"
