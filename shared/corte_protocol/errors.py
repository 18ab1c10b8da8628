"""The root of the error tree, and the failures a service may name on the wire.

    CorteError
        ProtocolError               what was said breaks the protocol; who said it decides the blame
            MalformedFrame          not a frame: wrong magic, truncated, wrong field types
            InvalidValue            a frame, but its content breaks an invariant
            VersionMismatch         another major version of the protocol
            LimitExceeded           larger than was agreed; nothing was allocated
        (corte_teacher.errors)      TeacherServiceError and below
        (corte_student.errors)      StudentError and below

`WIRE` is the whole list of failures that leave a service: a code, a status, whether asking again may
help, and a fixed text. The text of an exception never leaves (RFC 9457 problem documents).
"""

from dataclasses import dataclass


class CorteError(Exception):
    """Every error that this project raises on purpose."""


class ProtocolError(CorteError):
    """What was said breaks the protocol."""

    code = "malformed"


class MalformedFrame(ProtocolError):
    """The bytes are not a frame."""

    code = "malformed"


class InvalidValue(ProtocolError):
    """A value breaks an invariant of its type."""

    code = "invalid"


class VersionMismatch(ProtocolError):
    """The other side speaks another major version."""

    code = "version"


class LimitExceeded(ProtocolError):
    """A size is beyond the agreed limit."""

    code = "too-large"


@dataclass(frozen=True, slots=True)
class WireError:
    """One failure as a client sees it."""

    status: int
    retryable: bool
    title: str


WIRE: dict[str, WireError] = {
    "malformed": WireError(400, False, "The body is not an image this service can read."),
    "bad-request": WireError(400, False, "The request is not of the form this route takes."),
    "unauthorized": WireError(401, False, "A valid key is needed: send it as 'Authorization: Bearer KEY'."),
    "forbidden": WireError(403, False, "More was asked for than this service or key may disclose."),
    "not-found": WireError(404, False, "No such route."),
    "method": WireError(405, False, "This route does not take that method."),
    "timeout": WireError(408, True, "The request was sent too slowly."),
    "head-too-large": WireError(431, False, "The request's headers are larger than this service reads."),
    "too-large": WireError(413, False, "The body or the image is larger than the limits in /v1/info."),
    "media-type": WireError(415, False, "Send one image as image/jpeg, image/png or image/webp."),
    "invalid": WireError(422, False, "A value in the request is not valid."),
    "version": WireError(426, False, "This service speaks another version of the protocol."),
    "quota": WireError(429, True, "The budget of this key is used up for now."),
    "busy-key": WireError(429, True, "This key has as many requests in flight as it may have."),
    "internal": WireError(500, True, "The service failed to answer."),
    "overloaded": WireError(503, True, "The service is at its limit."),
    "deadline": WireError(503, True, "The service cannot answer before the request's deadline."),
    "not-ready": WireError(503, True, "The service is not ready."),
}
