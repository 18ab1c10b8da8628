"""Another's ledger, of any schema up to ours, read and never modified.

Strategy: SQLite opens a WAL file that nobody uses only by making side files beside it. So one without a
`-wal` is opened as immutable, and looked at again after every batch: if someone began to write it meanwhile,
the batch is not used and the user is asked to start again. A ledger in use is read through its own `-wal`.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from corte_student.errors import LedgerError
from corte_student.ledger import rows, schema, spending, spill
from corte_student.ledger.rows import EVERYTHING, Row
from corte_student.ledger.spending import Payment

_BUSY_S: Final = 60.0
_WAL_MARK: Final = slice(18, 20)  # of the header: 2, 2 for a WAL file (sqlite.org/fileformat.html)


@dataclass(frozen=True, slots=True)
class Guest:
    """An open ledger of someone else; `seen` is its file's state where that must not change."""

    path: Path
    db: sqlite3.Connection
    version: int
    seen: tuple[int, ...] | None

    def count(self) -> int:
        """Its answers, those that wait for room included."""
        with self._reading():
            return rows.count(self.db) + spill.held(self._spill())

    def answers(self) -> Iterator[list[Row]]:
        """All its answers, unchecked, in batches."""
        after = 0
        while True:
            with self._reading():
                found = rows.batch(self.db, after)
            if not found:
                return
            after = found[-1][0]
            yield [row for _, row in found]

    def waiting(self) -> Iterator[Row | None]:
        """The answers that wait beside it; None for one that cannot be read."""
        for _, kept in spill.waiting(self._spill()):
            yield None if kept is None else kept[0]

    def payments(self) -> Iterator[list[Payment]]:
        """All its spending, in batches; none before schema 2."""
        after = 0
        while self.version >= 2:
            with self._reading():
                found = spending.batch(self.db, after, EVERYTHING)
            if not found:
                return
            after = found[-1][0]
            yield [row for _, row in found]

    def teachers(self) -> list[tuple[str, bytes]]:
        """What it knows of teachers: digest of the URL, encoded info."""
        with self._reading():
            return self.db.execute("SELECT url_digest, info FROM teachers").fetchall()

    def _spill(self) -> Path:
        return schema.beside(self.path, "spill")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with schema.explained(self.path):
            yield
        if self.seen is not None and (_in_use(self.path) or _state(self.path) != self.seen):
            raise LedgerError(f"{self.path} was written to meanwhile: try again, what was taken is kept")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Guest]:
    """The ledger at `path`, closed at the end. Raises LedgerError."""
    path = path.absolute()
    try:
        alone = _is_wal(path) and not _in_use(path)
        seen = _state(path) if alone else None
    except OSError as exc:
        raise LedgerError(f"cannot read the ledger {path} ({exc.strerror}): name the file of one") from exc
    uri = f"{path.as_uri()}?mode=ro" + ("&immutable=1" if alone else "")
    with schema.explained(path), contextlib.closing(_connect(uri)) as db:
        version = schema.check_identity(db, path)
        if version < 1:
            raise LedgerError(f"{path} is no ledger: name the file of one")
        schema.read_leniently(db)
        yield Guest(path, db, version, seen)


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)


def _is_wal(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(20)[_WAL_MARK] == b"\x02\x02"


def _in_use(path: Path) -> bool:
    wal = path.with_name(f"{path.name}-wal")
    return wal.exists() and wal.stat().st_size > 0


def _state(path: Path) -> tuple[int, ...]:
    now = os.stat(path)
    return now.st_ino, now.st_size, now.st_mtime_ns
