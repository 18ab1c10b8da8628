"""Looking after a ledger: what it holds, whether it is intact, and removing what is no longer wanted.

Rule 1: long work goes in batches, each read or written at once, so other processes use the ledger meanwhile
and a kill at any point leaves it whole. Rule 2: what was spent is history and is never removed.

`verify` and `prune` are generators of how far they have come: `*_, end = verify(ledger)` runs one to its end.
"""

import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from corte_protocol import Disclosure, InvalidValue
from corte_student.ledger import rows, spending
from corte_student.ledger.rows import EVERYTHING, Selection
from corte_student.ledger.spending import Spending
from corte_student.ledger.store import Ledger

_ROWS: Final = 256  # removed in one step
_PAGES: Final = 1000  # given back in one step, 4 MB


@dataclass(frozen=True, slots=True)
class Group:
    """The answers of one teacher, revision, view and level."""

    teacher: str
    revision: str
    view: str
    level: str
    answers: int
    frame_bytes: int


@dataclass(frozen=True, slots=True)
class Stock:
    """What a ledger holds; sizes in bytes. `spending` is by teacher."""

    groups: tuple[Group, ...]
    claims: int
    spending: Mapping[str, Spending]
    file_bytes: int
    free_bytes: int

    @property
    def answers(self) -> int:
        """Of all groups."""
        return sum(group.answers for group in self.groups)

    @property
    def frame_bytes(self) -> int:
        """Of all groups."""
        return sum(group.frame_bytes for group in self.groups)


@dataclass(frozen=True, slots=True)
class Checked:
    """`done` of `total` answers were checked; of the `damaged` ones some may have been `dropped`."""

    total: int
    done: int = 0
    damaged: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Pruned:
    """`done` of `total` answers are removed."""

    total: int
    done: int = 0


def take_stock(ledger: Ledger) -> Stock:
    """Count what is there, damaged rows included; `verify` tells those."""
    with ledger.reading() as db:
        found = db.execute(
            "SELECT teacher, revision, view, top_k, prob_bits, count(*), sum(length(frame)) FROM answers"
            " GROUP BY teacher, revision, view, top_k, prob_bits"
            " ORDER BY teacher, revision, view, top_k, prob_bits"
        ).fetchall()
        (claims,) = db.execute("SELECT count(*) FROM claims").fetchone()
        spent = {teacher: spending.total(db, teacher) for teacher in spending.teachers(db)}
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        (page_size,) = db.execute("PRAGMA page_size").fetchone()
    groups = tuple(
        Group(teacher, revision, view, _level(top_k, prob_bits), answers, size)
        for teacher, revision, view, top_k, prob_bits, answers, size in found
    )
    return Stock(groups, claims, spent, pages * page_size, shutil.disk_usage(ledger.path.parent).free)


def verify(ledger: Ledger, *, drop: bool = False) -> Iterator[Checked]:
    """Check every answer's checksum, in constant memory; with `drop` remove those that fail it."""
    with ledger.reading() as db:
        checked = Checked(rows.count(db))
    yield checked
    after = 0
    while True:
        with ledger.reading() as db:
            found = rows.batch(db, after)
        if not found:
            return
        after = found[-1][0]
        bad = [rowid for rowid, row in found if not rows.intact(row)]
        gone = 0
        if drop and bad:
            with ledger.transaction() as db:
                gone = sum(_drop(db, rowid) for rowid in bad)
        checked = replace(
            checked,
            done=checked.done + len(found),
            damaged=checked.damaged + len(bad),
            dropped=checked.dropped + gone,
        )
        yield checked


def weigh(ledger: Ledger, chosen: Selection) -> tuple[int, int, Spending]:
    """What `prune` would remove: answers, bytes of their frames, and what is known to be paid for them."""
    condition, values = chosen.condition()
    with ledger.reading() as db:
        answers, size = db.execute(
            f"SELECT count(*), coalesce(sum(length(frame)), 0) FROM answers WHERE {condition}", values
        ).fetchone()
        return answers, size, spending.of_answers(db, chosen)


def prune(ledger: Ledger, chosen: Selection) -> Iterator[Pruned]:
    """Remove the chosen answers and give their space back to the disk. Claims and spending stay.

    Refuses to remove everything: ValueError. A ledger made by schema 1 gives its space back in one long
    step the first time, during which others that write wait.
    """
    if chosen == EVERYTHING:
        raise ValueError("choose what to prune")
    with ledger.reading() as db:
        pruned = Pruned(rows.count(db, chosen))
    yield pruned
    condition, values = chosen.condition()
    after = 0
    while True:
        with ledger.reading() as db:
            (upto,) = db.execute(
                "SELECT max(rowid) FROM (SELECT rowid FROM answers"
                f" WHERE rowid > ? AND {condition} ORDER BY rowid LIMIT {_ROWS})",
                (after, *values),
            ).fetchone()
        if upto is None:
            break
        with ledger.transaction() as db:
            gone = db.execute(
                f"DELETE FROM answers WHERE rowid > ? AND rowid <= ? AND {condition}", (after, upto, *values)
            ).rowcount
        after = upto
        pruned = replace(pruned, done=pruned.done + gone)
        yield pruned
    _shrink(ledger)


def _drop(db: sqlite3.Connection, rowid: int) -> int:
    """Remove a damaged row, unless a good answer took its place meanwhile. How many were removed."""
    row = db.execute(f"SELECT {rows.COLUMNS} FROM answers WHERE rowid = ?", (rowid,)).fetchone()
    if row is None or rows.intact(row):
        return 0
    return db.execute("DELETE FROM answers WHERE rowid = ?", (rowid,)).rowcount


def _shrink(ledger: Ledger) -> None:
    with ledger.reading() as db:
        (stepwise,) = db.execute("PRAGMA auto_vacuum").fetchone()
        if not stepwise:  # made by schema 1: this also makes it stepwise
            db.execute("VACUUM")
    with ledger.reading() as db:
        left = _free_pages(db)
    while left:
        with ledger.reading() as db:
            db.execute(f"PRAGMA incremental_vacuum({_PAGES})").fetchall()
            before, left = left, _free_pages(db)
        if left >= before:
            break  # another process removes too, and gives back what it removes
    with ledger.reading() as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _free_pages(db: sqlite3.Connection) -> int:
    (pages,) = db.execute("PRAGMA freelist_count").fetchone()
    return int(pages)


def _level(top_k: int, prob_bits: int) -> str:
    try:
        return str(Disclosure(top_k, prob_bits))
    except (InvalidValue, TypeError):
        return f"{top_k}/{prob_bits}"  # a damaged row
