"""`corte-teacher keys` as an operator meets it: what is printed where, and what the file then says."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corte_teacher.cli_keys import count_text, read_count, read_span
from corte_teacher.errors import StartError
from corte_teacher.keys import Grant, read_keys

KEY = re.compile(r"ct_[0-9a-f]{8}_[0-9A-Za-z_-]{43}\n")
LIMITS = ("--disclosure", "topk:3", "--pixels-per-minute", "40M", "--pixels-per-day", "2G")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test's keys are."""
    return tmp_path / "k.json"


def run(path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run `corte-teacher keys ARGS` on this key file to its end."""
    return subprocess.run(
        [sys.executable, "-m", "corte_teacher", "keys", *args],
        env={**os.environ, "CORTE_TEACHER_KEYS": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_key_with_limits_is_made_changed_and_listed(path: Path) -> None:
    """Limits given to `create` and `change` are in the file and in the list; what is not given stays."""
    made = run(path, "create", "alice", *LIMITS, "--concurrency", "4", "--expires", "90d")
    assert made.returncode == 0 and KEY.fullmatch(made.stdout), made
    assert "not shown again" in made.stderr and "within two seconds, without a restart" in made.stderr
    (entry,) = read_keys(path).entries
    assert entry.grant == Grant("topk:3", 40_000_000, 2_000_000_000, 4)
    assert entry.until is not None
    assert abs(entry.until - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=5)
    changed = run(path, "change", "alice", "--pixels-per-day", "none", "--concurrency", "2")
    assert changed.returncode == 0 and "without a restart" in changed.stdout, changed
    assert read_keys(path).entries[0].grant == Grant("topk:3", 40_000_000, None, 2)
    assert run(path, "create", "robert").returncode == 0
    alice, robert = run(path, "list").stdout.splitlines()
    assert alice.startswith(f"alice   ct_{entry.prefix}_...  {entry.created}  expires {entry.expires}  ")
    assert alice.endswith("topk:3, 40M pixels a minute, 2 at once")
    assert robert.startswith("robert  ct_") and "never expires" in robert
    assert robert.index("no own limits") == alice.index("topk:3")


def test_a_key_is_rotated_and_revoked(path: Path) -> None:
    """`rotate` prints the new key alone and tells of both; `revoke` ends one of them, or all."""
    first = run(path, "create", "alice").stdout
    rotated = run(path, "rotate", "alice", "--overlap", "12h")
    assert rotated.returncode == 0 and KEY.fullmatch(rotated.stdout), rotated
    assert rotated.stdout.strip() not in rotated.stderr and "without a restart" in rotated.stderr
    old, new = read_keys(path).entries
    assert f"ct_{old.prefix}_..." in rotated.stderr and f"ct_{new.prefix}_..." in rotated.stderr
    assert old.until is not None
    assert abs(old.until - datetime.now(UTC) - timedelta(hours=12)) < timedelta(minutes=5)
    one = run(path, "revoke", "alice", "--prefix", f"ct_{old.prefix}_...")
    assert one.returncode == 0 and "without a restart" in one.stdout
    ring = read_keys(path)
    assert ring.entries == (new,) and ring.holder(first.strip(), datetime.now(UTC)) is None
    assert run(path, "rotate", "alice").returncode == 0
    assert run(path, "revoke", "alice").returncode == 0
    assert read_keys(path).entries == () and run(path, "list").stdout == ""


def test_an_ended_key_is_listed_as_such(path: Path) -> None:
    """Until the next write an expired key is in the list, and the list says that it is."""
    run(path, "create", "alice")
    run(path, "rotate", "alice", "--overlap", "0m")
    old, new = run(path, "list").stdout.splitlines()
    assert "  expired 2" in old and "  never expires  " in new


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("create", "bob", "--disclosure", "most"), "unknown disclosure 'most'"),
        (("create", "bob", "--pixels-per-day", "1.5M"), "--pixels-per-day is '1.5M': give a whole number"),
        (("create", "bob", "--concurrency", "0"), "concurrency must be between 1"),
        (("create", "bob", "--expires", "1y"), "--expires is '1y': give minutes, hours or days"),
        (("create", "bob", "--expires", "0d"), "must expire in the future"),
        (("create", "alice"), "keys rotate alice"),
        (("rotate", "alice", "--overlap", "99999d"), "an overlap is 0 to 36500 days"),
        (("change", "alice"), "nothing to change"),
        (("change", "bob", "--concurrency", "1"), "it holds: alice"),
        (("revoke", "alice", "--prefix", "ffffffff0"), "no key with the prefix ffffffff0"),
    ],
)
def test_errors_are_one_line_and_change_nothing(path: Path, args: tuple[str, ...], message: str) -> None:
    """Status 2, the cause and the remedy on standard error, the file as it was."""
    run(path, "create", "alice")
    before = path.read_bytes()
    done = run(path, *args)
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.startswith("corte-teacher: ") and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert path.read_bytes() == before


@given(st.integers(1, 10**15))
def test_counts_are_printed_as_they_are_read(count: int) -> None:
    """The text of any count that a grant may hold is read as that count."""
    assert read_count("--n", count_text(count)) == count


@pytest.mark.parametrize(
    ("text", "count"), [("250", 250), ("500k", 500_000), ("40M", 40_000_000), ("2G", 2 * 10**9)]
)
def test_units_are_decimal(text: str, count: int) -> None:
    """A k is a thousand, not 1024, and what is printed is the shortest form."""
    assert read_count("--n", text) == count and count_text(count) == text


@pytest.mark.parametrize("text", ["", "k", "-1", "1K", "1 k", "1e6", "0x10", "٣", "1" * 17])
def test_other_counts_and_spans_are_refused(text: str) -> None:
    """Neither a sign nor a fraction nor another unit or script is read."""
    for read in (read_count, read_span):
        with pytest.raises(StartError, match="--n is "):
            read("--n", text)


def test_spans_are_minutes_hours_or_days() -> None:
    """The unit is always said."""
    spans = [read_span("--n", text) for text in ("30m", "12h", "90d")]
    assert spans == [timedelta(minutes=30), timedelta(hours=12), timedelta(days=90)]
    with pytest.raises(StartError, match="--n is '90'"):
        read_span("--n", "90")
