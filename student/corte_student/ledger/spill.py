"""A paid answer that the ledger could not take because it is full, kept in a file of its own until it can.

Strategy: written aside, synced and renamed, so a file that exists under its final name is complete.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from corte_student.durable import sync

Row = tuple[str, str, str, str, str, int, int, bytes, bytes]
"""digest, pixel digest, teacher, revision, view, top_k, prob_bits, checksum, frame"""

_SUFFIX = ".answer"


def put(folder: Path, row: Row) -> bool:
    """Keep one row. False where not even this is possible."""
    draft = folder / uuid.uuid4().hex
    *head, checksum, frame = row
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(json.dumps([*head, checksum.hex()]).encode() + b"\n" + frame)
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


def take(folder: Path) -> Iterator[tuple[Path, Row]]:
    """The rows that wait, each with its file, which the caller removes once the row is safe."""
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            head, _, frame = path.read_bytes().partition(b"\n")
            digest, pixels, teacher, revision, view, top_k, bits, checksum = json.loads(head)
        except FileNotFoundError:
            continue  # another process took it meanwhile
        except ValueError:
            path.unlink(missing_ok=True)  # damaged beyond reading: as good as never written
            continue
        yield path, (digest, pixels, teacher, revision, view, top_k, bits, bytes.fromhex(checksum), frame)
