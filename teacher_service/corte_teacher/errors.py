"""The service's own errors. Each that may reach a client carries the code of its row in `errors.WIRE`.

    CorteError
        TeacherServiceError             a request that this service declines or cannot answer
            Unauthorized                no key, or none that is known
            Forbidden                   more was asked for than may be disclosed
            QuotaExhausted              the key's pixels of this minute or day are spent
            BusyKey                     the key has as many requests in flight as it may have
            BadRequest                  not of the form that the route takes
            UnsupportedMedia            not declared as one of the image types
            TooLarge                    body or picture beyond the limits
            SlowRequest                 the body came too slowly
            Unreadable                  the body is not an image
            InvalidRequest              readable, but not something this service answers
            Overloaded                  no place in the queue, or no memory for this image
            DeadlinePassed              the sender no longer waits for the answer, or will not by then
            NotReady                    the first forward is not done
            BackendError                the model failed, or answered something impossible
                OutOfMemory             the model needs more memory than there is; smaller work may fit
        StartError                      the service cannot start; its text names the remedy

The text of a TeacherServiceError is for the log only. Clients get the fixed text of its code.
"""

from corte_protocol import CorteError


class TeacherServiceError(CorteError):
    """A request that is declined or cannot be answered; `code` names its row in `errors.WIRE`.

    `retry_after_s` is when asking again may help, in seconds; None where nothing better than the row's
    default is known.
    """

    code = "internal"

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Unauthorized(TeacherServiceError):
    """No key, or none that is known."""

    code = "unauthorized"


class Forbidden(TeacherServiceError):
    """More was asked for than may be disclosed."""

    code = "forbidden"


class QuotaExhausted(TeacherServiceError):
    """The pixels that the key may ask about in this minute or day are spent."""

    code = "quota"


class BusyKey(TeacherServiceError):
    """The key has as many requests in flight as it may have."""

    code = "busy-key"


class BadRequest(TeacherServiceError):
    """The request is not of the form that its route takes."""

    code = "bad-request"


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
    """No place in the queue, or no memory for this image."""

    code = "overloaded"


class DeadlinePassed(TeacherServiceError):
    """The sender no longer waits for the answer, or will not when it is ready."""

    code = "deadline"


class NotReady(TeacherServiceError):
    """The first forward is not done."""

    code = "not-ready"


class BackendError(TeacherServiceError):
    """The model failed or answered something impossible."""

    code = "internal"


class OutOfMemory(BackendError):
    """The model needs more memory than there is; a smaller batch or image may fit. The service lives on."""

    code = "overloaded"


class StartError(CorteError):
    """The service cannot start; the text names the remedy."""
