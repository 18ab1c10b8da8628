"""Our client against a server that others wrote, and against our own service's routes of the same protocol.

KServe's server runs the embedded street model (kserve_server.py); what comes out must be what the model
itself answers in this environment's onnxruntime, in JSON and in binary form alike.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from PIL import Image as Pillow
from pydantic import SecretStr

from corte_protocol import Disclosure, Prediction
from corte_protocol.types import UInt8
from corte_student.data.folder import Picture
from corte_student.endpoints import Access, Endpoint, connect
from corte_student.endpoints.config import config_from
from corte_student.errors import Refused, SettingsError
from corte_teacher.backends.street import files
from corte_teacher.card import read_card
from corte_teacher.keys import create_key
from pictures import make_picture
from serving import running_teacher

pytestmark = [pytest.mark.foreign, pytest.mark.timeout(900)]  # the first run builds the environment

Array = npt.NDArray[Any]
CLASSES = 9
FULL = Disclosure(CLASSES, 16)
LABELS = Disclosure(1, 0)
SIZES = [(128, 256), (60, 90), (200, 300)]
NORMALISED = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
LEVELS = ["labels", "confidence", "margin", "full"]
FORMS: dict[str, dict[str, object]] = {"image": {}, "pixels": {"input": "pixels"}, "json": {"binary": False}}


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    """The street model in this environment."""
    model, _ = files()
    return onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def names() -> list[str]:
    """Its classes, as its card names them."""
    return [name for name, _, _ in read_card(files()[1]).outputs]


@pytest.fixture(params=SIZES, ids=str)
def picture(request: pytest.FixtureRequest) -> Picture:
    """A noisy picture of the network's size, and of others."""
    height, width = request.param
    return make_picture(7, height=height, width=width)


@pytest.fixture(params=[False, True], ids=["json", "binary"])
def binary(request: pytest.FixtureRequest) -> bool:
    """Both forms of tensors."""
    return bool(request.param)


@asynccontextmanager
async def opened(
    url: str, config: Mapping[str, object] | None = None, key: str | None = None
) -> AsyncIterator[Endpoint]:
    """An endpoint, closed at the end."""
    secret = None if key is None else SecretStr(key)
    access = Access(url, config=config_from(config or {}, "test.toml"), key=secret)
    endpoint = connect(access, deadline_s=60, connections=2)
    try:
        yield endpoint
    finally:
        await endpoint.aclose()


async def asked(endpoint: Endpoint, picture: Picture, need: Disclosure) -> Prediction:
    """One answer, at exactly the level needed."""
    assert (await endpoint.info()).disclosure.allows(need)
    stored = await endpoint.predict(picture.body, picture.media_type, need)
    height, width, _ = picture.pixels.shape
    return endpoint.read(stored.blob, height, width, need).narrow(need)


def logits_of(session: onnxruntime.InferenceSession, small: UInt8) -> Array:
    """The network's own answer to uint8 [128, 256, 3], float32 [9, 128, 256]."""
    scaled = (small.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    logits: Array = session.run(None, {"image": np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])})[0][0]
    return logits


def on_grid_of(pixels: UInt8, planes: Array) -> Array:
    """Planes [C, h, w] bilinearly on the picture's grid."""
    height, width, _ = pixels.shape
    return np.stack([cv2.resize(p, (width, height), interpolation=cv2.INTER_LINEAR) for p in planes])


def softmax(logits: Array) -> Array:
    """Over the first axis."""
    powers: Array = np.exp(logits - logits.max(axis=0))
    shares: Array = powers / powers.sum(axis=0)
    return shares


def ensure_best(answer: Prediction, scores: Array) -> None:
    """The labels are the best of `scores`, wherever that is not a matter of the last bits."""
    ordered = np.sort(scores, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4 * np.abs(ordered).max()
    assert clear.mean() > 0.99
    assert np.array_equal(answer.labels[clear], scores.argmax(axis=0)[clear])


async def test_logits_of_a_fixed_size_are_read_as_the_model_gives_them(
    foreign_server: str,
    session: onnxruntime.InferenceSession,
    names: list[str],
    picture: Picture,
    binary: bool,
) -> None:
    """`street`: the picture scaled and resized here, logits resized back, softmax, all nine classes."""
    config = {"classes": names, "openinference": {**NORMALISED, "binary": binary}}
    async with opened(f"{foreign_server}/v2/models/street", config) as endpoint:
        full = await asked(endpoint, picture, FULL)
        labels = await asked(endpoint, picture, LABELS)
    small = np.asarray(cv2.resize(picture.pixels, (256, 128), interpolation=cv2.INTER_LINEAR), np.uint8)
    right = on_grid_of(picture.pixels, logits_of(session, small))
    ensure_best(labels, right)
    ensure_best(full, right)
    assert full.probs is not None
    shares = np.take_along_axis(softmax(right), full.classes.astype(np.int64), axis=0)
    np.testing.assert_allclose(full.probs.astype(np.float32), shares, atol=2e-3)


@pytest.mark.parametrize("output", ["probabilities", "labels"])
async def test_pixels_go_out_as_they_are(
    foreign_server: str,
    session: onnxruntime.InferenceSession,
    names: list[str],
    picture: Picture,
    output: str,
    binary: bool,
) -> None:
    """`street-pixels`: the server prepares the picture; its map, of another size, is fitted to ours."""
    options = {"output": output, "binary": binary}
    async with opened(
        foreign_server, {"model": "street-pixels", "classes": names, "openinference": options}
    ) as endpoint:
        answer = await asked(endpoint, picture, FULL if output == "probabilities" else LABELS)
    resized = Pillow.fromarray(picture.pixels).resize((256, 128), Pillow.Resampling.BILINEAR)
    shares = softmax(logits_of(session, np.asarray(resized, np.uint8)))
    if output == "probabilities":
        ensure_best(answer, on_grid_of(picture.pixels, shares))
        assert answer.probs is not None
        return
    height, width, _ = picture.pixels.shape
    ids = shares.argmax(axis=0).astype(np.uint8)
    nearest = cv2.resize(ids, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    assert (answer.labels == nearest).mean() > 0.999


async def test_an_unknown_model_is_told(foreign_server: str, names: list[str]) -> None:
    """KServe's 404, before an image is sent."""
    async with opened(f"{foreign_server}/v2/models/other", {"classes": names}) as endpoint:
        with pytest.raises(Refused, match="--teacher-url"):
            await endpoint.info()


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A key file and the one key in it."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    return path, create_key(path, "alice")


@pytest.fixture(scope="module", params=LEVELS)
def teacher(request: pytest.FixtureRequest, key_file: tuple[Path, str]) -> Iterator[str]:
    """The URL of our own service behind a key, at each policy."""
    with running_teacher(["--keys", str(key_file[0]), "--disclosure", request.param]) as url:
        yield url


@pytest.mark.parametrize("form", FORMS)
async def test_our_own_service_answers_alike_in_both_languages(
    teacher: str, key_file: tuple[Path, str], picture: Picture, form: str
) -> None:
    """Classes, colours, level, limits, labels and scores are those of the native route, bit for bit.

    Only FP16 has no form in JSON, which is told before an image is sent.
    """
    async with (
        opened(teacher, key=key_file[1]) as native,
        opened(f"{teacher}/v2/models/teacher", {"openinference": FORMS[form]}, key_file[1]) as open_one,
    ):
        theirs = await native.info()
        if form == "json" and theirs.disclosure.prob_bits == 16:
            with pytest.raises(SettingsError, match="`binary`"):
                await open_one.info()
            return
        ours = await open_one.info()
        assert ours.classes == theirs.classes
        assert ours.colors == theirs.colors
        assert ours.disclosure == theirs.disclosure
        assert ours.limits == theirs.limits
        right = await asked(native, picture, theirs.disclosure)
        answer = await asked(open_one, picture, theirs.disclosure)
    assert np.array_equal(answer.classes, right.classes)
    assert (answer.probs is None) == (right.probs is None)
    if answer.probs is not None and right.probs is not None:
        assert answer.probs.dtype == right.probs.dtype
        assert np.array_equal(answer.probs, right.probs)
