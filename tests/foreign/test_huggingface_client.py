"""huggingface_hub's own client and our Hugging Face endpoint read the same replayed answers alike."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corte_protocol import Disclosure
from corte_student.endpoints import Access, Endpoint, connect
from corte_student.endpoints.config import config_from
from foreign.environments import HUGGINGFACE, environment, talk
from id_pictures import pixels_of
from pictures import make_picture
from replaying import Replay, replay
from student.dialect_contract import CLASSES, KEY, truth
from student.test_endpoint_huggingface import segments

pytestmark = [pytest.mark.foreign, pytest.mark.timeout(900)]  # the first run builds the environment
LABELS = Disclosure(1, 0)


async def pipeline(request: Request, body: bytes) -> Response:
    """A dedicated endpoint."""
    if request.headers.get("authorization") != f"Bearer {KEY}":
        return JSONResponse({"error": "Invalid username or password"}, 401)
    return JSONResponse(segments(truth(pixels_of(body))))


@pytest.fixture
async def vendor() -> AsyncIterator[Replay]:
    """Both clients' server."""
    with replay(pipeline) as running:
        yield running


def ours(vendor: Replay) -> Endpoint:
    """Our endpoint in front of it."""
    config = config_from({"classes": list(CLASSES)}, "t.toml")
    access = Access(vendor.url, "huggingface", config, SecretStr(KEY))
    return connect(access, deadline_s=20, connections=1)


async def test_both_read_the_same_pixels_of_every_class(vendor: Replay) -> None:
    """Mask by mask: what their client gives as an image of a label is where our labels name that class."""
    python = environment("huggingface", HUGGINGFACE)
    for seed, size in enumerate([(12, 16), (33, 21)]):
        picture = make_picture(seed, height=size[0], width=size[1])
        job = {"url": vendor.url, "key": KEY, "image": base64.b64encode(picture.body).decode()}
        theirs: list[dict[str, Any]] = talk(python, "huggingface_client.py", job)
        endpoint = ours(vendor)
        try:
            stored = await endpoint.predict(picture.body, picture.media_type, LABELS)
            labels = endpoint.read(stored.blob, size[0], size[1], LABELS).labels
        finally:
            await endpoint.aclose()
        assert {element["label"] for element in theirs} == {CLASSES[i] for i in np.unique(labels)}
        for element in theirs:
            assert tuple(element["size"]) == (size[1], size[0]) and element["score"] is None
            mask = np.frombuffer(base64.b64decode(element["mask"]), np.uint8).reshape(size)
            assert np.array_equal(mask > 127, labels == CLASSES.index(element["label"]))


async def test_both_send_the_image_as_it_is(vendor: Replay) -> None:
    """The same bytes to the same path, with the same proof."""
    python = environment("huggingface", HUGGINGFACE)
    picture = make_picture(7)
    job = {"url": vendor.url, "key": KEY, "image": base64.b64encode(picture.body).decode()}
    talk(python, "huggingface_client.py", job)
    endpoint = ours(vendor)
    await endpoint.predict(picture.body, picture.media_type, LABELS)
    await endpoint.aclose()
    first, second = vendor.seen
    assert first.body == second.body == picture.body
    assert (first.method, first.headers["authorization"]) == (second.method, second.headers["authorization"])
    assert first.target.rstrip("/") == second.target.rstrip("/")
