"""Where predictions come from. An endpoint turns one image into one stored answer; everything else is the
asker's.

    Endpoint        what every teacher, ours or theirs, looks like from here
    connect         a URL, a kind and a key become an endpoint

Rule 1: an answer that `predict` returns is kept as received, with the revision that gave it and the level it
holds. Rule 2: what concerns one image alone is `ImageRefused`; any other `TeacherError` ends the asking.
Rule 3: a key appears in no message, log, URL or stored answer.
"""

from corte_student.endpoints.answers import FREE, Meter, Receipt, Stored
from corte_student.endpoints.connecting import Access, connect, guess_kind, kind_of
from corte_student.endpoints.endpoint import Endpoint, read_frame
from corte_student.endpoints.foreign import UNSTATED, ForeignEndpoint

__all__ = [
    "FREE",
    "UNSTATED",
    "Access",
    "Endpoint",
    "ForeignEndpoint",
    "Meter",
    "Receipt",
    "Stored",
    "connect",
    "guess_kind",
    "kind_of",
    "read_frame",
]
