"""huggingface_hub's own client and our Hugging Face endpoint read the same replayed answers alike."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corte_protocol import Disclosure
from corte_protocol.types import UInt8
from corte_student.data.folder import Picture
from corte_student.endpoints import Access, Endpoint, connect
from corte_student.endpoints.config import config_from
from foreign.environments import HUGGINGFACE, environment, talk
from id_pictures import pixels_of
from pictures import make_picture
from replaying import Replay, replay
from student.dialect_contract import CLASSES, KEY, truth
from student.test_endpoint_huggingface import item, segments

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


def ours(vendor: Replay, path: str = "", **options: object) -> Endpoint:
    """Our endpoint in front of it."""
    config = config_from({"classes": list(CLASSES), "huggingface": options}, "t.toml")
    access = Access(vendor.url + path, "huggingface", config, SecretStr(KEY))
    return connect(access, deadline_s=20, connections=1)


async def our_labels(endpoint: Endpoint, picture: Picture) -> UInt8:
    """What we read, uint8 [H, W]."""
    height, width, _ = picture.pixels.shape
    try:
        stored = await endpoint.predict(picture.body, picture.media_type, LABELS)
        return endpoint.read(stored.blob, height, width, LABELS).labels
    finally:
        await endpoint.aclose()


def their_elements(
    vendor: Replay, picture: Picture, path: str = "", **parameters: object
) -> list[tuple[str, float | None, npt.NDArray[np.bool_]]]:
    """Label, score and mask [H, W] of every element that their client gives."""
    height, width, _ = picture.pixels.shape
    job: dict[str, Any] = {
        "url": vendor.url + path,
        "key": KEY,
        "image": base64.b64encode(picture.body).decode(),
    }
    if parameters:
        job["parameters"] = parameters
    elements = talk(environment("huggingface", HUGGINGFACE), "huggingface_client.py", job)
    found = []
    for element in elements:
        assert element["size"] == [width, height]
        mask = np.frombuffer(base64.b64decode(element["mask"]), np.uint8).reshape(height, width)
        found.append((element["label"], element["score"], mask > 127))
    return found


@pytest.mark.parametrize("path", ["", "/hf-inference/models/acme/streets"])
@pytest.mark.parametrize("size", [(12, 16), (33, 21)])
async def test_both_read_the_same_pixels_of_every_class(
    vendor: Replay, size: tuple[int, int], path: str
) -> None:
    """Mask by mask: what their client gives as an image of a label is where our labels name that class."""
    picture = make_picture(3, height=size[0], width=size[1])
    theirs = their_elements(vendor, picture, path)
    labels = await our_labels(ours(vendor, path), picture)
    assert [label for label, _, _ in theirs] == [CLASSES[i] for i in np.unique(labels)]
    for label, score, mask in theirs:
        assert score is None
        assert np.array_equal(mask, labels == CLASSES.index(label))


async def test_both_read_the_same_segments(vendor: Replay) -> None:
    """Of a panoptic model: several of a class, over each other, gaps between; the higher score in front."""
    picture = make_picture(5)
    generator = np.random.default_rng(5)
    scores = [0.9, 0.5, 0.7, 0.99, 0.6]
    elements = [
        item(CLASSES[i % len(CLASSES)], generator.random((12, 16)) < 0.4, score)
        for i, score in enumerate(scores)
    ]
    vendor.faults.extend(JSONResponse(elements) for _ in range(2))
    theirs = their_elements(vendor, picture)
    assert [score for _, score, _ in theirs] == scores
    right = np.full((12, 16), len(CLASSES), np.uint8)
    for label, _, mask in sorted(theirs, key=lambda element: element[1] or 0.0):
        right[mask] = CLASSES.index(label)
    labels = await our_labels(ours(vendor), picture)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert np.array_equal(labels, right)


async def test_both_send_the_same_parameters(vendor: Replay) -> None:
    """As the same JSON to the same path."""
    path = "/hf-inference/models/acme/streets"
    parameters: dict[str, Any] = {
        "subtask": "panoptic",
        "threshold": 0.5,
        "mask_threshold": 0.25,
        "overlap_mask_area_threshold": 0.75,
    }
    vendor.faults.extend(JSONResponse([]) for _ in range(2))
    picture = make_picture(9)
    assert their_elements(vendor, picture, path, **parameters) == []
    await our_labels(ours(vendor, path, **parameters), picture)
    first, second = vendor.seen
    assert json.loads(first.body) == json.loads(second.body)
    assert json.loads(first.body)["parameters"] == parameters
    for name in ("content-type", "authorization"):
        assert first.headers[name] == second.headers[name]
    assert first.target == second.target


async def test_both_send_the_image_as_it_is(vendor: Replay) -> None:
    """The same bytes to the same path, with the same proof."""
    picture = make_picture(7)
    their_elements(vendor, picture)
    await our_labels(ours(vendor), picture)
    first, second = vendor.seen
    assert first.body == second.body == picture.body
    assert (first.method, first.headers["authorization"]) == (second.method, second.headers["authorization"])
    assert first.target.rstrip("/") == second.target.rstrip("/")
