"""`corte-student doctor`: what is wrong between here and the teacher, in one line."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corte_student.cli.access import (
    DeadlineS,
    InsecureHttp,
    KeyFile,
    LedgerFile,
    TeacherConfigFile,
    TeacherKind,
    TeacherUrl,
    access_of,
    purse_of,
)

if TYPE_CHECKING:  # loaded inside the functions: --help must stay quick
    from corte_student.session import Session


def doctor(
    teacher_url: TeacherUrl = None,
    teacher_kind: TeacherKind = None,
    teacher_config: TeacherConfigFile = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="Ask about this image as well; it may cost one request")
    ] = None,
    ledger: LedgerFile = None,
    key_file: KeyFile = None,
    insecure_http: InsecureHttp = False,
    deadline: DeadlineS = 20.0,
) -> None:
    """Check address, clock, key, classes and disclosure of a teacher, and with --image an answer."""
    from corte_student.session import Session

    access = access_of(teacher_url, teacher_kind, teacher_config, key_file, insecure_http=insecure_http)
    session = Session(access, purse_of(access), ledger, deadline, in_flight=1)
    asyncio.run(_examine(session, image))


async def _examine(session: "Session", image: Path | None) -> None:
    from corte_student.checking import examine

    async for finding in examine(session, image):
        if finding.fault is not None:
            raise finding.fault
        mark = "warning" if finding.warning else "ok"
        typer.echo(f"{mark:8}{finding.what:11} {finding.found}")
