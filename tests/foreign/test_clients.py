"""Clients that others wrote work against the service unmodified, and get what the native route gives."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from corte_protocol import Prediction, TeacherInfo, decode_info, decode_prediction
from corte_protocol.errors import WIRE
from corte_protocol.types import UInt8
from corte_teacher.keys import create_key
from foreign.environments import KSERVE, TRITON_CLIENT, environment, talk
from serving import running_teacher

pytestmark = [pytest.mark.foreign, pytest.mark.timeout(900)]  # the first run builds their environments

CLIENTS = {"triton_client.py": ("triton", TRITON_CLIENT), "kserve_client.py": ("kserve", KSERVE)}
MAX_PIXELS = 10_000


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A key file and the one key in it."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    return path, create_key(path, "alice")


@pytest.fixture(scope="module", params=["labels", "margin", "full"])
def teacher(request: pytest.FixtureRequest, key_file: tuple[Path, str]) -> Iterator[str]:
    """The URL of the embedded model behind a key, at each of three policies."""
    args = ["--keys", str(key_file[0]), "--disclosure", request.param, "--max-pixels", str(MAX_PIXELS)]
    with running_teacher(args) as url:
        yield url


@pytest.fixture(scope="module")
def margin_teacher(key_file: tuple[Path, str]) -> Iterator[str]:
    """The same at `margin`, for what no policy changes."""
    args = ["--keys", str(key_file[0]), "--max-pixels", str(MAX_PIXELS)]
    with running_teacher(args) as url:
        yield url


@pytest.fixture(scope="module")
def key(key_file: tuple[Path, str]) -> str:
    """The key."""
    return key_file[1]


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    """The script of a client."""
    return str(request.param)


@pytest.fixture(scope="module")
def pixels() -> UInt8:
    """A noisy picture, uint8 [21, 34, 3]."""
    return np.random.default_rng(5).integers(0, 256, (21, 34, 3), dtype=np.uint8)


def png(pixels: UInt8) -> str:
    """A picture as base64 of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def ask(script: str, url: str, key: str, *questions: dict[str, Any], version: str = "none") -> Any:
    """What a client saw."""
    name, requirements = CLIENTS[script]
    address = url.removeprefix("http://") if script == "triton_client.py" else url
    job = {"url": address, "key": key, "version": version, "questions": questions}
    return talk(environment(name, requirements), script, job)


def info_of(url: str, key: str) -> TeacherInfo:
    """What the native route says of the service."""
    return decode_info(httpx.get(f"{url}/v1/info", headers={"authorization": f"Bearer {key}"}).content)


def native(url: str, key: str, pixels: UInt8, level: str) -> Prediction:
    """What the native route says about a picture."""
    headers = {"authorization": f"Bearer {key}", "content-type": "image/png"}
    file = base64.b64decode(png(pixels))
    answer = httpx.post(f"{url}/v1/predict?disclosure={level}", content=file, headers=headers, timeout=20)
    return decode_prediction(answer.content, max_pixels=MAX_PIXELS)


def arrays(answer: Any) -> dict[str, npt.NDArray[Any]]:
    """The arrays that a client made of an answer."""
    assert "outputs" in answer, answer
    return {name: np.array(v, dtype).reshape(shape) for name, (dtype, shape, v) in answer["outputs"].items()}


def assert_same(answer: Any, right: Prediction) -> None:
    """The client holds the native answer, bit for bit and in its types."""
    got = arrays(answer)
    assert set(got) == ({"classes"} if right.probs is None else {"classes", "scores"})
    assert got["classes"].dtype == np.uint8 and np.array_equal(got["classes"], right.classes[None])
    if right.probs is not None:
        assert got["scores"].dtype == right.probs.dtype
        assert np.array_equal(got["scores"], right.probs[None])


def test_every_form_gives_the_native_answer(client: str, teacher: str, key: str, pixels: UInt8) -> None:
    """File or pixels, JSON or binary on either way, the policy's level or less: the same bits."""
    policy = info_of(teacher, key).disclosure
    less = {"parameters": {"disclosure": "labels"}}
    whole = {"parameters": {"binary_data_output": True}} if client == "kserve_client.py" else {}
    picture, file = {"pixels": pixels.tolist()}, {"file": png(pixels)}
    questions = [file | whole, picture | whole, picture | whole | {"binary": False}]
    narrow = [
        file | less,
        picture | less,
        {**picture, "binary": False, "outputs": [["classes", False]], **less},
    ]
    if client == "triton_client.py":
        questions.append(file | {"aio": True})
    else:
        questions.append(file | whole | {"binary": False})
    seen = ask(client, teacher, key, *questions, *narrow)
    right = native(teacher, key, pixels, str(policy))
    for answer in seen["answers"][: len(questions)]:
        assert_same(answer, right)
    for answer in seen["answers"][len(questions) :]:
        assert_same(answer, native(teacher, key, pixels, "labels"))


def test_the_outputs_named_are_those_that_come(client: str, teacher: str, key: str, pixels: UInt8) -> None:
    """One output of two, as JSON and as bytes; scores of a service of labels are forbidden."""
    policy = info_of(teacher, key).disclosure
    question = {"pixels": pixels.tolist(), "id": "q-1"}
    asked = [question | {"outputs": [[name, True]]} for name in ("classes", "scores")]
    asked.append(question | {"outputs": [["classes", False]]})
    first, second, third = ask(client, teacher, key, *asked)["answers"]
    right = native(teacher, key, pixels, str(policy))
    for answer in (first, third):
        assert answer["id"] == "q-1"
        assert set(arrays(answer)) == {"classes"}
        assert np.array_equal(arrays(answer)["classes"][0], right.classes)
    if policy.prob_bits == 0:
        assert_error(second, "forbidden")
    else:
        assert set(arrays(second)) == {"scores"}
        assert np.array_equal(arrays(second)["scores"][0], right.probs)  # type: ignore[arg-type]


def assert_error(answer: Any, code: str) -> None:
    """The client raised its own error with the fixed text of a row of the table."""
    status, text = answer["error"]
    assert status == str(WIRE[code].status)
    assert WIRE[code].title in text


def test_health_and_readiness(client: str, margin_teacher: str, key: str) -> None:
    """The client finds the service live and ready, the model by its name, and no other."""
    seen = ask(client, margin_teacher, key)
    assert (seen["live"], seen["ready"], seen["model ready"], seen["other ready"]) == (
        True,
        True,
        True,
        False,
    )


def test_without_the_key_only_health_answers(
    client: str, margin_teacher: str, key: str, pixels: UInt8
) -> None:
    """No key, or a wrong one: the client is told so, in the fixed text."""
    for wrong in ("", key + "x"):
        seen = ask(client, margin_teacher, wrong, {"file": png(pixels)})
        assert (seen["live"], seen["ready"], seen["model ready"]) == (True, True, False)
        assert_error(seen["answers"][0], "unauthorized")


def test_refusals_arrive_as_the_clients_own_errors(client: str, margin_teacher: str, key: str) -> None:
    """Too many pixels in either form, something else than an image, more than the policy."""
    large = np.zeros((101, 100, 3), np.uint8)
    levels = {"parameters": {"disclosure": "nonsense"}}
    seen = ask(
        client,
        margin_teacher,
        key,
        {"file": png(large)},
        {"pixels": large.tolist()},
        {"file": base64.b64encode(b"no image").decode()},
        {"file": png(large)} | levels,
    )
    for answer, code in zip(seen["answers"], ("too-large", "too-large", "malformed", "invalid"), strict=True):
        assert_error(answer, code)


def test_tritonclient_reads_metadata_and_versions(teacher: str, key: str, pixels: UInt8) -> None:
    """Metadata holds what the info holds; the info's revision is the one version; compression is refused."""
    info = info_of(teacher, key)
    file = png(pixels)
    asked: list[dict[str, Any]] = [{"file": file, "version": v} for v in (info.revision, "1")]
    asked.append({"file": file, "compress": "gzip"})
    seen = ask("triton_client.py", teacher, key, *asked, version=info.revision)
    assert seen["version ready"] is True
    assert "binary_tensor_data" in seen["server"]["extensions"]
    assert seen["model"]["versions"] == [info.revision]
    assert tuple(json.loads(seen["model"]["parameters"]["classes"])) == info.classes
    assert seen["model"]["parameters"]["disclosure"] == str(info.disclosure)
    outputs = {output["name"]: output for output in seen["model"]["outputs"]}
    assert set(outputs) == ({"classes", "scores"} if info.disclosure.prob_bits else {"classes"})
    right, other, compressed = seen["answers"]
    assert right["model"] == ["teacher", info.revision]
    assert_same(right, native(teacher, key, pixels, str(info.disclosure)))
    assert_error(other, "not-found")
    assert_error(compressed, "media-type")
    assert ask("triton_client.py", teacher, key)["version ready"] is False
