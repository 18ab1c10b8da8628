"""A paid answer that the ledger could not take because it is full, kept in a file of its own until it can.

Strategy: written aside, synced and renamed, so a file that exists under its final name is complete. It also
names the payment it belongs to, so that taking it in marks that payment as answered.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from corte_student.durable import sync
from corte_student.ledger.rows import Row

Kept = tuple[Row, str | None]
"""The row, and the `origin` of the payment for it where one was reserved."""

_SUFFIX = ".answer"


def put(folder: Path, row: Row, origin: str | None) -> bool:
    """Keep one row. False where not even this is possible."""
    draft = folder / uuid.uuid4().hex
    *head, checksum, frame = row
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(json.dumps([*head, checksum.hex(), origin]).encode() + b"\n" + frame)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(draft.with_suffix(_SUFFIX))
        sync(folder)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        return False
    return True


def held(folder: Path) -> int:
    """How many answers wait there."""
    return len(list(folder.glob(f"*{_SUFFIX}")))


def waiting(folder: Path) -> Iterator[tuple[Path, Kept | None]]:
    """Each file that waits and what it holds; None: damaged beyond reading. No file is changed here."""
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            head, _, frame = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            continue  # another process took it meanwhile
        yield path, _read(head, frame)


def _read(head: bytes, frame: bytes) -> Kept | None:
    try:
        # schema 1 wrote no origin
        digest, pixels, teacher, revision, view, top_k, bits, checksum, *origin = json.loads(head)
        row = (digest, pixels, teacher, revision, view, top_k, bits, bytes.fromhex(checksum), frame)
    except (ValueError, TypeError):
        return None
    return row, origin[0] if origin else None
