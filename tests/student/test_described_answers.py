"""Answers that are described: every format, transport and encoding gives back the labels that went in."""

import base64
import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from corte_protocol import InvalidValue, LimitExceeded, MalformedFrame, Prediction, ProtocolError
from corte_protocol.types import VOID_NAME, UInt8
from corte_student.endpoints.answers import Linked, Received
from corte_student.endpoints.config import config_from
from corte_student.endpoints.dialect import Reply
from corte_student.endpoints.vendors import spoken_by
from corte_student.endpoints.vendors.reading import AnswerSpec, read_answer
from corte_student.errors import BrokeContract

CLASSES = ("road", "car", "sky")
NAMED = (*CLASSES, VOID_NAME)
VOID_ID = 3
COLORS = np.array([[128, 64, 128], [0, 0, 142], [70, 130, 180], [0, 0, 0]], np.uint8)


def png(values: npt.NDArray[Any], palette: npt.NDArray[np.uint8] | None = None, mode: str = "") -> bytes:
    """A PNG of uint8 [H, W] or [H, W, 3], indexed where a palette is given."""
    picture = Pillow.fromarray(values)
    if palette is not None:
        picture = picture.copy()
        picture.putpalette(palette.reshape(-1).tolist())
    target = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(target, "PNG")
    return target.getvalue()


def coded(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode("ascii")


def uri(data: bytes) -> str:
    """A data URI."""
    return f"data:image/png;base64,{coded(data)}"


def received(body: object, *linked: Linked) -> Received:
    """An answer in JSON, or the bytes themselves."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Received("custom", 1, "", data, {}, linked)


def read(spec: AnswerSpec, answer: Received, height: int = 3, width: int = 4) -> Prediction:
    """With the classes that the description leads to."""
    classes, _ = spec.completed(CLASSES, ((0, 0, 0),) * 3, "t")
    return read_answer(spec, answer, height, width, classes)


maps = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))


def drawn(shape: tuple[int, int, int], values: int = 4) -> UInt8:
    """A map of class ids; the last is void."""
    height, width, seed = shape
    ids: UInt8 = np.random.default_rng(seed).integers(0, values, (height, width), np.uint8)
    return ids


@given(maps, st.sampled_from(["image", "base64", "data-uri", "url", "array", "indexed", "rgb", "one bit"]))
def test_a_map_of_ids_comes_back(shape: tuple[int, int, int], way: str) -> None:
    """Stored under ids of the vendor's own, void under 255."""
    labels = drawn(shape, 2 if way == "one bit" else 4)
    stored = np.array([7, 26, 23, 255], np.uint8)[labels]
    table: dict[str, Any] = {"ids": {7: "road", 26: "car", 23: "sky"}, "void_ids": [255]}
    if way == "image":
        spec, answer = AnswerSpec(format="image", **table), received(png(stored))
    elif way == "indexed":
        spec, answer = (
            AnswerSpec(mask="a", **table),
            received({"a": coded(png(stored, np.zeros((256, 3), np.uint8)))}),
        )
    elif way == "rgb":
        spec, answer = AnswerSpec(mask="a", **table), received({"a": coded(png(stored, mode="RGB"))})
    elif way == "one bit":
        spec = AnswerSpec(mask="a")
        answer = received({"a": coded(png(labels.astype(np.bool_)))})
    elif way == "array":
        spec = AnswerSpec(
            mask="a[0]", transport="array", ids={1007: "road", 26: "car", -5: "sky"}, void_ids=(10**6,)
        )
        answer = received({"a": [np.array([1007, 26, -5, 10**6])[labels].tolist()]})
    else:
        spec = AnswerSpec.model_validate({"mask": "a", "transport": way, **table})
        values = {
            "base64": coded(png(stored)),
            "data-uri": uri(png(stored)),
            "url": "https://x.example/m.png",
        }
        answer = received({"a": values[way]}, Linked("mask", "image/png", png(stored)))
    prediction = read(spec, answer, *labels.shape)
    assert np.array_equal(prediction.labels, labels)
    assert prediction.probs is None
    assert spec.level == prediction.disclosure


@given(maps, st.booleans(), st.integers(0, 5))
def test_a_map_of_colours_comes_back(shape: tuple[int, int, int], indexed: bool, off: int) -> None:
    """In RGB or by the PNG's own palette, each channel off by as much as is tolerated."""
    labels = drawn(shape)
    noise = np.random.default_rng(shape[2]).integers(-off, off + 1, (*labels.shape, 3))
    colours = np.clip(COLORS[labels].astype(np.int16) + noise, 0, 255).astype(np.uint8)
    body = png(labels, COLORS) if indexed else png(colours)
    palette = {"#804080": "road", "#00008E": "car", "#4682b4": "sky", "#000000": VOID_NAME}
    spec = AnswerSpec(format="image", encoding="palette-png", palette=palette, tolerance=off)
    assert np.array_equal(read(spec, received(body), *labels.shape).labels, labels)


@given(maps, st.sampled_from(["base64", "url", "array", "rle"]))
def test_masks_of_classes_come_back(shape: tuple[int, int, int], way: str) -> None:
    """One an item; what none covers is void."""
    labels = drawn(shape)
    regions = [labels == place for place in range(3)]
    table: dict[str, Any] = {"items": "out", "label": "name", "mask": "m"}
    linked: list[Linked] = []
    if way == "rle":
        spec = AnswerSpec(encoding="coco-rle", **table)
        masks: list[Any] = [{"size": list(labels.shape), "counts": _runs(region)} for region in regions]
    else:
        spec = AnswerSpec.model_validate({"encoding": "class-masks", "transport": way, **table})
        files = [png(region * np.uint8(255)) for region in regions]
        linked = [Linked(f"mask.{place}", "image/png", file) for place, file in enumerate(files)]
        masks = [coded(file) for file in files]
        if way == "array":
            masks = [region.tolist() for region in regions]
        if way == "url":
            masks = [f"https://x.example/{place}.png" for place in range(3)]
    items = [{"name": name, "m": mask} for name, mask in zip(CLASSES, masks, strict=True)]
    answer = received({"out": items}, *linked)
    if way == "url":
        assert [link.name for link in spec.links(answer)] == ["mask.0", "mask.1", "mask.2"]
    assert np.array_equal(read(spec, answer, *labels.shape).labels, labels)


def _runs(mask: npt.NDArray[np.bool_]) -> list[int]:
    """COCO's counts: down the columns, zeros first."""
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(np.diff(flat)).tolist()
    return [int(run) for run in np.diff([0, *changes, mask.size])]


def test_a_confidence_picture_gives_the_level_confidence() -> None:
    """255 is certain; the same size rules as for the mask."""
    labels, grey = drawn((3, 4, 1), 3), np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    spec = AnswerSpec(mask="mask", confidence="sure")
    answer = read(spec, received({"mask": coded(png(labels)), "sure": coded(png(grey))}))
    assert answer.disclosure == spec.level
    assert answer.confidence is not None
    assert np.array_equal(answer.confidence, grey)
    spec = AnswerSpec(mask="mask", confidence="sure", transport="url")
    body = {"mask": "https://x.example/a", "sure": "https://x.example/b"}
    links = (Linked("confidence", "", png(grey)), Linked("mask", "", png(labels)))
    assert {link.name: link.url for link in spec.links(received(body))} == {
        "mask": "https://x.example/a",
        "confidence": "https://x.example/b",
    }
    assert np.array_equal(read(spec, received(body, *links)).labels, labels)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_mask_of_the_same_proportions_is_scaled_to_the_nearest(factor: int) -> None:
    """Each stored id covers its share of the image; no id is made up between two."""
    ids = drawn((3, 4, 5), 3)
    large = ids.repeat(factor, axis=0).repeat(factor, axis=1)
    spec = AnswerSpec(format="image")
    assert np.array_equal(read(spec, received(png(ids)), 3 * factor, 4 * factor).labels, large)
    assert np.array_equal(read(spec, received(png(large)), 3, 4).labels, ids)


def test_other_proportions_are_an_error_unless_the_mask_is_stretched() -> None:
    """A letter-boxed answer would be off everywhere, and nobody would see it."""
    ids = np.array([[0, 1], [2, 0]], np.uint8)
    with pytest.raises(InvalidValue, match=r"2 x 2 for an image of 4 x 16.*stretched = true"):
        read(AnswerSpec(format="image"), received(png(ids)), 4, 16)
    stretched = read(AnswerSpec(format="image", stretched=True), received(png(ids)), 4, 16)
    assert np.array_equal(stretched.labels, ids.repeat(2, axis=0).repeat(8, axis=1))


def test_what_is_not_listed_is_void_only_where_it_was_said() -> None:
    """Ids, colours and names alike."""
    ids, colours = np.array([[0, 9]], np.uint8), np.array([[[128, 64, 128], [1, 2, 3]]], np.uint8)
    items = [{"n": "road", "m": [[1, 0]]}, {"n": "tram", "m": [[0, 1]]}]
    ways: list[tuple[dict[str, Any], object, str]] = [
        ({"format": "image"}, png(ids), "id 9"),
        (
            {"format": "image", "encoding": "palette-png", "palette": {"#804080": "road"}},
            png(colours),
            "#010203",
        ),
        (
            {"encoding": "class-masks", "transport": "array", "items": "@", "label": "n", "mask": "m"},
            items,
            "'tram'",
        ),
    ]
    for values, body, words in ways:
        with pytest.raises(InvalidValue, match=words):
            read(AnswerSpec(**values), received(body), 1, 2)
        answer = read(AnswerSpec(**values, ignore_unknown=True), received(body), 1, 2)
        assert answer.labels.tolist() == [[0, VOID_ID]]


def test_the_id_behind_the_last_class_is_not_taken_for_void() -> None:
    """The place of void in the list of classes is ours, not the vendor's."""
    spec = AnswerSpec(format="image", void_ids=(255,))
    with pytest.raises(InvalidValue, match="id 3"):
        read(spec, received(png(np.full((3, 4), VOID_ID, np.uint8))))


def test_void_is_a_class_only_where_pixels_can_be_left_out() -> None:
    """Else the info would name a class that no answer holds."""
    colours = ((0, 0, 0),) * 3
    for values, void in (
        ({"format": "image"}, False),
        ({"format": "image", "ids": {0: "road"}}, False),
        ({"format": "image", "ids": {0: "road", 1: VOID_NAME}}, True),
        ({"format": "image", "void_ids": [255]}, True),
        ({"format": "image", "ignore_unknown": True}, True),
        ({"mask": "m", "items": "i", "label": "l", "encoding": "class-masks"}, True),
    ):
        classes, colors = AnswerSpec(**values).completed(CLASSES, colours, "t")
        assert (classes == NAMED) == void
        assert len(colors) == len(classes)


@pytest.mark.parametrize(
    ("spec", "body", "kind", "words"),
    [
        (AnswerSpec(mask="a"), b"{", MalformedFrame, "not JSON"),
        (AnswerSpec(mask="a"), b"[" * 50_000, MalformedFrame, "not JSON"),
        (AnswerSpec(mask="a"), {"a": None}, MalformedFrame, "holds no mask"),
        (AnswerSpec(mask="length(a)"), {"a": 1}, MalformedFrame, "holds no mask"),
        (AnswerSpec(mask="a"), {"a": "?"}, MalformedFrame, "base64"),
        (AnswerSpec(mask="a"), {"a": coded(b"GIF89a")}, MalformedFrame, "no PNG"),
        (
            AnswerSpec(mask="a", transport="url"),
            {"a": "https://x.example"},
            MalformedFrame,
            "links to no mask",
        ),
        (
            AnswerSpec(mask="a", confidence="b"),
            {"a": coded(png(drawn((3, 4, 1), 3)))},
            MalformedFrame,
            "no confidence",
        ),
        (AnswerSpec(format="image"), png(COLORS[drawn((3, 4, 1))]), InvalidValue, "palette-png"),
        (
            AnswerSpec(mask="m", items="i", label="l", encoding="class-masks"),
            {"i": {}},
            MalformedFrame,
            "no list",
        ),
        (
            AnswerSpec(mask="m", items="i", label="l", encoding="class-masks"),
            {"i": [[]] * 1025},
            LimitExceeded,
            "1025",
        ),
        (
            AnswerSpec(mask="m", items="i", label="l", encoding="class-masks"),
            {"i": [7]},
            MalformedFrame,
            "item 0",
        ),
        (
            AnswerSpec(mask="m", items="i", label="l", encoding="class-masks"),
            {"i": [{"l": "car", "m": coded(png(COLORS[drawn((3, 4, 1))]))}]},
            InvalidValue,
            "not grey",
        ),
    ],
)
def test_what_cannot_be_read_is_told(
    spec: AnswerSpec, body: object, kind: type[ProtocolError], words: str
) -> None:
    """In one line, as an error of the protocol."""
    with pytest.raises(kind, match=words):
        read(spec, received(body))


@given(data=st.data())
@settings(max_examples=200)
def test_a_damaged_answer_is_a_prediction_of_the_images_size_or_an_error(data: st.DataObject) -> None:
    """Whatever a few bytes change, and nothing but ProtocolError is raised."""
    labels = drawn((3, 4, 7), 3)
    ways: list[tuple[dict[str, Any], object]] = [
        ({"format": "image"}, png(labels)),
        ({"mask": "a.b[0]", "confidence": "c"}, {"a": {"b": [coded(png(labels))]}, "c": uri(png(labels))}),
        (
            {"mask": "a", "transport": "array", "confidence": "c"},
            {"a": labels.tolist(), "c": [[0.5] * 4] * 3},
        ),
        (
            {
                "encoding": "coco-rle",
                "items": "i",
                "label": "l",
                "mask": "m",
                "score": "s",
                "void_labels": ["x"],
            },
            {"i": [{"l": n, "m": {"size": [3, 4], "counts": [2, 5, 5]}, "s": 0.5} for n in (*CLASSES, "x")]},
        ),
    ]
    values, body = data.draw(st.sampled_from(ways))
    whole = received(body).body
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + data.draw(st.binary(max_size=3)) + whole[at + data.draw(st.integers(0, 3)) :]
    spec = AnswerSpec(**values)
    for reading in (spec.links, spec.stated_version):
        reading(received(damaged))
    try:
        answer = read(spec, received(damaged))
    except ProtocolError:
        return
    assert answer.classes.shape == (1, 3, 4)
    assert answer.disclosure == spec.level


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abimls"), inner, max_size=3),
    max_leaves=12,
)


@given(json_values, st.integers(200, 599))
@settings(max_examples=200)
def test_any_json_is_judged_without_a_crash(document: object, status: int) -> None:
    """And what is judged an answer can be asked for its links and its version."""
    body = json.dumps(document).encode()
    for values in (
        {"mask": "a", "error": "i.s", "retry": [1], "refused_image": ["b"], "ok": [0], "version": "b"},
        {"mask": "m", "items": "i", "label": "l", "encoding": "class-masks", "transport": "url"},
    ):
        spec = AnswerSpec(**values)
        verdict = spec.judge(Reply(status, {}, "application/json", body))
        links, version = spec.links(received(body)), spec.stated_version(received(body))
        assert all(isinstance(link.url, str) for link in links)
        assert version is None or version
        if status >= 300:
            assert verdict is None or verdict.again or not verdict.billed
        elif verdict is None:
            assert isinstance(document, dict)


@pytest.mark.parametrize("body", [b"", b"<html></html>", b"GIF89a", b"{}"])
def test_a_body_that_is_no_png_is_no_answer(body: bytes) -> None:
    """By its first bytes, whatever its media type says."""
    verdict = AnswerSpec(format="image").judge(Reply(200, {}, "image/png", body))
    assert verdict is not None
    assert verdict.error is BrokeContract
    assert AnswerSpec(format="image").judge(Reply(200, {}, "text/html", png(drawn((3, 4, 1))))) is None


def test_an_answers_bound_grows_with_the_image_and_ends() -> None:
    """A small image never needs hundreds of megabytes; the largest is still bounded."""
    spec = AnswerSpec(format="image")
    assert 12 * 4 < spec.max_bytes(3, 4) < 8 << 20
    assert spec.max_bytes(1024, 2048) > 8 * 1024 * 2048
    assert spec.max_bytes(10**5, 10**5) <= 256 << 20


def test_a_description_is_the_dialects_own() -> None:
    """What `read_answer` gives is what the dialect reads."""
    labels = drawn((3, 4, 9), 3)
    config = config_from({"classes": list(CLASSES), "custom": {"answer": {"format": "image"}}}, "t")
    dialect = spoken_by("custom", "https://x.example", config, None).dialect
    assert np.array_equal(dialect.read(received(png(labels)), 3, 4, dialect.level).labels, labels)
