"""The accounts in an SQLite file, which replicas on one host may share.

WAL with synchronous NORMAL: a commit is in the page cache before it is acknowledged, so a killed process
loses nothing (https://sqlite.org/wal.html); a power cut may lose the last moments.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from corte_teacher.errors import Overloaded, StartError
from corte_teacher.quotas import (
    GRACE_S,
    REPEAT_S,
    REPEATS,
    Outcome,
    Quota,
    Spending,
    Standing,
    Window,
    fingerprint,
    impossible,
    refusal,
    windows_at,
)

APPLICATION_ID: Final = 0x43525451  # "CRTQ"
BUSY_S: Final = 2.0
_CHECKPOINT: Final = (
    4000  # pages of 4 KiB in the log before they are synced: 1000, the default, syncs 4x as often
)
_TABLES: Final = """
CREATE TABLE windows (
    owner TEXT NOT NULL, seconds INTEGER NOT NULL, start INTEGER NOT NULL, spent INTEGER NOT NULL,
    PRIMARY KEY (owner, seconds, start)
) WITHOUT ROWID;

CREATE INDEX windows_by_end ON windows (start + seconds);

CREATE TABLE repeats (
    content BLOB PRIMARY KEY, billed REAL NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX repeats_by_time ON repeats (billed);
"""
_STEPS: Final = (_TABLES,)
"""Step n brings schema n to n + 1; an empty line ends a statement."""
SCHEMA_VERSION: Final = len(_STEPS)

_SPENT: Final = "SELECT spent FROM windows WHERE owner = ? AND seconds = ? AND start = ?"
_SPEND: Final = (
    "INSERT INTO windows VALUES (?, ?, ?, ?)"
    " ON CONFLICT (owner, seconds, start) DO UPDATE SET spent = spent + excluded.spent"
)
_REPEAT: Final = "SELECT 1 FROM repeats WHERE content = ? AND billed > ? AND used < ?"
_USE: Final = "UPDATE repeats SET used = used + 1 WHERE content = ?"
_BILL: Final = "INSERT OR REPLACE INTO repeats VALUES (?, ?, 0)"
# More rows than one call adds, so that what has ended goes away; few, so that no call pays for many.
_PURGED: Final = 4  # repeats for each that is added
_PURGE_WINDOWS: Final = (
    "DELETE FROM windows WHERE (owner, seconds, start) IN (SELECT owner, seconds, start FROM windows"
    " WHERE start + seconds <= ? ORDER BY start + seconds LIMIT 16)"
)
_PURGE_REPEATS: Final = (
    "DELETE FROM repeats WHERE content IN"
    " (SELECT content FROM repeats WHERE billed <= ? ORDER BY billed LIMIT ?)"
)


class SqliteQuotas:
    """The accounts in the file at `path`, made or migrated. Raises StartError with the remedy.

    Another process may hold the file for `busy_s` seconds; after that a request raises Overloaded.
    """

    def __init__(self, path: Path, busy_s: float = BUSY_S) -> None:
        self._path = path
        self._busy_s = busy_s
        self._lock = threading.Lock()
        self._db = _connect(path, busy_s)

    def spend_all(self, spendings: Sequence[Spending], now: float) -> list[Outcome]:
        """See `Quotas.spend_all`: one transaction, begun and committed once."""
        asked = [(spending, windows_at(spending.quota, now)) for spending in spendings]
        if not any(windows for _, windows in asked):
            return [() for _ in asked]
        with self._using() as db, _transaction(db):
            sums = _Sums(db, now)
            outcomes = [sums.spend(spending, windows) for spending, windows in asked]
            sums.write()
        return outcomes

    def standing(self, owner: str, quota: Quota, now: float) -> tuple[Standing, ...]:
        """See `Quotas.standing`."""
        windows = windows_at(quota, now)
        if not windows:
            return ()
        with self._using() as db:
            sums = _Sums(db, now)
            return tuple(window.standing(sums.spent(owner, window), now) for window in windows)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        if not self._lock.acquire(timeout=self._busy_s):
            raise Overloaded(f"the quotas in {self._path} are kept busy")
        try:
            yield self._db
        except sqlite3.Error as exc:  # a full disk as well: rather no answer than an unmetered one
            raise Overloaded(f"the quotas in {self._path} cannot be used: {exc}") from exc
        finally:
            self._lock.release()


class _Sums:
    """What the windows hold within one transaction: each is read once, and written once."""

    def __init__(self, db: sqlite3.Connection, now: float) -> None:
        self._db = db
        self._now = now
        self._before: dict[tuple[str, int, int], int | None] = {}
        self._more: Counter[tuple[str, int, int]] = Counter()
        self._billed = 0

    def spent(self, owner: str, window: Window) -> int:
        """Pixels that are spent of a window."""
        key = (owner, window.seconds, window.start)
        if key not in self._before:
            row = self._db.execute(_SPENT, key).fetchone()
            self._before[key] = None if row is None else int(row[0])
        return (self._before[key] or 0) + self._more[key]

    def spend(self, spending: Spending, windows: Sequence[Window]) -> Outcome:
        """The outcome of one request."""
        owner, quota, pixels, content = spending
        if not windows:
            return ()
        if (never := impossible(windows, pixels)) is not None:
            return never
        seen = None if quota.per_day is None else fingerprint(owner, content)
        known = (seen, self._now - REPEAT_S, REPEATS)
        repeated = seen is not None and self._db.execute(_REPEAT, known).fetchone() is not None
        counted = [0 if repeated and window.name == "day" else pixels for window in windows]
        totals = [self.spent(owner, window) + more for window, more in zip(windows, counted, strict=True)]
        short = [
            window
            for window, more, total in zip(windows, counted, totals, strict=True)
            if more and total > window.quota
        ]
        if short:
            return refusal(owner, pixels, short, self._now)
        for window, more in zip(windows, counted, strict=True):
            self._more[owner, window.seconds, window.start] += more
        if repeated:
            self._db.execute(_USE, (seen,))
        elif seen is not None:
            self._db.execute(_BILL, (seen, self._now))
            self._billed += 1
        return tuple(window.standing(total, self._now) for window, total in zip(windows, totals, strict=True))

    def write(self) -> None:
        """Keep the sums, and drop a little of what has ended."""
        for key, more in self._more.items():
            if more:
                self._db.execute(_SPEND, (*key, more))
        if None in self._before.values():
            self._db.execute(_PURGE_WINDOWS, (self._now - GRACE_S,))
        if self._billed:
            self._db.execute(_PURGE_REPEATS, (self._now - REPEAT_S - GRACE_S, _PURGED * self._billed))


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _connect(path: Path, busy_s: float) -> sqlite3.Connection:
    until = time.monotonic() + busy_s
    while True:
        try:
            # SQLite gives its side files the mode of this one: who holds keys is for the operator only
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            db = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
            try:
                _prepare(db, path)
            except BaseException:
                db.close()
                raise
        except OSError as exc:
            raise StartError(f"the quotas cannot be kept in {path}: {exc.strerror} (--quotas FILE)") from exc
        except sqlite3.Error as exc:
            # turning WAL on does not wait for a replica that does the same, whatever the time-out
            if _code(exc) == sqlite3.SQLITE_BUSY and time.monotonic() < until:
                time.sleep(0.05)
                continue
            raise _failure(path, exc) from exc
        return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    _check_identity(db, path)
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StartError(f"{path} must lie on a local disk: there is no write-ahead log (it says {mode})")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT}")
    (health,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if health != "ok":
        raise sqlite3.DatabaseError(" ".join(health.split()))
    with _transaction(db):
        version = _check_identity(db, path)  # once more: a replica may have been quicker
        for step in _STEPS[version:]:
            for statement in step.split("\n\n"):
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _check_identity(db: sqlite3.Connection, path: Path) -> int:
    """The schema version, 0 of an empty file. Raises StartError before anything of another's is touched."""
    (identity,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if identity != APPLICATION_ID and tables:
        raise StartError(f"{path} is another program's database: name another file with --quotas")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StartError(
            f"the quotas in {path} are of a newer corte-teacher (schema {version}, this one reads "
            f"{SCHEMA_VERSION}): update it, or name another file with --quotas"
        )
    return int(version)


def _failure(path: Path, exc: sqlite3.Error) -> StartError:
    code = _code(exc)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StartError(f"the quotas in {path} are kept busy by another process: end that one")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StartError(
            f"{path} is damaged or holds no quotas ({exc}): move it away, which starts all windows anew, "
            "or name another file with --quotas"
        )
    return StartError(f"the quotas cannot be kept in {path} ({exc}): check the disk and its permissions")


def _code(exc: sqlite3.Error) -> int:
    """The primary result code; what our own check of the file found is damage."""
    return getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
