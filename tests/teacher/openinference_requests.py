"""Requests of the Open Inference Protocol, written by hand: bodies and headers as its text prescribes."""

import base64
import json
import struct
from typing import Any

LENGTH = "inference-header-content-length"


def binary_image(file: bytes, **more: Any) -> tuple[bytes, dict[str, str]]:
    """A request's body and headers: one image file as binary data, binary answers."""
    element = struct.pack("<I", len(file)) + file
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES"}
    return behind(tensor, element, **more)


def behind(tensor: dict[str, Any], data: bytes, **more: Any) -> tuple[bytes, dict[str, str]]:
    """A request with its one tensor as bytes behind the JSON, and all outputs likewise."""
    request = {"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}]} | more
    request["parameters"] = {"binary_data_output": True} | request.get("parameters", {})
    head = json.dumps(request).encode()
    return head + data, {LENGTH: str(len(head))}


def inner(file: bytes, **more: Any) -> dict[str, Any]:
    """A request in JSON only, the image file as base64."""
    tensor = {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(file).decode()],
    }
    return {"inputs": [tensor]} | more
