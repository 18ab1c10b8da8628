"""What the service writes on stderr: lines for people or, one a line, JSON objects for machines.

A line is one event in either form: control characters in a message are escaped, because parts of it may
come from a client. Only the trace of an exception takes more lines, and only in the form for people.
"""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal

from corte_teacher.record import Record

_access = logging.getLogger("corte_teacher.access")

_OURS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_TWICE = frozenset(("color_message",))  # uvicorn's messages once more, for terminals
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[!#-<>-~]+")


def configure(format: Literal["text", "json"], level: str) -> None:
    """Let the root logger write to stderr in this form, from `level` ("info", "warning", ...) on.

    Takes the place of whatever handlers the root logger had. Raises ValueError for an unknown level.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def access(record: Record) -> None:
    """One line at INFO a request; an Observer. `took_ms` is milliseconds, `pixels` H x W."""
    if not _access.isEnabledFor(logging.INFO):
        return
    fields = {
        "request_id": record.request_id,
        "route": record.route,
        "status": record.status,
        "code": record.code,
        "owner": record.owner,
        "took_ms": round(record.took * 1000, 3),
        "pixels": record.pixels,
        "batch": record.batch,
    }
    _access.info("%s: done", record.request_id, extra=fields)


def rfc3339(seconds: float) -> str:
    """Seconds since 1970 as text of RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """`TIME LEVEL LOGGER: MESSAGE name=value ...`, without the request's id: messages begin with it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the lines of a trace below it."""
        parts = [
            f"{rfc3339(record.created)} {record.levelname} {record.name}: {_escaped(record.getMessage())}"
        ]
        for name, value in _extra(record).items():
            if name != "request_id":
                text = str(value)
                parts.append(f"{name}={text if _PLAIN.fullmatch(text) else json.dumps(text)}")
        trace = _trace(self, record)
        return " ".join(parts) + (f"\n{trace}" if trace else "")


class JsonFormatter(logging.Formatter):
    """An object with `time`, `level`, `logger`, `message`, the extra fields, and `trace` of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The object as one line of ASCII."""
        fields: dict[str, Any] = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = _extra(record) | fields
        trace = _trace(self, record)
        if trace:
            fields["trace"] = trace
        try:
            return json.dumps(fields, default=str, allow_nan=False)
        except (TypeError, ValueError):  # NaN, a circle, a key that is no text: not JSON
            return json.dumps({name: str(value) for name, value in fields.items()})


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OURS and name not in _TWICE}


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
