"""Ledgers for tests: one as schema 1 wrote it, by its own SQL, and answers that are told apart by number."""

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from corte_protocol import Disclosure, encode_info
from corte_student.ledger import Ledger, Question
from corte_student.money import Cap
from faulty_teacher import teacher_info

T = TypeVar("T")

MARGIN = Disclosure(2, 8)
NO_CAP = Cap()
URL = "http://teacher.example:8000"

V1_SQL = """
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
V1_INSERT = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


def question(n: int, teacher: str = "faulty", revision: str = "r1", view: str = "identity") -> Question:
    """Question number `n`."""
    return Question(f"file-{n}", f"pixels-{n}", teacher, revision, view)


def body(n: int) -> bytes:
    """The answer to it: any bytes, 3000 of them."""
    return f"answer {n} ".encode() * (3000 // len(f"answer {n} "))


def v1_row(n: int) -> tuple[object, ...]:
    """Answer number `n` as schema 1 stores it."""
    key = (f"file-{n}", f"pixels-{n}", "faulty", "r1", "identity", 2, 8)
    return (*key, hashlib.sha256(repr(key).encode() + body(n)).digest(), body(n))


def make_v1(path: Path, answers: int) -> None:
    """A ledger of schema 1 with `answers` answers, a claim and a teacher."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(V1_SQL)
    db.execute(f"PRAGMA application_id = {0x43525445}")
    db.execute("PRAGMA user_version = 1")
    db.executemany(V1_INSERT, [v1_row(n) for n in range(answers)])
    db.execute("INSERT INTO claims VALUES ('pixels-x', 'faulty', 'r1', 'identity', 'somebody', 0.0)")
    url_digest = hashlib.sha256(URL.encode()).hexdigest()
    db.execute("INSERT INTO teachers VALUES (?, ?)", (url_digest, encode_info(teacher_info())))
    db.close()


def pay(ledger: Ledger, q: Question, frame: bytes, cost: int = 1500, currency: str = "usd") -> None:
    """Claim, reserve and commit, as asking does."""
    assert ledger.claim(q, MARGIN)
    reservation = ledger.reserve(q.teacher, cost, currency, NO_CAP)
    ledger.commit(q, frame, MARGIN, reservation)


def filled(path: Path, *questions: Question) -> Ledger:
    """An open ledger in which `questions` are answered, the n-th with `body(n)`, for 1500 micro-usd each."""
    ledger = Ledger.open(path)
    for n, q in enumerate(questions):
        pay(ledger, q, body(n))
    return ledger


def damage(path: Path, digest: str) -> None:
    """Spoil the end of one stored frame behind the ledger's back."""
    db = sqlite3.connect(path)
    with db:
        changed = db.execute(
            "UPDATE answers SET frame = substr(frame, 1, length(frame) - 1) || x'00' WHERE digest = ?",
            (digest,),
        ).rowcount
    db.close()
    assert changed == 1


def to_the_end(steps: Iterator[T]) -> T:
    """Run a generator of steps; its last one."""
    *_, end = steps
    return end
