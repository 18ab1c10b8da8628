"""KServe's own model server, as installed, with an ONNX segmenter behind it (environment: environments.py).

    kserve_server.py MODEL.onnx

MODEL is the teacher's embedded street model: float32 [N, 3, 128, 256] to logits [N, 9, 128, 256]. Two names:

    street          the model as exported: `image` FP32 [-1, 3, 128, 256], normalised as street.toml says,
                    to `logits` FP32 [-1, 9, 128, 256]
    street-pixels   `pixels` UINT8 [1, H, W, 3], RGB of any size, to `probabilities` FP32 [1, 9, 128, 256]
                    and `labels` INT64 [1, 128, 256], at the network's size, not the picture's

Prints "listening on URL" and ends with SIGTERM. The socket is ours, so that it is on loopback and has a free
port; routes, parsing and answers are KServe's.
"""

import asyncio
import socket
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import uvicorn
from kserve import (  # type: ignore[import-not-found]
    InferOutput,
    InferRequest,
    InferResponse,
    Model,
    ModelServer,
    model_server,
)
from kserve.errors import InvalidInput  # type: ignore[import-not-found]
from kserve.protocol.rest.server import RESTServer  # type: ignore[import-not-found]
from kserve.utils.utils import generate_uuid  # type: ignore[import-not-found]
from PIL import Image

CLASSES, HEIGHT, WIDTH = 9, 128, 256
Array = npt.NDArray[Any]


class Street(Model):  # type: ignore[misc]
    """The model as it was exported."""

    def __init__(self, name: str, session: onnxruntime.InferenceSession) -> None:
        super().__init__(name)
        self.session = session
        self.ready = True

    def get_input_types(self) -> list[dict[str, Any]]:
        """KServe's hook for the metadata's inputs."""
        return [{"name": "image", "datatype": "FP32", "shape": [-1, 3, HEIGHT, WIDTH]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """KServe's hook for the metadata's outputs."""
        return [{"name": "logits", "datatype": "FP32", "shape": [-1, CLASSES, HEIGHT, WIDTH]}]

    async def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> Any:
        """KServe's hook for an inference."""
        tensor = payload.inputs[0]
        if len(payload.inputs) != 1 or tensor.name != self.get_input_types()[0]["name"]:
            raise InvalidInput(f"{self.name} takes one input of the name in its metadata")
        arrays = await asyncio.to_thread(self.answer, tensor.as_numpy())
        outputs = []
        for described, array in zip(self.get_output_types(), arrays, strict=True):
            output = InferOutput(described["name"], list(array.shape), described["datatype"])
            output.set_data_from_numpy(array, binary_data=False)
            outputs.append(output)
        return InferResponse(
            response_id=payload.id or generate_uuid(),
            model_name=self.name,
            infer_outputs=outputs,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )

    def answer(self, array: Array) -> list[Array]:
        """Logits, float32 [N, 9, 128, 256]."""
        if array.dtype != np.float32 or array.shape[1:] != (3, HEIGHT, WIDTH):
            raise InvalidInput(f"image is FP32 [-1, 3, {HEIGHT}, {WIDTH}]")
        return list(self.session.run(None, {"image": array}))


class StreetPixels(Street):
    """The model with its preparation and its softmax inside."""

    def get_input_types(self) -> list[dict[str, Any]]:
        """KServe's hook for the metadata's inputs."""
        return [{"name": "pixels", "datatype": "UINT8", "shape": [1, -1, -1, 3]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """KServe's hook for the metadata's outputs."""
        return [
            {"name": "probabilities", "datatype": "FP32", "shape": [1, CLASSES, HEIGHT, WIDTH]},
            {"name": "labels", "datatype": "INT64", "shape": [1, HEIGHT, WIDTH]},
        ]

    def answer(self, array: Array) -> list[Array]:
        """Probabilities, float32 [1, 9, 128, 256], and the best class, int64 [1, 128, 256]."""
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[0] != 1 or array.shape[3] != 3:
            raise InvalidInput("pixels is UINT8 [1, H, W, 3]")
        small = Image.fromarray(array[0]).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
        scaled = (np.asarray(small, np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
        logits = super().answer(np.ascontiguousarray(scaled.transpose(2, 0, 1)[None]))[0]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
        return [probabilities, probabilities.argmax(axis=1)]


def main() -> None:
    """Serve until SIGTERM."""
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    server = ModelServer(enable_grpc=False)
    for model in (Street("street", session), StreetPixels("street-pixels", session)):
        server.register_model(model)
    RESTServer("", server.dataplane, server.model_repository_extension, 0).create_application()
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(model_server.app, log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
