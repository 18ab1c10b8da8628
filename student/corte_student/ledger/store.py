"""The ledger: SQLite, one row an answer, the frame as received.

Rule 1: an answer counts once it is committed and synced (WAL, `synchronous=FULL`); only then is it used.
Rule 2: a question is claimed on disk before it is sent; claiming looks for an answer once more inside
the same transaction, so of all processes one sends. Rule 3: every row carries a checksum over its key and
frame; a row that fails it is as good as absent. Rule 4: no file name, URL or key is stored. Rule 5: what a
request may cost is on disk before it is sent (see `spending`).
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
from corte_student.ledger import owners, rows, schema, spending, spill
from corte_student.ledger.rows import Row
from corte_student.ledger.spending import Spending
from corte_student.money import Cap

MIN_FREE_BYTES: Final = 32 << 20
"""Below this much free space nothing more is asked, so that answers under way still find room."""
_LEASE_S: Final = 3600.0
_LOOK_UP: Final = """
SELECT rowid, {columns} FROM answers
WHERE {column} = ? AND teacher = ? AND revision = ? AND view = ? AND top_k >= ? AND prob_bits >= ?
ORDER BY top_k, prob_bits
"""
_LOOK_UPS: Final = tuple(
    _LOOK_UP.format(columns=rows.COLUMNS, column=column) for column in ("digest", "pixel_digest")
)

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
        self._owners = schema.beside(path, "owners")
        self._spill = schema.beside(path, "spill")

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
            owner = owners.Owner(schema.beside(path, "owners"))
            owners.sweep(schema.beside(path, "owners"))
        except OSError as exc:
            raise LedgerError(
                f"the ledger {path} cannot be opened ({exc.strerror}): name another with --ledger"
            ) from exc
        try:
            db = schema.connect(path, max_bytes)
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
        with self.reading():
            return self._find(q, need)

    def claim(self, q: Question, need: Disclosure) -> bool:
        """Keep `q` for us, durably, before it is sent. False: look again, it is answered or being asked."""
        self.ensure_room()
        key = _claim_key(q)
        with self.transaction() as db:
            if self._find(q, need) is not None:
                return False
            held = db.execute(
                "SELECT owner, since FROM claims"
                " WHERE pixel_digest = ? AND teacher = ? AND revision = ? AND view = ?",
                key,
            ).fetchone()
            if held is not None and self._stands(*held):
                return False
            db.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?)",
                (*key, self._owner.token, time.time()),
            )
        return True

    def reserve(self, teacher: str, cost: int, currency: str, cap: Cap, *, free: int = 0) -> int:
        """Count one request to `teacher`, durably, before it is sent; every retry is one of its own.

        `cost` is in micros of `currency` ('' and 0: no price is known); the first `free` requests cost
        nothing. Returns the reservation, for `commit` or `settle`. Raises BudgetExhausted where all that
        this ledger ever spent on that teacher, and this request, would pass `cap`; SettingsError where
        their currencies differ.
        """
        self.ensure_room()
        with self.transaction() as db:
            return spending.reserve(db, teacher, cost, currency, cap, free)

    def charged(self, reservation: int) -> int:
        """Micros that a reservation stands for: 0 where it is one of the free requests."""
        with self.reading() as db:
            return spending.charged(db, reservation)

    def settle(self, reservation: int, *, billed: bool) -> None:
        """The request brought no answer to store: billed, it stays spent; not billed, it is forgotten.

        Without either word it stays reserved, and so spent: it may have been billed.
        """
        with self.transaction() as db:
            spending.settle(db, reservation, billed=billed)

    def spending(self, teacher: str | None = None) -> Spending:
        """What was or may have been paid to `teacher`, or to all, ever."""
        with self.reading() as db:
            return spending.total(db, teacher)

    def commit(
        self, q: Question, frame: bytes, disclosure: Disclosure, reservation: int | None = None
    ) -> None:
        """Store an answer, end its claim and mark its `reservation` answered, in one synced transaction."""
        row: Row = (*astuple(q), disclosure.top_k, disclosure.prob_bits, b"", frame)
        row = (*row[:7], rows.checksum(row), frame)
        with self._lock:
            origin = None
            try:
                origin = self._origin(reservation)  # before the transaction: the spill must name it too
                with self.transaction():
                    self._store(row, origin)
                    self._end_claim(q)
            except _DiskFull:
                kept = spill.put(self._spill, row, origin)
                raise self._disk_full(lost=not kept) from None

    def release(self, q: Question) -> None:
        """End our claim on `q` without an answer; without one of ours, nothing happens."""
        with self.transaction():
            self._end_claim(q)

    def remember(self, url: str, info: TeacherInfo) -> None:
        """Keep what the teacher at `url` says of itself; of the URL only a digest is stored."""
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO teachers VALUES (?, ?)", (_url_digest(url), encode_info(info)))

    def recall(self, url: str) -> TeacherInfo | None:
        """The last info from `url`, or None."""
        with self.reading() as db:
            row = db.execute("SELECT info FROM teachers WHERE url_digest = ?", (_url_digest(url),)).fetchone()
        if row is None:
            return None
        try:
            return decode_info(row[0])
        except ProtocolError:
            return None  # written by another version, or damaged: as good as absent

    def counts(self) -> Counts:
        """How much is stored."""
        with self.reading() as db:
            answers, size = db.execute(
                "SELECT count(*), coalesce(sum(length(frame)), 0) FROM answers"
            ).fetchone()
            (claims,) = db.execute("SELECT count(*) FROM claims").fetchone()
            return Counts(answers, size, claims, len(self._corrupt))

    def ensure_room(self) -> None:
        """Raise LedgerError where the disk is almost full, so that answers under way still find room."""
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError as exc:
            raise LedgerError(
                f"the ledger {self.path} is gone ({exc.strerror}): go on with --resume"
            ) from exc
        if free < MIN_FREE_BYTES:
            raise self._disk_full()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The open file, for this package, kept from other threads; what fails is explained."""
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as exc:
                if schema.is_full(exc):
                    raise self._disk_full() from exc
                raise schema.failure(self.path, exc) from exc

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The open file, for this package, kept from all other writers; synced at the end, or undone."""
        with self.reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file; claims that are still ours become free for others."""
        with self._lock:
            self._db.close()
            self._owner.close()

    def _find(self, q: Question, need: Disclosure) -> bytes | None:
        for look_up, digest in zip(_LOOK_UPS, (q.digest, q.pixel_digest), strict=True):
            key = (digest, q.teacher, q.revision, q.view, need.top_k, need.prob_bits)
            for rowid, *row in self._db.execute(look_up, key):
                if rows.intact(tuple(row)):
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

    def _origin(self, reservation: int | None) -> str | None:
        if reservation is None:
            return None
        with self.reading() as db:
            return spending.origin(db, reservation)

    def _store(self, row: Row, origin: str | None) -> None:
        self._db.execute(rows.INSERT, row)
        if origin is not None:
            _, pixels, _, revision, view, *_ = row
            spending.answer(self._db, origin, revision, view, pixels)

    def _end_claim(self, q: Question) -> None:
        self._db.execute(
            "DELETE FROM claims"
            " WHERE pixel_digest = ? AND teacher = ? AND revision = ? AND view = ? AND owner = ?",
            (*_claim_key(q), self._owner.token),
        )

    def _take_in(self) -> None:
        for file, kept in spill.waiting(self._spill):
            if kept is not None and rows.intact(kept[0]):
                with self.transaction():
                    self._store(*kept)
            file.unlink(missing_ok=True)  # damaged: as good as never written

    def _disk_full(self, *, lost: bool = False) -> _DiskFull:
        safe = "what was stored before is safe"
        with self._lock, contextlib.suppress(sqlite3.Error, OSError):
            (stored,) = self._db.execute("SELECT count(*) FROM answers").fetchone()
            safe = f"{stored + spill.held(self._spill)} answers are safe"
        if lost:
            safe += ", the last one found no room and will be asked again"
        return _DiskFull(f"the disk is full: {self.path}: free space and go on with --resume; {safe}")


def _claim_key(q: Question) -> tuple[str, str, str, str]:
    return (q.pixel_digest, q.teacher, q.revision, q.view)


def _url_digest(url: str) -> str:
    return hashlib.sha256(url.rstrip("/").encode()).hexdigest()


def _make_private(path: Path) -> None:
    """The file exists with mode 0600; SQLite gives its own side files the same mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
