"""NVIDIA's tritonclient, as installed, asking a service. Runs in an environment of its own (environments.py).

Standard input: {"url": "host:port", "key": text, "version": text, "questions": [question, ...]} with
question = {"pixels": nested numbers [H, W, 3]} or {"file": base64}, and optionally "binary" (default true),
"outputs" ([[name, binary], ...]), "parameters", "version", "id", "compress", "aio".
Standard output: what the service tells of itself, and for each question its outputs or its error.
"""

import asyncio
import base64
import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton  # type: ignore[import-not-found]
import tritonclient.http.aio as triton_aio  # type: ignore[import-not-found]
from tritonclient.utils import InferenceServerException  # type: ignore[import-not-found]


def arguments(question: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    """The arguments of `infer` for one question."""
    if "pixels" in question:
        array = np.array(question["pixels"], np.uint8)[None]
        tensor = triton.InferInput("pixels", list(array.shape), "UINT8")
    else:
        array = np.array([base64.b64decode(question["file"])], dtype=np.object_)
        tensor = triton.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(array, binary_data=question.get("binary", True))
    outputs = [triton.InferRequestedOutput(name, binary_data=b) for name, b in question.get("outputs", [])]
    return {
        "model_name": "teacher",
        "inputs": [tensor],
        "outputs": outputs or None,
        "model_version": question.get("version", ""),
        "request_id": question.get("id", ""),
        "parameters": question.get("parameters"),
        "headers": dict(headers),
        "request_compression_algorithm": question.get("compress"),
    }


def told(result: Any) -> dict[str, Any]:
    """An answer as JSON."""
    response = result.get_response()
    arrays = {output["name"]: result.as_numpy(output["name"]) for output in response["outputs"]}
    return {
        "id": response.get("id"),
        "model": [response["model_name"], response["model_version"]],
        "outputs": {name: [str(a.dtype), a.shape, a.ravel().tolist()] for name, a in arrays.items()},
    }


async def ask_aio(url: str, asked: dict[str, Any]) -> Any:
    """One question through the client's asyncio half."""
    async with triton_aio.InferenceServerClient(url) as client:
        return await client.infer(**asked)


def main() -> None:
    """Answer one job."""
    job = json.load(sys.stdin)
    headers = {"Authorization": f"Bearer {job['key']}"} if job["key"] else {}
    with triton.InferenceServerClient(job["url"]) as client:
        said: dict[str, Any] = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model ready": client.is_model_ready("teacher", headers=headers),
            "version ready": client.is_model_ready("teacher", job["version"], headers=headers),
            "other ready": client.is_model_ready("other", headers=headers),
            "answers": [],
        }
        try:
            said["server"] = client.get_server_metadata(headers=headers)
            said["model"] = client.get_model_metadata("teacher", headers=headers)
        except InferenceServerException as exc:
            said["error"] = [exc.status(), exc.message()]
        for question in job["questions"]:
            asked = arguments(question, headers)
            try:
                aio = question.get("aio", False)
                result = asyncio.run(ask_aio(job["url"], asked)) if aio else client.infer(**asked)
            except InferenceServerException as exc:
                said["answers"].append({"error": [exc.status(), exc.message()]})
            else:
                said["answers"].append(told(result))
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
