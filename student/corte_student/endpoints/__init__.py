"""Where predictions come from. An endpoint turns one image into one frame; everything else is the asker's.

    Endpoint        what every teacher, ours or theirs, looks like from here
    connect         a URL and a key become an endpoint

Rule 1: a frame that `predict` returns is valid, of the image's size, of the level asked for and of the
revision that `info` stated. Rule 2: what concerns one image alone is `ImageRefused`; any other
`TeacherError` ends the run. Rule 3: a key appears in no message, log or URL.
"""

from typing import Protocol

from pydantic import SecretStr

from corte_protocol import Disclosure, TeacherInfo
from corte_student.endpoints.corte import CorteEndpoint
from corte_student.endpoints.http import HttpClient


class Endpoint(Protocol):
    """A teacher as the student sees it."""

    async def info(self) -> TeacherInfo:
        """What the teacher says of itself, asked anew at every call."""
        ...

    async def predict(self, body: bytes, media_type: str, disclosure: Disclosure) -> bytes:
        """The answer to one encoded image: the frame as received, already validated."""
        ...

    async def aclose(self) -> None:
        """Let go of every connection."""
        ...


def connect(
    url: str, *, key: SecretStr | None, insecure_http: bool, deadline_s: float, connections: int
) -> Endpoint:
    """An endpoint for the CoRTe service at `url`. Raises SettingsError; nothing is sent yet.

    `deadline_s` bounds one request with all its retries, `connections` those open at once.
    """
    client = HttpClient(
        url, key=key, insecure_http=insecure_http, deadline_s=deadline_s, connections=connections
    )
    return CorteEndpoint(client)
