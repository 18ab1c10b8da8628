"""Answers between ledgers: all that is intact arrives, money counts once, and the other is not touched."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_student.errors import BudgetExhausted, LedgerError, SettingsError
from corte_student.ledger import Ledger, Selection, Spending, export, guest, merge, store, verify
from corte_student.ledger.spending import PAYMENT
from corte_student.money import Cap
from faulty_teacher import teacher_info
from ledgers import MARGIN, NO_CAP, URL, body, damage, filled, make_v1, pay, question, to_the_end

ALL = [question(0), question(1), question(2, revision="r2"), question(3, teacher="other")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine" / "ledger.sqlite"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    return tmp_path / "theirs" / "ledger.sqlite"


def held(path: Path) -> dict[str, bytes]:
    """Every file beside and below, and what it holds."""
    return {str(file): file.read_bytes() for file in sorted(path.parent.rglob("*")) if file.is_file()}


def payments(path: Path) -> list[tuple[object, ...]]:
    db = sqlite3.connect(path)
    found = db.execute(f"SELECT {PAYMENT} FROM spending ORDER BY origin").fetchall()
    db.close()
    return found


def test_an_export_is_a_ledger_of_its_own(path: Path, tmp_path: Path) -> None:
    """Answers, spending and the teacher's info, no claims and no owners; one private file."""
    ledger = filled(path, *ALL)
    ledger.remember(URL, teacher_info())
    ledger.reserve("faulty", 7, "usd", NO_CAP)
    assert ledger.claim(question(9), MARGIN)
    end = to_the_end(export(ledger, tmp_path / "out.sqlite"))
    assert (end.total, end.done, end.answers, end.damaged, end.payments) == (4, 4, 4, 0, 5)
    assert end.frame_bytes == sum(len(body(n)) for n in range(4))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine", "out.sqlite"]
    assert stat.S_IMODE(end.file.stat().st_mode) == 0o600
    assert payments(end.file) == payments(path)
    copy = Ledger.open(end.file)
    for n, q in enumerate(ALL):
        assert copy.find(q, MARGIN) == body(n)
    assert copy.spending() == ledger.spending() == Spending(5, 4, {"usd": 6007})
    assert copy.counts().claims == 0
    assert copy.recall(URL) == teacher_info()
    copy.close()
    ledger.close()


def test_an_export_may_be_of_one_teacher_or_revision(path: Path, tmp_path: Path) -> None:
    """What was spent on a teacher goes with it; with a revision, what bought its answers."""
    ledger = filled(path, *ALL)
    ledger.remember(URL, teacher_info())
    ledger.reserve("faulty", 7, "usd", NO_CAP)
    by_teacher = to_the_end(export(ledger, tmp_path / "t.sqlite", Selection(teacher="faulty")))
    assert (by_teacher.answers, by_teacher.payments) == (3, 4)
    by_revision = to_the_end(export(ledger, tmp_path / "r.sqlite", Selection(revision="r2")))
    assert (by_revision.answers, by_revision.payments) == (1, 1)
    to_the_end(export(ledger, tmp_path / "o.sqlite", Selection(teacher="other")))
    copy = Ledger.open(tmp_path / "o.sqlite")
    assert copy.recall(URL) is None
    copy.close()
    with pytest.raises(SettingsError, match="no answer of teacher nobody, revision r1"):
        to_the_end(export(ledger, tmp_path / "n.sqlite", Selection("nobody", "r1")))
    assert not (tmp_path / "n.sqlite").exists()
    ledger.close()


def test_an_export_never_takes_anothers_place(path: Path, tmp_path: Path) -> None:
    """Neither a file that is there nor one that came meanwhile; nothing unfinished is left behind."""
    ledger = filled(path, *ALL)
    folder = tmp_path / "folder"
    folder.mkdir()
    end = to_the_end(export(ledger, folder))
    assert end.file == folder / "ledger-export.sqlite"
    with pytest.raises(SettingsError, match="is not overwritten"):
        to_the_end(export(ledger, folder))
    steps = export(ledger, folder / "late.sqlite")
    next(steps)
    (folder / "late.sqlite").write_text("came meanwhile")
    with pytest.raises(SettingsError, match="is not overwritten"):
        list(steps)
    assert (folder / "late.sqlite").read_text() == "came meanwhile"
    abandoned = export(ledger, folder / "never.sqlite")
    next(abandoned), next(abandoned)
    abandoned.close()
    with pytest.raises(LedgerError, match="name another file"):
        to_the_end(export(ledger, tmp_path / "none" / "out.sqlite"))
    assert sorted(file.name for file in folder.iterdir()) == ["late.sqlite", "ledger-export.sqlite"]
    ledger.close()


def test_a_file_system_without_links_gets_a_rename(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a memory stick's."""

    def no_links(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    ledger = filled(path, *ALL)
    assert to_the_end(export(ledger, tmp_path / "out.sqlite")).file.is_file()
    ledger.close()


def test_export_and_merge_bring_everything_back(path: Path, theirs: Path, tmp_path: Path) -> None:
    """A round trip into an empty ledger is the ledger; damaged answers stay behind."""
    source = filled(theirs, *ALL)
    damage(theirs, "file-1")
    end = to_the_end(export(source, tmp_path / "out.sqlite"))
    assert (end.answers, end.damaged) == (3, 1)
    source.close()
    ledger = Ledger.open(path)
    before = held(end.file)
    merged = to_the_end(merge(ledger, end.file))
    assert (merged.total, merged.done, merged.taken, merged.duplicates, merged.damaged) == (3, 3, 3, 0, 0)
    assert merged.payments == 4
    for n, q in enumerate(ALL):
        assert ledger.find(q, MARGIN) == (None if n == 1 else body(n))
    assert ledger.spending() == Spending(4, 4, {"usd": 6000})
    assert payments(path) == payments(theirs)
    after = held(end.file)
    assert {name: after[name] for name in before if "mine" not in name} == {
        name: data for name, data in before.items() if "mine" not in name
    }
    ledger.close()


@pytest.mark.parametrize("old", [False, True])
def test_merging_twice_changes_nothing(path: Path, theirs: Path, old: bool) -> None:
    """Answers are known before, payments count once, and the other ledger keeps every byte."""
    if old:
        make_v1(theirs, 4)
    else:
        filled(theirs, *(question(n) for n in range(4))).close()
    before = held(theirs)
    ledger = filled(path, question(0), question(9))
    first = to_the_end(merge(ledger, theirs))
    assert (first.taken, first.duplicates, first.payments) == (3, 1, 0 if old else 4)
    spent = ledger.spending()
    assert spent == Spending(2, 2, {"usd": 3000}) if old else Spending(6, 6, {"usd": 9000})
    second = to_the_end(merge(ledger, theirs))
    assert (second.total, second.done, second.taken, second.duplicates) == (4, 4, 0, 4)
    assert second.payments == 0
    assert ledger.spending() == spent
    assert ledger.recall(URL) == (teacher_info() if old else None)
    assert held(theirs) == before
    ledger.close()


def test_a_merged_cap_counts_what_others_spent(path: Path, theirs: Path) -> None:
    """After merging, the total over all that was ever spent on the teacher includes theirs."""
    filled(theirs, question(0)).close()
    ledger = filled(path, question(1))
    to_the_end(merge(ledger, theirs))
    with pytest.raises(BudgetExhausted, match=r"0\.003 usd spent in 2 requests"):
        ledger.reserve("faulty", 1500, "usd", Cap(4000, "usd"))
    ledger.close()


def test_a_payment_answered_since_is_answered_here_too(path: Path, theirs: Path) -> None:
    """Merged while under way and again later it is one payment, then answered; never the other way."""
    source, ledger = Ledger.open(theirs), Ledger.open(path)
    reservation = source.reserve("faulty", 5, "usd", NO_CAP)
    to_the_end(merge(ledger, theirs))
    assert ledger.spending() == Spending(1, 0, {"usd": 5})
    to_the_end(merge(source, path))
    source.commit(question(0), body(0), MARGIN, reservation)
    to_the_end(merge(source, path))
    assert source.spending() == Spending(1, 1, {"usd": 5})
    to_the_end(merge(ledger, theirs))
    assert ledger.spending() == Spending(1, 1, {"usd": 5})
    source.close()
    ledger.close()


def test_a_good_answer_takes_a_damaged_ones_place(path: Path, theirs: Path) -> None:
    """Merging heals; a damaged answer of theirs is never taken, a good one of ours never replaced."""
    filled(theirs, question(0), question(1), question(2)).close()
    damage(theirs, "file-1")
    ledger = filled(path, question(0))
    pay(ledger, question(2), b"ours")
    damage(path, "file-0")
    merged = to_the_end(merge(ledger, theirs))
    assert (merged.taken, merged.duplicates, merged.damaged) == (1, 1, 1)
    assert ledger.find(question(0), MARGIN) == body(0)
    assert ledger.find(question(1), MARGIN) is None
    assert ledger.find(question(2), MARGIN) == b"ours"
    assert to_the_end(verify(ledger)).damaged == 0
    ledger.close()


def test_a_ledger_in_use_is_read_through_its_log(path: Path, theirs: Path) -> None:
    """What another process has committed and not yet folded into its file is taken; it can go on."""
    source = filled(theirs, question(0), question(1))
    assert theirs.with_name("ledger.sqlite-wal").stat().st_size > 0
    main, log = theirs.read_bytes(), theirs.with_name("ledger.sqlite-wal").read_bytes()
    ledger = Ledger.open(path)
    assert to_the_end(merge(ledger, theirs)).taken == 2
    assert (theirs.read_bytes(), theirs.with_name("ledger.sqlite-wal").read_bytes()) == (main, log)
    pay(source, question(2), body(2))
    assert to_the_end(merge(ledger, theirs)).taken == 1
    source.close()
    ledger.close()


def test_a_ledger_of_a_killed_process_is_read_through_its_log(path: Path, theirs: Path) -> None:
    """A copy of the file and its log, as a kill leaves them, is enough."""
    source = filled(theirs, question(0))
    folder = theirs.parent.parent / "copy"
    folder.mkdir()
    for name in ("ledger.sqlite", "ledger.sqlite-wal"):
        shutil.copy(theirs.with_name(name), folder / name)
    source.close()
    before = held(folder / "ledger.sqlite")
    ledger = Ledger.open(path)
    assert to_the_end(merge(ledger, folder / "ledger.sqlite")).taken == 1
    after = held(folder / "ledger.sqlite")
    assert {name: after[name] for name in before} == before
    ledger.close()


def test_one_that_is_written_meanwhile_is_not_trusted(path: Path, theirs: Path) -> None:
    """Someone opens the idle ledger while it is read: what was taken stays, the rest is asked for again."""
    filled(theirs, question(0), question(1)).close()
    ledger = Ledger.open(path)
    steps = merge(ledger, theirs)
    next(steps)
    source = filled(theirs, question(2))
    with pytest.raises(LedgerError, match="was written to meanwhile: try again"):
        list(steps)
    assert to_the_end(merge(ledger, theirs)).done == 3
    assert ledger.spending() == Spending(3, 3, {"usd": 4500})
    source.close()
    ledger.close()


def test_answers_that_wait_for_room_are_taken_too(path: Path, theirs: Path) -> None:
    """What lies in the other's spill folder was paid for; the files stay where they are."""
    source = Ledger.open(theirs, max_bytes=24 * 4096)
    with pytest.raises(LedgerError, match="the disk is full"):
        for n in range(20):
            source.commit(question(n), body(n) * 5, MARGIN)
    source.close()
    (folder,) = theirs.parent.glob("*-spill")
    (folder / "damaged.answer").write_bytes(b"no json")
    before = held(theirs)
    ledger = Ledger.open(path)
    merged = to_the_end(merge(ledger, theirs))
    assert (merged.total, merged.done, merged.taken, merged.damaged) == (n + 2, n + 2, n + 1, 1)
    assert ledger.find(question(n), MARGIN) == body(n) * 5
    assert held(theirs) == before
    ledger.close()


def test_what_is_no_ledger_is_not_merged(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each: nothing there, a folder, text, another program's, an empty one, a newer one, ours."""
    ledger = filled(path, question(0))
    text, foreign, empty, newer = (tmp_path / name for name in ("text", "foreign", "empty", "newer"))
    text.write_text("not a database " * 100)
    db = sqlite3.connect(foreign)
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    empty.touch()
    shutil.copy(path, newer)
    db = sqlite3.connect(newer)
    db.execute("PRAGMA user_version = 99")
    db.close()
    for other, said in [
        (tmp_path / "none", "cannot read the ledger"),
        (tmp_path, "cannot read the ledger"),
        (text, "no ledger"),
        (foreign, "another program's"),
        (empty, "is no ledger"),
        (newer, "newer corte-student"),
    ]:
        before = other.read_bytes() if other.is_file() else None
        with pytest.raises(LedgerError, match=said):
            to_the_end(merge(ledger, other))
        assert (other.read_bytes() if other.is_file() else None) == before
    with pytest.raises(SettingsError, match="merged into"):
        to_the_end(merge(ledger, path))
    monkeypatch.setattr(store, "MIN_FREE_BYTES", 1 << 62)
    make_v1(tmp_path / "v1", 1)
    with pytest.raises(LedgerError, match="the disk is full"):
        to_the_end(merge(ledger, tmp_path / "v1"))
    assert ledger.counts().answers == 1
    ledger.close()


def test_names_that_urls_would_misread_are_fine(path: Path, tmp_path: Path) -> None:
    """A ledger may be called anything."""
    other = tmp_path / "a b?mode=rwc#%41.sqlite"
    filled(other, question(0)).close()
    with guest.opened(other) as source:
        assert source.count() == 1
    ledger = Ledger.open(path)
    assert to_the_end(merge(ledger, other)).taken == 1
    ledger.close()


def test_a_kill_while_merging_is_made_good_by_merging_again(path: Path, theirs: Path) -> None:
    """What was taken before SIGKILL is whole; the second time takes the rest, and counts nothing twice."""
    make_v1(theirs, 600)
    source = Ledger.open(theirs)
    pay(source, question(600), body(600))
    source.close()
    Ledger.open(path).close()
    script = (
        "import os, signal, sys; from pathlib import Path; from corte_student.ledger import *\n"
        "for step in merge(Ledger.open(Path(sys.argv[1])), Path(sys.argv[2])):\n"
        "    step.done and os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path), str(theirs)], check=False)
    assert done.returncode == -9
    ledger = Ledger.open(path)
    taken = ledger.counts().answers
    assert 0 < taken < 601
    end = to_the_end(merge(ledger, theirs))
    assert (end.duplicates, end.taken) == (taken, 601 - taken)
    assert ledger.spending() == Spending(1, 1, {"usd": 1500})
    ledger.close()


@settings(max_examples=15)
@given(
    shares=st.lists(st.sets(st.integers(0, 6)), min_size=2, max_size=3),
    order=st.lists(st.integers(0, 2), min_size=3, max_size=6),
)
def test_the_order_of_merging_does_not_matter(
    shares: list[set[int]], order: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever ledgers are merged, however often and in whatever order, all answers and each payment once."""
    folder = tmp_path_factory.mktemp("ledgers")
    others = [folder / f"{n}.sqlite" for n in range(len(shares))]
    for other, share in zip(others, shares, strict=True):
        ledger = Ledger.open(other)
        for n in sorted(share):
            pay(ledger, question(n), body(n))
        ledger.close()
    ledger = Ledger.open(folder / "mine.sqlite")
    for n in (*order, *range(len(shares))):
        to_the_end(merge(ledger, others[n % len(shares)]))
    assert ledger.counts().answers == len(set().union(*shares))
    count = sum(map(len, shares))
    assert ledger.spending() == Spending(count, count, {"usd": 1500 * count} if count else {})
    ledger.close()
