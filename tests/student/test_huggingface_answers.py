"""What Hugging Face answers for image-segmentation, read without a network.

https://huggingface.co/docs/inference-providers/tasks/image-segmentation
https://github.com/huggingface/transformers (pipelines/image_segmentation.py)
"""

import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_protocol import VOID, InvalidValue, MalformedFrame, Prediction, ProtocolError
from corte_protocol.types import VOID_NAME
from corte_student.classmap import ClassMap
from corte_student.endpoints import Access, Endpoint, connect
from corte_student.endpoints.answers import Received
from corte_student.endpoints.config import config_from
from student.dialect_contract import CLASSES
from student.test_endpoint_huggingface import LABELS, ROUTER, item, mask_png

VOID_ID = len(CLASSES)


def reader(classes: tuple[str, ...] = CLASSES, **options: object) -> Endpoint:
    """An endpoint that never sends anything."""
    config = config_from({"classes": list(classes), "huggingface": options}, "t")
    return connect(Access(ROUTER, config=config), deadline_s=1, connections=1)


DEFAULT = reader()


def read(body: object, height: int, width: int, by: Endpoint = DEFAULT) -> Prediction:
    """A stored answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    blob = Received("huggingface", 1, "application/json", data).pack()
    return by.read(blob, height, width, LABELS)


def halves(height: int = 4, width: int = 4) -> npt.NDArray[np.bool_]:
    """The left half."""
    region = np.zeros((height, width), np.bool_)
    region[:, : width // 2] = True
    return region


async def test_what_no_mask_covers_is_void() -> None:
    """Panoptic models leave out what they are not sure of; an empty answer is all void."""
    answer = read([item("car", halves(), 0.9)], 4, 4)
    assert np.array_equal(answer.labels, np.where(halves(), 1, VOID_ID))
    assert (read([], 4, 4).labels == VOID_ID).all()
    info = await DEFAULT.info()
    assert info.classes == (*CLASSES, VOID_NAME)
    labels = ClassMap.identity(info).apply(answer).labels
    assert np.array_equal(labels, np.where(halves(), 1, VOID))


@given(data=st.data())
@settings(max_examples=150)
def test_the_higher_score_is_in_front(data: st.DataObject) -> None:
    """Against a slow loop: no score is below all, of equals the earlier, nothing is void."""
    height, width = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    scores = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0, 1]))
    drawn = data.draw(
        st.lists(st.tuples(st.sampled_from(CLASSES), scores, st.integers(0, 2**25 - 1)), max_size=6)
    )
    regions = [
        np.array([bits >> i & 1 for i in range(height * width)]).reshape(height, width) == 1
        for _, _, bits in drawn
    ]
    body = [item(name, region, score) for (name, score, _), region in zip(drawn, regions, strict=True)]
    labels = read(body, height, width).labels
    for y in range(height):
        for x in range(width):
            best, right = None, VOID_ID
            for (name, score, _), region in zip(drawn, regions, strict=True):
                rank = -1.0 if score is None else score
                if region[y, x] and (best is None or rank > best):
                    best, right = rank, CLASSES.index(name)
            assert labels[y, x] == right


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "LA"])
def test_a_mask_is_any_png_in_black_and_white(mode: str) -> None:
    """Other containers draw them otherwise; brighter than the middle belongs to it."""
    answer = read([{"label": "sky", "mask": mask_png(halves(), mode)}], 4, 4)
    assert np.array_equal(answer.labels, np.where(halves(), 2, VOID_ID))


def test_a_mask_of_another_size_is_taken_to_the_nearest_pixel() -> None:
    """In proportion; any other shape is another picture."""
    answer = read([item("road", halves(2, 4))], 4, 8)
    assert np.array_equal(answer.labels, np.where(halves(4, 8), 0, VOID_ID))
    with pytest.raises(InvalidValue, match="a mask of 2 x 4 for an image of 4 x 4"):
        read([item("road", halves(2, 4))], 4, 4)


def test_an_unknown_label_is_named_unless_it_is_void() -> None:
    """With the remedy."""
    body = [item("LABEL_184", halves(), 0.9), item("car", ~halves(), 0.8)]
    with pytest.raises(InvalidValue, match="'LABEL_184': add it to classes in --teacher-config"):
        read(body, 4, 4)
    right = np.where(halves(), VOID_ID, 1)
    assert np.array_equal(read(body, 4, 4, reader(ignore_unknown=True)).labels, right)
    assert np.array_equal(read(body, 4, 4, reader(void_labels=["LABEL_184"])).labels, right)
    named = read(body, 4, 4, reader(("car", "LABEL_184")))
    assert np.array_equal(named.labels, halves())


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", MalformedFrame),
        (b"<html>", MalformedFrame),
        ({"error": "x"}, MalformedFrame),
        ([{"label": "car"}], MalformedFrame),
        ([{"label": 7, "mask": ""}], MalformedFrame),
        ([{"label": "car", "mask": "%%%"}], MalformedFrame),
        ([{"label": "car", "mask": "aGVsbG8="}], MalformedFrame),
        ([{"label": "car", "mask": mask_png(halves())[:40]}], MalformedFrame),
        ([item("car", halves()) | {"score": "high"}], MalformedFrame),
        ([item("car", halves()) | {"score": float("nan")}], InvalidValue),
    ],
)
def test_what_cannot_be_read_is_an_error(body: object, error: type[ProtocolError]) -> None:
    """Never a prediction."""
    with pytest.raises(error):
        read(body, 4, 4)
