"""What is between here and a teacher's answers, looked at one thing after another: `corte-student doctor`.

Strategy: each check says in one line what it found, or what is wrong and what to do; the first that fails
ends the examination, since those after it would fail by it. Nothing is paid unless an image is given.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from corte_protocol import TeacherInfo
from corte_student.data.folder import read_picture
from corte_student.endpoints import Access, kind_of
from corte_student.endpoints.dialect import Call
from corte_student.endpoints.http import Broken, Http
from corte_student.endpoints.signing import Anonymous
from corte_student.errors import StudentError, Unavailable
from corte_student.methods import NEEDS
from corte_student.session import Opened, Session

_SKEW_S = 300.0
"""AWS refuses signatures more than five minutes off; tokens of others begin and end by the clock too."""
_GLANCE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `fault` is what is wrong, where something is."""

    what: str
    found: str
    fault: StudentError | None = None
    warning: bool = False


async def examine(session: Session, image: Path | None = None) -> AsyncIterator[Finding]:
    """Findings as they come; the last is the only one that may have a `fault`.

    `image` is asked about, which may cost a request, unless the ledger holds its answer.
    """
    kind = kind_of(session.access)
    if ":" not in kind:
        glance = await _glance(session.access)
        yield glance[0]
        if glance[0].fault is not None:
            return
        yield glance[1]
    try:
        async with session.open() as opened:
            if opened.offline:
                raise Unavailable(f"no teacher answers at {session.access.url}: check --teacher-url")
            for finding in _of_info(kind, opened.info):
                yield finding
            if image is not None:
                yield await _asked(opened, image)
    except StudentError as exc:
        yield Finding("answers" if image is not None else "teacher", str(exc), exc)


async def _glance(access: Access) -> tuple[Finding, Finding]:
    """Can the host be reached, and what time does it think it is? One request without the key."""
    host = urlsplit(access.url).hostname or ""
    http = Http(access.url, Anonymous(), connections=1)
    try:
        await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        sent = datetime.now(UTC)
        reply = await asyncio.wait_for(http.request(Call("GET", http.url, _GLANCE_BYTES)), 20)
    except socket.gaierror:
        fault = Unavailable(f"the name {host} is not known: check --teacher-url, and the network")
        return Finding("address", str(fault), fault), _NO_CLOCK
    except TimeoutError:
        fault = Unavailable(
            f"{access.url} takes connections and says nothing for 20 s: is it the right port?"
        )
        return Finding("address", str(fault), fault), _NO_CLOCK
    except StudentError as exc:  # a certificate, or an answer too large for a glance
        return Finding("address", str(exc), exc), _NO_CLOCK
    finally:
        await http.aclose()
    if isinstance(reply, Broken):
        fault = Unavailable(f"nobody answers at {access.url}: check host and port in --teacher-url")
        return Finding("address", str(fault), fault), _NO_CLOCK
    return Finding("address", f"{access.url} answers"), _clock(reply.headers.get("date"), sent)


_NO_CLOCK = Finding("clock", "the teacher does not say what time it has")


def _clock(stated: str | None, now: datetime) -> Finding:
    try:
        theirs = parsedate_to_datetime(stated or "")
    except ValueError:
        return _NO_CLOCK
    skew = (theirs.replace(tzinfo=theirs.tzinfo or UTC) - now).total_seconds()
    if abs(skew) <= _SKEW_S:
        return Finding("clock", f"within {max(1, round(abs(skew)))} s of the teacher's")
    direction = "behind" if skew > 0 else "ahead of"
    return Finding(
        "clock",
        f"this machine is {abs(skew):.0f} s {direction} the teacher: set its clock, or signatures fail",
        warning=True,
    )


def _of_info(kind: str, info: TeacherInfo) -> list[Finding]:
    names = ", ".join(info.classes[:8]) + (", ..." if len(info.classes) > 8 else "")
    methods = [
        name
        for name, known in NEEDS.items()
        if info.disclosure.allows(known.needs) or (known.surrogate and info.disclosure.prob_bits == 0)
    ]
    stated = kind in ("corte", "openinference")
    key = "accepted" if stated else "not tried yet: --image FILE asks about one image"
    return [
        Finding("kind", kind),
        Finding("key", key),
        Finding("classes", f"{len(info.classes)}: {names}"),
        Finding("disclosure", f"{info.disclosure}: enough for {', '.join(methods)}"),
        Finding(
            "limits",
            f"{info.limits.max_body_bytes / 1e6:.1f} MB, {info.limits.max_pixels / 1e6:.1f} Mpixels an image",
        ),
    ]


async def _asked(opened: Opened, image: Path) -> Finding:
    asker = opened.asker(opened.info.disclosure)
    picture = await asyncio.to_thread(read_picture, image)
    began = asyncio.get_running_loop().time()
    prediction = await asker.answer(picture)
    took = asyncio.get_running_loop().time() - began
    counts = np.bincount(prediction.labels.ravel(), minlength=len(opened.info.classes))
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    shares = ", ".join(f"{opened.info.classes[i]} {100 * counts[i] / counts.sum():.0f} %" for i in order[:5])
    how = f"in {1000 * took:.0f} ms" if asker.tally.sent else "from the ledger"
    return Finding("answers", f"{picture.pixels.shape[1]} x {picture.pixels.shape[0]} {how}: {shares}")
