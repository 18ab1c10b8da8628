"""`corte-student ledger`: what a person sees, what a script reads, and the exit codes."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from corte_student.cli import app
from corte_student.cli.ledger import ledger as verbs
from corte_student.ledger import Ledger
from ledgers import MARGIN, NO_CAP, body, damage, filled, make_v1, question

HOST = typer.Typer(cls=app.info.cls, pretty_exceptions_enable=False)  # maps errors as corte-student does
HOST.add_typer(verbs)
PROGRAM = (
    "import typer; from corte_student.cli import app; from corte_student.cli.ledger import ledger;"
    "host = typer.Typer(cls=app.info.cls, pretty_exceptions_enable=False); host.add_typer(ledger); host()"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three answers of r1, one of r2, one request without an answer."""
    path = tmp_path / "ledger.sqlite"
    ledger = filled(path, question(0), question(1), question(2, view="flip"), question(3, revision="r2"))
    ledger.reserve("faulty", 500_000, "usd", NO_CAP)
    ledger.close()
    return path


def run(*args: object) -> Result:
    """`corte-student ledger ARGS` in this process."""
    return CliRunner().invoke(HOST, ["ledger", *map(str, args)], env={"COLUMNS": "120"})


def failed(result: Result, code: int) -> str:
    """The one line that a failure prints."""
    assert result.exit_code == code, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.output
    return line


def test_help_loads_nothing_heavy() -> None:
    """`--help` of every verb answers at once."""
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from corte_student.cli.ledger import ledger\n"
        "for verb in ([], ['stats'], ['verify'], ['export'], ['merge'], ['prune']):\n"
        "    assert CliRunner().invoke(ledger, [*verb, '--help']).exit_code == 0\n"
        "print([m for m in ('torch', 'timm', 'httpx', 'cv2', 'sqlite3') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stats_tell_answers_and_money(path: Path) -> None:
    """A table by teacher, revision, view and level; money, unanswered requests, damage, the disk."""
    damage(path, "file-1")
    result = run("stats", "--ledger", path)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["faulty", "r1", "flip", "margin", "1", "0.0"] in lines
    assert ["faulty", "r1", "identity", "margin", "2", "0.0"] in lines
    assert ["all", "4", "0.0"] in lines
    assert "faulty: 0.506 usd in 5 requests, 1 unanswered" in result.stdout
    assert "0 claims, 1 damaged answers" in result.stdout
    assert "free on its disk" in result.stdout
    assert "check 4/4" in result.stderr


def test_stats_json_is_one_object(path: Path, tmp_path: Path) -> None:
    """Whole numbers only; a ledger of schema 1 has no spending."""
    told = json.loads(run("stats", "--ledger", path, "--json").stdout)
    assert {key: told[key] for key in ("answers", "damaged", "claims")} == {
        "answers": 4,
        "damaged": 0,
        "claims": 0,
    }
    assert (
        told["bytes"] == sum(len(body(n)) for n in range(4)) == sum(g["frame_bytes"] for g in told["groups"])
    )
    assert told["spending"] == {
        "faulty": {"requests": 5, "answered": 4, "unanswered": 1, "spent_micros": {"usd": 506_000}}
    }
    assert told["free_bytes"] > 0
    make_v1(tmp_path / "old.sqlite", 2)
    told = json.loads(run("stats", "--ledger", tmp_path / "old.sqlite", "--json").stdout)
    assert (told["answers"], told["claims"], told["spending"]) == (2, 1, {})
    assert "no requests are recorded" in run("stats", "--ledger", tmp_path / "old.sqlite").stdout


def test_verify_ends_with_4_while_damage_remains(path: Path) -> None:
    """As a program: 0 where all is well, 4 with the remedy, 0 once dropped."""

    def program(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROGRAM, "ledger", "verify", "--ledger", str(path), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    good = program()
    assert (good.returncode, good.stdout) == (0, "4 answers checked, 0 damaged\n")
    assert good.stderr.startswith("verify 4/4")
    damage(path, "file-1")
    bad = program()
    assert (bad.returncode, bad.stdout) == (4, "4 answers checked, 1 damaged\n")
    assert "error: 1 of 4 answers in" in bad.stderr and "--drop" in bad.stderr
    assert "Traceback" not in bad.stderr
    dropped = program("--drop")
    assert (dropped.returncode, dropped.stdout) == (0, "4 answers checked, 1 damaged, 1 removed\n")
    assert program().stdout == "3 answers checked, 0 damaged\n"


def test_export_and_merge_say_what_went(path: Path, tmp_path: Path) -> None:
    """To a folder, into a ledger that need not exist, twice; damaged answers are named."""
    damage(path, "file-1")
    (tmp_path / "out").mkdir()
    sent = run("export", tmp_path / "out", "--ledger", path, "--teacher", "faulty")
    assert sent.exit_code == 0, sent.output
    file = tmp_path / "out/ledger-export.sqlite"
    assert sent.stdout == f"3 answers (0.0 MB) and 5 payments are in {file}\n"
    assert "1 damaged answers were left out" in sent.stderr
    assert "is not overwritten" in failed(run("export", file, "--ledger", path), 2)
    make_v1(tmp_path / "old.sqlite", 6)
    mine = tmp_path / "new" / "ledger.sqlite"
    taken = run("merge", file, tmp_path / "old.sqlite", "--ledger", mine)
    assert taken.exit_code == 0, taken.output
    assert taken.stdout.splitlines() == [
        f"{file}: 3 answers taken, 0 known before, 0 damaged; 5 payments taken",
        f"{tmp_path / 'old.sqlite'}: 5 answers taken, 1 known before, 0 damaged; 0 payments taken",
    ]
    again = run("merge", file, "--ledger", mine)
    assert again.stdout == f"{file}: 0 answers taken, 3 known before, 0 damaged; 0 payments taken\n"
    assert "cannot read the ledger" in failed(run("merge", tmp_path / "none", "--ledger", mine), 4)


def test_prune_says_what_it_costs_and_asks(path: Path) -> None:
    """Nothing goes without --yes; --dry-run only tells; other answers and the spending stay."""
    choice = ["prune", "--ledger", path, "--revision", "r1", "--view", "identity"]
    said = "revision r1, view identity: 2 answers, 0.0 MB, paid with 0.003 usd\n"
    assert (run(*choice, "--dry-run").stdout, run(*choice, "--dry-run").exit_code) == (said, 0)
    refused = run(*choice)
    assert "--yes" in failed(refused, 2)
    assert refused.stdout == said
    opened = Ledger.open(path)
    assert opened.counts().answers == 4
    opened.close()
    done = run(*choice, "--yes")
    assert (done.exit_code, done.stdout) == (0, said + "2 answers removed\n")
    opened = Ledger.open(path)
    assert opened.find(question(2, view="flip"), MARGIN) == body(2)
    assert opened.find(question(3, revision="r2"), MARGIN) == body(3)
    assert opened.spending().requests == 5
    opened.close()
    none = run(*choice, "--yes")
    assert none.stdout == "revision r1, view identity: 0 answers, 0.0 MB, of no known cost\n"
    assert "--teacher or --revision" in failed(run("prune", "--ledger", path, "--view", "flip", "--yes"), 2)


@pytest.mark.parametrize(("typed", "code", "left"), [("n", 2, 4), ("y", 0, 1)])
def test_at_a_terminal_prune_asks(path: Path, typed: str, code: int, left: int) -> None:
    """Only a yes removes."""
    ours, its = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, "ledger", "prune", "--revision", "r1", "--ledger", str(path)]
    os.write(ours, f"{typed}\n".encode())
    done = subprocess.run(command, stdin=its, capture_output=True, text=True, check=False)
    os.close(ours)
    os.close(its)
    assert done.returncode == code, done.stderr
    assert "remove them? [y/N]" in done.stdout
    opened = Ledger.open(path)
    assert opened.counts().answers == left
    opened.close()


@pytest.mark.parametrize("verb", ["stats", "verify", "export", "prune"])
def test_a_ledger_that_is_not_there_is_not_made(tmp_path: Path, verb: str) -> None:
    """A slip in --ledger is told, and leaves no empty ledger behind."""
    extra = {"export": [str(tmp_path / "out")], "prune": ["--revision", "r1"]}.get(verb, [])
    missing = tmp_path / "missing.sqlite"
    assert "there is no ledger" in failed(run(verb, *extra, "--ledger", missing), 4)
    assert not list(tmp_path.iterdir())
