"""The ledger: SQLite, one row an answer, the frame as received.

Rule 1: an answer counts once it is committed and synced (WAL, `synchronous=FULL`); only then is it used.
Rule 2: a question is reserved on disk before it is sent; reserving looks for an answer once more inside
the same transaction, so of all processes one sends. Rule 3: every row carries a checksum over its key and
frame; a row that fails it is as good as absent. Rule 4: no file name, URL or key is stored.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final, Self

from corte_protocol import Disclosure, ProtocolError, TeacherInfo, decode_info, encode_info
from corte_student.errors import LedgerError, SettingsError
from corte_student.ledger import owners, spill
from corte_student.ledger.spill import Row

SCHEMA_VERSION: Final = 1
MIN_FREE_BYTES: Final = 32 << 20
"""Below this much free space nothing more is asked, so that answers under way still find room."""
_APPLICATION_ID: Final = 0x43525445  # "CRTE"
_BUSY_S: Final = 60.0
_LEASE_S: Final = 3600.0
_FULL: Final = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,  # a file-size limit, or a quota, looks like this
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_SHMSIZE,
}
_SCHEMA: Final = """
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
_LOOK_UP: Final = """
SELECT rowid, digest, pixel_digest, teacher, revision, view, top_k, prob_bits,
CAST(checksum AS BLOB), CAST(frame AS BLOB) FROM answers
WHERE {column} = ? AND teacher = ? AND revision = ? AND view = ? AND top_k >= ? AND prob_bits >= ?
ORDER BY top_k, prob_bits
"""
_LOOK_UPS: Final = tuple(_LOOK_UP.format(column=column) for column in ("digest", "pixel_digest"))

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """What decides an answer: the file and its pixels, the teacher and its revision, how it was viewed."""

    digest: str
    pixel_digest: str
    teacher: str
    revision: str
    view: str = "identity"


@dataclass(frozen=True, slots=True)
class Counts:
    """What a ledger holds; `corrupt` are the rows found damaged since it was opened."""

    answers: int
    frame_bytes: int
    claims: int
    corrupt: int


class _DiskFull(LedgerError):
    """Nothing more can be written."""


def default_ledger_path() -> Path:
    """One ledger a user: `$XDG_DATA_HOME/corte/ledger.sqlite`, by default below `~/.local/share`."""
    stated = os.environ.get("XDG_DATA_HOME", "")
    if stated and Path(stated).is_absolute():
        return Path(stated) / "corte" / "ledger.sqlite"
    try:
        home = Path.home()
    except RuntimeError as exc:
        raise LedgerError("there is no home folder for the ledger: name a file with --ledger") from exc
    return home / ".local" / "share" / "corte" / "ledger.sqlite"


def ensure_outside(path: Path, run: Path) -> None:
    """Refuse a ledger inside RUN: deleting or publishing a run would take paid answers with it."""
    if path.resolve().is_relative_to(run.resolve()):
        raise SettingsError(f"the ledger {path} lies inside the run {run}: name a file outside with --ledger")


class Ledger:
    """One open ledger. Safe between threads (one lock) and between processes (SQLite and claims)."""

    def __init__(self, path: Path, db: sqlite3.Connection, owner: owners.Owner, lease_s: float) -> None:
        self.path = path
        self._db = db
        self._owner = owner
        self._lease_s = lease_s
        self._lock = threading.RLock()
        self._corrupt: set[int] = set()
        self._owners = _beside(path, "owners")
        self._spill = _beside(path, "spill")

    @classmethod
    def open(cls, path: Path, *, lease_s: float = _LEASE_S, max_bytes: int | None = None) -> Self:
        """Open or make the ledger at `path`; answers kept aside when it was full are taken in.

        A claim older than `lease_s` counts as abandoned even if its owner lives; it must be longer than
        any request. `max_bytes` bounds the file.
        """
        path = path.absolute()
        db = None
        try:
            _make_private(path)
            owner = owners.Owner(_beside(path, "owners"))
            owners.sweep(_beside(path, "owners"))
        except OSError as exc:
            raise LedgerError(
                f"the ledger {path} cannot be opened ({exc.strerror}): name another with --ledger"
            ) from exc
        try:
            db = _connect(path, max_bytes)
            ledger = cls(path, db, owner, lease_s)
            ledger._take_in()
        except BaseException:
            owner.close()
            if db is not None:
                db.close()
            raise
        return ledger

    def find(self, q: Question, need: Disclosure) -> bytes | None:
        """The narrowest intact frame that holds all that `need` asks for: by the file, else by its pixels."""
        with self._lock, self._explained():
            return self._find(q, need)

    def claim(self, q: Question, need: Disclosure) -> bool:
        """Reserve `q`, durably, before it is sent. False: look again, it is answered or being asked."""
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError as exc:
            raise LedgerError(
                f"the ledger {self.path} is gone ({exc.strerror}): go on with --resume"
            ) from exc
        if free < MIN_FREE_BYTES:
            raise self._disk_full()
        key = _claim_key(q)
        with self._lock, self._transaction():
            if self._find(q, need) is not None:
                return False
            held = self._db.execute(
                "SELECT owner, since FROM claims"
                " WHERE pixel_digest = ? AND teacher = ? AND revision = ? AND view = ?",
                key,
            ).fetchone()
            if held is not None and self._stands(*held):
                return False
            self._db.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?)",
                (*key, self._owner.token, time.time()),
            )
        return True

    def commit(self, q: Question, frame: bytes, disclosure: Disclosure) -> None:
        """Store an answer and end its claim, in one synced transaction."""
        row: Row = (*astuple(q), disclosure.top_k, disclosure.prob_bits, b"", frame)
        row = (*row[:7], _checksum(row), frame)
        with self._lock:
            try:
                with self._transaction():
                    self._insert(row)
                    self._end_claim(q)
            except _DiskFull:
                kept = spill.put(self._spill, row)
                raise self._disk_full(lost=not kept) from None

    def release(self, q: Question) -> None:
        """End our claim on `q` without an answer; without one of ours, nothing happens."""
        with self._lock, self._transaction():
            self._end_claim(q)

    def remember(self, url: str, info: TeacherInfo) -> None:
        """Keep what the teacher at `url` says of itself; of the URL only a digest is stored."""
        with self._lock, self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO teachers VALUES (?, ?)", (_url_digest(url), encode_info(info))
            )

    def recall(self, url: str) -> TeacherInfo | None:
        """The last info from `url`, or None."""
        with self._lock, self._explained():
            row = self._db.execute(
                "SELECT info FROM teachers WHERE url_digest = ?", (_url_digest(url),)
            ).fetchone()
        if row is None:
            return None
        try:
            return decode_info(row[0])
        except ProtocolError:
            return None  # written by another version, or damaged: as good as absent

    def counts(self) -> Counts:
        """How much is stored."""
        with self._lock, self._explained():
            answers, size = self._db.execute(
                "SELECT count(*), coalesce(sum(length(frame)), 0) FROM answers"
            ).fetchone()
            (claims,) = self._db.execute("SELECT count(*) FROM claims").fetchone()
            return Counts(answers, size, claims, len(self._corrupt))

    def close(self) -> None:
        """Close the file; claims that are still ours become free for others."""
        with self._lock:
            self._db.close()
            self._owner.close()

    def _find(self, q: Question, need: Disclosure) -> bytes | None:
        for look_up, digest in zip(_LOOK_UPS, (q.digest, q.pixel_digest), strict=True):
            key = (digest, q.teacher, q.revision, q.view, need.top_k, need.prob_bits)
            for rowid, *row in self._db.execute(look_up, key):
                if _checksum(tuple(row)) == row[7]:
                    frame: bytes = row[8]
                    return frame
                if rowid not in self._corrupt:
                    self._corrupt.add(rowid)
                    _log.warning("answer %d in %s is damaged: not used, asked again", rowid, self.path)
        return None

    def _stands(self, token: str, since: float) -> bool:
        """Whether a claim still holds: its owner lives, and it is not older than the lease."""
        if time.time() - since > self._lease_s:
            return False
        return token == self._owner.token or owners.alive(self._owners, token)

    def _insert(self, row: Row) -> None:
        self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def _end_claim(self, q: Question) -> None:
        self._db.execute(
            "DELETE FROM claims"
            " WHERE pixel_digest = ? AND teacher = ? AND revision = ? AND view = ? AND owner = ?",
            (*_claim_key(q), self._owner.token),
        )

    def _take_in(self) -> None:
        for file, row in spill.take(self._spill):
            if _checksum(row) == row[7]:
                with self._transaction():
                    self._insert(row)
            file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            if _error_code(exc) in _FULL:
                raise self._disk_full() from exc
            raise _unusable(self.path, exc) from exc

    def _disk_full(self, *, lost: bool = False) -> _DiskFull:
        safe = "what was stored before is safe"
        with self._lock, contextlib.suppress(sqlite3.Error, OSError):
            (stored,) = self._db.execute("SELECT count(*) FROM answers").fetchone()
            safe = f"{stored + spill.held(self._spill)} answers are safe"
        if lost:
            safe += ", the last one found no room and will be asked again"
        return _DiskFull(f"the disk is full: {self.path}: free space and go on with --resume; {safe}")


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}-{what}")


def _claim_key(q: Question) -> tuple[str, str, str, str]:
    return (q.pixel_digest, q.teacher, q.revision, q.view)


def _url_digest(url: str) -> str:
    return hashlib.sha256(url.rstrip("/").encode()).hexdigest()


def _checksum(row: Row | tuple[object, ...]) -> bytes:
    digest = hashlib.sha256(repr(tuple(row[:7])).encode())
    frame = row[8]
    digest.update(frame if isinstance(frame, bytes) else b"")
    return digest.digest()


def _make_private(path: Path) -> None:
    """The file exists with mode 0600; SQLite gives its own side files the same mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def _connect(path: Path, max_bytes: int | None) -> sqlite3.Connection:
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
            if _error_code(exc) & 0xFF == sqlite3.SQLITE_BUSY and time.monotonic() < until:
                time.sleep(0.05)
                continue
            if _error_code(exc) in _FULL:
                raise LedgerError(f"the disk is full: {path}: free space, then try again") from exc
            raise _unusable(path, exc) from exc
        return db


def _prepare(db: sqlite3.Connection, path: Path, max_bytes: int | None) -> None:
    (identity,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if identity != _APPLICATION_ID and tables:
        raise LedgerError(f"{path} is another program's database: name another file with --ledger")
    # a damaged row must fail its checksum, not the reading of its neighbours
    db.text_factory = lambda text: text.decode(errors="replace")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    if max_bytes is not None:
        (page_size,) = db.execute("PRAGMA page_size").fetchone()
        db.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page_size)}")
    db.execute("BEGIN IMMEDIATE")
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise LedgerError(
                f"the ledger {path} was written by a newer corte-student (schema {version}, this one reads "
                f"{SCHEMA_VERSION}): update it, or name another ledger with --ledger"
            )
        if version == 0:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _error_code(exc: sqlite3.Error) -> int:
    return getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)


def _unusable(path: Path, exc: sqlite3.Error) -> LedgerError:
    code = _error_code(exc) & 0xFF
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return LedgerError(
            f"{path} is damaged or no ledger ({exc}): move it away or name another with --ledger"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LedgerError(f"the ledger {path} is kept busy by another process: end that one, then --resume")
    return LedgerError(f"the ledger {path} cannot be used ({exc}): check the disk and its permissions")
