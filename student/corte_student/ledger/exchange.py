"""Answers from one ledger to another: into one portable file, and out of other ledgers into this one.

Rule 1: everything goes in batches, so others can use the ledgers meanwhile, and either is complete at any
kill: an export has its name only once it is whole, a merge can be repeated. Rule 2: only answers whose
checksum holds travel. Rule 3: money is never lost or counted twice: a payment has one name everywhere, and
payments are taken in before the answers they bought. Claims and owners stay where they are.

Each function is a generator of how far it has come: `*_, end = merge(ledger, other)` runs it to its end.
"""

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from corte_protocol import ProtocolError, decode_info
from corte_student.durable import sync
from corte_student.errors import LedgerError, SettingsError
from corte_student.ledger import guest, rows, schema, spending
from corte_student.ledger.rows import EVERYTHING, Row, Selection
from corte_student.ledger.store import Ledger

_KEY: Final = "digest = ? AND teacher = ? AND revision = ? AND view = ? AND top_k = ? AND prob_bits = ?"


@dataclass(frozen=True, slots=True)
class Exported:
    """`done` of `total` answers were looked at; `damaged` ones were left out, the others went to `file`."""

    file: Path
    total: int
    done: int = 0
    frame_bytes: int = 0
    damaged: int = 0
    payments: int = 0

    @property
    def answers(self) -> int:
        """How many the file holds."""
        return self.done - self.damaged


@dataclass(frozen=True, slots=True)
class Merged:
    """`done` of `total` answers were looked at: taken, known before, or damaged; `payments` were new."""

    total: int
    done: int = 0
    taken: int = 0
    duplicates: int = 0
    damaged: int = 0
    payments: int = 0


def export(ledger: Ledger, to: Path, chosen: Selection = EVERYTHING) -> Generator[Exported, None, None]:
    """Write the chosen answers, and what was paid for them, to a new ledger file at `to` or in that folder.

    Without a revision or view chosen, all that was spent on the teacher goes along, unanswered requests
    included. Raises SettingsError if there is nothing to export or the file exists, LedgerError.
    """
    file = (to / f"{ledger.path.stem}-export.sqlite" if to.is_dir() else to).absolute()
    with ledger.reading() as db:
        exported = Exported(file, rows.count(db, chosen))
    if exported.total == 0:
        raise SettingsError(f"{ledger.path} holds no answer of {chosen}: see corte-student ledger stats")
    _ensure_new(file)
    yield exported
    draft = file.with_name(f"{file.name}.{uuid.uuid4().hex}.part")
    try:
        with schema.explained(file):
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            with contextlib.closing(schema.make_portable(draft)) as target:
                exported = yield from _fill(target, ledger, chosen, exported)
                # last: whatever was answered meanwhile was paid for before
                yield from _fill_payments(target, ledger, chosen, exported)
        sync(draft)
        _publish(draft, file)
    except OSError as exc:
        raise LedgerError(f"cannot write {file} ({exc.strerror}): name another file") from exc
    finally:
        draft.unlink(missing_ok=True)


def merge(ledger: Ledger, other: Path) -> Iterator[Merged]:
    """Take in the answers and the spending of the ledger at `other`, of any schema; it is only read.

    An answer that is here and intact stays. What `other` knows of teachers fills gaps, so that a run can go
    on offline. Raises SettingsError, LedgerError; what was taken before is kept.
    """
    with guest.opened(other) as source:
        if other.samefile(ledger.path):
            raise SettingsError(f"{other} is the ledger that is merged into: name another one")
        merged = Merged(source.count())
        yield merged
        for payments in source.payments():
            ledger.ensure_room()
            with ledger.transaction() as db:
                new = spending.take_in(db, payments)
            merged = replace(merged, payments=merged.payments + new)
        infos = source.teachers()
        with ledger.transaction() as db:
            db.executemany("INSERT OR IGNORE INTO teachers VALUES (?, ?)", infos)
        for found in source.answers():
            merged = _take(ledger, found, merged)
            yield merged
        for kept in source.waiting():
            merged = _take(ledger, [kept], merged)
            yield merged


def _fill(
    target: sqlite3.Connection, ledger: Ledger, chosen: Selection, exported: Exported
) -> Generator[Exported, None, Exported]:
    after, names = 0, set()
    while True:
        with ledger.reading() as db:
            found = rows.batch(db, after, chosen)
        if not found:
            break
        after = found[-1][0]
        good = [row for _, row in found if rows.intact(row)]
        names |= {row[2] for row in good}
        _insert(target, rows.INSERT, good)
        exported = replace(
            exported,
            done=exported.done + len(found),
            frame_bytes=exported.frame_bytes + sum(len(row[8]) for row in good),
            damaged=exported.damaged + len(found) - len(good),
        )
        yield exported
    with ledger.reading() as db:
        infos = db.execute("SELECT url_digest, info FROM teachers").fetchall()
    known = [(url, info) for url, info in infos if _teacher_of(info) in names]
    _insert(target, "INSERT INTO teachers VALUES (?, ?)", known)
    return exported


def _fill_payments(
    target: sqlite3.Connection, ledger: Ledger, chosen: Selection, exported: Exported
) -> Iterator[Exported]:
    after = 0
    while True:
        with ledger.reading() as db:
            found = spending.batch(db, after, chosen)
        if not found:
            return
        after = found[-1][0]
        target.execute("BEGIN")
        spending.take_in(target, [row for _, row in found])
        target.execute("COMMIT")
        exported = replace(exported, payments=exported.payments + len(found))
        yield exported


def _insert(target: sqlite3.Connection, statement: str, values: Iterable[tuple[object, ...]]) -> None:
    target.execute("BEGIN")
    target.executemany(statement, values)
    target.execute("COMMIT")


def _teacher_of(info: bytes) -> str | None:
    try:
        return decode_info(info).teacher
    except ProtocolError:
        return None


def _take(ledger: Ledger, found: Iterable[Row | None], merged: Merged) -> Merged:
    ledger.ensure_room()
    done, taken, duplicates, damaged = merged.done, merged.taken, merged.duplicates, merged.damaged
    with ledger.transaction() as db:
        for row in found:
            done += 1
            if row is None or not rows.intact(row):
                damaged += 1
            elif _held(db, row):
                duplicates += 1
            else:
                db.execute(rows.INSERT, row)
                taken += 1
    return replace(merged, done=done, taken=taken, duplicates=duplicates, damaged=damaged)


def _held(db: sqlite3.Connection, row: Row) -> bool:
    """Whether an intact answer to the same question, at the same level, is there."""
    digest, _, *rest = row[:7]
    mine = db.execute(f"SELECT {rows.COLUMNS} FROM answers WHERE {_KEY}", (digest, *rest)).fetchone()
    return mine is not None and rows.intact(mine)


def _ensure_new(file: Path) -> None:
    if file.exists() or file.is_symlink():
        raise SettingsError(f"{file} exists and is not overwritten: name a new file")


def _publish(draft: Path, file: Path) -> None:
    """Give a whole file its name, at once, and never in another's place."""
    try:
        os.link(draft, file)
    except FileExistsError:
        _ensure_new(file)
        raise
    except OSError:  # a file system without hard links
        _ensure_new(file)
        draft.rename(file)
    sync(file.parent)
