"""The ledger's file: its tables, how it is opened and brought up to date, what its failures mean.

Rule 1: each schema version adds to the one before and changes nothing of it, so a process of an older
version that has the file open keeps storing what it pays for. Rule 2: making and migrating are one
transaction. Rule 3: another program's file is refused before anything is written.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from corte_student.errors import LedgerError

APPLICATION_ID: Final = 0x43525445  # "CRTE"
_BUSY_S: Final = 60.0
_INCREMENTAL: Final = 2  # auto_vacuum: what is removed can be given back in small steps
_FULL: Final = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,  # a file-size limit, or a quota, looks like this
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_SHMSIZE,
}
_ANSWERS: Final = """
CREATE TABLE answers (
    digest TEXT NOT NULL, pixel_digest TEXT NOT NULL,
    teacher TEXT NOT NULL, revision TEXT NOT NULL, view TEXT NOT NULL,
    top_k INTEGER NOT NULL, prob_bits INTEGER NOT NULL,
    checksum BLOB NOT NULL, frame BLOB NOT NULL
);

CREATE UNIQUE INDEX answers_by_digest
    ON answers (digest, teacher, revision, view, top_k, prob_bits);

CREATE INDEX answers_by_pixels
    ON answers (pixel_digest, teacher, revision, view, top_k, prob_bits);

CREATE TABLE claims (
    pixel_digest TEXT NOT NULL, teacher TEXT NOT NULL, revision TEXT NOT NULL, view TEXT NOT NULL,
    owner TEXT NOT NULL, since REAL NOT NULL,
    PRIMARY KEY (pixel_digest, teacher, revision, view)
) WITHOUT ROWID;

CREATE TABLE teachers (url_digest TEXT PRIMARY KEY, info BLOB NOT NULL) WITHOUT ROWID;
"""
# AUTOINCREMENT: the id of a request that was not billed, and so removed, never means another one. The totals
# follow by triggers, inside each transaction, so that a cap is checked at once however long the history is.
_SPENDING: Final = """
CREATE TABLE spending (
    id INTEGER PRIMARY KEY AUTOINCREMENT, origin TEXT NOT NULL UNIQUE,
    teacher TEXT NOT NULL, revision TEXT NOT NULL DEFAULT '', view TEXT NOT NULL DEFAULT '',
    pixel_digest TEXT NOT NULL DEFAULT '', at REAL NOT NULL,
    micros INTEGER NOT NULL CHECK (typeof(micros) = 'integer' AND micros >= 0),
    currency TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'answered'))
);

CREATE TABLE spent (
    teacher TEXT NOT NULL, currency TEXT NOT NULL, state TEXT NOT NULL,
    requests INTEGER NOT NULL, micros INTEGER NOT NULL,
    PRIMARY KEY (teacher, currency, state)
) WITHOUT ROWID;

CREATE TRIGGER spending_added AFTER INSERT ON spending BEGIN
    INSERT INTO spent VALUES (new.teacher, new.currency, new.state, 1, new.micros)
    ON CONFLICT (teacher, currency, state)
    DO UPDATE SET requests = requests + 1, micros = micros + excluded.micros;
END;

CREATE TRIGGER spending_removed AFTER DELETE ON spending BEGIN
    UPDATE spent SET requests = requests - 1, micros = micros - old.micros
    WHERE teacher = old.teacher AND currency = old.currency AND state = old.state;
END;

CREATE TRIGGER spending_changed AFTER UPDATE ON spending BEGIN
    UPDATE spent SET requests = requests - 1, micros = micros - old.micros
    WHERE teacher = old.teacher AND currency = old.currency AND state = old.state;
    INSERT INTO spent VALUES (new.teacher, new.currency, new.state, 1, new.micros)
    ON CONFLICT (teacher, currency, state)
    DO UPDATE SET requests = requests + 1, micros = micros + excluded.micros;
END;
"""
_STEPS: Final = (_ANSWERS, _SPENDING)
"""Step n brings schema n to n + 1; an empty line ends a statement."""
SCHEMA_VERSION: Final = len(_STEPS)


def beside(path: Path, what: str) -> Path:
    """The ledger's folder for `what`."""
    return path.with_name(f"{path.name}-{what}")


def connect(path: Path, max_bytes: int | None) -> sqlite3.Connection:
    """The file at `path`, made or migrated, ready for use. Raises LedgerError."""
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                _prepare(db, path, max_bytes)
            except BaseException:
                db.close()
                raise
        except sqlite3.Error as exc:
            # turning WAL on does not wait for another process that does the same, whatever the time-out
            if _code(exc) & 0xFF == sqlite3.SQLITE_BUSY and time.monotonic() < until:
                time.sleep(0.05)
                continue
            raise failure(path, exc) from exc
        return db


def make_portable(path: Path) -> sqlite3.Connection:
    """A new ledger in the empty file at `path`, without side files. The caller syncs it when it is whole."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        _migrate(db, path)
    except BaseException:
        db.close()
        raise
    return db


def check_identity(db: sqlite3.Connection, path: Path) -> int:
    """The schema version of a ledger, 0 of an empty file. Raises LedgerError: not ours, or newer."""
    (identity,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if identity != APPLICATION_ID and tables:
        raise LedgerError(f"{path} is another program's database: name another file with --ledger")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"the ledger {path} was written by a newer corte-student (schema {version}, this one reads "
            f"{SCHEMA_VERSION}): update it, or name another ledger with --ledger"
        )
    return int(version)


def read_leniently(db: sqlite3.Connection) -> None:
    """A damaged row must fail its checksum, not the reading of its neighbours."""
    db.text_factory = lambda text: text.decode(errors="replace")


def _prepare(db: sqlite3.Connection, path: Path, max_bytes: int | None) -> None:
    check_identity(db, path)
    read_leniently(db)
    db.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")  # of a new file; else from the next VACUUM on
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    if max_bytes is not None:
        (page_size,) = db.execute("PRAGMA page_size").fetchone()
        db.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page_size)}")
    _migrate(db, path)


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        version = check_identity(db, path)  # once more: another process may have been quicker
        if version < SCHEMA_VERSION:
            for step in _STEPS[version:]:
                for statement in step.split("\n\n"):
                    db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """What SQLite fails at with the file `path`, as a LedgerError."""
    try:
        yield
    except sqlite3.Error as exc:
        raise failure(path, exc) from exc


def is_full(exc: sqlite3.Error) -> bool:
    """Whether it failed for want of space."""
    return _code(exc) in _FULL


def failure(path: Path, exc: sqlite3.Error) -> LedgerError:
    """The line that explains `exc`."""
    if is_full(exc):
        return LedgerError(f"the disk is full: {path}: free space, then try again")
    code = _code(exc) & 0xFF
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return LedgerError(
            f"{path} is damaged or no ledger ({exc}): move it away or name another with --ledger"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LedgerError(f"the ledger {path} is kept busy by another process: end that one, then --resume")
    return LedgerError(f"the ledger {path} cannot be used ({exc}): check the disk and its permissions")


def _code(exc: sqlite3.Error) -> int:
    return getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
