"""ONNX models with several images at once, the head in tiles, and both where there is too little memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from corte_protocol import VOID, Disclosure
from corte_teacher.backends import Planes, Source, load_backend
from corte_teacher.backends.onnx import OnnxBackend
from corte_teacher.backends.onnx_head import append_head
from corte_teacher.batching import Batches
from corte_teacher.card import Card
from teacher.backend_contract import picture
from teacher.tiny_models import as_toml, card_data, write_model

GROUP = {"name": "vehicle", "color": [0, 0, 142], "members": ["truck", "car"]}
CARDS = {
    "logits": card_data(),
    "groups": card_data(groups=[GROUP]),
    "probabilities": card_data(output={"kind": "probabilities"}),
    "nhwc": card_data(
        input={"layout": "nhwc", "dtype": "uint8", "height": 16, "width": 24}, output={"layout": "nhwc"}
    ),
    "free size": card_data(input={"multiple_of": 8}),
}
LEVELS = ["labels", "confidence", "margin", "topk:4", "full"]


def load(path: Path, card: Card, level: str) -> OnnxBackend:
    """The model at `path` as the service has it."""
    backend = load_backend(Source("onnx", path, card), Disclosure.parse(level, len(card.outputs)), 1)
    assert isinstance(backend, OnnxBackend)
    return backend


def load_plain(path: Path, card: Card, level: str) -> OnnxBackend:
    """The same model under the head without tiles, which GPUs and old opsets get."""
    model = onnx.load(path)
    ceiling = Disclosure.parse(level, len(card.outputs))
    append_head(model, card, ceiling)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return OnnxBackend(session, card, ceiling, True)


def same(one: Planes, other: Planes) -> bool:
    """Whether two answers are the same bit for bit."""
    if one[1] is None or other[1] is None:
        return one[1] is other[1] and np.array_equal(one[0], other[0])
    return np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def edited(path: Path, name: str, **extra: Any) -> Path:
    """The model with one more node behind its output, whose second input is the constant `extra["value"]`."""
    model = onnx.load(path)
    last = model.graph.output[0].name
    model.graph.initializer.append(numpy_helper.from_array(extra["value"], "edit"))
    model.graph.node.append(helper.make_node(name, [last, "edit"], ["edited"]))
    model.graph.output[0].name = "edited"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("opset", [12, 13, 18, 21])
@pytest.mark.parametrize("name", CARDS)
def test_tiles_change_no_bit(tmp_path: Path, name: str, opset: int, level: str) -> None:
    """In one tile and in several that overlap, planes are those of the whole image at once."""
    card = Card.model_validate(CARDS[name])
    path = write_model(tmp_path / "m.onnx", card, opset=opset)
    tiled, plain = load(path, card, level), load_plain(path, card, level)
    for size in ((1, 1), (37, 50), (211, 700)):
        assert same(tiled.predict(picture(*size)), plain.predict(picture(*size)))


@settings(max_examples=30)
@given(height=st.integers(1, 900), width=st.integers(1, 900))
def test_any_size_is_put_together_again(tiny: Path, height: int, width: int) -> None:
    """Rows come back in order and once each, whatever the height leaves for the last tile."""
    card = Card.model_validate(card_data())
    image = picture(height, width)
    assert same(load(tiny, card, "margin").predict(image), load_plain(tiny, card, "margin").predict(image))


@pytest.mark.parametrize("level", ["labels", "margin", "full"])
@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("name", [*CARDS, "labels"])
def test_company_changes_no_answer(tmp_path: Path, name: str, opset: int, level: str) -> None:
    """Two, three and eight images of one size get what each gets alone: classes bit for bit."""
    card = Card.model_validate(CARDS.get(name) or card_data(output={"kind": "labels", "layout": "nhw"}))
    level = "labels" if name == "labels" else level
    backend = load(write_model(tmp_path / "m.onnx", card, opset=opset), card, level)
    assert backend.batches
    for size in ((5, 9), (211, 700)):
        images = [np.roll(picture(*size), n, 1) for n in range(8)]
        alone = [backend.predict(image) for image in images]
        for count in (2, 3, 8):
            for got, right in zip(backend.predict_many(images[:count]), alone[:count], strict=True):
                assert np.array_equal(got[0], right[0])
                if right[1] is not None:
                    assert got[1] is not None and np.abs(got[1] - right[1]).max() <= 2**-10


@pytest.mark.parametrize("end", ["input", "output"])
def test_a_fixed_batch_axis_is_noticed(tmp_path: Path, end: str) -> None:
    """A file that states one image at its input or output is never given two, and answers as any other."""
    card = Card.model_validate(card_data())
    path = write_model(tmp_path / "m.onnx", card)
    right = load(path, card, "margin").predict(picture(20, 30))
    model = onnx.load(path)
    getattr(model.graph, end)[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    backend = load(path, card, "margin")
    assert not backend.batches
    assert same(backend.predict(picture(20, 30)), right)
    batches = Batches(backend)
    batches.try_out([(20, 30)])
    assert batches.largest == 1


def test_a_model_that_was_traced_for_one_image_is_not_batched(tmp_path: Path) -> None:
    """Where a batch fails although the file states none, or mixes its images, images go alone."""
    card = Card.model_validate(card_data())
    one = edited(write_model(tmp_path / "m.onnx", card), "Reshape", value=np.array([1, 5, 8, 12]))
    batches = Batches(load(one, card, "margin"))
    batches.try_out([(20, 30)])
    assert batches.largest == 1
    assert not any(isinstance(result, Exception) for result in batches.run([picture(20, 30)] * 3))
    mixed = onnx.load(write_model(tmp_path / "mixed.onnx", card))
    last = mixed.graph.output[0].name
    mixed.graph.node.append(helper.make_node("ReduceMean", [last], ["mean"], axes=[0], keepdims=1))
    mixed.graph.node.append(helper.make_node("Sub", [last, "mean"], ["mixed"]))
    mixed.graph.output[0].name = "mixed"
    onnx.save(mixed, tmp_path / "mixed.onnx")
    batches = Batches(load(tmp_path / "mixed.onnx", card, "margin"))
    batches.try_out([(20, 30)])
    assert batches.largest == 1


def test_a_batch_is_of_one_size(tiny: Path) -> None:
    """Images that would be resized to one size, but are not of one, are refused as a batch."""
    backend = load(tiny, Card.model_validate(card_data()), "margin")
    with pytest.raises(ValueError, match="one size"):
        backend.predict_many([picture(5, 9), picture(9, 5)])


def test_what_is_not_a_number_is_no_class(tmp_path: Path) -> None:
    """Where all logits are NaN the answer is void, which the service refuses, and not some class."""
    card = Card.model_validate(card_data())
    path = edited(write_model(tmp_path / "m.onnx", card), "Add", value=np.array(np.nan, np.float32))
    classes, _ = load(path, card, "labels").predict(picture(9, 9))
    assert (classes == VOID).all()


LIMITED = """
import hashlib, resource, sys
from pathlib import Path
import numpy as np
from corte_protocol import Disclosure
from corte_teacher.backends import find_source, load_backend
from corte_teacher.batching import Batches
from corte_teacher.errors import OutOfMemory

backend = load_backend(find_source("onnx", Path(sys.argv[1]), None), Disclosure(2, 8), 1)
batches = Batches(backend)
rng = np.random.default_rng(0)
small = rng.integers(0, 256, (64, 96, 3), np.uint8)
middle = [rng.integers(0, 256, (800, 800, 3), np.uint8) for _ in range(8)]
large = np.zeros((5000, 6000, 3), np.uint8)


def digest(planes):
    # comparing arrays would need memory that there is none of
    return [hashlib.sha256(plane).digest() for plane in planes if plane is not None]


before = digest(batches.run([small])[0])
alone = [digest(backend.predict(image)) for image in middle]
here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (here + int(sys.argv[2]) * 2**20,) * 2)
for _ in range(3):
    (result,) = batches.run([large])
    assert isinstance(result, OutOfMemory), result
    try:
        backend.predict_many(middle)
    except OutOfMemory:
        pass
    else:
        raise AssertionError("eight fit")
    for got, right in zip(batches.run(middle), alone, strict=True):
        assert not isinstance(got, Exception), got
        assert digest(got) == right
    assert digest(batches.run([small])[0]) == before
print("lives")
"""


@pytest.mark.parametrize(("name", "spare"), [("logits", 75), ("free size", 100)])
def test_too_little_memory_ends_one_image_and_nothing_else(tmp_path: Path, name: str, spare: int) -> None:
    """Under RLIMIT_AS, three times over: eight do not fit and are parted, one too large is refused, and the
    next small image gets the answer that it had before."""
    (tmp_path / "m.toml").write_text(as_toml(CARDS[name]))
    model = write_model(tmp_path / "m.onnx", Card.model_validate(CARDS[name]))
    command = [sys.executable, "-c", LIMITED, str(model), str(spare)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "lives", done.stderr[-2000:]


RETURNED = """
import resource, sys
from pathlib import Path
import numpy as np
from corte_protocol import Disclosure
from corte_teacher.backends import find_source, load_backend

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

backend = load_backend(find_source("onnx", Path(sys.argv[1]), None), Disclosure(2, 8), 1)
large, small = np.zeros((4000, 4000, 3), np.uint8), np.zeros((64, 96, 3), np.uint8)
backend.predict(small)
before = held()
backend.predict(large)
after = held()
assert after < before + 100, f"after a large image {after} MB, {before} before"
"""


def test_a_large_image_does_not_stay_in_memory(tiny: Path) -> None:
    """After an image whose dense maps take 320 MB the process is at most 100 MB larger than before."""
    command = [sys.executable, "-c", RETURNED, str(tiny)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
