"""Types and wire frames that a CoRTe teacher and student share. No socket, no file, no model.

`types` holds the values, `codec` turns them into bytes and back, `routes` names the HTTP surface,
`errors` the failures and what they are called on the wire.
"""

from corte_protocol.codec import decode_info, decode_prediction, encode_info, encode_prediction
from corte_protocol.errors import (
    CorteError,
    InvalidValue,
    LimitExceeded,
    MalformedFrame,
    ProtocolError,
    VersionMismatch,
)
from corte_protocol.types import VOID, Disclosure, Image, Limits, Prediction, TeacherInfo, on_grid, quantise

__all__ = [
    "VOID",
    "Disclosure",
    "Image",
    "Limits",
    "Prediction",
    "TeacherInfo",
    "on_grid",
    "quantise",
    "decode_info",
    "decode_prediction",
    "encode_info",
    "encode_prediction",
    "CorteError",
    "ProtocolError",
    "InvalidValue",
    "LimitExceeded",
    "MalformedFrame",
    "VersionMismatch",
]
