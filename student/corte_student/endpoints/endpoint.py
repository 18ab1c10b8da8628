"""The one face of a teacher. Implement it for a place that no dialect and no TOML file can describe."""

from typing import Protocol

from corte_protocol import Disclosure, Prediction, TeacherInfo, decode_prediction
from corte_student.endpoints.answers import FREE, Meter, Stored


class Endpoint(Protocol):
    """A teacher as the student sees it."""

    @property
    def down(self) -> bool:
        """Whether it has failed so often in a row that it is only probed now and then."""
        ...

    async def info(self) -> TeacherInfo:
        """What the teacher says of itself, asked anew at every call."""
        ...

    async def predict(
        self, body: bytes, media_type: str, disclosure: Disclosure, meter: Meter = FREE
    ) -> Stored:
        """The answer to one encoded image, as received. `meter.reserve` comes before each request that
        costs.
        """
        ...

    def read(self, blob: bytes, height: int, width: int, need: Disclosure) -> Prediction:
        """The prediction in a stored answer, at least as wide as `need`. Blocking, without a network.

        Raises ProtocolError where it cannot be read.
        """
        ...

    async def aclose(self) -> None:
        """Let go of every connection."""
        ...


def read_frame(blob: bytes, height: int, width: int, need: Disclosure) -> Prediction:
    """`Endpoint.read` for whoever stores native frames. Raises ProtocolError."""
    return decode_prediction(blob, max_pixels=height * width)
