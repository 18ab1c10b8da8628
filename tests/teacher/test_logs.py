"""Log lines in both forms, the line a request, and observers that fail."""

import json
import logging
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corte_teacher.logs import JsonFormatter, TextFormatter, rfc3339
from corte_teacher.observing import tell
from corte_teacher.record import Record
from teacher.records import DONE

PROGRAM = """
import logging, sys
from corte_teacher.logs import access, configure
from corte_teacher.record import Record
logging.basicConfig()
configure(sys.argv[1], sys.argv[2])
log = logging.getLogger("some.module")
access(Record("00c0ffee00c0ffee", "/v1/predict", 1.7e9, 0.0123456, 200, "ok", "alice", pixels=714, batch=2))
log.debug("too small to tell")
log.warning("line one\\nline two", extra={"request_id": "1", "color_message": "line one"})
try:
    raise ValueError("broken")
except ValueError:
    log.exception("%s: failed", "2", extra={"request_id": "2"})
"""


def run(format: str, level: str) -> list[str]:
    """The lines that a process configured like this writes on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, format, level],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def line_of(message: str, **extra: Any) -> logging.LogRecord:
    """One event of the logging module."""
    return logging.makeLogRecord(
        {"name": "n", "levelname": "INFO", "msg": message, "created": 1.7e9, **extra}
    )


def test_json_is_one_object_a_line() -> None:
    """Time, level, logger, message and extra fields; the trace of an exception is a field."""
    done, warned, failed = [json.loads(line) for line in run("json", "info")]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", done.pop("time"))
    assert done == {
        "level": "info",
        "logger": "corte_teacher.access",
        "message": "00c0ffee00c0ffee: done",
        "request_id": "00c0ffee00c0ffee",
        "route": "/v1/predict",
        "status": 200,
        "code": "ok",
        "owner": "alice",
        "took_ms": 12.346,
        "pixels": 714,
        "batch": 2,
    }
    assert set(warned) == {"time", "level", "logger", "message", "request_id"}
    assert (warned["message"], warned["logger"]) == ("line one\nline two", "some.module")
    assert failed["trace"].startswith("Traceback") and failed["trace"].endswith("ValueError: broken")


def test_text_is_one_line_an_event() -> None:
    """The same for people, once each; only a trace takes further lines."""
    done, warned, failed, *trace = run("text", "info")
    assert done.endswith(
        " INFO corte_teacher.access: 00c0ffee00c0ffee: done"
        " route=/v1/predict status=200 code=ok owner=alice took_ms=12.346 pixels=714 batch=2"
    )
    assert warned.endswith(" WARNING some.module: line one\\nline two")
    assert failed.endswith(" ERROR some.module: 2: failed")
    assert trace[0].startswith("Traceback") and trace[-1] == "ValueError: broken"


def test_the_level_is_a_floor() -> None:
    """At `warning` there is no line a request."""
    assert [json.loads(line)["level"] for line in run("json", "warning")] == ["warning", "error"]


@given(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=())))
def test_no_text_forges_a_line(message: str, value: str) -> None:
    """Whatever a client gets into a message or a field is one line in both forms, and whole in JSON."""
    record = line_of(message, where=value)
    text, encoded = TextFormatter().format(record), JsonFormatter().format(record)
    assert len(text.splitlines()) == len(encoded.splitlines()) == 1
    assert encoded.isascii()
    fields = json.loads(encoded)
    assert (fields["message"], fields["where"]) == (message, value)


@pytest.mark.parametrize("value", [float("nan"), {(1, 2): 3}, b"x", object])
def test_odd_fields_are_still_json(value: object) -> None:
    """A field that JSON has no form for is told as text, with the rest of the event."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    fields = json.loads(JsonFormatter().format(line_of("hello", odd=value)), parse_constant=refuse)
    assert fields["message"] == "hello" and fields["odd"] == str(value)


def test_an_extra_field_hides_nothing() -> None:
    """A field called like one of ours does not take its place."""
    fields = json.loads(JsonFormatter().format(line_of("hello", time="never", logger="other", level=3)))
    assert (fields["time"], fields["logger"], fields["level"]) == ("2023-11-14T22:13:20.000Z", "n", "info")


def test_time_has_milliseconds_even_when_they_are_zero() -> None:
    """RFC 3339 in UTC, always of one length."""
    assert [rfc3339(0), rfc3339(1.5)] == ["1970-01-01T00:00:00.000Z", "1970-01-01T00:00:01.500Z"]


def test_an_observer_that_fails_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Its exception is logged once with the request's id, and the observers after it are told."""
    seen: list[Record] = []

    def broken(record: Record) -> None:
        raise RuntimeError("no space")

    other = replace(DONE, request_id="1" * 16)
    tell([broken, seen.append], DONE)
    tell([broken, seen.append], other)
    assert seen == [DONE, other]
    assert [vars(r)["request_id"] for r in caplog.records] == [DONE.request_id, other.request_id]
    assert "broken failed" in caplog.messages[0] and caplog.text.count("RuntimeError: no space") == 2
