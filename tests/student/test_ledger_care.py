"""Looking after a ledger: what is there is told, what is damaged is found, only what is meant is removed."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from corte_student.ledger import Ledger, Selection, Spending, prune, rows, take_stock, verify, weigh
from ledgers import MARGIN, NO_CAP, body, damage, filled, make_v1, pay, question, to_the_end

QUESTIONS = [
    *(question(n) for n in range(3)),
    question(3, view="flip"),
    question(4, revision="r2"),
    question(5, teacher="other"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def integrity(path: Path) -> str:
    db = sqlite3.connect(path)
    (said,) = db.execute("PRAGMA integrity_check").fetchone()
    db.close()
    return str(said)


def test_the_stock_is_told_by_teacher_revision_view_and_level(path: Path) -> None:
    """Groups add up; money by teacher; claims, and sizes of the file and its disk."""
    ledger = filled(path, *QUESTIONS)
    ledger.reserve("other", 5, "eur", NO_CAP)
    assert ledger.claim(question(9), MARGIN)
    stock = take_stock(ledger)
    told = [(g.teacher, g.revision, g.view, g.level, g.answers, g.frame_bytes) for g in stock.groups]
    assert told == [
        ("faulty", "r1", "flip", "margin", 1, len(body(3))),
        ("faulty", "r1", "identity", "margin", 3, sum(len(body(n)) for n in range(3))),
        ("faulty", "r2", "identity", "margin", 1, len(body(4))),
        ("other", "r1", "identity", "margin", 1, len(body(5))),
    ]
    assert (stock.answers, stock.frame_bytes) == (6, sum(len(body(n)) for n in range(6)))
    assert stock.claims == 1
    assert stock.spending == {
        "faulty": Spending(5, 5, {"usd": 7500}),
        "other": Spending(2, 1, {"usd": 1500, "eur": 5}),
    }
    ledger.close()
    assert stock.file_bytes == path.stat().st_size
    assert stock.free_bytes > 0


@pytest.mark.parametrize("answers", [0, 1, 700])
def test_verify_looks_at_every_row(path: Path, answers: int) -> None:
    """However many batches that takes; damaged ones are counted, and stay without `drop`."""
    ledger = Ledger.open(path)
    with ledger.transaction() as db:
        for n in range(answers):
            key = (f"file-{n}", f"pixels-{n}", "faulty", "r1", "identity", 2, 8)
            db.execute(rows.INSERT, (*key, rows.checksum((*key, b"", body(n))), body(n)))
    hurt = {f"file-{n}" for n in (0, 300, 699) if n < answers}
    for digest in hurt:
        damage(path, digest)
    steps = list(verify(ledger))
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert (steps[-1].total, steps[-1].done) == (answers, answers)
    assert (steps[-1].damaged, steps[-1].dropped) == (len(hurt), 0)
    assert ledger.counts().answers == answers
    end = to_the_end(verify(ledger, drop=True))
    assert (end.damaged, end.dropped) == (len(hurt), len(hurt))
    assert to_the_end(verify(ledger)).damaged == 0
    assert ledger.counts().answers == answers - len(hurt)
    ledger.close()


def test_verify_keeps_few_bytes_in_memory(path: Path) -> None:
    """A batch ends after 16 MB, however large the answers are."""
    ledger = Ledger.open(path)
    for n in range(5):
        ledger.commit(question(n), os.urandom(9 << 20), MARGIN)
    with ledger.reading() as db:
        assert [len(rows.batch(db, after)) for after in range(0, 5, 2)] == [2, 2, 1]
    assert to_the_end(verify(ledger)).done == 5
    ledger.close()


def test_what_takes_a_damaged_rows_place_is_not_dropped(path: Path) -> None:
    """Between finding and removing another process may have asked again: the good answer stays."""
    ledger = filled(path, question(0), question(1))
    damage(path, "file-1")

    class Late(Ledger):
        """Between the two drops the row and asks again, as another process would: the same rowid is used."""

        @contextlib.contextmanager
        def transaction(self):  # type: ignore[no-untyped-def]
            to_the_end(verify(ledger, drop=True))
            ledger.commit(question(1), body(1), MARGIN)
            with super().transaction() as db:
                yield db

    late = Late.open(path)
    end = to_the_end(verify(late, drop=True))
    assert (end.damaged, end.dropped) == (1, 0)
    assert ledger.find(question(1), MARGIN) == body(1)
    late.close()
    ledger.close()


@pytest.mark.parametrize(
    ("chosen", "gone"),
    [
        (Selection(teacher="faulty"), {0, 1, 2, 3, 4}),
        (Selection(revision="r1"), {0, 1, 2, 3, 5}),
        (Selection(revision="r1", view="flip"), {3}),
        (Selection("faulty", "r2"), {4}),
        (Selection(teacher="nobody"), set()),
    ],
)
def test_prune_removes_what_is_chosen_and_nothing_else(path: Path, chosen: Selection, gone: set[int]) -> None:
    """Weighed before: answers, bytes and what they cost. Other answers and all spending stay."""
    ledger = filled(path, *QUESTIONS)
    answers, size, paid = weigh(ledger, chosen)
    assert (answers, size) == (len(gone), sum(len(body(n)) for n in gone))
    assert paid == (Spending(answers, answers, {"usd": 1500 * answers}) if gone else Spending(0, 0, {}))
    end = to_the_end(prune(ledger, chosen))
    assert (end.total, end.done) == (answers, answers)
    for n, q in enumerate(QUESTIONS):
        assert ledger.find(q, MARGIN) == (None if n in gone else body(n))
    assert ledger.spending() == Spending(6, 6, {"usd": 9000})
    assert weigh(ledger, chosen) == (0, 0, Spending(0, 0, {}))
    ledger.close()
    assert integrity(path) == "ok"


def test_what_is_asked_again_costs_both_times(path: Path) -> None:
    """An answer whose damaged self was paid for before weighs what both cost; a pruned one no more."""
    ledger = filled(path, question(0), question(1))
    damage(path, "file-0")
    pay(ledger, question(0), body(0), cost=500)
    assert weigh(ledger, Selection(revision="r1"))[2].micros == {"usd": 3500}
    ledger.close()


def test_nothing_chosen_is_not_everything(path: Path) -> None:
    """An empty choice is a fault of the caller; the ledger is left alone."""
    ledger = filled(path, question(0))
    with pytest.raises(ValueError, match="choose"):
        to_the_end(prune(ledger, Selection()))
    assert ledger.counts().answers == 1
    ledger.close()


@pytest.mark.parametrize("old", [False, True])
def test_pruning_makes_the_file_smaller_while_others_use_it(path: Path, old: bool) -> None:
    """A new ledger in small steps, one of schema 1 in one; whoever has it open goes on, before and after."""
    if old:
        make_v1(path, 5)
    ledger = Ledger.open(path)
    for n in range(10, 40):
        ledger.commit(question(n, revision="r2"), os.urandom(200_000), MARGIN)
    other = Ledger.open(path)
    pay(other, question(50), body(50))
    before = take_stock(ledger).file_bytes
    for step in prune(ledger, Selection(revision="r2")):
        pay(other, question(100 + step.done), body(step.done))
    pay(other, question(51), body(51))
    after = take_stock(ledger).file_bytes
    assert after < before / 10
    for n in (*range(5 if old else 0), 50, 51):
        assert other.find(question(n), MARGIN) == body(n)
    assert to_the_end(verify(other)).damaged == 0
    end = to_the_end(prune(ledger, Selection(revision="r1")))
    assert end.done == end.total > 2
    other.close()
    ledger.close()
    assert path.stat().st_size <= after
    assert integrity(path) == "ok"


def test_vacuum_keeps_the_place_of_each_row(path: Path) -> None:
    """A walk by rowid in one process misses nothing when another makes the file smaller."""
    make_v1(path, 300)
    ledger = Ledger.open(path)
    ledger.commit(question(300, revision="r2"), body(300), MARGIN)
    with ledger.transaction() as db:
        db.execute("DELETE FROM answers WHERE rowid % 3 = 0 AND revision = 'r1'")
        before = [rowid for (rowid,) in db.execute("SELECT rowid FROM answers WHERE revision = 'r1'")]
    to_the_end(prune(ledger, Selection(revision="r2")))
    with ledger.reading() as db:
        assert [rowid for (rowid,) in db.execute("SELECT rowid FROM answers ORDER BY rowid")] == sorted(
            before
        )
        assert db.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    ledger.close()


def test_a_kill_while_pruning_leaves_it_whole(path: Path) -> None:
    """After SIGKILL the file is sound, others' answers are there, and pruning again finishes."""
    ledger = filled(path, question(0))
    with ledger.transaction() as db:
        for n in range(1, 600):
            row = (f"file-{n}", f"pixels-{n}", "faulty", "r2", "identity", 2, 8)
            db.execute(rows.INSERT, (*row, rows.checksum((*row, b"", body(n))), body(n)))
    ledger.close()
    script = (
        "import os, signal, sys; from pathlib import Path; from corte_student.ledger import *\n"
        "for step in prune(Ledger.open(Path(sys.argv[1])), Selection(revision='r2')):\n"
        "    step.done and os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    ledger = Ledger.open(path)
    assert 1 < ledger.counts().answers < 600
    assert to_the_end(verify(ledger)).damaged == 0
    to_the_end(prune(ledger, Selection(revision="r2")))
    assert ledger.counts().answers == 1
    assert ledger.find(question(0), MARGIN) == body(0)
    ledger.close()
    assert integrity(path) == "ok"
