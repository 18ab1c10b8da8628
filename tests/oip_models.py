"""An Open Inference server with one model, for tests of the client: routes and both forms as documented.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

import io
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corte_protocol import Disclosure, Prediction
from corte_protocol.types import UInt8
from corte_student.data.folder import Picture
from corte_student.endpoints import Access, Endpoint, connect
from corte_student.endpoints.config import config_from
from corte_student.endpoints.tensors import LENGTH_HEADER, Tensor, pack, unpack
from replaying import Replay, replay
from student.dialect_contract import CLASSES, truth

Array = npt.NDArray[Any]

NAMES: dict[str, object] = {"classes": list(CLASSES)}
FULL = Disclosure(3, 16)


def decoded(encoded: bytes) -> UInt8:
    """The pixels of an encoded picture."""
    with Pillow.open(io.BytesIO(encoded)) as picture:
        return np.asarray(picture.convert("RGB"))


def logits_of(pixels: UInt8) -> Array:
    """float32 [3, H, W], best where `truth` says, different everywhere else."""
    noise = np.random.default_rng(3).uniform(-1, 1, (3, *pixels.shape[:2]))
    logits: Array = (noise + 4 * (np.arange(3)[:, None, None] == truth(pixels))).astype(np.float32)
    return logits


def softmax(logits: Array) -> Array:
    """In float64, over the first axis."""
    powers: Array = np.exp(logits.astype(np.float64) - logits.max(axis=0))
    shares: Array = powers / powers.sum(axis=0)
    return shares


def spec(name: str, datatype: str, shape: list[int]) -> dict[str, object]:
    """One tensor of a model's metadata."""
    return {"name": name, "datatype": datatype, "shape": shape}


def encoded_picture(tensor: Tensor) -> UInt8:
    """The pixels in a BYTES input."""
    assert isinstance(tensor.data, tuple)
    return decoded(tensor.data[0])


def pixels_in(tensor: Tensor) -> UInt8:
    """The pixels in a UINT8 [1, H, W, 3] input."""
    pixels: UInt8 = tensor.array[0]
    return pixels


@dataclass
class Model:
    """A server with one model: `look` gets the pixels from the input, `answers` the outputs from them."""

    look: Callable[[Tensor], UInt8]
    answers: Callable[[UInt8], dict[str, Array]]
    inputs: list[dict[str, object]]
    outputs: list[dict[str, object]]
    platform: str = ""
    version: str | None = "1"
    extra: dict[str, object] = field(default_factory=dict)
    forced: bool | None = None
    """Answer in binary form or not, whatever was asked."""
    seen: list[Tensor] = field(default_factory=list)

    def metadata(self) -> Response:
        """GET v2/models/NAME."""
        stated = {"name": "net", "versions": ["1"], "platform": self.platform, **self.extra}
        return JSONResponse({**stated, "inputs": self.inputs, "outputs": self.outputs})

    def infer(self, request: Request, body: bytes) -> Response:
        """POST v2/models/NAME/infer."""
        message = unpack(body, request.headers.get(LENGTH_HEADER.lower()), "inputs")
        assert len(message.entries) == 1
        tensor = message.tensor(next(iter(message.entries)), 1 << 24)
        self.seen.append(tensor)
        found = self.answers(self.look(tensor))
        asked = message.document.get("outputs") or [{"name": name} for name in found]
        binary = any(one.get("parameters", {}).get("binary_data") for one in asked)
        binary = binary if self.forced is None else self.forced
        outputs = [Tensor.of(one["name"], found[one["name"]]) for one in asked]
        head = {"model_name": "net", "model_version": self.version}
        packed = pack(head, "outputs", outputs, binary=binary)
        return Response(packed.body, 200, packed.headers)


TWO = Model(
    encoded_picture,
    lambda pixels: {"logits": logits_of(pixels)[None], "labels": truth(pixels)[None].astype(np.int64)},
    [spec("image", "BYTES", [1])],
    [spec("logits", "FP32", [1, 3, -1, -1]), spec("labels", "INT64", [1, -1, -1])],
)


@asynccontextmanager
async def asking(
    model: Model, options: Mapping[str, object] | None = None, **config: object
) -> AsyncIterator[tuple[Endpoint, Replay]]:
    """An endpoint in front of `model`, without a key."""

    async def answer(request: Request, body: bytes) -> Response:
        return model.metadata() if request.method == "GET" else model.infer(request, body)

    given_: dict[str, object] = {**NAMES, **config, "openinference": dict(options or {})}
    with replay(answer) as vendor:
        access = Access(f"{vendor.url}/v2/models/net", config=config_from(given_, "test.toml"))
        endpoint = connect(access, deadline_s=10, connections=2)
        try:
            yield endpoint, vendor
        finally:
            await endpoint.aclose()


async def predicted(
    model: Model, picture: Picture, need: Disclosure, options: Mapping[str, object] | None = None
) -> Prediction:
    """One answer, asked and read."""
    async with asking(model, options) as (endpoint, _):
        await endpoint.info()
        stored = await endpoint.predict(picture.body, picture.media_type, need)
        height, width, _ = picture.pixels.shape
        return endpoint.read(stored.blob, height, width, need)


def taking(datatype: str, shape: list[int], **more: Any) -> Model:
    """A model of that input that answers the same labels to everything."""
    return Model(
        lambda tensor: np.zeros((12, 16, 3), np.uint8),
        lambda pixels: {"labels": truth(pixels)[None]},
        [spec("image", datatype, shape)],
        [spec("labels", "UINT8", [1, -1, -1])],
        **more,
    )


def answering(array: Callable[[UInt8], Array], stated: dict[str, object], **more: Any) -> Model:
    """A model of encoded pictures with one output."""
    return Model(
        encoded_picture,
        lambda pixels: {str(stated["name"]): array(pixels)},
        [spec("image", "BYTES", [1])],
        [stated],
        **more,
    )
