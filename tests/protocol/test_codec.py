"""Frames: what goes in comes out, what was frozen stays readable, and hostile bytes do no harm."""

import contextlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from corte_protocol import (
    Disclosure,
    InvalidValue,
    LimitExceeded,
    Limits,
    MalformedFrame,
    Prediction,
    ProtocolError,
    TeacherInfo,
    VersionMismatch,
    decode_info,
    decode_prediction,
    encode_info,
    encode_prediction,
)
from corte_protocol.codec import MAGIC, MAX_INFO_BYTES
from protocol.samples import GOLDEN_LEVELS, full_prediction, golden_prediction, predictions

GOLDEN = Path(__file__).parent / "golden"


def assert_equal(a: Prediction, b: Prediction) -> None:
    """Same planes, same types, same revision."""
    assert a.revision == b.revision and a.disclosure == b.disclosure
    assert np.array_equal(a.classes, b.classes)
    if a.probs is not None:
        assert b.probs is not None and a.probs.dtype == b.probs.dtype and np.array_equal(a.probs, b.probs)


@given(predictions())
def test_a_frame_holds_the_prediction(prediction: Prediction) -> None:
    """Encoding and decoding change nothing, at any level and shape."""
    assert_equal(prediction, decode_prediction(encode_prediction(prediction), max_pixels=81))


@given(predictions())
def test_what_is_decoded_cannot_be_changed(prediction: Prediction) -> None:
    """Decoded planes are read-only."""
    again = decode_prediction(memoryview(encode_prediction(prediction)), max_pixels=81)
    assert not again.classes.flags.writeable
    assert again.probs is None or not again.probs.flags.writeable


@pytest.mark.parametrize("level", GOLDEN_LEVELS)
def test_golden_frames_stay_readable(level: str) -> None:
    """Frames of protocol 1, frozen as files, decode to the same answer for ever. Never regenerate them."""
    frame = bytes.fromhex((GOLDEN / f"v1-{level.replace(':', '-')}.hex").read_text())
    right = golden_prediction().narrow(Disclosure.parse(level, 5))
    assert_equal(right, decode_prediction(frame, max_pixels=12))


def fields(**changes: Any) -> bytes:
    """A margin frame with some fields replaced; a value of ... leaves the field out."""
    data = msgpack.unpackb(encode_prediction(golden_prediction().narrow(Disclosure(2, 8)))[4:])
    data |= changes
    return MAGIC + bytes(msgpack.packb({k: v for k, v in data.items() if v is not ...}))


def squeezed(data: bytes, **options: Any) -> bytes:
    """One zstd frame."""
    return zstandard.ZstdCompressor(**options).compress(data)


def _unsized(data: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return compressor.compress(data) + compressor.flush()


HOSTILE: dict[str, tuple[bytes, type[ProtocolError]]] = {
    "empty": (b"", MalformedFrame),
    "magic only": (MAGIC, MalformedFrame),
    "not ours": (b"\x89PNG\r\n\x1a\n", MalformedFrame),
    "next version": (b"CRT\x02" + fields()[4:], VersionMismatch),
    "a list": (MAGIC + msgpack.packb([1, 2]), MalformedFrame),
    "deeply nested": (MAGIC + b"\x91" * 100_000 + b"\xc0", MalformedFrame),
    "a huge declared map": (MAGIC + b"\xdf\xff\xff\xff\xff", MalformedFrame),
    "a huge declared blob": (MAGIC + b"\x81\xa7classes\xc6\xff\xff\xff\xff", MalformedFrame),
    "trailing bytes": (fields() + b"\x00", MalformedFrame),
    "a missing field": (fields(probs=...), MalformedFrame),
    "a further field": (fields(extra=1), MalformedFrame),
    "another kind": (fields(kind="info"), MalformedFrame),
    "an extension type": (fields(classes=msgpack.ExtType(1, b"abc")), MalformedFrame),
    "an empty extension type": (fields(classes=msgpack.ExtType(1, b"")), MalformedFrame),
    "a timestamp": (fields(kind=msgpack.Timestamp(1, 2)), MalformedFrame),
    "size as text": (fields(height="3"), MalformedFrame),
    "size as bool": (fields(height=True), MalformedFrame),
    "negative size": (fields(width=-4), MalformedFrame),
    "enormous size": (fields(width=1 << 40), MalformedFrame),
    "zero pixels": (fields(height=0), InvalidValue),
    "zero classes": (fields(k=0), InvalidValue),
    "too many pixels": (fields(height=2**31 - 1, width=2**31 - 1), LimitExceeded),
    "too many classes": (fields(k=300), LimitExceeded),
    "odd bits": (fields(bits=7), InvalidValue),
    "bits without scores": (fields(probs=None), InvalidValue),
    "scores without bits": (fields(bits=0), InvalidValue),
    "revision as number": (fields(revision=5), MalformedFrame),
    "revision with spaces": (fields(revision="a b"), InvalidValue),
    "text instead of a plane": (fields(classes="abc"), MalformedFrame),
    "a plane that is not zstd": (fields(classes=b"abc"), MalformedFrame),
    "a plane cut short": (fields(classes=squeezed(bytes(24))[:-3]), MalformedFrame),
    "a plane of another size": (fields(classes=squeezed(bytes(25))), InvalidValue),
    "a zip bomb": (fields(classes=squeezed(bytes(1 << 26))), InvalidValue),
    "a bomb that hides its size": (fields(classes=_unsized(bytes(1 << 26))), InvalidValue),
    "an empty skippable frame": (fields(classes=b"\x50\x2a\x4d\x18\x00\x00\x00\x00"), ProtocolError),
    "the same class twice": (fields(classes=squeezed(bytes(24))), InvalidValue),
    "void as an answer": (fields(classes=squeezed(b"\xff" * 12 + bytes(12))), InvalidValue),
    "ascending scores": (fields(probs=squeezed(bytes(12) + b"\x01" * 12)), InvalidValue),
    "scores beyond one": (fields(probs=squeezed(b"\x80" * 24)), InvalidValue),
    "not a number": (fields(bits=16, probs=squeezed(np.full(24, np.nan, "<f2").tobytes())), InvalidValue),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_frames_are_refused_and_nothing_large_is_made(name: str) -> None:
    """Each breach has its error, and no declared size is believed before it is checked."""
    frame, error = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(error):
            decode_prediction(frame, max_pixels=4096)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=300))
def test_garbage_raises_only_protocol_errors(data: bytes) -> None:
    """Random bytes, with and without our magic, are refused in our own words."""
    for frame in (data, MAGIC + data):
        with pytest.raises(ProtocolError):
            decode_prediction(frame, max_pixels=4096)


@given(predictions(), st.data())
def test_damage_raises_only_protocol_errors(prediction: Prediction, data: st.DataObject) -> None:
    """A flipped byte or a cut either is refused as a ProtocolError or leaves a legal prediction."""
    frame = bytearray(encode_prediction(prediction))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(frame), bytes(frame[:at])):
        with contextlib.suppress(ProtocolError):
            assert isinstance(decode_prediction(damaged, max_pixels=81), Prediction)


def test_the_callers_limits_hold() -> None:
    """A frame larger than the caller expects is refused, however legal."""
    frame = encode_prediction(full_prediction(4, 5, 6, 0))
    assert decode_prediction(frame, max_pixels=30, max_k=4).classes.shape == (4, 5, 6)
    with pytest.raises(LimitExceeded):
        decode_prediction(frame, max_pixels=29, max_k=4)
    with pytest.raises(LimitExceeded):
        decode_prediction(frame, max_pixels=30, max_k=3)


INFO = TeacherInfo(
    1, "a1", "b2", ("road", "sky", "Straße"), ((1, 2, 3),) * 3, Disclosure(2, 8), Limits(1000, 2000)
)


@pytest.mark.parametrize("level", ["labels", "confidence", "margin", "topk:3", "full"])
def test_an_info_round_trips(level: str) -> None:
    """All fields survive, at every policy; a later minor version's extra keys are ignored."""
    info = TeacherInfo(1, "a1", "b2", INFO.classes, INFO.colors, Disclosure.parse(level, 3), INFO.limits)
    assert decode_info(encode_info(info)) == info
    assert decode_info(json.dumps(json.loads(encode_info(info)) | {"news": 1}).encode()) == info


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"protocol": 2}, VersionMismatch),
        ({"protocol": None}, VersionMismatch),
        ({"classes": None}, MalformedFrame),
        ({"classes": [1, 2, 3]}, MalformedFrame),
        ({"classes": ["a", "a", "b"]}, InvalidValue),
        ({"classes": ["a"], "colors": [[1, 2, 3]]}, InvalidValue),
        ({"colors": [[1, 2]]}, MalformedFrame),
        ({"colors": [[1, 2, 300]] * 3}, InvalidValue),
        ({"colors": [[1, 2, float("inf")]] * 3}, MalformedFrame),
        ({"limits": []}, MalformedFrame),
        ({"limits": {"max_body_bytes": 0, "max_pixels": 1}}, InvalidValue),
        ({"disclosure": "everything"}, InvalidValue),
        ({"disclosure": 5}, MalformedFrame),
        ({"teacher": "a b"}, InvalidValue),
        ({"revision": ""}, InvalidValue),
    ],
)
def test_a_wrong_info_is_refused(changes: dict[str, Any], error: type[ProtocolError]) -> None:
    """Each wrong field has its error."""
    with pytest.raises(error):
        decode_info(json.dumps(json.loads(encode_info(INFO)) | changes).encode())


@given(st.one_of(st.binary(max_size=200), st.text(max_size=50).map(str.encode)))
def test_garbage_is_not_an_info(body: bytes) -> None:
    """Whatever else is not an info is a ProtocolError; neither size nor depth hurts."""
    with pytest.raises(ProtocolError):
        decode_info(body)


def test_enormous_infos_are_refused() -> None:
    """Beyond the limit nothing is parsed; deep nesting is not a crash."""
    with pytest.raises(LimitExceeded):
        decode_info(b" " * (MAX_INFO_BYTES + 1))
    with pytest.raises(MalformedFrame):
        decode_info(b"[" * 100_000)
