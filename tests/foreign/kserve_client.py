"""KServe's InferenceRESTClient, as installed, asking a service. Runs in an environment of its own.

Standard input: {"url": "http://host:port", "key": text, "questions": [question, ...]} with question as in
triton_client.py, less "version", "compress" and "aio"; a file that is not sent as binary data goes as base64.
Standard output: what the service tells of itself, and for each question its outputs or its error.
"""

import asyncio
import base64
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig  # type: ignore[import-not-found]
from kserve.protocol.infer_type import RequestedOutput  # type: ignore[import-not-found]


def request(question: dict[str, Any]) -> Any:
    """The client's request for one question."""
    binary = question.get("binary", True)
    if "pixels" in question:
        array = np.array(question["pixels"], np.uint8)[None]
        tensor = InferInput("pixels", list(array.shape), "UINT8")
        tensor.set_data_from_numpy(array, binary_data=binary)
    elif binary:
        tensor = InferInput("image", [1], "BYTES")
        file = base64.b64decode(question["file"])
        tensor.set_data_from_numpy(np.array([file], dtype=np.object_), binary_data=True)
    else:
        text = {"content_type": "base64"}
        tensor = InferInput("image", [1], "BYTES", data=[question["file"]], parameters=text)
    outputs = [RequestedOutput(name, {"binary_data": b}) for name, b in question.get("outputs", [])]
    return InferRequest(
        model_name="teacher",
        infer_inputs=[tensor],
        request_id=question.get("id"),
        parameters=question.get("parameters"),
        request_outputs=outputs or None,
    )


def told(result: Any) -> dict[str, Any]:
    """An answer as JSON."""
    arrays = {output.name: output.as_numpy() for output in result.outputs}
    return {
        "id": result.id,
        "model": result.model_name,
        "outputs": {name: [str(a.dtype), a.shape, a.ravel().tolist()] for name, a in arrays.items()},
    }


async def talk(job: dict[str, Any]) -> dict[str, Any]:
    """Ask what the service is, then every question."""
    url = job["url"]
    headers = {"Authorization": f"Bearer {job['key']}"} if job["key"] else {}
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        said: dict[str, Any] = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model ready": await client.is_model_ready(url, "teacher", headers=headers),
            "other ready": await client.is_model_ready(url, "other", headers=headers),
            "answers": [],
        }
        for question in job["questions"]:
            asked = request(question)
            try:
                result = await client.infer(url, asked, model_name="teacher", headers=dict(headers))
            except httpx.HTTPStatusError as exc:
                said["answers"].append({"error": [str(exc.response.status_code), str(exc)]})
            else:
                said["answers"].append(told(result))
    return said


if __name__ == "__main__":
    json.dump(asyncio.run(talk(json.load(sys.stdin))), sys.stdout)
