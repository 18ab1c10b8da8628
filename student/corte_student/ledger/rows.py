"""One stored answer as a row: its checksum, which rows are meant, and walking over many.

Strategy: a walk goes by rowid in batches that are bounded in rows and bytes, so memory stays constant and
no read holds up a checkpoint for long. SQLite keeps the rowids of a table with indexes over VACUUM.
"""

import hashlib
import sqlite3
from dataclasses import dataclass
from typing import Final

Row = tuple[str, str, str, str, str, int, int, bytes, bytes]
"""digest, pixel digest, teacher, revision, view, top_k, prob_bits, checksum, frame"""
COLUMNS: Final = (
    "digest, pixel_digest, teacher, revision, view, top_k, prob_bits,"
    " CAST(checksum AS BLOB), CAST(frame AS BLOB)"
)
INSERT: Final = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_BATCH_ROWS: Final = 256
_BATCH_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows of one teacher, revision and view; None leaves that open."""

    teacher: str | None = None
    revision: str | None = None
    view: str | None = None

    def condition(self) -> tuple[str, tuple[str, ...]]:
        """An SQL condition over columns of these names, and its values."""
        stated = [(name, value) for name, value in self._named() if value is not None]
        return " AND ".join(["TRUE", *(f"{name} = ?" for name, _ in stated)]), tuple(v for _, v in stated)

    def __str__(self) -> str:
        stated = [f"{name} {value}" for name, value in self._named() if value is not None]
        return ", ".join(stated) or "any teacher"

    def _named(self) -> tuple[tuple[str, str | None], ...]:
        return ("teacher", self.teacher), ("revision", self.revision), ("view", self.view)


EVERYTHING: Final = Selection()


def checksum(row: Row | tuple[object, ...]) -> bytes:
    """SHA-256 over the key and the frame, 32 bytes."""
    digest = hashlib.sha256(repr(tuple(row[:7])).encode())
    frame = row[8]
    digest.update(frame if isinstance(frame, bytes) else b"")
    return digest.digest()


def intact(row: Row | tuple[object, ...]) -> bool:
    """Whether the row is what was written."""
    return checksum(row) == row[7]


def count(db: sqlite3.Connection, chosen: Selection = EVERYTHING) -> int:
    """How many answers are chosen."""
    condition, values = chosen.condition()
    (found,) = db.execute(f"SELECT count(*) FROM answers WHERE {condition}", values).fetchone()
    return int(found)


def batch(db: sqlite3.Connection, after: int, chosen: Selection = EVERYTHING) -> list[tuple[int, Row]]:
    """The next chosen rows above the rowid `after`, each with its rowid; none at the end."""
    condition, values = chosen.condition()
    found: list[tuple[int, Row]] = []
    room = _BATCH_BYTES
    for rowid, *row in db.execute(
        f"SELECT rowid, {COLUMNS} FROM answers WHERE rowid > ? AND {condition} ORDER BY rowid LIMIT ?",
        (after, *values, _BATCH_ROWS),
    ):
        found.append((rowid, tuple(row)))
        room -= len(row[8] or b"")
        if room <= 0:
            break
    return found
