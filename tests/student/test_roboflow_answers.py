"""What Roboflow's semantic segmentation answers, read without a network.

https://docs.roboflow.com/models/supported-models/roboflow-2
https://github.com/roboflow/inference (core/models/, how the masks are made)
"""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_protocol import (
    VOID,
    InvalidValue,
    LimitExceeded,
    MalformedFrame,
    Prediction,
    ProtocolError,
)
from corte_protocol.types import VOID_NAME
from corte_student.classmap import ClassMap
from corte_student.endpoints import Endpoint
from corte_student.endpoints.answers import Received
from student.dialect_contract import CLASSES
from student.test_endpoint_roboflow import LABELS, THEIRS, VOID_ID, body_of, coded, reader

DEFAULT = reader(void_labels=["background"])


def read(body: object, height: int = 2, width: int = 3, by: Endpoint = DEFAULT) -> Prediction:
    """A stored answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    blob = Received("roboflow", 1, "application/json", data).pack()
    return by.read(blob, height, width, LABELS)


SURE = np.full((2, 3), 200, np.uint8)
IDS = np.array([[0, 1, 2], [3, 2, 1]], np.uint8)
RIGHT = np.array([[VOID_ID, 2, 0], [1, 0, 2]], np.uint8)


@given(data=st.data())
@settings(max_examples=150)
def test_names_decide_whatever_the_ids_are(data: st.DataObject) -> None:
    """Any numbering of any names comes back as ours; confidence 0 and the id 255 are void."""
    height, width = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    names = data.draw(st.permutations([*CLASSES, "background"]))
    numbers = data.draw(st.lists(st.integers(0, 254), min_size=len(names), max_size=len(names), unique=True))
    table = {
        number: (*CLASSES, "background").index(name) for number, name in zip(numbers, names, strict=True)
    }
    seed = data.draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    ids = generator.choice(np.array([*numbers, 255], np.uint8), (height, width))
    confidence = generator.choice(np.array([0, 2, 128, 255], np.uint8), (height, width))
    answer = read(
        body_of(ids, confidence, {str(n): name for n, name in zip(numbers, names, strict=True)}),
        height,
        width,
    )
    for y in range(height):
        for x in range(width):
            right = table.get(int(ids[y, x]), VOID_ID) if confidence[y, x] else VOID_ID
            assert answer.labels[y, x] == right
    assert answer.probs is not None
    assert np.array_equal(answer.probs[0], confidence)


async def test_what_nobody_has_an_opinion_of_is_void() -> None:
    """Below the threshold and beyond the model's crop they paint background, with confidence 0."""
    confidence = np.array([[0, 1, 255], [200, 0, 3]], np.uint8)
    right = np.array([[VOID, 2, 0], [1, VOID, 2]])
    info = await DEFAULT.info()
    assert info.classes == (*CLASSES, VOID_NAME)
    assert np.array_equal(ClassMap.identity(info).apply(read(body_of(IDS, confidence))).labels, right)
    counted = reader((*CLASSES, "background"))
    seen = read(body_of(IDS, confidence), by=counted).labels
    assert np.array_equal(seen, np.array([[4, 2, 0], [1, 4, 2]]))
    assert (read(body_of(IDS, np.zeros((2, 3), np.uint8))).labels == VOID_ID).all()


def test_background_is_a_class_where_it_is_one() -> None:
    """Listed, it is counted like the others."""
    listed = reader(("background", *CLASSES))
    assert np.array_equal(read(body_of(IDS, SURE), by=listed).labels, np.array([[0, 3, 1], [2, 1, 3]]))


def test_255_is_a_class_where_the_map_says_so() -> None:
    """Elsewhere it is their -1."""
    ids = np.full((2, 3), 255, np.uint8)
    assert (read(body_of(ids, SURE)).labels == VOID_ID).all()
    assert (read(body_of(ids, SURE, {"255": "car"})).labels == 1).all()


def test_unknown_names_are_told_at_the_first_answer() -> None:
    """All of them, also those that this picture does not show; void only where it was said."""
    more = {**THEIRS, "4": "tree", "5": "pole"}
    with pytest.raises(InvalidValue, match="'tree', 'pole': add it to classes, or to void_labels"):
        read(body_of(IDS, SURE, more))
    with pytest.raises(InvalidValue, match="'background'"):
        read(body_of(IDS, SURE), by=reader())
    lenient = reader(ignore_unknown=True)
    assert np.array_equal(read(body_of(IDS, SURE, more), by=lenient).labels, RIGHT)


def test_a_mask_of_another_size_is_taken_to_the_nearest_pixel() -> None:
    """Both in proportion; any other shape is another picture."""
    large = IDS.repeat(2, axis=0).repeat(2, axis=1)
    answer = read(body_of(large, SURE))
    assert np.array_equal(answer.labels, RIGHT)
    wide = body_of(np.zeros((2, 9), np.uint8), SURE)
    with pytest.raises(InvalidValue, match="a mask of 2 x 9 for an image of 2 x 3"):
        read(wide)
    with pytest.raises(InvalidValue, match="a mask of 9 x 9 for an image of 2 x 3"):
        read(body_of(IDS, np.full((9, 9), 7, np.uint8)))


def changed(**predictions: object) -> dict[str, Any]:
    """A good answer with something else in it."""
    body = body_of(IDS, SURE)
    body["predictions"] |= predictions
    return body


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        (b"", MalformedFrame, "not JSON"),
        ([], MalformedFrame, "no predictions"),
        ({"predictions": []}, MalformedFrame, "no predictions"),
        (changed(class_map=None), MalformedFrame, "no class_map"),
        (changed(class_map={"one": "car"}), MalformedFrame, "class_map does not map"),
        (changed(class_map={"256": "car"}), MalformedFrame, "class_map does not map"),
        (changed(class_map={"-1": "car"}), MalformedFrame, "class_map does not map"),
        (changed(class_map={"1": 7}), MalformedFrame, "class_map does not map"),
        (changed(class_map={"0": "road", "1": "car"}), InvalidValue, "the index 2, which has no class"),
        (changed(segmentation_mask="%%%"), MalformedFrame, "not base64"),
        (changed(segmentation_mask=7), MalformedFrame, "base64 is text"),
        (changed(segmentation_mask="aGVsbG8="), MalformedFrame, "no PNG"),
        (changed(segmentation_mask=coded(np.zeros((2, 3, 3), np.uint8))), InvalidValue, "in colours"),
        (changed(segmentation_mask=coded(np.zeros((5000, 5000), np.uint8))), LimitExceeded, "beyond"),
        (changed(confidence_mask="%%%"), MalformedFrame, "not base64"),
        (changed(confidence_mask=coded((IDS > 0).astype(np.uint8))), InvalidValue, "confidence = false"),
    ],
)
def test_what_cannot_be_read_is_an_error(body: object, error: type[ProtocolError], words: str) -> None:
    """Never a prediction."""
    with pytest.raises(error, match=words):
        read(body)


@given(data=st.data())
@settings(max_examples=150)
def test_a_damaged_answer_is_a_prediction_of_the_images_size_or_an_error(data: st.DataObject) -> None:
    """Whatever a few bytes change, and nothing but ProtocolError is raised."""
    damaged = bytearray(json.dumps(body_of(IDS, SURE)).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        answer = read(bytes(damaged))
    except ProtocolError:
        return
    assert answer.labels.shape == (2, 3)
