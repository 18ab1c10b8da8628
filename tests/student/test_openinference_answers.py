"""Tensors of every layout, type and size as predictions, against slow readings of the same numbers."""

import json
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_protocol import Disclosure, InvalidValue, MalformedFrame, Prediction, ProtocolError
from corte_student.endpoints import Access, Endpoint, connect
from corte_student.endpoints.answers import Received
from corte_student.endpoints.config import config_from
from corte_student.endpoints.foreign import UNSTATED
from corte_student.endpoints.tensors import LENGTH_HEADER, Tensor, pack
from oip_models import FULL, NAMES, TWO, Array, Model, answering, asking, logits_of, predicted, softmax, spec
from pictures import make_picture
from student.dialect_contract import truth

LAYOUTS: list[tuple[str, Callable[[Array], Array]]] = [
    ("nchw", lambda x: x[None]),
    ("nhwc", lambda x: x.transpose(1, 2, 0)[None]),
    ("nchw", lambda x: x),
    ("nhwc", lambda x: x.transpose(1, 2, 0)),
]


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("layout", "arranged"), LAYOUTS)
async def test_every_score_layout_is_read(
    layout: str, arranged: Callable[[Array], Array], binary: bool, dtype: str
) -> None:
    """[1, C, H, W], [1, H, W, C] and both without the batch, of three types, in both forms."""
    datatype = {"<f2": "FP16", "<f4": "FP32", "<f8": "FP64"}[dtype]
    stated = spec("y", datatype, [-1] * arranged(np.zeros((3, 1, 1))).ndim)
    model = answering(lambda p: arranged(logits_of(p)).astype(dtype), stated, forced=binary)
    picture = make_picture(8, height=9, width=5)
    answer = await predicted(model, picture, FULL)
    chances = softmax(logits_of(picture.pixels).astype(dtype))
    assert np.array_equal(answer.labels, truth(picture.pixels))
    assert answer.probs is not None
    best = np.take_along_axis(chances, answer.classes.astype(int), axis=0)
    np.testing.assert_allclose(answer.probs.astype(float), best, atol=1e-3)


@pytest.mark.parametrize("size", [(3, 3), (3, 7), (7, 3)])
async def test_layout_decides_where_sizes_cannot(size: tuple[int, int]) -> None:
    """A map as high or wide as there are classes is read as `layout` says."""
    picture = make_picture(8, height=size[0], width=size[1])
    model = answering(lambda p: logits_of(p).transpose(1, 2, 0)[None], spec("y", "FP32", [-1, -1, -1, -1]))
    answer = await predicted(model, picture, FULL, {"layout": "nhwc"})
    assert np.array_equal(answer.labels, truth(picture.pixels))


@pytest.mark.parametrize(
    "arranged",
    [
        lambda x: x[None],
        lambda x: x[None, None],
        lambda x: x[None, ..., None],
        lambda x: x,
        lambda x: x[None].astype(np.uint8),
        lambda x: x[None].astype(np.int32),
    ],
)
@pytest.mark.parametrize("binary", [True, False])
async def test_every_label_layout_is_read(arranged: Callable[[Array], Array], binary: bool) -> None:
    """[1, H, W], [1, 1, H, W], [1, H, W, 1] and [H, W], of several integer types."""
    model = answering(lambda p: arranged(truth(p).astype(np.int64)), spec("y", "INT64", []), forced=binary)
    picture = make_picture(8, height=5, width=9)
    answer = await predicted(model, picture, Disclosure(1, 0))
    assert np.array_equal(answer.labels, truth(picture.pixels))
    assert answer.probs is None


async def test_labels_may_be_floats_where_the_user_says_so() -> None:
    """Some exports have no integers."""
    model = answering(lambda p: truth(p)[None].astype(np.float32), spec("y", "FP32", [1, -1, -1]))
    picture = make_picture(8)
    answer = await predicted(model, picture, Disclosure(1, 0), {"answer": "labels"})
    assert np.array_equal(answer.labels, truth(picture.pixels))


async def test_scores_of_another_size_are_resized_before_the_best_is_chosen() -> None:
    """A network of 8 x 6: the picture is resized to it and its logits back, bilinearly, then compared."""
    small = np.random.default_rng(1).normal(size=(3, 8, 6)).astype(np.float32)
    model = Model(
        lambda tensor: tensor.array[0],
        lambda pixels: {"y": small[None]},
        [spec("image", "UINT8", [1, 8, 6, 3])],
        [spec("y", "FP32", [1, 3, 8, 6])],
    )
    picture = make_picture(2, height=20, width=30)
    answer = await predicted(model, picture, Disclosure(2, 16))
    assert model.seen[0].shape == (1, 8, 6, 3)
    logits = np.stack([cv2.resize(plane, (30, 20), interpolation=cv2.INTER_LINEAR) for plane in small])
    assert np.array_equal(answer.labels, logits.argmax(axis=0))
    assert answer.probs is not None
    np.testing.assert_allclose(answer.probs[0].astype(float), softmax(logits).max(axis=0), atol=1e-3)


async def test_labels_of_another_size_go_to_the_nearest() -> None:
    """No label is between two others."""
    model = answering(lambda p: np.array([[[0, 2], [1, 0]]], np.uint8), spec("y", "UINT8", [1, 2, 2]))
    answer = await predicted(model, make_picture(2, height=4, width=4), Disclosure(1, 0))
    wide = np.kron(np.array([[0, 2], [1, 0]], np.uint8), np.ones((2, 2), np.uint8))
    assert np.array_equal(answer.labels, wide)


@pytest.mark.parametrize("activation", ["auto", "none"])
async def test_probabilities_are_not_squashed_again(activation: str) -> None:
    """What adds up to one already is taken as it is."""
    model = answering(lambda p: softmax(logits_of(p))[None], spec("y", "FP64", [1, 3, -1, -1]))
    picture = make_picture(4)
    answer = await predicted(model, picture, FULL, {"activation": activation})
    assert answer.probs is not None
    best = softmax(logits_of(picture.pixels)).max(axis=0)
    np.testing.assert_allclose(answer.probs[0].astype(float), best, atol=1e-3)


async def test_softmax_is_applied_where_the_user_says_so() -> None:
    """Also to numbers that happen to look like probabilities."""
    chances = np.array([0.7, 0.2, 0.1])[:, None, None]
    model = answering(
        lambda p: np.broadcast_to(chances, (3, *p.shape[:2]))[None], spec("y", "FP64", [1, 3, -1, -1])
    )
    answer = await predicted(model, make_picture(4), FULL, {"activation": "softmax"})
    assert answer.probs is not None
    np.testing.assert_allclose(answer.probs[:, 0, 0].astype(float), softmax(chances)[:, 0, 0], atol=1e-3)


async def test_independent_scores_are_kept_within_one() -> None:
    """Sigmoids of several classes may add up to more: then each pixel's are divided by their sum."""
    each = np.array([0.9, 0.6, 0.5])[:, None, None]
    model = answering(
        lambda p: np.broadcast_to(each, (3, *p.shape[:2]))[None], spec("y", "FP64", [1, 3, -1, -1])
    )
    answer = await predicted(model, make_picture(4), FULL, {"activation": "none"})
    assert answer.probs is not None
    np.testing.assert_allclose(answer.probs[:, 0, 0].astype(float), [0.45, 0.3, 0.25], atol=1e-3)
    assert answer.narrow(Disclosure(3, 8)).disclosure == Disclosure(3, 8)


async def test_logits_may_be_infinite() -> None:
    """A network that masks a class with minus infinity still answers, resized or not."""
    masked = np.zeros((3, 4, 4), np.float32)
    masked[1], masked[2] = -np.inf, 1
    for size in ((4, 4), (8, 8)):
        model = answering(lambda p: masked[None], spec("y", "FP32", [1, 3, -1, -1]), forced=True)
        answer = await predicted(model, make_picture(4, height=size[0], width=size[1]), FULL)
        assert (answer.classes[:, 0, 0] == [2, 0, 1]).all()
        assert answer.probs is not None
        assert np.allclose(answer.probs[2].astype(float), 0)


@pytest.mark.parametrize(("output", "level"), [("logits", FULL), ("labels", Disclosure(1, 0))])
async def test_the_output_is_chosen_by_name(output: str, level: Disclosure) -> None:
    """Of several outputs only the one in `output` is asked for and read; its type gives the level."""
    picture = make_picture(6)
    async with asking(TWO, {"output": output}) as (endpoint, vendor):
        assert (await endpoint.info()).disclosure == level
        stored = await endpoint.predict(picture.body, picture.media_type, level)
        answer = endpoint.read(stored.blob, 12, 16, level)
    assert json.loads(vendor.seen[-1].body)["outputs"] == [{"name": output}]
    assert answer.disclosure == level
    assert np.array_equal(answer.labels, truth(picture.pixels))


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("binary", [True, False, "auto"])
async def test_either_form_is_read_whatever_was_asked(binary: object, forced: bool) -> None:
    """Servers that ignore `binary_data`, and servers that send nothing else."""
    picture = make_picture(6)
    model = answering(lambda p: logits_of(p)[None], spec("y", "FP32", [1, 3, -1, -1]), forced=forced)
    async with asking(model, {"binary": binary}) as (endpoint, vendor):
        stored = await endpoint.predict(picture.body, picture.media_type, FULL)
        answer = endpoint.read(stored.blob, 12, 16, FULL)
    assert ("inference-header-content-length" in vendor.seen[-1].headers) == (binary is True)
    assert np.array_equal(answer.labels, truth(picture.pixels))


async def test_the_stated_version_is_the_revision() -> None:
    """Two versions are two revisions; what is stored keeps its own."""
    picture = make_picture(6)
    revisions = set()
    for version in ("1", "2"):
        model = answering(lambda p: truth(p)[None], spec("y", "UINT8", [1, -1, -1]), version=version)
        async with asking(model) as (endpoint, _):
            stored = await endpoint.predict(picture.body, picture.media_type, Disclosure(1, 0))
            assert endpoint.read(stored.blob, 12, 16, Disclosure(1, 0)).revision == stored.revision
        revisions.add(stored.revision)
    assert len(revisions) == 2
    assert UNSTATED not in revisions


async def test_a_large_answer_is_stored_decoded() -> None:
    """Fifteen megabytes of logits are kept as the frame of what was needed."""
    picture = make_picture(6, height=1100, width=1150)
    model = answering(
        lambda p: logits_of(p)[None], spec("y", "FP32", [1, 3, -1, -1]), platform="onnxruntime_onnx"
    )
    async with asking(model) as (endpoint, _):
        stored = await endpoint.predict(picture.body, picture.media_type, Disclosure(2, 8))
        answer = endpoint.read(stored.blob, 1100, 1150, Disclosure(2, 8))
    assert stored.level == Disclosure(2, 8)
    assert len(stored.blob) < 8 << 20
    assert np.array_equal(answer.labels, truth(picture.pixels))


async def test_a_json_answer_of_megabytes_is_read() -> None:
    """Above the size that is parsed at once nothing else changes."""
    picture = make_picture(6, height=220, width=230)
    model = answering(lambda p: logits_of(p)[None], spec("y", "FP32", [1, 3, -1, -1]))
    answer = await predicted(model, picture, FULL)
    assert np.array_equal(answer.labels, truth(picture.pixels))


@pytest.fixture(scope="module")
def reader() -> Iterator[Endpoint]:
    """An endpoint that reads stored answers and has sent nothing."""
    config = config_from(NAMES, "test.toml")
    endpoint = connect(Access("http://127.0.0.1:9/v2/models/net", config=config), deadline_s=1, connections=1)
    yield endpoint


def stored(tensor: Tensor, *, binary: bool = True) -> bytes:
    """An answer of one tensor as the ledger keeps it."""
    packed = pack({}, "outputs", [tensor], binary=binary)
    headers = {} if packed.json_bytes is None else {LENGTH_HEADER.lower(): str(packed.json_bytes)}
    return Received("openinference", 1, "application/octet-stream", packed.body, headers).pack()


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([Disclosure(1, 0), Disclosure(1, 8), Disclosure(2, 8), FULL]),
    st.sampled_from(["<f4", "<f8"]),
    st.booleans(),
)
def test_logits_are_what_a_slow_reading_makes_of_them(
    reader: Endpoint,
    seed: int,
    map_size: tuple[int, int],
    size: tuple[int, int],
    need: Disclosure,
    dtype: str,
    binary: bool,
) -> None:
    """Any size of map and picture: resized plane by plane, softmax in float64, sorted."""
    logits = np.random.default_rng(seed).normal(0, 3, (3, *map_size)).astype(dtype)
    answer = reader.read(stored(Tensor.of("y", logits[None]), binary=binary), *size, need)
    wide = np.stack(
        [cv2.resize(p.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) for p in logits]
    )
    order = np.argsort(-wide, axis=0, kind="stable")
    assert answer.disclosure.allows(need)
    assert np.array_equal(answer.classes, order[: len(answer.classes)])
    if answer.probs is not None:
        chances = np.take_along_axis(softmax(wide), order, axis=0)[: len(answer.probs)]
        np.testing.assert_allclose(answer.probs.astype(float), chances, atol=1e-3)


@settings(max_examples=100)
@given(
    st.binary(max_size=64),
    st.lists(st.integers(0, 6), max_size=5),
    st.sampled_from(["FP32", "UINT8", "INT64", "FP16"]),
)
def test_no_stored_answer_breaks_the_reader(
    reader: Endpoint, raw: bytes, shape: list[int], datatype: str
) -> None:
    """Any bytes under any shape are read or refused."""
    entry = {"name": "y", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"outputs": [entry]}).encode()
    headers = {LENGTH_HEADER.lower(): str(len(head))}
    blob = Received("openinference", 1, "", head + raw, headers).pack()
    try:
        assert reader.read(blob, 2, 2, Disclosure(1, 0)).classes.shape == (1, 2, 2)
    except ProtocolError:
        return


@pytest.mark.parametrize(
    ("array", "need", "told"),
    [
        (np.zeros((1, 19, 2, 2), np.float32), FULL, "3 classes"),
        (np.zeros((2, 3, 2, 2), np.float32), FULL, "one picture"),
        (np.zeros((3, 2), np.float32), FULL, "one picture"),
        (np.full((1, 3, 2, 2), np.nan, np.float32), FULL, "no numbers"),
        (np.zeros((1, 3, 0, 2), np.float32), FULL, "no segmentation"),
        (np.zeros((1, 3, 2, 2), np.bool_), FULL, "no segmentation"),
        (np.zeros((1, 3, 2, 2), np.int64), Disclosure(1, 0), "no map of labels"),
        (np.full((1, 2, 2), 255, np.int64), Disclosure(1, 0), "beyond 0 to 254"),
        (np.full((1, 2, 2), -1, np.int64), Disclosure(1, 0), "beyond 0 to 254"),
        (np.full((1, 2, 2), 7, np.int64), Disclosure(1, 0), "class 7"),
        (np.zeros((1, 2, 2), np.int64), FULL, "`answer"),
    ],
)
def test_an_output_of_another_kind_is_told(
    reader: Endpoint, array: Array, need: Disclosure, told: str
) -> None:
    """In words that lead to the setting."""
    with pytest.raises(InvalidValue, match=told):
        reader.read(stored(Tensor.of("y", array)), 2, 2, need)


def test_odd_settings_meet_odd_answers() -> None:
    """Scores that are none under `none`, several outputs without a name, fractions as labels."""

    def read(options: dict[str, object], need: Disclosure, **outputs: Array) -> Prediction:
        config = config_from({**NAMES, "openinference": options}, "test.toml")
        access = Access("http://127.0.0.1:9/v2/models/net", config=config)
        packed = pack({}, "outputs", [Tensor.of(n, a) for n, a in outputs.items()], binary=False)
        blob = Received("openinference", 1, "application/json", packed.body).pack()
        return connect(access, deadline_s=1, connections=1).read(blob, 2, 2, need)

    square = np.zeros((1, 3, 2, 2), np.float32)
    with pytest.raises(InvalidValue, match="`activation`"):
        read({"activation": "none"}, FULL, y=square + 2)
    with pytest.raises(InvalidValue, match="'a', 'b': write `output`"):
        read({}, FULL, a=square, b=square)
    with pytest.raises(InvalidValue, match="no tensor is called 'c'"):
        read({"output": "c"}, FULL, a=square)
    with pytest.raises(InvalidValue, match="whole numbers"):
        read({"answer": "labels"}, Disclosure(1, 0), y=square[:, :1] + 0.5)
    planes = np.zeros((1, 1, 2, 2), np.uint8)
    with pytest.raises(InvalidValue, match="for a picture of 2 x 2"):
        read({}, Disclosure(1, 8), classes=planes[:, :, :1], scores=planes[:, :, :1])
    with pytest.raises(InvalidValue, match="with scores"):
        read({}, Disclosure(1, 8), classes=planes, scores=planes[:, :, :1])


def test_a_broken_store_is_told(reader: Endpoint) -> None:
    """Bytes that were kept and cut are no answer."""
    blob = Received("openinference", 1, "application/json", b'{"outputs": [').pack()
    with pytest.raises(MalformedFrame):
        reader.read(blob, 2, 2, FULL)
