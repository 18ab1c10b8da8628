"""What the vendors share that run a container of the user's: the request is described as for kind custom."""

import json
from collections.abc import Mapping
from typing import Any

from corte_student.endpoints.config import checked
from corte_student.endpoints.vendors.described_request import Request
from corte_student.errors import SettingsError

_ENVELOPE: int = 1024


def described(table: Mapping[str, Any], source: str) -> Request:
    """`request` of --teacher-config; the vendor's URL and method are fixed. Raises SettingsError."""
    request = checked(Request, table, source)
    if fixed := sorted(request.model_fields_set & {"method", "path", "query"}):
        raise SettingsError(f"{source}: {', '.join(fixed)}: here --teacher-url says all of it, take it out")
    return request


def asked(request: Request) -> str:
    """What of a request tells one teacher from another."""
    return json.dumps(request.model_dump(exclude_defaults=True), sort_keys=True)


def room(request: Request, max_body: int) -> int:
    """How large an image may be where a request is at most `max_body` bytes: base64 needs 4 for 3."""
    if request.body == "image":
        return max_body
    around = _ENVELOPE + len(asked(request))
    return (max_body - around) * 3 // 4 if request.body == "json" else max_body - around
