"""Each backend against the contract, and what is particular to each."""

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from corte_protocol import Disclosure, Limits
from corte_protocol.types import UInt8
from corte_teacher.backends import OURS, Backend, Source, find_source, load_backend
from corte_teacher.card import Card
from corte_teacher.errors import StartError
from corte_teacher.identity import describe
from teacher.backend_contract import BackendContract, picture
from teacher.tiny_models import (
    F32,
    as_toml,
    card_data,
    dense_reference,
    network_input,
    raw_output,
    write_model,
)

VEHICLE = {"name": "vehicle", "color": [0, 0, 142], "members": ["truck", "car"]}


class OnnxContract(BackendContract):
    """A tiny convolution behind the onnx backend."""

    opset = 17

    def build(self, folder: Path, ceiling: Disclosure) -> Backend:
        model = write_model(folder / "m.onnx", self.card, opset=self.opset)
        return load_backend(Source("onnx", model, self.card), ceiling, 1)

    def reference(self, folder: Path, pixels: UInt8) -> F32:
        array, size = network_input(self.card, pixels)
        return dense_reference(self.card, raw_output(folder / "m.onnx", array), size, pixels)


class TestOnnxLogits(OnnxContract):
    card = Card.model_validate(card_data())


class TestOnnxChannelsLast(OnnxContract):
    card = Card.model_validate(
        card_data(
            input={"layout": "nhwc", "dtype": "uint8", "height": 16, "width": 24}, output={"layout": "nhwc"}
        )
    )


class TestOnnxFreeSize(OnnxContract):
    card = Card.model_validate(card_data(input={"multiple_of": 8}))


class TestOnnxProbabilities(OnnxContract):
    card = Card.model_validate(card_data(output={"kind": "probabilities"}))


class TestOnnxGroups(OnnxContract):
    card = Card.model_validate(card_data(groups=[VEHICLE]))


class TestOnnxGroupedProbabilities(OnnxContract):
    card = Card.model_validate(card_data(output={"kind": "probabilities"}, groups=[VEHICLE]))


class TestOnnxOldOpset(OnnxContract):
    """Axes were attributes, and Resize wanted an empty roi."""

    opset = 11
    card = Card.model_validate(card_data(groups=[VEHICLE]))


class TestOnnxNewOpset(OnnxContract):
    """ReduceMax takes its axes as an input."""

    opset = 21
    card = Card.model_validate(card_data(groups=[VEHICLE]))


class TimmContract(BackendContract):
    """A random tiny encoder behind the timm backend, against eager torch."""

    def build(self, folder: Path, ceiling: Disclosure) -> Backend:
        return load_backend(Source("timm", _checkpoint(folder, self.card), self.card), ceiling, 0)

    def reference(self, folder: Path, pixels: UInt8) -> F32:
        import torch

        array, size = network_input(self.card, pixels)
        with torch.no_grad():
            raw = _network(self.card)(torch.from_numpy(array)).numpy()
        return dense_reference(self.card, raw, size, pixels)


class TestTimm(TimmContract):
    card = Card.model_validate(card_data(model={"encoder": "test_resnet", "level": 2}))


class TestTimmGroups(TimmContract):
    card = Card.model_validate(card_data(model={"encoder": "test_resnet"}, groups=[VEHICLE]))


@functools.cache
def _network(card: Card) -> Any:
    """The tiny network with fixed random weights; built once a card, because timm is slow at it."""
    import torch

    from corte_teacher.backends.timm import Segmenter

    assert card.model is not None and card.model.encoder is not None
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Segmenter(card.model.encoder, card.model.level, len(card.classes)).eval()


def _checkpoint(folder: Path, card: Card) -> Path:
    from safetensors.torch import save_file

    path = folder / "m.safetensors"
    state = _network(card).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, str(path))
    return path


class TestCustom(BackendContract):
    """The example of one's own backend, loaded by name."""

    card = Card.model_validate(card_data(groups=[VEHICLE]))

    def build(self, folder: Path, ceiling: Disclosure) -> Backend:
        return load_backend(Source("my_backend:build", None, self.card), ceiling)

    def reference(self, folder: Path, pixels: UInt8) -> F32:
        colours = np.array([answer.color for answer in self.card.outputs], np.float32)
        away = -(np.square((pixels[None].astype(np.float32) - colours[:, None, None]) / 64).sum(-1))
        power = np.exp(away - away.max(0))
        probs: F32 = power / power.sum(0)
        return probs


def _onnx(folder: Path, level: str, **changes: Any) -> Backend:
    card = Card.model_validate(card_data(**changes))
    model = write_model(folder / "m.onnx", card)
    return load_backend(Source("onnx", model, card), Disclosure.parse(level, len(card.outputs)), 1)


@pytest.mark.parametrize("groups", [[], [VEHICLE]])
def test_a_model_that_gives_labels_answers_the_nearest_label(tmp_path: Path, groups: list[Any]) -> None:
    """Labels are resized to the nearest and mapped onto groups; there is no score."""
    changes: dict[str, Any] = {"output": {"kind": "labels", "layout": "nhw"}, "groups": groups}
    card = Card.model_validate(card_data(**changes))
    pixels = picture(32, 48)
    classes, scores = _onnx(tmp_path, "labels", **changes).predict(pixels)
    raw = raw_output(tmp_path / "m.onnx", network_input(card, pixels)[0])[0]
    table = np.array([next(i for i, a in enumerate(card.outputs) if c in a.members) for c in range(5)])
    assert scores is None
    assert np.array_equal(classes[0], table[raw].repeat(4, 0).repeat(4, 1))


def test_scores_of_a_model_that_gives_labels_cannot_be_promised(tmp_path: Path) -> None:
    """A policy with scores on a labels-only model is refused at the start, with the remedy."""
    with pytest.raises(StartError, match="choose --disclosure labels"):
        _onnx(tmp_path, "margin", output={"kind": "labels"})


def test_a_labels_policy_computes_no_scores(tmp_path: Path) -> None:
    """Under the policy `labels` no score leaves the session."""
    assert _onnx(tmp_path, "labels").predict(picture(8, 8))[1] is None


@pytest.mark.parametrize("level", ["labels", "confidence", "margin", "topk:3", "topk:4", "full"])
@pytest.mark.parametrize("groups", [[], [VEHICLE]])
def test_ties_go_to_the_lower_id(tmp_path: Path, level: str, groups: list[Any]) -> None:
    """Where classes without a group tie, the lower id comes first, at every ceiling."""
    card = Card.model_validate(card_data(groups=groups))
    model = write_model(tmp_path / "m.onnx", card, scale=0.0)
    ceiling = Disclosure.parse(level, len(card.outputs))
    classes, _ = load_backend(Source("onnx", model, card), ceiling, 1).predict(picture(9, 9))
    order = [1, 0, 2, 3] if groups else [0, 1, 2, 3, 4]  # the group holds twice the probability
    assert classes[:, 4, 4].tolist() == order[: ceiling.top_k]


def test_ties_go_to_the_lower_id_in_torch(tmp_path: Path) -> None:
    """The timm backend orders equal logits by id too, by arg-max and by sorting."""
    from torch import zeros

    from corte_teacher.backends.torch_head import _best

    for k in (1, 2, 4, 5):
        assert _best(zeros(1, 5, 2, 2), k)[1][0, :, 0, 0].tolist() == list(range(k))


def test_infinite_logits_are_survived(tmp_path: Path) -> None:
    """A model that masks a class with minus infinity still answers legally."""
    card = Card.model_validate(card_data())
    path = write_model(tmp_path / "m.onnx", card)
    model = onnx.load(path)
    last = model.graph.output[0].name
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(
            np.array([0, -np.inf, 0, -np.inf, -np.inf], "f4").reshape(1, 5, 1, 1), "mask"
        )
    )
    model.graph.node.append(onnx.helper.make_node("Add", [last, "mask"], ["masked"]))
    model.graph.output[0].name = "masked"
    onnx.save(model, path)
    source = Source("onnx", path, card)
    for level in ("margin", "topk:3", "full"):
        ceiling = Disclosure.parse(level, 5)
        classes, scores = load_backend(source, ceiling, 1).predict(picture(33, 47))
        assert scores is not None and np.isfinite(scores).all()
        assert set(np.unique(classes[:2])) <= {0, 2}


def test_the_card_must_fit_the_model(tmp_path: Path) -> None:
    """Another class count than the card's fails; it is never interpolated."""
    model = write_model(tmp_path / "m.onnx", Card.model_validate(card_data()))
    card = Card.model_validate(card_data(classes=card_data()["classes"][:4]))
    backend = load_backend(Source("onnx", model, card), Disclosure(1, 0), 1)
    with pytest.raises(Exception, match="eshape"):
        backend.predict(picture(8, 8))


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    """Garbage instead of ONNX, or an opset from before Resize, is one error that names the remedy."""
    garbage = tmp_path / "g.onnx"
    garbage.write_bytes(b"\xff" * 100)
    card = Card.model_validate(card_data())
    with pytest.raises(StartError, match="cannot be read as an ONNX model"):
        load_backend(Source("onnx", garbage, card), Disclosure(1, 0))
    old = write_model(tmp_path / "old.onnx", card, opset=9)
    with pytest.raises(StartError, match="opset 11 or later"):
        load_backend(Source("onnx", old, card), Disclosure(1, 0))


def test_weights_may_lie_beside_the_model(tmp_path: Path) -> None:
    """External data is found in the model's folder, and its bytes are part of the revision."""
    card = Card.model_validate(card_data())
    inside = write_model(tmp_path / "inside.onnx", card)
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(inside), path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    ceiling = Disclosure(2, 8)
    limits = Limits(1, 1)
    classes, _ = load_backend(Source("onnx", path, card), ceiling, 1).predict(picture(9, 9))
    right, _ = load_backend(Source("onnx", inside, card), ceiling, 1).predict(picture(9, 9))
    assert np.array_equal(classes, right)
    before = describe(Source("onnx", path, card), b"", ceiling, limits)
    data = tmp_path / "m.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    after = describe(Source("onnx", path, card), b"", ceiling, limits)
    assert before.revision != after.revision and before.teacher == after.teacher


def test_a_card_may_fix_its_revision(tmp_path: Path) -> None:
    """Where the card states a revision it is used as it is."""
    card = Card.model_validate(card_data(revision="2026-11"))
    source = Source("my_backend:build", None, card)
    assert describe(source, b"s", Disclosure(1, 0), Limits(1, 1)).revision == "2026-11"


def test_an_unknown_backend_lists_the_choices() -> None:
    """A wrong name is answered with the right ones."""
    with pytest.raises(
        StartError, match=r"street, onnx, timm, exported, transformers or package\.module:factory"
    ):
        find_source("tensorflow", None, None)


def test_loading_an_onnx_service_imports_no_torch() -> None:
    """The names of our backends are looked up only when chosen."""
    import subprocess

    code = "import sys, corte_teacher.server, corte_teacher.backends.onnx; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(OURS) == {"street", "onnx", "timm", "exported", "transformers"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:build", "PYTHONPATH"),
        ("my_backend:nothing", "has no function 'nothing'"),
        ("builtins:slice", "without predict"),
    ],
)
def test_a_broken_factory_is_named(name: str, message: str) -> None:
    """A module, function or result that is missing is one clear error."""
    card = Card.model_validate(card_data())
    with pytest.raises(StartError, match=message):
        load_backend(Source(name, None, card), Disclosure(1, 0))


def test_the_card_lies_beside_the_model(tmp_path: Path) -> None:
    """Without --card it is MODEL.toml; where that is missing the error says where it was looked for."""
    model = write_model(tmp_path / "m.onnx", Card.model_validate(card_data()))
    with pytest.raises(StartError, match=r"m\.toml"):
        find_source("onnx", model, None)
    (tmp_path / "m.toml").write_text(as_toml(card_data()))
    assert find_source("onnx", model, None).card == Card.model_validate(card_data())
