"""What is no answer of an Open Inference server, and what its {"error": text} means.

Strategy: a status alone tells little. Triton answered 400 to nearly everything before
https://github.com/triton-inference-server/server/pull/6713 and lets its embeddings (SageMaker, Vertex) do so
still; KServe passes a full queue on as 500 (https://github.com/kserve/kserve/issues/4247). So the text of a
400 or 500, or of an error inside a 200, is looked up in the few phrases below; what is not there goes to the
ordinary table. The text itself, which may quote the request, is repeated nowhere.
"""

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from corte_protocol import ProtocolError
from corte_student.endpoints.dialect import Reply, Verdict
from corte_student.endpoints.hints import wait_of
from corte_student.endpoints.tensors import unpack
from corte_student.endpoints.vendors.openinference.options import WHERE
from corte_student.errors import BrokeContract, ImageRefused, Refused, Unavailable

_TEXT: Final = 1 << 16
_PARSED: Final = 1 << 20
"""JSON above this many bytes is read where there is time, not here."""
_TOLD: Final[tuple[tuple[re.Pattern[bytes], Verdict], ...]] = (
    (
        # Triton: queue policies, a model that is being loaded; KServe: ModelNotReady passed on
        re.compile(rb"maximum queue size|timeout expired|not ready|was cancelled|queue is full"),
        Verdict("it is full or not ready", Unavailable, again=True, pace="overloaded"),
    ),
    (
        # Triton: "Request for unknown model: 'x' is not found", "... has no available versions"
        re.compile(rb"unknown model|no available versions|model with .{0,200}(is not found|does not exist)"),
        Verdict("knows no such model: check --teacher-url and `model` in --teacher-config", Refused),
    ),
    (
        # Triton and KServe: "receiving FP16 data via JSON is not supported"
        re.compile(rb"fp16 data via json"),
        Verdict(f"takes FP16 in binary form only: write `binary = true` into {WHERE}", Refused),
    ),
    (
        # KServe turns binary BYTES into text: 'Failed to encode "b..." using UTF-8'
        re.compile(rb"failed to encode"),
        Verdict(f"takes no bytes in binary form: write `binary = false` into {WHERE}", Refused),
    ),
    (
        # Triton; OpenVINO Model Server: "Invalid input shape"; onnxruntime behind any of them
        re.compile(
            rb"unexpected shape|data-type is|unexpected inference (in|out)put|"
            rb"invalid (input )?(shape|precision)|got invalid dimensions|unexpected input data type"
        ),
        Verdict(
            "the teacher will not take this image: the model wants another shape or datatype, "
            f"correct `shape` and `datatype` in {WHERE}",
            ImageRefused,
        ),
    ),
)
_NO_PREDICTION: Final = Verdict(
    "answered with something that is no prediction: check --teacher-kind", BrokeContract, billed=True
)
_INSIDE: Final = Verdict(
    "the teacher will not take this image: it answers 200 with an error", ImageRefused, billed=True
)


def failure(reply: Reply, json_bytes: str | None) -> Verdict | None:
    """The verdict on `reply`; None for an answer, and for what the ordinary table rules.

    `json_bytes` is the header that says how much of the body is JSON.
    """
    good = 200 <= reply.status < 300
    if good and _is_answer(reply.body, json_bytes):
        return None
    text = reply.body[:_TEXT].lower()
    told = text.lstrip()[:1] == b"{" and b'"error"' in text
    if told and (good or reply.status in (400, 500)):
        for pattern, verdict in _TOLD:
            if pattern.search(text):
                return replace(verdict, wait_s=wait_of(reply.headers, datetime.now(UTC)))
    if good:
        return _INSIDE if told else _NO_PREDICTION
    return None


def _is_answer(body: bytes, json_bytes: str | None) -> bool:
    """Cheap where the JSON is large: then only its ends are looked at."""
    if json_bytes is None and len(body) > _PARSED:
        return body.lstrip()[:1] == b"{" and body.rstrip()[-1:] == b"}" and b'"outputs"' in body
    try:
        return bool(unpack(body, json_bytes, "outputs").entries)
    except ProtocolError:
        return False
