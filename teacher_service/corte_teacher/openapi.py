"""The OpenAPI document of the service: served at /openapi.json only where the operator asks for it (--docs).

It says what docs/protocol.md says, and the same whatever the model.
"""

from typing import Any, Final

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from corte_protocol.errors import WIRE
from corte_protocol.routes import (
    DEADLINE_HEADER,
    DISCLOSURE_QUERY,
    FRAME_TYPE,
    HEALTH,
    IMAGE_TYPES,
    INFO,
    PREDICT,
    PROBLEM_TYPE,
    PROTOCOL_VERSION,
    READY,
)

PATH: Final = "/openapi.json"
_ASKING: Final = (
    "malformed", "unauthorized", "forbidden", "timeout", "too-large", "media-type", "invalid",
    "head-too-large", "quota", "busy-key", "internal", "overloaded", "deadline", "not-ready",
)  # fmt: skip
_BINARY: Final = {"type": "string", "format": "binary"}


def install(app: FastAPI) -> None:
    """Serve the document."""
    made = document()

    @app.get(PATH)
    async def openapi() -> Response:
        return JSONResponse(made)


def document() -> dict[str, Any]:
    """The document, OpenAPI 3.1."""
    text = {"text/plain": {"schema": {"type": "string"}}}
    level = {
        "name": DISCLOSURE_QUERY,
        "in": "query",
        "schema": {"type": "string", "pattern": "^(labels|confidence|margin|full|topk:[0-9]{1,3})$"},
        "description": "The level asked; by default all that the caller may see.",
    }
    deadline = {
        "name": DEADLINE_HEADER,
        "in": "header",
        "schema": {"type": "integer", "minimum": 1},
        "description": "Milliseconds within which the sender still wants the answer.",
    }
    asking = _operation("One image to one frame.", _ok({FRAME_TYPE: {"schema": _BINARY}}), *_ASKING) | {
        "parameters": [level, deadline],
        "requestBody": {"required": True, "content": {kind: {"schema": _BINARY} for kind in IMAGE_TYPES}},
    }
    about = _ok({"application/json": {"schema": {"type": "object"}}})
    paths: dict[str, Any] = {
        HEALTH: {"get": _operation("Whether the process listens.", _ok(text)) | {"security": []}},
        READY: {"get": _operation("Whether to send here.", _ok(text), "not-ready") | {"security": []}},
        INFO: {"get": _operation("What a caller may know.", about, "unauthorized")},
        PREDICT: {"post": asking},
        **_open_inference(deadline),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "A segmentation model, answers only", "version": str(PROTOCOL_VERSION)},
        "paths": paths,
        "security": [{"key": []}],
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"problem": _problem_schema()},
        },
    }


def _open_inference(deadline: dict[str, Any]) -> dict[str, Any]:
    """The routes of the Open Inference Protocol, of which the specification holds the schemas."""
    told = _ok({"application/json": {"schema": {"type": "object"}}})
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    binary = {"name": "inference-header-content-length", "in": "header", "schema": {"type": "integer"}}
    codes = {str(WIRE[code].status) for code in (*_ASKING, "not-found", "bad-request")}
    failed = {
        status: {"description": "refused", "content": {"application/json": {"schema": {"type": "object"}}}}
        for status in sorted(codes)
    }
    infer = {
        "summary": "One image to planes of classes and scores.",
        "parameters": [name, binary, deadline],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "application/octet-stream": {"schema": _BINARY},
            },
        },
        "responses": told | failed,
    }
    found = {"parameters": [name], "responses": told | failed}
    plain = {"responses": told | failed}
    return {
        "/v2": {"get": plain},
        "/v2/health/live": {"get": plain | {"security": []}},
        "/v2/health/ready": {"get": plain | {"security": []}},
        "/v2/models/{name}": {"get": found},
        "/v2/models/{name}/ready": {"get": found},
        "/v2/models/{name}/infer": {"post": infer},
    }


def _operation(summary: str, answers: dict[str, Any], *codes: str) -> dict[str, Any]:
    """An operation with its good answer and its problem documents, one a status."""
    problems: dict[str, Any] = {}
    for code in codes:
        row = WIRE[code]
        known = problems.setdefault(str(row.status), {"description": row.title})
        if known["description"] != row.title:
            known["description"] += f" Or: {row.title}"
        known["content"] = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/problem"}}}
    return {"summary": summary, "responses": answers | problems}


def _ok(content: dict[str, Any]) -> dict[str, Any]:
    return {"200": {"description": "the answer", "content": content}}


def _problem_schema() -> dict[str, Any]:
    """RFC 9457, with this project's code and the request's id."""
    return {
        "type": "object",
        "required": ["type", "title", "status", "code", "request_id"],
        "properties": {
            "type": {"const": "about:blank"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "code": {"enum": sorted(WIRE)},
            "request_id": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
        },
    }
