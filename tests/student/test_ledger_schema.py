"""The ledger's file from one version to the next: in place, at once or not at all, and beside older ones."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from corte_student.errors import LedgerError
from corte_student.ledger import Ledger
from corte_student.ledger.schema import SCHEMA_VERSION
from faulty_teacher import teacher_info
from ledgers import MARGIN, NO_CAP, URL, V1_INSERT, body, make_v1, pay, question, v1_row


def version(path: Path) -> int:
    db = sqlite3.connect(path)
    (found,) = db.execute("PRAGMA user_version").fetchone()
    db.close()
    return int(found)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Five answers of schema 1."""
    path = tmp_path / "ledger.sqlite"
    make_v1(path, 5)
    return path


def test_a_ledger_of_schema_1_goes_on(old: Path) -> None:
    """Answers, claims and infos stay; nothing is known to be spent; money is counted from now on."""
    ledger = Ledger.open(old)
    for n in range(5):
        assert ledger.find(question(n), MARGIN) == body(n)
    assert ledger.recall(URL) == teacher_info()
    assert ledger.counts().claims == 1
    assert (ledger.spending().requests, dict(ledger.spending().micros)) == (0, {})
    pay(ledger, question(5), body(5))
    ledger.close()
    assert version(old) == SCHEMA_VERSION == 2
    again = Ledger.open(old)
    assert again.counts().answers == 6
    assert again.spending("faulty").micros == {"usd": 1500}
    again.close()


def test_old_and_new_files_end_up_with_the_same_tables(old: Path, tmp_path: Path) -> None:
    """A migrated ledger has exactly the schema of a new one."""

    def tables(path: Path) -> list[tuple[str, str]]:
        Ledger.open(path).close()
        db = sqlite3.connect(path)
        found = db.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
        db.close()
        return [(name, " ".join((sql or "").split())) for name, sql in found]

    assert tables(old) == tables(tmp_path / "new.sqlite")


def test_a_migration_that_fails_leaves_schema_1(old: Path) -> None:
    """Half-way through something is in the way: everything is undone, and every answer is still there."""
    db = sqlite3.connect(old)
    with db:
        db.execute("CREATE TABLE spent (in_the_way TEXT)")
    db.close()
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger.open(old)
    db = sqlite3.connect(old)
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert names == {"answers", "claims", "teachers", "spent"}
    assert db.execute("SELECT count(*) FROM answers").fetchone() == (5,)
    with db:
        db.execute("DROP TABLE spent")
    db.close()
    assert version(old) == 1
    ledger = Ledger.open(old)
    assert ledger.counts().answers == 5
    ledger.close()


def test_a_process_of_the_old_version_keeps_what_it_pays_for(old: Path) -> None:
    """One that has the file open while another migrates it stores on, by the SQL of schema 1."""
    running = sqlite3.connect(old, isolation_level=None)
    assert running.execute("SELECT count(*) FROM answers").fetchone() == (5,)
    ledger = Ledger.open(old)
    running.execute(V1_INSERT, v1_row(7))
    running.execute("DELETE FROM claims WHERE owner = 'somebody'")
    running.close()
    assert ledger.find(question(7), MARGIN) == body(7)
    assert ledger.counts().claims == 0
    ledger.close()


def test_many_processes_may_migrate_at_once(old: Path) -> None:
    """All open it, and it is migrated once."""
    script = (
        "import sys; from pathlib import Path; from corte_student.ledger import Ledger;"
        "sys.stdin.read(1); l = Ledger.open(Path(sys.argv[1])); print(l.counts().answers); l.close()"
    )
    command = [sys.executable, "-c", script, str(old)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == ["5\n"] * 4
    assert [process.returncode for process in processes] == [0] * 4
    assert version(old) == 2


def test_ids_of_forgotten_requests_are_not_given_again(old: Path) -> None:
    """A late word about one request can never be taken for another's."""
    ledger = Ledger.open(old)
    first = ledger.reserve("faulty", 1, "usd", NO_CAP)
    ledger.settle(first, billed=False)
    second = ledger.reserve("faulty", 1, "usd", NO_CAP)
    ledger.settle(first, billed=False)
    assert second != first
    assert ledger.spending().requests == 1
    ledger.close()
