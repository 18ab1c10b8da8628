"""The service's own errors. Each that may reach a client carries the code of its row in `errors.WIRE`.

    CorteError
        TeacherServiceError             a request that this service declines or cannot answer
            Unauthorized                no key, or none that is known
            Forbidden                   more was asked for than may be disclosed
            UnsupportedMedia            not declared as one of the image types
            TooLarge                    body or picture beyond the limits
            SlowRequest                 the body came too slowly
            Unreadable                  the body is not an image
            InvalidRequest              readable, but not something this service answers
            Overloaded                  the queue is full
            NotReady                    the first forward is not done
            BackendError                the model failed, or answered something impossible
        StartError                      the service cannot start; its text names the remedy

The text of a TeacherServiceError is for the log only. Clients get the fixed text of its code.
"""

from corte_protocol import CorteError


class TeacherServiceError(CorteError):
    """A request that is declined or cannot be answered; `code` names its row in `errors.WIRE`."""

    code = "internal"


class Unauthorized(TeacherServiceError):
    """No key, or none that is known."""

    code = "unauthorized"


class Forbidden(TeacherServiceError):
    """More was asked for than may be disclosed."""

    code = "forbidden"


class UnsupportedMedia(TeacherServiceError):
    """The body is not declared as one of the image types."""

    code = "media-type"


class TooLarge(TeacherServiceError):
    """The body or the picture is beyond the limits."""

    code = "too-large"


class SlowRequest(TeacherServiceError):
    """The body came too slowly."""

    code = "timeout"


class Unreadable(TeacherServiceError):
    """The body cannot be decoded as an image."""

    code = "malformed"


class InvalidRequest(TeacherServiceError):
    """A readable request with a value that this service does not answer."""

    code = "invalid"


class Overloaded(TeacherServiceError):
    """The queue is full."""

    code = "overloaded"


class NotReady(TeacherServiceError):
    """The first forward is not done."""

    code = "not-ready"


class BackendError(TeacherServiceError):
    """The model failed or answered something impossible."""

    code = "internal"


class StartError(CorteError):
    """The service cannot start; the text names the remedy."""
