"""The service over real sockets: what it answers, what it refuses, and what it never says."""

import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from corte_protocol import Disclosure, Prediction, decode_info, decode_prediction
from corte_protocol.errors import WIRE
from corte_protocol.routes import FRAME_TYPE, PROBLEM_TYPE
from corte_protocol.types import UInt8
from corte_teacher.backends import find_source, load_backend
from corte_teacher.card import read_card
from corte_teacher.disclosure import disclose

Encode = Callable[..., bytes]


def ask(
    url: str, body: bytes | Iterator[bytes], kind: str = "image/png", query: str = "", key: str = ""
) -> httpx.Response:
    """One POST to /v1/predict."""
    headers = {"content-type": kind} | ({"authorization": f"Bearer {key}"} if key else {})
    return httpx.post(f"{url}/v1/predict{query}", content=body, headers=headers, timeout=20)


def read(answer: httpx.Response) -> Prediction:
    """The prediction in an answer."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == FRAME_TYPE
    return decode_prediction(answer.content, max_pixels=1 << 20)


def assert_problem(answer: httpx.Response, code: str) -> None:
    """The answer is the fixed problem document of `code`, and nothing else."""
    wire = WIRE[code]
    assert answer.status_code == wire.status
    assert answer.headers["content-type"] == PROBLEM_TYPE
    document = answer.json()
    request_id = document.pop("request_id")
    assert request_id == answer.headers["x-request-id"]
    assert document == {"type": "about:blank", "title": wire.title, "status": wire.status, "code": code}


def test_an_answer_is_the_models_at_the_size_of_the_image(
    open_teacher: str, tiny: Path, pixels: UInt8, encode: Encode
) -> None:
    """Over the socket comes bit for bit what the backend says, cut to the policy."""
    answer = ask(open_teacher, encode(pixels))
    got = read(answer)
    policy = Disclosure(2, 8)
    classes, scores = load_backend(find_source("onnx", tiny, None), policy, 1).predict(pixels)
    right = disclose(classes, scores, policy, policy, "r")
    assert got.classes.shape == (2, 21, 34)
    assert np.array_equal(got.classes, right.classes)
    assert got.probs is not None and right.probs is not None and np.array_equal(got.probs, right.probs)
    assert answer.headers["corte-revision"] == got.revision


def test_info_says_what_a_student_needs_and_nothing_of_the_model(open_teacher: str, tiny: Path) -> None:
    """Classes, colours, policy, limits and opaque names; no file, card or library name."""
    body = httpx.get(f"{open_teacher}/v1/info").content
    info = decode_info(body)
    card = read_card(tiny.with_suffix(".toml"))
    assert info.classes == tuple(c.name for c in card.classes)
    assert info.colors == tuple(c.color for c in card.classes)
    assert str(info.disclosure) == "margin"
    assert (info.limits.max_body_bytes, info.limits.max_pixels) == (200_000, 10_000)
    assert len(info.teacher) == len(info.revision) == 16
    for word in (b"secret", b"onnx", b"tiny", b"torch"):
        assert word not in body.lower()


def test_no_header_names_the_software(open_teacher: str, pixels: UInt8, encode: Encode) -> None:
    """Neither uvicorn nor any other library shows, and every answer has a request id of its own."""
    answers = [ask(open_teacher, encode(pixels)), httpx.get(f"{open_teacher}/healthz")]
    for answer in answers:
        assert {"server", "date", "x-powered-by"}.isdisjoint(answer.headers)
    assert len({a.headers["x-request-id"] for a in answers}) == 2


def test_health_and_readiness(open_teacher: str) -> None:
    """Once the start page is printed both answer 200, without a key."""
    assert httpx.get(f"{open_teacher}/healthz").status_code == 200
    assert httpx.get(f"{open_teacher}/readyz").status_code == 200


@pytest.mark.parametrize("level", ["labels", "confidence", "margin"])
def test_a_client_may_ask_for_less(open_teacher: str, pixels: UInt8, encode: Encode, level: str) -> None:
    """A narrower level gives the policy's answer, narrowed."""
    full = read(ask(open_teacher, encode(pixels)))
    less = read(ask(open_teacher, encode(pixels), query=f"?disclosure={level}"))
    asked = Disclosure.parse(level, 5)
    assert less.disclosure == asked
    assert np.array_equal(less.classes, full.narrow(asked).classes)


@pytest.mark.parametrize("level", ["full", "topk:3", "topk:200"])
def test_a_client_never_gets_more(open_teacher: str, pixels: UInt8, encode: Encode, level: str) -> None:
    """A level beyond the policy is forbidden, not cut down in silence."""
    assert_problem(ask(open_teacher, encode(pixels), query=f"?disclosure={level}"), "forbidden")


@pytest.mark.parametrize(
    "query", ["?disclosure=everything", "?disclose=labels", "?disclosure=labels&disclosure=full"]
)
def test_a_misspelt_level_is_an_error(open_teacher: str, pixels: UInt8, encode: Encode, query: str) -> None:
    """A request for less that is misspelt is not answered with the policy's more."""
    assert_problem(ask(open_teacher, encode(pixels), query=query), "invalid")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_three_formats_are_read(open_teacher: str, pixels: UInt8, encode: Encode, kind: str) -> None:
    """JPEG, PNG and WebP are answered at their size."""
    body = encode(pixels, kind)
    assert read(ask(open_teacher, body, f"image/{kind.lower()}")).labels.shape == (21, 34)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_other_eight_bit_modes_become_rgb(open_teacher: str, pixels: UInt8, mode: str) -> None:
    """Grey, palette and alpha pictures are answered as their RGB."""
    picture = Image.fromarray(pixels).convert(mode)
    if mode == "P":
        picture.info["transparency"] = bytes(range(256))
    body, plain = io.BytesIO(), io.BytesIO()
    picture.save(body, "PNG")
    Image.open(body).convert("RGBA").convert("RGB").save(plain, "PNG")
    got, right = (read(ask(open_teacher, b.getvalue())) for b in (body, plain))
    assert np.array_equal(got.classes, right.classes)


def test_the_service_never_rotates(open_teacher: str, pixels: UInt8) -> None:
    """An orientation tag is ignored: who sends, sends upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    assert read(ask(open_teacher, buffer.getvalue(), "image/jpeg")).labels.shape == (21, 34)


def _truncated(pixels: UInt8, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def _sixteen_bit() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def _animation(pixels: UInt8) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _png_of(width: int, height: int) -> bytes:
    """A PNG header that declares a size, with no pixels behind it."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_hostile_bodies_get_the_fixed_text(open_teacher: str, pixels: UInt8, encode: Encode) -> None:
    """Each kind of bad body has its code, never the text of an exception, and the service lives on."""
    gif = io.BytesIO()
    Image.fromarray(pixels).save(gif, "GIF")
    cases: list[tuple[bytes, str]] = [
        (b"", "malformed"),
        (b"not an image", "malformed"),
        (gif.getvalue(), "malformed"),
        (_truncated(pixels, "PNG"), "malformed"),
        (_truncated(pixels, "JPEG"), "malformed"),
        (_truncated(pixels, "WEBP"), "malformed"),
        (_png_of(101, 100), "too-large"),
        (_png_of(12_000, 12_000), "too-large"),
        (_png_of(100_000, 100_000), "too-large"),
        (_png_of(10, 10), "malformed"),
        (bytes(200_001), "too-large"),
        (_sixteen_bit(), "invalid"),
        (_animation(pixels), "invalid"),
    ]
    for body, code in cases:
        assert_problem(ask(open_teacher, body), code)
    assert read(ask(open_teacher, encode(pixels))).labels.shape == (21, 34)


def test_a_body_without_a_length_is_cut_off(open_teacher: str) -> None:
    """Chunks are counted while they arrive."""
    assert_problem(ask(open_teacher, (bytes(50_000) for _ in range(5))), "too-large")


def test_only_images_are_taken(open_teacher: str, pixels: UInt8, encode: Encode) -> None:
    """The media type must be one of the three, parameters aside."""
    for kind in ("application/json", "image/gif", "multipart/form-data; boundary=x", ""):
        assert_problem(ask(open_teacher, encode(pixels), kind), "media-type")
    assert read(ask(open_teacher, encode(pixels), "Image/PNG; charset=binary")).labels.shape == (21, 34)


def test_unknown_routes_and_methods(open_teacher: str) -> None:
    """404 and 405 are problem documents too, and no documentation page exists."""
    for path in ("/", "/docs", "/openapi.json", "/redoc", "/v1/predict/", "/v1/info/x"):
        assert_problem(httpx.get(open_teacher + path), "not-found")
    assert_problem(httpx.get(f"{open_teacher}/v1/predict"), "method")
    assert httpx.delete(f"{open_teacher}/v1/info").headers["allow"] == "GET"


def test_a_client_that_goes_away_hurts_nobody(open_teacher: str, pixels: UInt8, encode: Encode) -> None:
    """A body that is never finished leaves the service as it was."""
    host, port = open_teacher.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 99\r\n\r\nab"
        )
        time.sleep(0.1)
    assert read(ask(open_teacher, encode(pixels))).labels.shape == (21, 34)


def test_a_key_is_needed(
    keyed_teacher: str, pixels: UInt8, encode: Encode, key_file: tuple[Path, str]
) -> None:
    """Without a key, with a wrong one or in another scheme: 401 on every route but the two of health."""
    key = key_file[1]
    wrong = [
        "",
        "Bearer",
        "Bearer nonsense",
        f"Bearer {key[:-1]}!",
        f"Basic {key}",
        f"Bearer ct_{key}",
        "Bearer ct__",
    ]
    for value in wrong:
        headers = {"authorization": value} if value else {}
        answer = httpx.get(f"{keyed_teacher}/v1/info", headers=headers)
        assert_problem(answer, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert_problem(ask(keyed_teacher, encode(pixels)), "unauthorized")
    assert httpx.get(f"{keyed_teacher}/readyz").status_code == 200
    assert read(ask(keyed_teacher, encode(pixels), key=key)).classes.shape == (5, 21, 34)


def test_full_disclosure_narrows_to_every_level(
    keyed_teacher: str, key_file: tuple[Path, str], pixels: UInt8, encode: Encode
) -> None:
    """From one policy every smaller level is the same cut of the same answer."""
    key = key_file[1]
    full = read(ask(keyed_teacher, encode(pixels), key=key))
    assert full.probs is not None and full.probs.dtype == np.float16
    for level in ("labels", "confidence", "margin", "topk:3", "topk:9", "full"):
        got = read(ask(keyed_teacher, encode(pixels), key=key, query=f"?disclosure={level}"))
        right = full.narrow(Disclosure.parse(level, 5))
        assert np.array_equal(got.classes, right.classes)
        assert (got.probs is None) == (right.probs is None)
        assert got.probs is None or (right.probs is not None and np.array_equal(got.probs, right.probs))


def test_the_revision_depends_on_model_and_salt_only(
    open_teacher: str, keyed_teacher: str, key_file: tuple[Path, str], tiny: Path
) -> None:
    """Two policies and a restart share a revision under one salt; another salt hides the model."""
    from serving import running_teacher

    headers = {"authorization": f"Bearer {key_file[1]}"}
    keyed = decode_info(httpx.get(f"{keyed_teacher}/v1/info", headers=headers).content)
    args = ["--backend", "onnx", "--model", str(tiny), "--disclosure", "labels", "--keys", str(key_file[0])]
    with running_teacher(args) as url:
        again = decode_info(httpx.get(f"{url}/v1/info", headers=headers).content)
    bare = decode_info(httpx.get(f"{open_teacher}/v1/info").content)
    assert (again.revision, again.teacher) == (keyed.revision, keyed.teacher)
    assert again.disclosure != keyed.disclosure
    assert bare.revision != keyed.revision and bare.teacher != keyed.teacher


def test_many_clients_at_once(open_teacher: str, pixels: UInt8, encode: Encode) -> None:
    """Requests in flight together each get their own image's answer."""
    from concurrent.futures import ThreadPoolExecutor

    bodies = [encode(np.roll(pixels, n, axis=0)) for n in range(12)]
    alone = [read(ask(open_teacher, body)).labels for body in bodies]
    with ThreadPoolExecutor(6) as pool:
        together = [read(a).labels for a in pool.map(lambda body: ask(open_teacher, body), bodies)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


SLOW = """
import time
import numpy as np
class Slow:
    def predict(self, pixels):
        time.sleep(0.3 if pixels.shape[0] == 21 else 0)
        if pixels.shape[0] == 5:
            raise RuntimeError("secret text of a failure")
        if pixels.shape[0] == 6:
            return np.zeros((1, 2, 2), np.uint8), np.ones((1, 2, 2), np.float16)
        if pixels.shape[0] == 7:
            return np.full((1, 7, 9), 5, np.uint8), np.ones((1, 7, 9), np.float16)
        if pixels.shape[0] == 8:
            return np.zeros((1, 8, 9), np.uint8), np.full((1, 8, 9), np.nan, np.float16)
        shape = (1, *pixels.shape[:2])
        return np.zeros(shape, np.uint8), np.ones(shape, np.float16)
def build(model, card, k):
    return Slow()
class Dead:
    def predict(self, pixels):
        raise RuntimeError("no weights")
def dead(model, card, k):
    return Dead()
"""


@pytest.fixture(scope="module")
def slow_args(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of a service on a backend that is slow or wrong by the image's height."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow_backend.py").write_text(SLOW)
    args = ["--card", str(tiny.with_suffix(".toml")), "--open", "--disclosure", "confidence", "--queue", "2"]
    return args, {"PYTHONPATH": str(folder)}


def test_a_full_queue_and_a_failing_model(
    slow_args: tuple[list[str], dict[str, str]], pixels: UInt8, encode: Encode
) -> None:
    """Beyond the places in the queue: 503 with Retry-After. A model's failure or nonsense: 500, unsaid."""
    from concurrent.futures import ThreadPoolExecutor

    from serving import running_teacher

    args, env = slow_args
    with running_teacher([*args, "--backend", "slow_backend:build"], env) as url:
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: ask(url, encode(pixels)), range(6)))
        refused = [a for a in answers if a.status_code != 200]
        assert 1 <= len(refused) <= 4
        for answer in refused:
            assert_problem(answer, "overloaded")
            assert answer.headers["retry-after"] == "1"
        for height in (5, 6, 7, 8):
            assert_problem(ask(url, encode(pixels[:height, :9])), "internal")
        assert read(ask(url, encode(pixels))).labels.shape == (21, 34)


def test_a_body_that_trickles_is_given_up(
    slow_args: tuple[list[str], dict[str, str]], pixels: UInt8, encode: Encode
) -> None:
    """A body that is not complete in time gets 408, and the connection is closed."""
    from serving import running_teacher

    def trickle() -> Iterator[bytes]:
        yield b"a"
        time.sleep(0.8)
        yield b"b"

    args, env = slow_args
    env = env | {"CORTE_TEACHER_BODY_TIMEOUT_S": "0.2"}
    with running_teacher([*args, "--backend", "slow_backend:build"], env) as url:
        answer = ask(url, trickle())
        assert_problem(answer, "timeout")
        assert answer.headers["connection"] == "close"


def test_a_model_that_cannot_answer_stops_the_start(slow_args: tuple[list[str], dict[str, str]]) -> None:
    """The first forward is real: where it fails, the service says so and ends with status 2."""
    from serving import running_teacher

    args, env = slow_args
    message = "(?s)corte-teacher: the model does not answer: the model failed: RuntimeError: no weights"
    with (
        pytest.raises(RuntimeError, match=message),
        running_teacher([*args, "--backend", "slow_backend:dead"], env),
    ):
        pass


def test_problem_documents_are_compact_json(open_teacher: str) -> None:
    """The document is one JSON object and nothing else."""
    assert isinstance(json.loads(httpx.get(f"{open_teacher}/nope").content), dict)
