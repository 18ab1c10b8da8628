"""What is remembered of one request once it is over: the one value that metrics, logs, audit and traces read.

It holds no image, no answer and no text of an error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

STAGES: Final = ("read", "decode", "queue", "forward", "disclose", "encode", "send")
"""The parts of a predicting request's time, in order. `queue` is all waiting between the other parts."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times are seconds; `started` is since 1970, `took` and `stages` are durations.

    `owner` is the name of the key's holder, empty without one. `code` is a row of `errors.WIRE`, or "ok".
    `route` is the route's pattern, never the path that was sent. `stages` is empty unless an image was
    asked about; its names are of `STAGES`, and those that were not reached are absent. `digest` is the
    SHA-256 of the body in hex, `pixels` H x W of the image: None and 0 unless an image was admitted.
    `parent` is the caller's traceparent header (W3C Trace Context), None without one.
    """

    request_id: str
    route: str
    started: float
    took: float
    status: int
    code: str
    owner: str = ""
    level: str | None = None
    revision: str | None = None
    digest: str | None = None
    pixels: int = 0
    batch: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)
    parent: str | None = None


Observer = Callable[[Record], None]
"""Called once a request, in the event loop: must not block for more than microseconds."""
