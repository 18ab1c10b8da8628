"""The audit log: who asked about which image, through rotations and full disks."""

import json
import logging
import os
import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corte_teacher.audit import AuditLog
from corte_teacher.errors import StartError
from corte_teacher.record import Record
from teacher.records import DONE


def numbered(number: int) -> Record:
    """A request of its own."""
    return replace(DONE, request_id=f"{number:016x}")


def lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a log, each of which is one JSON object."""
    text = path.read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


def ids(path: Path) -> list[int]:
    """The numbers of the requests in a log."""
    return [int(line["request_id"], 16) for line in lines(path)]


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond `size` bytes: what is beyond is cut off, then refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_one_line_for_each_admitted_image(tmp_path: Path) -> None:
    """The file, its owner's only, has every field of an admitted request and nothing of the others."""
    path = tmp_path / "audit.jsonl"
    with closing(AuditLog(path)) as audit:
        audit(replace(DONE, digest=None, pixels=0, code="unauthorized"))
        audit(DONE)
        audit(replace(DONE, owner="", code="quota"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first, second = lines(path)
    assert first == {
        "time": "2025-11-23T12:13:20.125Z",
        "request_id": "00c0ffee00c0ffee",
        "key": "alice",
        "digest": "ab" * 32,
        "pixels": 714,
        "level": "margin",
        "revision": "sha256:1",
        "code": "ok",
    }
    assert (second["key"], second["code"]) == (None, "quota")


def test_an_existing_log_is_continued(tmp_path: Path) -> None:
    """A second start appends, and puts what a full disk left unfinished on a line of its own."""
    path = tmp_path / "audit.jsonl"
    with closing(AuditLog(path)) as audit:
        audit(numbered(1))
    with closing(AuditLog(path)) as audit:
        audit(numbered(2))
    assert ids(path) == [1, 2]
    path.write_text(path.read_text() + '{"time": "2026')
    with closing(AuditLog(path)) as audit:
        audit(numbered(3))
    found = path.read_text().splitlines()
    assert found[2] == '{"time": "2026' and json.loads(found[3])["request_id"] == f"{3:016x}"


def test_rotation_loses_nothing(tmp_path: Path) -> None:
    """Lines go to the file that was moved away until `reopen`, and to a new one after it."""
    path, moved = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    with closing(AuditLog(path)) as audit:
        audit(numbered(1))
        path.rename(moved)
        audit(numbered(2))
        assert not path.exists()
        audit.reopen()
        audit(numbered(3))
        assert audit.lost == 0
    assert (ids(moved), ids(path)) == ([1, 2], [3])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_rotation_that_fails_keeps_the_old_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the path cannot be opened again, an error is logged and lines go on to the old file."""
    folder, moved = tmp_path / "logs", tmp_path / "moved"
    folder.mkdir()
    with closing(AuditLog(folder / "audit.jsonl")) as audit:
        folder.rename(moved)
        audit.reopen()
        audit(numbered(1))
    assert ids(moved / "audit.jsonl") == [1]
    assert [r.levelname for r in caplog.records] == ["ERROR"] and "No such file" in caplog.text


@pytest.mark.parametrize("name", ["missing/audit.jsonl", "."])
def test_an_unwritable_path_is_named(tmp_path: Path, name: str) -> None:
    """A missing folder and a folder itself end the start with the option to change."""
    with pytest.raises(StartError, match=r"cannot be written.*--audit-log"):
        AuditLog(tmp_path / name)


def test_a_full_disk_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """No call raises, each lost line is counted, and the log has one error a minute."""
    now = [1000.0]
    with closing(AuditLog(Path("/dev/full"), lambda: now[0])) as audit:
        for number in range(100):
            audit(numbered(number))
        assert audit.lost == 100
        assert [r.levelname for r in caplog.records] == ["ERROR"]
        now[0] += 59.9
        audit(DONE)
        assert len(caplog.records) == 1
        now[0] += 0.1
        audit(DONE)
    assert "No space left on device; lines lost: 1" in caplog.messages[0]
    assert "No space left on device; lines lost: 102" in caplog.messages[1]


def test_writing_goes_on_when_there_is_space_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line cut by a full disk is lost and stands alone; all lines after it are whole, and this is told."""
    path = tmp_path / "audit.jsonl"
    with closing(AuditLog(path)) as audit:
        audit(numbered(0))
        size = path.stat().st_size
        with disk_of(3 * size + size // 2):
            for number in range(1, 10):
                audit(numbered(number))
        assert audit.lost == 7
        audit(numbered(10))
        audit(numbered(11))
        assert audit.lost == 7
    found = path.read_text().splitlines()
    whole = [json.loads(line)["request_id"] for line in found[:3] + found[4:]]
    assert whole == [f"{number:016x}" for number in (0, 1, 2, 10, 11)]
    with pytest.raises(json.JSONDecodeError):
        json.loads(found[3])
    assert [r.levelno for r in caplog.records] == [logging.ERROR, logging.WARNING]
    assert "lines lost: 7" in caplog.messages[1]


def test_a_disk_made_anew_is_taken_up_by_reopen(tmp_path: Path) -> None:
    """After a full device is replaced by another, SIGHUP's `reopen` is enough."""
    path = tmp_path / "audit.jsonl"
    path.symlink_to("/dev/full")
    with closing(AuditLog(path)) as audit:
        audit(numbered(1))
        path.unlink()
        audit.reopen()
        audit(numbered(2))
        assert audit.lost == 1
    assert ids(path) == [2]


def test_lines_of_two_writers_do_not_mix(tmp_path: Path) -> None:
    """Two services that append to one file at the same time leave whole lines only, and all of them."""
    path = tmp_path / "audit.jsonl"

    def write(first: int) -> None:
        with closing(AuditLog(path)) as audit:
            for number in range(first, first + 500):
                audit(numbered(number))

    writers = [threading.Thread(target=write, args=(first,)) for first in (0, 500)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(ids(path)) == list(range(1000))


def test_a_pipe_that_nobody_reads_blocks_nothing(tmp_path: Path) -> None:
    """Once it is full, lines are lost and requests go on."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with closing(AuditLog(path)) as audit:
        for number in range(1000):
            audit(numbered(number))
        assert 0 < audit.lost < 1000


def test_after_close_lines_are_lost(tmp_path: Path) -> None:
    """A request that ends after the log was closed fails nothing and writes to no other file."""
    audit = AuditLog(tmp_path / "audit.jsonl")
    audit.close()
    audit(DONE)
    assert audit.lost == 1 and (tmp_path / "audit.jsonl").read_bytes() == b""
