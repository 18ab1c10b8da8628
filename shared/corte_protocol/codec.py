"""Values to bytes and back. A frame is what travels and what lies on disk.

Strategy: four magic bytes, then one msgpack map with fixed keys and no extension types; planes are
zstd frames inside it. Nothing is allocated on the word of the sender: the declared sizes are checked
against the caller's limits first, and each zstd header against the declared sizes. `/v1/info` is JSON,
because people read it with curl.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import msgpack
import numpy as np
import zstandard

from corte_protocol.errors import InvalidValue, LimitExceeded, MalformedFrame, VersionMismatch
from corte_protocol.routes import PROTOCOL_VERSION
from corte_protocol.types import MAX_CLASSES, Disclosure, Limits, Prediction, TeacherInfo

FRAME_MAGIC: Final = b"CRT"
"""How every frame begins, whatever its version."""
MAGIC: Final = FRAME_MAGIC + b"\x01"
_ZSTD_LEVEL: Final = 1  # answers are sent once and read often: speed before the last percent
_KEYS: Final = {"kind", "height", "width", "k", "bits", "revision", "classes", "probs"}
MAX_INFO_BYTES: Final = 1 << 20


def encode_prediction(prediction: Prediction) -> bytes:
    """One answer as a frame."""
    k, height, width = prediction.classes.shape
    probs = prediction.probs
    return MAGIC + bytes(
        msgpack.packb(
            {
                "kind": "prediction",
                "height": height,
                "width": width,
                "k": k,
                "bits": prediction.disclosure.prob_bits,
                "revision": prediction.revision,
                "classes": _squeeze(prediction.classes),
                "probs": None if probs is None else _squeeze(probs),
            }
        )
    )


def decode_prediction(frame: bytes | memoryview, *, max_pixels: int, max_k: int = MAX_CLASSES) -> Prediction:
    """Read a frame back. Raises MalformedFrame, VersionMismatch, LimitExceeded or InvalidValue.

    `max_pixels` and `max_k` bound what is allocated: at most 3 * max_k * max_pixels bytes.
    """
    fields = _open(frame)
    height, width, k, bits = (_size(fields, name) for name in ("height", "width", "k", "bits"))
    if min(height, width, k) < 1:
        raise InvalidValue("height, width and k must be at least 1")
    if height * width > max_pixels or k > max_k:
        raise LimitExceeded(f"{k} x {height} x {width} is beyond {max_k} planes of {max_pixels} pixels")
    if bits not in (0, 8, 16):
        raise InvalidValue(f"bits must be 0, 8 or 16, not {bits}")
    if (fields["probs"] is None) != (bits == 0):
        raise InvalidValue("probs and bits contradict each other")
    if not isinstance(fields["revision"], str):
        raise MalformedFrame("revision is not text")
    shape = (k, height, width)
    classes = np.frombuffer(_expand(fields["classes"], k * height * width), np.uint8).reshape(shape)
    probs = None
    if bits:
        raw = _expand(fields["probs"], k * height * width * bits // 8)
        probs = np.frombuffer(raw, "<f2" if bits == 16 else np.uint8).reshape(shape)
    return Prediction(classes, probs, fields["revision"])


def encode_info(info: TeacherInfo) -> bytes:
    """A `TeacherInfo` as JSON."""
    return json.dumps(
        {
            "protocol": info.protocol,
            "teacher": info.teacher,
            "revision": info.revision,
            "classes": list(info.classes),
            "colors": [list(c) for c in info.colors],
            "disclosure": str(info.disclosure),
            "limits": {"max_body_bytes": info.limits.max_body_bytes, "max_pixels": info.limits.max_pixels},
        }
    ).encode()


def decode_info(body: bytes) -> TeacherInfo:
    """Read a `TeacherInfo`; unknown keys are ignored, so that a later minor version may add some."""
    if len(body) > MAX_INFO_BYTES:
        raise LimitExceeded(f"an info of {len(body)} bytes is beyond {MAX_INFO_BYTES}")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise MalformedFrame("the info is not JSON") from exc
    if not isinstance(data, Mapping):
        raise MalformedFrame("the info is not a JSON object")
    if data.get("protocol") != PROTOCOL_VERSION:
        raise VersionMismatch(
            f"the teacher speaks protocol {data.get('protocol')!r}, this side {PROTOCOL_VERSION}: "
            "update the older of the two"
        )
    try:
        classes = tuple(_text(c) for c in data["classes"])
        return TeacherInfo(
            protocol=PROTOCOL_VERSION,
            teacher=_text(data["teacher"]),
            revision=_text(data["revision"]),
            classes=classes,
            colors=tuple((int(r), int(g), int(b)) for r, g, b in data["colors"]),
            disclosure=Disclosure.parse(_text(data["disclosure"]), len(classes)),
            limits=Limits(int(data["limits"]["max_body_bytes"]), int(data["limits"]["max_pixels"])),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise MalformedFrame("the info lacks a field or holds one of the wrong type") from exc


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _open(frame: bytes | memoryview) -> dict[str, Any]:
    if len(frame) < len(MAGIC) or bytes(frame[:3]) != MAGIC[:3]:
        raise MalformedFrame("not a CoRTe frame")
    if frame[3] != MAGIC[3]:
        raise VersionMismatch(f"frame version {frame[3]}, this side reads {MAGIC[3]}")
    try:
        fields = msgpack.unpackb(
            frame[len(MAGIC) :],
            raw=False,
            strict_map_key=True,
            max_map_len=16,
            max_array_len=0,
            max_ext_len=0,
            max_str_len=256,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as exc:
        raise MalformedFrame("the frame's body cannot be read") from exc
    if not isinstance(fields, dict) or set(fields) != _KEYS or fields["kind"] != "prediction":
        raise MalformedFrame("the frame's fields are not those of a prediction")
    return fields


def _size(fields: dict[str, Any], name: str) -> int:
    value = fields[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise MalformedFrame(f"{name} is not a size")
    return value


def _squeeze(planes: np.ndarray[Any, Any]) -> bytes:
    little = planes.astype(planes.dtype.newbyteorder("<"), copy=False)
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True, write_content_size=True)
    return compressor.compress(np.ascontiguousarray(little).data)


def _expand(blob: object, size: int) -> bytes:
    if not isinstance(blob, bytes):
        raise MalformedFrame("a plane is not bytes")
    try:
        declared = zstandard.get_frame_parameters(blob).content_size
        if declared != size:
            raise InvalidValue(f"a plane declares {declared} bytes where {size} are due")
        data = zstandard.ZstdDecompressor().decompress(blob, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise MalformedFrame("a plane cannot be decompressed") from exc
    if len(data) != size:
        raise MalformedFrame("a plane is truncated")
    return data
