"""The ledger: nothing that was paid for is lost, nothing damaged is used, one of many asks."""

import logging
import os
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_protocol import Disclosure, encode_prediction
from corte_student.errors import LedgerError, SettingsError
from corte_student.ledger import Ledger, Question, default_ledger_path, ensure_outside, store
from faulty_teacher import expected, teacher_info
from pictures import make_picture

LABELS, CONFIDENCE, MARGIN, FULL = Disclosure(1, 0), Disclosure(1, 8), Disclosure(2, 8), Disclosure(3, 16)
Q = Question("file-1", "pixels-1", "faulty", "r1")


def frame(level: Disclosure = MARGIN, seed: int = 0) -> bytes:
    return encode_prediction(
        expected(make_picture(seed).pixels, Disclosure(level.top_k, min(level.prob_bits, 8)))
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(path)
    yield opened
    opened.close()


def damage(path: Path) -> None:
    """Flip the stored frame's last byte behind the ledger's back."""
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE answers SET frame = substr(frame, 1, length(frame) - 1) || x'00'")
    db.close()


def test_an_answer_outlives_the_ledger(path: Path) -> None:
    """What was committed is found after closing and opening again."""
    ledger = Ledger.open(path)
    assert ledger.find(Q, LABELS) is None
    assert ledger.claim(Q, MARGIN)
    ledger.commit(Q, frame(), MARGIN)
    ledger.close()
    again = Ledger.open(path)
    assert again.find(Q, MARGIN) == frame()
    counts = again.counts()
    assert (counts.answers, counts.frame_bytes, counts.claims) == (1, len(frame()), 0)
    again.close()


LEVELS = [LABELS, CONFIDENCE, MARGIN, Disclosure(3, 8), FULL]


@pytest.mark.parametrize("stored", LEVELS)
@pytest.mark.parametrize("need", LEVELS)
def test_wider_serves_narrower_and_never_the_other_way(
    ledger: Ledger, stored: Disclosure, need: Disclosure
) -> None:
    """A stored answer is found exactly where its level allows what is needed."""
    ledger.commit(Q, b"frame", stored)
    assert (ledger.find(Q, need) is not None) == stored.allows(need)


def test_the_narrowest_answer_that_serves_is_read(ledger: Ledger) -> None:
    """Several levels of one answer live side by side; the cheapest that suffices is used."""
    for level in LEVELS:
        ledger.commit(Q, str(level).encode(), level)
    for level in LEVELS:
        assert ledger.find(Q, level) == str(level).encode()


def test_the_same_pixels_in_another_file_are_known(ledger: Ledger) -> None:
    """A second index by pixel digest serves copies in other formats."""
    ledger.commit(Q, frame(), MARGIN)
    assert ledger.find(replace(Q, digest="file-2"), MARGIN) == frame()


@pytest.mark.parametrize("field", ["teacher", "revision", "view"])
def test_another_teacher_revision_or_view_is_another_question(ledger: Ledger, field: str) -> None:
    """An answer counts only for who gave it, at which revision, to which view."""
    ledger.commit(Q, frame(), MARGIN)
    assert ledger.find(replace(Q, **{field: "other"}), LABELS) is None


def test_a_damaged_row_is_reported_and_asked_again(
    path: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """A frame that fails its checksum is not used; a new answer takes its place."""
    ledger.commit(Q, frame(), MARGIN)
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert ledger.find(Q, LABELS) is None
        assert ledger.find(Q, LABELS) is None
    assert len(caplog.records) == 1
    assert ledger.counts().corrupt == 1
    assert ledger.claim(Q, LABELS)
    ledger.commit(Q, frame(), MARGIN)
    assert ledger.find(Q, LABELS) == frame()


def test_a_row_moved_to_another_question_fails_its_checksum(path: Path, ledger: Ledger) -> None:
    """The checksum covers the key, so an answer cannot be attached to other pixels."""
    ledger.commit(Q, frame(), MARGIN)
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE answers SET revision = 'r2'")
    db.close()
    assert ledger.find(replace(Q, revision="r2"), LABELS) is None


def test_a_claim_holds_until_answered_or_released(path: Path, ledger: Ledger) -> None:
    """While one holds a question no other gets it; released it is free, answered nobody needs it."""
    other = Ledger.open(path)
    twin = replace(Q, digest="file-2")
    assert ledger.claim(Q, MARGIN)
    assert not other.claim(twin, MARGIN)
    assert not ledger.claim(Q, MARGIN)
    other.release(Q)
    assert not other.claim(Q, MARGIN)
    ledger.release(Q)
    assert other.claim(Q, MARGIN)
    other.commit(Q, frame(), MARGIN)
    assert not ledger.claim(Q, MARGIN)
    assert ledger.find(twin, MARGIN) == frame()
    assert ledger.claim(Q, FULL)
    other.close()


def test_a_closed_owner_frees_its_claims(path: Path, ledger: Ledger) -> None:
    """A ledger that was closed with a claim open holds nobody up."""
    other = Ledger.open(path)
    assert other.claim(Q, MARGIN)
    other.close()
    assert ledger.claim(Q, MARGIN)


def test_a_killed_owner_frees_its_claims(path: Path, ledger: Ledger) -> None:
    """The claims of a process that died by SIGKILL are taken over at once."""
    script = (
        "import os, signal, sys; from pathlib import Path; from corte_protocol import Disclosure;"
        "from corte_student.ledger import Ledger, Question;"
        "l = Ledger.open(Path(sys.argv[1]));"
        "assert l.claim(Question('file-1', 'pixels-1', 'faulty', 'r1'), Disclosure(1, 0));"
        "print('claimed', flush=True); sys.stdin.read(1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"claimed\n"
        assert not ledger.claim(Q, LABELS)
        process.communicate(b"x")
    assert ledger.claim(Q, LABELS)


def test_a_claim_older_than_the_lease_is_taken_over(path: Path, ledger: Ledger) -> None:
    """An owner that hangs for longer than any request does not hold the question for ever."""
    assert ledger.claim(Q, MARGIN)
    other = Ledger.open(path, lease_s=-1.0)
    assert other.claim(Q, MARGIN)
    other.close()


def test_of_many_threads_and_ledgers_one_claims(path: Path) -> None:
    """However many try at once, each question is claimed once."""
    ledgers = [Ledger.open(path) for _ in range(3)]
    won: list[int] = []

    def work(ledger: Ledger) -> None:
        won.extend(n for n in range(10) if ledger.claim(replace(Q, pixel_digest=f"p{n}"), LABELS))

    threads = [threading.Thread(target=work, args=(ledger,)) for ledger in ledgers * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(10))
    for ledger in ledgers:
        ledger.close()


def test_files_are_for_their_owner_only(path: Path) -> None:
    """The ledger and all that lies beside it is mode 0600, even where it was wider; settings are durable."""
    path.parent.mkdir()
    path.touch(0o644)
    ledger = Ledger.open(path)
    ledger.commit(Q, frame(), MARGIN)
    files = [file for file in path.parent.rglob("*") if file.is_file()]
    assert {f"{path.name}-wal", f"{path.name}-shm", path.name} < {file.name for file in files}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    ledger.close()
    assert [file.name for file in path.parent.rglob("*") if file.is_file()] == [path.name]


def test_neither_url_nor_file_names_are_stored(path: Path, ledger: Ledger) -> None:
    """The file holds digests, opaque names and frames."""
    url = "http://a-very-private-host.example:8000"
    ledger.remember(url + "/", teacher_info())
    assert ledger.recall(url) == teacher_info()
    assert ledger.recall("http://other") is None
    ledger.remember(url, teacher_info("r2"))
    assert ledger.recall(url) == teacher_info("r2")
    ledger.close()
    assert b"private-host" not in path.read_bytes()


def test_a_newer_ledger_is_not_touched(path: Path) -> None:
    """A schema from the future is refused with the remedy."""
    Ledger.open(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"newer corte-student.*update it"):
        Ledger.open(path)
    assert path.read_bytes() == before


def test_other_files_are_refused_untouched(tmp_path: Path) -> None:
    """Neither another program's database nor a text file is written to."""
    text, foreign = tmp_path / "notes.txt", tmp_path / "foreign.sqlite"
    text.write_text("not a database, certainly not one " * 40)
    db = sqlite3.connect(foreign)
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    for file in (text, foreign):
        before = file.read_bytes()
        with pytest.raises(LedgerError, match="--ledger"):
            Ledger.open(file)
        assert file.read_bytes() == before
    with pytest.raises(LedgerError, match="--ledger"):
        Ledger.open(tmp_path)
    with pytest.raises(LedgerError, match="--ledger"):
        Ledger.open(text / "ledger.sqlite")


def test_a_full_ledger_loses_nothing(path: Path) -> None:
    """When no page is left the error counts what is safe, the paid answer included, and it is there later."""
    ledger = Ledger.open(path, max_bytes=20 * 4096)
    answers = {n: os.urandom(20_000) for n in range(8)}
    safe = 0
    with pytest.raises(LedgerError) as failure:
        for n, body in answers.items():
            question = replace(Q, digest=f"f{n}", pixel_digest=f"p{n}")
            assert ledger.claim(question, MARGIN)
            safe = n + 1
            ledger.commit(question, body, MARGIN)
    assert str(failure.value) == (
        f"the disk is full: {path}: free space and go on with --resume; {safe} answers are safe"
    )
    assert 0 < safe < len(answers)
    ledger.close()
    again = Ledger.open(path)
    assert again.counts().answers == safe
    for n in range(safe):
        assert again.find(replace(Q, digest=f"f{n}", pixel_digest="?"), MARGIN) == answers[n]
    assert again.claim(replace(Q, digest="f7", pixel_digest="p7"), MARGIN)
    again.close()
    assert not list(path.parent.glob("*-spill/*"))


def test_nothing_is_claimed_on_a_disk_that_is_almost_full(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before space runs out nothing more is asked, so that answers under way find room."""
    monkeypatch.setattr(store, "MIN_FREE_BYTES", 1 << 62)
    with pytest.raises(LedgerError, match=r"the disk is full: .* 0 answers are safe"):
        ledger.claim(Q, MARGIN)
    ledger.commit(Q, frame(), MARGIN)
    assert ledger.counts().claims == 0


def test_a_file_size_limit_loses_nothing(path: Path) -> None:
    """Under RLIMIT_FSIZE the error is one line, and every answer handed over is there afterwards."""
    script = (
        "import os, sys; from pathlib import Path; from corte_protocol import Disclosure, CorteError;"
        "from corte_student.ledger import Ledger, Question\n"
        "l = Ledger.open(Path(sys.argv[1]))\n"
        "try:\n"
        "  for n in range(100):\n"
        "    q = Question(f'f{n}', f'p{n}', 'faulty', 'r1'); claimed = l.claim(q, Disclosure(1, 0))\n"
        "    print(n, flush=True); l.commit(q, bytes([n]) * 9000, Disclosure(1, 0))\n"
        "except CorteError as exc: print(exc, file=sys.stderr); sys.exit(exc.exit_code)\n"
    )
    Ledger.open(path).close()
    result = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)),
    )
    asked = [int(line) for line in result.stdout.split()]
    assert result.returncode == 4
    assert result.stderr.startswith("the disk is full") and result.stderr.count("\n") == 1
    assert f"{len(asked)} answers are safe" in result.stderr
    ledger = Ledger.open(path)
    for n in asked:
        assert ledger.find(Question(f"f{n}", "?", "faulty", "r1"), LABELS) == bytes([n]) * 9000
    assert ledger._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    ledger.close()


def test_the_default_lies_in_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """XDG_DATA_HOME decides where it is absolute, else the home folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_ledger_path() == tmp_path / "corte/ledger.sqlite"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_ledger_path() == tmp_path / ".local/share/corte/ledger.sqlite"


def test_a_ledger_inside_the_run_is_refused(tmp_path: Path) -> None:
    """Neither directly nor through a link may it lie in RUN."""
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "alias").symlink_to(run)
    ensure_outside(tmp_path / "ledger.sqlite", run)
    ensure_outside(tmp_path / "run.sqlite", run)
    for inside in (run / "ledger.sqlite", tmp_path / "alias" / "x" / "l.sqlite"):
        with pytest.raises(SettingsError, match="--ledger"):
            ensure_outside(inside, run)


@settings(max_examples=25)
@given(frames=st.lists(st.binary(max_size=300), min_size=1, max_size=6), stop=st.integers(0, 5))
def test_any_frames_come_back_as_they_were(
    frames: list[bytes], stop: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The blob is the frame as received, whatever its bytes."""
    path = tmp_path_factory.mktemp("ledger") / "l.sqlite"
    ledger = Ledger.open(path)
    for n, body in enumerate(frames):
        ledger.commit(replace(Q, digest=str(n), pixel_digest=f"p{n}"), body, LABELS)
        if n == stop:
            ledger.close()
            ledger = Ledger.open(path)
    for n, body in enumerate(frames):
        assert ledger.find(replace(Q, digest=str(n), pixel_digest=f"p{n}"), LABELS) == body
    ledger.close()
