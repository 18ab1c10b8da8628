"""From a status to what follows: one table for every teacher, ours and theirs.

Strategy: a failure is asked again only where nothing was computed for it (408, 425, 429, 503, 529), or where
it may pass and nobody pays (500, 502, 504). RFC 9110 section 15, RFC 6585 (429), RFC 8470 (425); 529 is what
several vendors answer when overloaded.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from corte_student.endpoints.dialect import Pace, Reply, Verdict
from corte_student.endpoints.hints import wait_of
from corte_student.errors import BrokeContract, ImageRefused, Refused, TeacherError, Unavailable

_AGAIN: Mapping[int, tuple[str, bool]] = {
    408: ("the request took too long", False),
    425: ("it asks to come later", False),
    429: ("it allows no more for now", False),
    500: ("it failed", True),
    502: ("its gateway failed", True),
    503: ("it is overloaded or not ready", False),
    504: ("its gateway waited in vain", True),
    529: ("it is overloaded", False),
}
_IMAGE = (400, 413, 415, 422)
TRIES_ON_FAILURE = 3
"""So often one image may end in a 500 before it, and not the service, is held to be at fault."""


def ordinary(reply: Reply, *, has_key: bool, one_image: bool, title: str | None = None) -> Verdict | None:
    """The verdict on a reply by its status; None for success. `title` replaces the fixed words."""
    status = reply.status
    if 200 <= status < 300:
        return None
    if status in _AGAIN:
        words, billed = _AGAIN[status]
        pace: Pace = "refused" if status == 429 else "lost" if status in (502, 504) else "overloaded"
        return Verdict(
            f"it answers {status}: {title or words}",
            ImageRefused if status == 500 and one_image else Unavailable,
            again=True,
            billed=billed,
            wait_s=wait_of(reply.headers, datetime.now(UTC)),
            pace="answered" if status == 500 else pace,
            tries=TRIES_ON_FAILURE if status == 500 and one_image else None,
        )
    return Verdict(*_final(status, has_key=has_key, one_image=one_image, title=title))


def _final(
    status: int, *, has_key: bool, one_image: bool, title: str | None
) -> tuple[str, type[TeacherError]]:
    said = title or f"status {status}"
    if status == 401:
        if has_key:
            return "refuses the key (401): check CORTE_TEACHER_KEY", Refused
        return "needs a key (401): set CORTE_TEACHER_KEY", Refused
    if status == 402:
        return "wants to be paid first (402): the account is out of credit", Refused
    if status == 403:
        return (
            "will not disclose this much to us (403): check the key's rights, or ask for less (--disclosure)",
            Refused,
        )
    if one_image and status in _IMAGE:
        return f"the teacher will not take this image ({status}): {said}", ImageRefused
    if status == 426:
        return "speaks another version of the protocol (426): update the older side", BrokeContract
    if 300 <= status < 400:
        return f"redirects ({status}), which is not followed: correct --teacher-url", Refused
    if status in (404, 405):
        return f"knows no such service or model ({status}): check --teacher-url and --teacher-kind", Refused
    if 400 <= status < 500:
        return f"refuses the request ({status}): {said}", Refused
    return f"answered with the status {status}: check --teacher-url", BrokeContract
