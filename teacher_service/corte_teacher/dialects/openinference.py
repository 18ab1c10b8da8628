"""The Open Inference Protocol v2 over HTTP/REST: what tritonclient, KServe's client and others speak.

Sources: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
and https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html.

Rule 1: one model of one opaque name, one version (the info's revision), one image a request.
Rule 2: metadata says what `/v1/info` says, and no platform.
Rule 3: outputs are planes of the `Prediction` at the level asked; a request may ask for some of them.
Rule 4: failures are rows of `errors.WIRE` in the protocol's own shape, {"error": text}.
"""

import json
import re
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

import numpy as np
from fastapi import FastAPI, Request, Response
from PIL import Image as Pillow
from starlette.exceptions import HTTPException

from corte_protocol import Disclosure, Image, Prediction, TeacherInfo
from corte_protocol.errors import WireError
from corte_protocol.routes import PROTOCOL_VERSION
from corte_protocol.types import UInt8
from corte_teacher.admission import allowed_level, require_plain
from corte_teacher.asking import ask, identify
from corte_teacher.callers import Caller
from corte_teacher.dialects.tensors import (
    array_text,
    decoded_image,
    encoded_image,
    fields_of,
    read_tensor,
    take_apart,
)
from corte_teacher.errors import BadRequest, Forbidden, InvalidRequest
from corte_teacher.job import Question
from corte_teacher.pictures import Picture, open_picture
from corte_teacher.service import Current, Service

MODEL: Final = "teacher"
LENGTH_HEADER: Final = "inference-header-content-length"
_ROOT: Final = "/v2"
_MODEL: Final = f"{_ROOT}/models/{{name}}"
_VERSION: Final = f"{_MODEL}/versions/{{version}}"
_CLASSES, _SCORES = "classes", "scores"
_ID = re.compile(r"[0-9A-Za-z._:-]{0,128}")


@dataclass(frozen=True, slots=True)
class Output:
    """One output that is to be sent, as bytes behind the JSON or as numbers in it."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class Written:
    """A response's body; `header` is the length of its JSON where bytes follow."""

    body: bytes
    header: int | None


def owns(path: str) -> bool:
    """Whether failures on this path are told in this protocol's shape."""
    return path == _ROOT or path.startswith(f"{_ROOT}/")


def failure(wire: WireError) -> Response:
    """One row of `errors.WIRE` as the protocol tells it."""
    return _json({"error": wire.title}, wire.status)


def install(app: FastAPI, service: Service) -> None:
    """Add the protocol's routes to a service."""

    def admit(request: Request) -> tuple[Caller, Current, TeacherInfo]:
        caller = identify(service, request)
        current = service.current
        info, _ = current.infos.of(caller.grant)
        asked = request.path_params
        if asked["name"] != MODEL or asked.get("version", info.revision) != info.revision:
            raise HTTPException(404)
        return caller, current, info

    @app.get(f"{_ROOT}/health/live")
    async def live() -> Response:
        return _json({"live": True})

    @app.get(f"{_ROOT}/health/ready")
    async def ready() -> Response:
        service.require_traffic()
        return _json({"ready": True})

    @app.get(_ROOT)
    @app.get(f"{_ROOT}/")
    async def server(request: Request) -> Response:
        identify(service, request)
        version = str(PROTOCOL_VERSION)
        return _json({"name": "corte", "version": version, "extensions": ["binary_tensor_data"]})

    @app.get(_MODEL)
    @app.get(_VERSION)
    async def model(request: Request) -> Response:
        _, _, info = admit(request)
        return _json(metadata(info))

    @app.get(f"{_MODEL}/ready")
    @app.get(f"{_VERSION}/ready")
    async def model_ready(request: Request) -> Response:
        admit(request)
        service.require_traffic()
        return _json({"name": MODEL, "ready": True})

    @app.post(f"{_MODEL}/infer")
    @app.post(f"{_VERSION}/infer")
    async def infer(request: Request) -> Response:
        caller, current, info = admit(request)
        service.require_ready()
        if request.query_params:
            raise InvalidRequest("a query parameter, where the protocol has none")
        require_plain(request)
        header = request.headers.get(LENGTH_HEADER)

        def read(body: bytes) -> Question[Written]:
            return read_question(body, header, info)

        written = await ask(service, request, caller, current, info, read)
        if written.header is None:
            return Response(written.body, media_type="application/json")
        headers = {LENGTH_HEADER: str(written.header)}
        return Response(written.body, headers=headers, media_type="application/octet-stream")


def metadata(info: TeacherInfo) -> dict[str, object]:
    """The model's metadata: the tensors of the whole policy, and as parameters what else `/v1/info` says.

    A parameter is a text, a number or a truth value (required_api.md, "Parameters"), so the lists of class
    names and colours are JSON texts.
    """
    shape = [1, info.disclosure.top_k, -1, -1]
    outputs = [{"name": _CLASSES, "datatype": "UINT8", "shape": shape}]
    if info.disclosure.prob_bits:
        datatype = "UINT8" if info.disclosure.prob_bits == 8 else "FP16"
        outputs.append({"name": _SCORES, "datatype": datatype, "shape": shape})
    return {
        "name": MODEL,
        "versions": [info.revision],
        "platform": "corte",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [1, -1, -1, 3]},
        ],
        "outputs": outputs,
        "parameters": {
            "teacher": info.teacher,
            "classes": json.dumps(info.classes),
            "colors": json.dumps(info.colors),
            "disclosure": str(info.disclosure),
            "max_body_bytes": info.limits.max_body_bytes,
            "max_pixels": info.limits.max_pixels,
        },
    }


def read_question(body: bytes, header_length: str | None, info: TeacherInfo) -> Question[Written]:
    """One request's body to a question. Blocking.

    Raises BadRequest where the body is not of the protocol's form, Unreadable where it is not one
    image, InvalidRequest for a value that is not answered, Forbidden for more than the policy,
    TooLarge for more than the limits.
    """
    message, behind = take_apart(body, header_length)
    known = {"id", "parameters", "inputs", "outputs", "model_name", "model_version"}
    fields = fields_of(message, known)
    parameters = fields_of(fields.get("parameters"), {"disclosure", "binary_data_output"})
    level, binary = parameters.get("disclosure"), parameters.get("binary_data_output", False)
    if not isinstance(binary, bool) or not (level is None or isinstance(level, str)):
        raise InvalidRequest("a parameter of another type than the protocol's")
    policy = info.disclosure
    asked = policy if level is None else allowed_level(level, policy, len(info.classes))
    outputs = _outputs(fields.get("outputs"), binary, asked, policy)
    echo: dict[str, object] = {"model_name": MODEL, "model_version": info.revision}
    if fields.get("id") is not None:
        echo["id"] = _safe(fields["id"])
    inputs = fields.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise BadRequest("not exactly one input")
    tensor = read_tensor(inputs[0], behind)
    if tensor.name == "image":
        picture = open_picture(encoded_image(tensor), info.limits)
    elif tensor.name == "pixels":
        image = Image(decoded_image(tensor, info.limits))
        height, width, _ = image.pixels.shape
        picture = Picture(height, width, lambda: Pillow.fromarray(image.pixels))
    else:
        raise BadRequest("no input of that name")
    return Question(picture, asked, partial(write_answer, echo, outputs))


def write_answer(echo: dict[str, object], outputs: tuple[Output, ...], prediction: Prediction) -> Written:
    """The response to one request: `echo`, then the outputs asked for, [1, K, H, W] each."""
    head = json.dumps(echo, separators=(",", ":")).encode()[:-1] + b',"outputs":['
    pieces: list[bytes] = []
    behind: list[bytes] = []
    for output in outputs:
        planes = prediction.classes if output.name == _CLASSES else prediction.probs
        assert planes is not None, "outputs are checked against the level when they are read"
        datatype = "UINT8" if planes.dtype == np.uint8 else "FP16"
        described = {"name": output.name, "shape": [1, *planes.shape], "datatype": datatype}
        if output.binary:
            little = planes.astype(planes.dtype.newbyteorder("<"), copy=False)
            behind.append(little.tobytes())
            data = b',"parameters":' + json.dumps({"binary_data_size": little.nbytes}).encode()
        else:
            data = b',"data":' + array_text(cast(UInt8, planes))
        pieces.append(json.dumps(described).encode()[:-1] + data + b"}")
    header = b"".join((head, b",".join(pieces), b"]}"))
    return Written(b"".join((header, *behind)), len(header) if behind else None)


def _outputs(value: object, binary: bool, asked: Disclosure, policy: Disclosure) -> tuple[Output, ...]:
    """The outputs a request names, in its order; without a name all that the level holds.

    FP16 has no form in JSON (required_api.md, "Tensor Data"; Triton and KServe refuse it as well).
    """
    if value is None or value == []:
        held = (_CLASSES, _SCORES) if asked.prob_bits else (_CLASSES,)
        outputs = tuple(Output(name, binary) for name in held)
    elif isinstance(value, list):
        outputs = tuple(_output(item, binary) for item in value)
    else:
        raise BadRequest("outputs are a list")
    names = [output.name for output in outputs]
    if len(set(names)) != len(names) or not set(names) <= {_CLASSES, _SCORES}:
        raise InvalidRequest("an output that does not exist, or one twice")
    if _SCORES in names and policy.prob_bits == 0:
        raise Forbidden("scores, where the policy has none")
    if _SCORES in names and asked.prob_bits == 0:
        raise InvalidRequest("scores, at a level without them")
    if asked.prob_bits == 16 and Output(_SCORES, False) in outputs:
        raise InvalidRequest("FP16 in JSON")
    return outputs


def _output(value: object, binary: bool) -> Output:
    fields = fields_of(value, {"name", "parameters"})
    own = fields_of(fields.get("parameters"), {"binary_data"}).get("binary_data", binary)
    name = fields.get("name")
    if not isinstance(name, str) or not isinstance(own, bool):
        raise InvalidRequest("an output without a name, or with a parameter of another type")
    return Output(name, own)


def _safe(given: object) -> str:
    if not isinstance(given, str) or not _ID.fullmatch(given):
        raise InvalidRequest("an id is up to 128 letters, digits, '.', '_', ':' or '-'")
    return given


def _json(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value), status, media_type="application/json")
