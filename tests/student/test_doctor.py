"""`doctor`: what is wrong between here and a teacher is one line, and the remedy is in it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response

from faulty_teacher import FaultyTeacher, faulty_teacher, problem, raw
from pictures import make_picture
from replaying import replay

KEY = "ct_Sup3rS3cret"


@pytest.fixture
def teacher() -> Iterator[FaultyTeacher]:
    with faulty_teacher(key=KEY) as running:
        yield running


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(make_picture(1).body)
    return path


def doctor(
    url: str, tmp_path: Path, *more: object, key: str | None = KEY
) -> "subprocess.CompletedProcess[str]":
    """Run it as a user does."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CORTE_")}
    if key is not None:
        env["CORTE_TEACHER_KEY"] = key
    words = ["doctor", "--teacher-url", url, "--ledger", tmp_path / "ledger.sqlite", "--deadline", 3, *more]
    done = subprocess.run(
        [sys.executable, "-m", "corte_student", *map(str, words)],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
        check=False,
    )
    assert KEY not in done.stdout + done.stderr
    return done


def fault(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    """The one line that says what is wrong."""
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_teacher_in_good_health(teacher: FaultyTeacher, tmp_path: Path, image: Path) -> None:
    """Every check is named; an image is asked about once, and found in the ledger the next time."""
    first = doctor(teacher.url, tmp_path)
    assert first.returncode == 0, first.stderr
    checks = [line.split()[1] for line in first.stdout.splitlines()]
    assert checks == ["address", "clock", "kind", "key", "classes", "disclosure", "limits"]
    assert "3: road, car, sky" in first.stdout and "margin: enough for naive" in first.stdout
    assert teacher.attempts == 0
    assert "16 x 12 in " in doctor(teacher.url, tmp_path, "--image", image).stdout
    assert "16 x 12 from the ledger" in doctor(teacher.url, tmp_path, "--image", image).stdout
    assert teacher.attempts == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:9", "check host and port in --teacher-url"),
        ("http://no-such-host.invalid", "is not known: check --teacher-url"),
    ],
)
def test_an_address_without_a_teacher(tmp_path: Path, url: str, words: str) -> None:
    """No such name, or nobody there."""
    assert words in fault(doctor(url, tmp_path, key=None), 3)


def test_a_wrong_key_and_a_missing_one(teacher: FaultyTeacher, tmp_path: Path) -> None:
    """Each has its own remedy."""
    assert "check CORTE_TEACHER_KEY" in fault(doctor(teacher.url, tmp_path, key="ct_other"), 3)
    assert "set CORTE_TEACHER_KEY" in fault(doctor(teacher.url, tmp_path, key=None), 3)


def test_a_service_that_is_no_teacher(tmp_path: Path) -> None:
    """Some other service at the port is told as such."""

    async def page(request: Request, body: bytes) -> Response:
        return Response("<html>hello</html>", media_type="text/html")

    with replay(page) as other:
        told = fault(doctor(other.url, tmp_path, key=None), 3)
    assert "is no CoRTe info" in told and "--teacher-kind" in told


def test_an_answer_that_breaks_the_contract(teacher: FaultyTeacher, tmp_path: Path, image: Path) -> None:
    """With an image the answer itself is examined."""
    teacher.faults.append(raw(b"CRT?"))
    assert "breaks the protocol" in fault(doctor(teacher.url, tmp_path, "--image", image), 3)
    teacher.faults.append(problem("forbidden"))
    assert "--disclosure" in fault(doctor(teacher.url, tmp_path, "--image", image), 3)


@pytest.mark.parametrize(("minutes", "words"), [(-20, "ahead of the teacher"), (20, "behind the teacher")])
def test_a_clock_that_is_off_is_a_warning(tmp_path: Path, minutes: int, words: str) -> None:
    """Signatures and tokens depend on it, so it is said even where all else is well."""

    async def dated(request: Request, body: bytes) -> Response:
        then = datetime.now(UTC) + timedelta(minutes=minutes)
        return Response(b"", 404, {"date": format_datetime(then, usegmt=True)})

    with replay(dated) as vendor:
        done = doctor(vendor.url, tmp_path, key=None)
    (line,) = [line for line in done.stdout.splitlines() if "clock" in line]
    assert line.startswith("warning") and words in line and "set its clock" in line
