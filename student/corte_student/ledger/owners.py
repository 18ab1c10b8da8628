"""Which ledgers are open right now, on this host, in any container or process.

Strategy: every open ledger holds an exclusive lock on a file of its own. The kernel drops the lock when its
process dies, however it dies, so a lock that can be taken belongs to the dead. Unlike a process id this
is never reused and means the same in every container that shares the folder.
"""

import os
import sys
import uuid
from pathlib import Path

if sys.platform != "win32":
    import fcntl


class Owner:
    """A token, and the lock that proves its holder alive until `close`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.token = uuid.uuid4().hex
        self._path = folder / self.token
        # locked under another name first: whoever finds a token's file unlocked may take its owner for dead
        draft = folder / f"{self.token}.new"
        self._file = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        _try_lock(self._file)
        draft.rename(self._path)

    def close(self) -> None:
        """Give the token up; it then counts as dead."""
        if self._file >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


def alive(folder: Path, token: str) -> bool:
    """Whether the owner of `token` still lives. A dead one's file is removed."""
    path = folder / token
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not _try_lock(file):
            return True
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(file)


def sweep(folder: Path) -> None:
    """Remove what dead owners left behind."""
    for path in folder.iterdir():
        if path.suffix != ".new":
            alive(folder, path.name)


def _try_lock(file: int) -> bool:
    if sys.platform == "win32":
        return False  # there, only the age of a claim tells that its owner is gone
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
