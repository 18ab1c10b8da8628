"""The torch backends: the contract, batches, precision, too little memory, and a service on each."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.export import Dim

from corte_protocol import Disclosure, Limits, decode_prediction
from corte_protocol.types import UInt8
from corte_teacher.backends import Backend, Planes, Source, find_source, load_backend, street
from corte_teacher.backends.torch_head import TorchBackend
from corte_teacher.batching import Batches
from corte_teacher.card import Model, read_card
from corte_teacher.errors import OutOfMemory, StartError
from corte_teacher.identity import describe
from serving import running_teacher
from street_scenes.domains import SOURCE, TARGET, Domain
from teacher.backend_contract import BackendContract, picture
from teacher.conftest import encoded
from teacher.tiny_models import F32, as_toml, card_data, dense_reference, network_input
from teacher.torch_models import HUGGING, card, load, logits_of, scenes, street_net, write, write_program

VEHICLE = {"name": "vehicle", "color": [0, 0, 142], "members": ["truck", "car"]}
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA MISSING: no GPU that torch can use")
NAMES = ["timm", "exported", pytest.param("transformers", marks=HUGGING)]
LOW = ["float32", "bfloat16", "float16"]


class TorchContract(BackendContract):
    """A tiny network behind one of the torch backends, against eager torch."""

    name: str

    def build(self, folder: Path, ceiling: Disclosure) -> Backend:
        return load_backend(write(self.name, folder, self.card), ceiling, 1)

    def reference(self, folder: Path, pixels: UInt8) -> F32:
        array, size = network_input(self.card, pixels)
        return dense_reference(self.card, logits_of(self.name, torch.from_numpy(array)).numpy(), size, pixels)


class TestTimmCheckpoint(TorchContract):
    """The checkpoint is a .pth; safetensors are in test_backends.py."""

    name, card = "timm", card("timm")


class TestExported(TorchContract):
    name, card = "exported", card("exported")


class TestExportedFreeSize(TorchContract):
    name, card = "exported", card("exported", input={"multiple_of": 8})


class TestExportedGroups(TorchContract):
    name, card = "exported", card("exported", groups=[VEHICLE])


@HUGGING
class TestTransformers(TorchContract):
    name, card = "transformers", card("transformers")


@HUGGING
class TestTransformersFreeSizeGroups(TorchContract):
    name, card = "transformers", card("transformers", input={"multiple_of": 32}, groups=[VEHICLE])


def agreement(some: Sequence[Planes], others: Sequence[Planes]) -> float:
    """The share of pixels whose best class is the same."""
    return float(
        np.mean([(one[0][0] == other[0][0]).mean() for one, other in zip(some, others, strict=True)])
    )


@pytest.mark.parametrize("level", ["labels", "margin", "full"])
@pytest.mark.parametrize("groups", [[], [VEHICLE]])
@pytest.mark.parametrize("backend", NAMES)
def test_company_changes_no_answer(tmp_path: Path, backend: str, groups: list[Any], level: str) -> None:
    """Two, three and eight images of one size get what each gets alone: no class differs."""
    built = load(backend, tmp_path, level, groups=groups)
    assert built.batches
    images = [np.roll(picture(40, 60), n, 1) for n in range(8)]
    alone = [built.predict(image) for image in images]
    for count in (2, 3, 8):
        for got, right in zip(built.predict_many(images[:count]), alone[:count], strict=True):
            assert np.array_equal(got[0], right[0])
            if right[1] is None:
                assert got[1] is None
            else:
                assert got[1] is not None and np.abs(got[1] - right[1]).max() <= 2**-10


@pytest.mark.parametrize("backend", NAMES)
def test_a_batch_is_of_one_size(tmp_path: Path, backend: str) -> None:
    """Images of two sizes in one batch are the caller's error, never one stretched to the other."""
    with pytest.raises(ValueError, match="one size"):
        load(backend, tmp_path).predict_many([picture(8, 8), picture(8, 9)])


@pytest.mark.parametrize("backend", NAMES)
def test_infinite_logits_are_survived(tmp_path: Path, backend: str) -> None:
    """A network that masks classes with minus infinity still answers legally."""
    built = load(backend, tmp_path, "full")
    inner = built._network
    mask = torch.tensor([0, -torch.inf, 0, -torch.inf, -torch.inf]).reshape(1, 5, 1, 1)
    built._network = inner._replace(forward=lambda x: inner.forward(x) + mask)
    classes, scores = built.predict(picture(33, 47))
    assert scores is not None and np.isfinite(scores).all()
    assert set(np.unique(classes[:2])) <= {0, 2}


@pytest.fixture(scope="session")
def street_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The street model as an exported program, any number of images at its fixed size."""
    path = tmp_path_factory.mktemp("street") / "street.pt2"
    return write_program(street_net(), path, (2, 3, 128, 256), {0: Dim("n")})


def street_backend(program: Path, precision: str, level: str = "margin") -> Backend:
    """The program behind the street model's own card."""
    model = Model.model_validate({"precision": precision})
    the_card = read_card(street.files()[1]).model_copy(update={"model": model})
    return load_backend(Source("exported", program, the_card), Disclosure.parse(level, 9), 1)


def test_a_program_answers_as_its_onnx_twin(street_program: Path) -> None:
    """A real trained model gives the same labels through torch and through onnxruntime."""
    model, twin_card = street.files()
    twin = load_backend(Source("onnx", model, read_card(twin_card)), Disclosure(2, 8), 1)
    backend = street_backend(street_program, "float32")
    pictures = [*scenes(SOURCE, 3), *scenes(TARGET, 3)]
    assert agreement([*map(backend.predict, pictures)], [*map(twin.predict, pictures)]) >= 0.9999


@pytest.mark.parametrize(
    ("precision", "domain", "least"),
    [
        ("float32", SOURCE, 0.999),
        ("float32", TARGET, 0.999),
        ("float16", SOURCE, 0.999),
        ("float16", TARGET, 0.999),
        ("bfloat16", SOURCE, 0.999),
        ("bfloat16", TARGET, 0.99),  # pictures of a kind that it was not trained on: 0.997 measured
    ],
    ids=["32", "32 unseen", "16", "16 unseen", "b16", "b16 unseen"],
)
def test_precision_costs_few_labels(
    street_program: Path, precision: str, domain: Domain, least: float
) -> None:
    """On street scenes label maps are the eager float32 network's on so many of the pixels."""
    net, pictures = street_net(), scenes(domain, 6)
    backend = street_backend(street_program, precision, "labels")
    same = []
    for pixels in pictures:
        array, _ = network_input(read_card(street.files()[1]), pixels)
        with torch.no_grad():
            right = net(torch.from_numpy(array))[0].argmax(0).numpy()
        same.append((backend.predict(pixels)[0][0] == right).mean())
    assert np.mean(same) >= least


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("backend", NAMES)
def test_each_precision_reaches_the_network_and_no_further(
    tmp_path: Path, backend: str, precision: str
) -> None:
    """Logits come in the card's precision, and scores still add up to one as float32's do."""
    built = load(backend, tmp_path, "full", model={"precision": precision})
    seen: list[Tensor] = []
    inner = built._network

    def watched(x: Tensor) -> Tensor:
        seen.append(inner.forward(x))
        return seen[-1]

    built._network = inner._replace(forward=watched)
    _, scores = built.predict(picture(40, 60))
    assert [str(logits.dtype) for logits in seen] == [f"torch.{precision}"]
    assert scores is not None
    assert np.abs(scores.astype(np.float32).sum(0) - 1).max() < 5 * 2**-11  # float16's rounding of five


def test_only_a_precision_of_its_own_changes_a_revision(tmp_path: Path) -> None:
    """Cards from before the key existed keep their revision; half a precision is another model."""
    plain = write("timm", tmp_path, card("timm"))

    def revision(precision: str) -> str:
        source = plain._replace(card=card("timm", model={"precision": precision}))
        return describe(source, b"s", Disclosure(1, 0), Limits(1, 1)).revision

    before = plain.card.answering_fields()["model"]
    assert before == {"encoder": "test_resnet", "level": 2}
    assert len({revision(precision) for precision in LOW}) == 3
    assert revision("float32") == describe(plain, b"s", Disclosure(1, 0), Limits(1, 1)).revision


def test_a_precision_that_nobody_obeys_is_refused(tmp_path: Path) -> None:
    """An ONNX file has its own: the card may not say another."""
    (tmp_path / "m.onnx").touch()
    (tmp_path / "m.toml").write_text(as_toml(card_data(model={"precision": "float16"})))
    with pytest.raises(StartError, match="leave \\[model\\] precision out"):
        find_source("onnx", tmp_path / "m.onnx", None)


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from corte_protocol import Disclosure
from corte_teacher.backends import find_source, load_backend
from corte_teacher.batching import Batches
from corte_teacher.errors import OutOfMemory

backend = load_backend(find_source("exported", Path(sys.argv[1]), None), Disclosure(2, 8), 1)
batches = Batches(backend)
rng = np.random.default_rng(0)
small, middle, large = (rng.integers(0, 256, (n, n, 3), np.uint8) for n in (64, 512, 6000))
before, alone = batches.run([small])[0], backend.predict(middle)
here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (here + 60 * 2**20,) * 2)
for _ in range(3):
    (result,) = batches.run([large])
    assert isinstance(result, OutOfMemory), result
    try:
        backend.predict_many([middle] * 8)
    except OutOfMemory:
        pass
    else:
        raise AssertionError("eight fit")
    for got in batches.run([middle] * 8):
        assert not isinstance(got, Exception), got
        assert np.array_equal(got[0], alone[0])
    after = batches.run([small])[0]
    assert all(np.array_equal(a, b) for a, b in zip(after, before))
print("lives")
"""


def test_too_little_memory_ends_one_image_and_nothing_else(tmp_path: Path) -> None:
    """Under RLIMIT_AS, three times over: eight do not fit and are parted, one too large is refused, and the
    next small image gets the answer that it had before."""
    source = write("exported", tmp_path, card("exported"))
    (tmp_path / "m.toml").write_text(as_toml(card_data()))
    command = [sys.executable, "-c", LIMITED, str(source.model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "lives", done.stderr[-2000:]


def test_other_failures_are_not_called_memory(tmp_path: Path) -> None:
    """A program that refuses its input is a failure of its own, and the next image is answered."""
    source = write("exported", tmp_path, card("exported", input={"multiple_of": 1}))
    built = load_backend(source, Disclosure(2, 8), 1)
    with pytest.raises(AssertionError, match="Guard failed"):
        built.predict(picture(1, 1))
    failed, fine = Batches(built).run([picture(1, 1)]) + Batches(built).run([picture(9, 9)])
    assert isinstance(failed, AssertionError) and not isinstance(fine, Exception)


@CUDA
@pytest.mark.parametrize("precision", LOW)
def test_a_gpu_gives_the_labels_of_the_cpu(street_program: Path, precision: str) -> None:
    """On CUDA label maps are those of the eager float32 network on the CPU, 99.9 % of the pixels."""
    backend = street_backend(street_program, precision)
    assert isinstance(backend, TorchBackend) and backend._network.device.type == "cuda"
    twin = load_backend(find_source("street", None, None), Disclosure(2, 8), 1)
    pictures = scenes(SOURCE, 6)
    assert agreement(backend.predict_many(pictures), [*map(twin.predict, pictures)]) >= 0.999


@CUDA
def test_a_gpu_out_of_memory_lives_on(street_program: Path) -> None:
    """Too little memory on the GPU is OutOfMemory; its cache is given back, the next image answered."""
    backend = street_backend(street_program, "float32")
    (pixels,) = scenes(SOURCE, 1)
    before = backend.predict(pixels)
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        with pytest.raises(OutOfMemory):
            backend.predict(np.zeros((16000, 16000, 3), np.uint8))
        assert np.array_equal(backend.predict(pixels)[0], before[0])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("backend", NAMES)
def test_a_service_answers_with_it(tmp_path: Path, backend: str) -> None:
    """Over HTTP, with batches tried at the start, a picture gets the planes that the backend gives."""
    source = write(backend, tmp_path, card(backend))
    (tmp_path / "m.toml").write_text(
        as_toml(card_data(model=card(backend).model_dump(exclude_none=True)["model"]))
    )
    right, _ = load_backend(source, Disclosure(2, 8), 1).predict(picture(40, 60))
    args = ["--backend", backend, "--model", str(source.model), "--card", str(tmp_path / "m.toml")]
    with running_teacher([*args, "--threads", "1", "--open"]) as url:
        body, kind = encoded(picture(40, 60)), {"content-type": "image/png"}
        answer = httpx.post(f"{url}/v1/predict", content=body, headers=kind, timeout=60)
    got = decode_prediction(answer.content, max_pixels=1 << 20)
    assert np.array_equal(got.classes, right)
