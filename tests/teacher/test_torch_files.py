"""The files of the torch backends: what a program, a checkpoint and a folder may hold, and must."""

import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from corte_protocol import Disclosure, Limits
from corte_teacher.backends import Source, find_source, load_backend
from corte_teacher.backends.torch_head import TorchBackend
from corte_teacher.card import Card
from corte_teacher.errors import BackendError, StartError
from corte_teacher.identity import describe
from teacher.backend_contract import picture
from teacher.tiny_models import as_toml, card_data
from teacher.torch_models import HUGGING, card, load, tiny_net, write, write_program


class Touch:
    """Unpickled, it makes a file: the proof that something was run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def rewritten(source: Path, target: Path, **members: bytes | None) -> Path:
    """A program's archive with members replaced, added or, where None, left out."""
    changes = {name.replace("__", "/"): data for name, data in members.items()}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        kept = {name: old.read(name) for name in old.namelist()}
        kept |= {f"{root}/{name}": data for name, data in changes.items() if data is not None}
        for name, data in kept.items():
            if changes.get(name.partition("/")[2], b"") is not None:
                new.writestr(name, data)
    return target


def refused(source: Source, match: str) -> None:
    """It does not start, and says why in one line."""
    with pytest.raises(StartError, match=match) as found:
        load_backend(source, Disclosure(1, 0), 1)
    assert "\n" not in str(found.value)


def test_a_program_that_would_run_code_is_refused_unread(tmp_path: Path) -> None:
    """Pickled weights, constants and sample inputs, and native libraries: the pickles are never opened."""
    source = write("exported", tmp_path, card("exported"))
    assert source.model is not None
    mark, bad = tmp_path / "was-run", tmp_path / "bad.pt2"
    evil = pickle.dumps(Touch(mark))
    torch.save(Touch(mark), tmp_path / "evil.pt")
    config = {"config": {"c": {"path_name": "tensor_0", "use_pickle": True, "is_param": False}}}
    for name, members in {
        "'c'": {"data__constants__model_constants_config.json": json.dumps(config).encode()},
        "opaque_obj_0": {"data__constants__opaque_obj_0": evil},
        "weights/model.pt": {"data__weights__model.pt": evil},
        "aotinductor": {"data__aotinductor__model__m.so": b"\x7fELF"},
        "sample inputs": {"data__sample_inputs__model.pt": (tmp_path / "evil.pt").read_bytes()},
    }.items():
        refused(source._replace(model=rewritten(source.model, bad, **members)), name)
        assert not mark.exists(), name
    pickle.loads(evil)  # noqa: S301 - the marker works
    assert mark.exists()


def test_what_is_not_a_program_is_refused(tmp_path: Path) -> None:
    """Garbage, a torn file, an archive of another kind and another suffix name the way to write one."""
    source = write("exported", tmp_path, card("exported"))
    assert source.model is not None
    whole, bad = source.model.read_bytes(), tmp_path / "bad.pt2"
    bad.write_bytes(b"garbage")
    refused(source._replace(model=bad), r"torch\.export\.save")
    bad.write_bytes(whole[: len(whole) // 2])
    refused(source._replace(model=bad), r"torch\.export\.save")
    torch.save({"x": torch.zeros(1)}, bad)
    refused(source._replace(model=bad), r"torch\.export\.save")
    refused(source._replace(model=source.model.rename(tmp_path / "m.pt")), r"by its name.*NAME\.pt2")


class _Two(nn.Module):
    """Takes two images and answers four things."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Their difference."""
        return x - y


def test_a_program_must_fit_its_card(tmp_path: Path) -> None:
    """Classes, fixed sizes, training mode and inputs that contradict the card are told at the start."""
    net, right = tiny_net("exported"), card("exported")
    fixed = write_program(net, tmp_path / "m.pt2", (1, 3, 16, 24), {})
    backend = load_backend(Source("exported", fixed, right), Disclosure(2, 8), 1)
    assert isinstance(backend, TorchBackend) and not backend.batches
    assert backend.predict(picture(20, 30))[0].shape == (2, 20, 30)
    free = card("exported", input={"multiple_of": 8})
    refused(Source("exported", fixed, free), "height 16 and width 24 only: say so under")
    fewer = card("exported", classes=card_data()["classes"][:4])
    refused(Source("exported", fixed, fewer), "answers 5 classes, the card names 4")
    refused(Source("exported", fixed, card("exported", output={"kind": "probabilities"})), r"\[output\]")
    refused(Source("exported", fixed, card("exported", input={"layout": "nhwc"})), r"\[input\]")
    path = tmp_path / "t.pt2"
    for layer in (nn.BatchNorm2d(5), nn.Dropout()):
        learning = nn.Sequential(nn.Conv2d(3, 5, 3), layer).train()
        write_program(learning, path, (2, 3, 16, 24), {})
        refused(Source("exported", path, right), r"export net\.eval\(\)")
    two = torch.export.export(_Two(), (torch.zeros(1, 3, 16, 24), torch.zeros(1, 3, 16, 24)))
    torch.export.save(two, path)
    refused(Source("exported", path, right), "not one tensor")
    refused(
        Source("exported", write_program(nn.Flatten(), path, (1, 3, 16, 24), {}), right),
        "first output is not",
    )


class _Named(nn.Module):
    """A network that answers a dict, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net("exported")

    def forward(self, x: Tensor) -> dict[str, Any]:
        """Logits first, then what training wanted."""
        y = self.net(x)
        return {"out": [y], "aux": y * 0}


def test_the_first_output_counts(tmp_path: Path) -> None:
    """Of a program that answers a dict of lists the first tensor is the logits."""
    source = write("exported", tmp_path, card("exported"))
    plain = load_backend(source, Disclosure(2, 8), 1).predict(picture(20, 30))
    path = write_program(_Named().eval(), tmp_path / "named.pt2", (1, 3, 16, 24), {})
    named = load_backend(source._replace(model=path), Disclosure(2, 8), 1).predict(picture(20, 30))
    assert plain[1] is not None and named[1] is not None
    assert np.array_equal(plain[0], named[0]) and np.array_equal(plain[1], named[1])


def test_logits_of_another_shape_are_the_models_failure(tmp_path: Path) -> None:
    """A network whose answer has other classes than its card fails; it is never interpolated."""
    built = load("exported", tmp_path)
    inner = built._network
    built._network = inner._replace(forward=lambda x: inner.forward(x)[:, :4])
    with pytest.raises(BackendError, match="due are"):
        built.predict(picture(8, 8))


def test_a_checkpoint_is_tensors_only(tmp_path: Path) -> None:
    """A .pth is read without running what is in it; other files and other contents name the remedy."""
    source = write("timm", tmp_path, card("timm"))
    mark, evil = tmp_path / "was-run", tmp_path / "evil.pth"
    torch.save({"head.weight": Touch(mark)}, evil)
    refused(source._replace(model=evil), "tensors only: save it with torch.save")
    assert not mark.exists()
    torch.save([1, 2], evil)
    refused(source._replace(model=evil), "does not hold encoder")
    torch.save({"model": tiny_net("timm").state_dict()}, evil)
    refused(source._replace(model=evil), "does not hold encoder")
    evil.write_bytes(b"garbage")
    refused(source._replace(model=evil), "cannot be read")
    refused(source._replace(model=evil.rename(tmp_path / "m.bin")), r"give \.safetensors, \.pt or \.pth")
    refused(source._replace(card=card("exported")), r"needs \[model\] encoder")


@HUGGING
def test_a_folder_is_served_and_its_files_are_its_revision(tmp_path: Path) -> None:
    """Its card is beside it under its whole name, any file is part of the revision, hidden ones are not."""
    source = write("transformers", tmp_path, card("transformers"))
    assert source.model is not None
    folder = source.model.rename(tmp_path / "b0.v1")
    (tmp_path / "b0.v1.toml").write_text(as_toml(card_data()))
    found = find_source("transformers", folder, None)
    assert found.model == folder

    def revision() -> str:
        return describe(found, b"s", Disclosure(1, 0), Limits(1, 1)).revision

    first = revision()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "stamp").write_text("1")
    assert revision() == first
    (folder / "notes.txt").write_text("1")
    second = revision()
    (folder / "notes.txt").rename(folder / "other.txt")
    assert len({first, second, revision()}) == 3
    with pytest.raises(StartError, match="no model folder"):
        find_source("transformers", tmp_path / "b0.v1.toml", None)
    with pytest.raises(StartError, match="--model DIR"):
        find_source("transformers", None, None)
    with pytest.raises(StartError, match="no model file"):
        find_source("exported", folder, None)


@HUGGING
def test_a_folder_that_is_not_a_whole_segmenter_is_refused(tmp_path: Path) -> None:
    """No made-up weights, no pickles, no code out of the folder, no other class count than the card's."""
    source = write("transformers", tmp_path, card("transformers"))
    folder = source.model
    assert folder is not None
    fewer = card("transformers", classes=card_data()["classes"][:4])
    refused(source._replace(card=fewer), "answers 5 classes, the card names 4")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, folder / "model.safetensors")
    refused(source, "lacks 2 weights, decode_head.classifier.bias first")
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "was-run"
    torch.save({"x": Touch(mark)}, folder / "pytorch_model.bin")
    refused(source, "no semantic segmenter in safetensors")
    config = json.loads((folder / "config.json").read_text())
    hooks = {"AutoConfig": "code.C", "AutoModelForSemanticSegmentation": "code.M"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": hooks}))
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w')\n")
    refused(source, "no semantic segmenter in safetensors")
    assert not mark.exists()
    (folder / "config.json").write_text("{}")
    refused(source, "no semantic segmenter in safetensors")


@HUGGING
def test_half_weights_run_in_the_cards_precision(tmp_path: Path) -> None:
    """Weights saved as float16 are run in float32 unless the card says otherwise."""
    net: Any = tiny_net("transformers")
    source = write("transformers", tmp_path, card("transformers"))
    assert source.model is not None
    weights = {k: v.half() for k, v in load_file(source.model / "model.safetensors").items()}
    save_file(weights, source.model / "model.safetensors", metadata={"format": "pt"})
    built = load_backend(source, Disclosure(2, 8), 1)
    assert isinstance(built, TorchBackend)
    assert built._network.forward(torch.zeros(1, 3, 16, 24)).dtype == torch.float32
    assert next(net.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("backend", "package", "hint"),
    [
        ("timm", "timm", r"corte-teacher\[torch\]"),
        ("exported", "torch", r"corte-teacher\[torch\]"),
        ("transformers", "transformers", r"corte-teacher\[transformers\]"),
    ],
)
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, backend: str, package: str, hint: str
) -> None:
    """Without its packages a backend names the extra that brings them."""
    monkeypatch.delitem(sys.modules, f"corte_teacher.backends.{backend}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StartError, match=hint):
        load_backend(Source(backend, Path("m"), Card.model_validate(card_data())), Disclosure(1, 0))
