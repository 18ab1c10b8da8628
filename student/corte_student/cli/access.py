"""How `evaluate` and `inspect` get at a teacher: the flags about it, and a connection that is closed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corte_student.cli.keys import KEY_VARIABLE

if TYPE_CHECKING:  # loaded inside the functions: --help must stay quick
    from pydantic import SecretStr

    from corte_student.endpoints import Endpoint

TeacherUrl = Annotated[
    str, typer.Option("--teacher-url", help="Where the teacher listens, http(s)://HOST:PORT.")
]
KeyFile = Annotated[
    Path | None, typer.Option("--key-file", help=f"File that holds the key; otherwise {KEY_VARIABLE}.")
]
InsecureHttp = Annotated[
    bool, typer.Option("--insecure-http", help="Send the key over plain http to another machine.")
]
LedgerFile = Annotated[
    Path | None, typer.Option("--ledger", help="Answers paid for; by default one file per user.")
]
DeadlineS = Annotated[
    float, typer.Option("--deadline", min=0.1, help="Seconds for one request, retries included.")
]


@asynccontextmanager
async def reached(
    url: str, key: "SecretStr | None", *, insecure_http: bool, deadline_s: float, connections: int
) -> "AsyncIterator[Endpoint]":
    """The endpoint at `url`, closed at the end."""
    from corte_student.endpoints import connect

    endpoint = connect(
        url, key=key, insecure_http=insecure_http, deadline_s=deadline_s, connections=connections
    )
    try:
        yield endpoint
    finally:
        await endpoint.aclose()
