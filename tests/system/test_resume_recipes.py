"""Killed runs with votes, mixing, masking and rare-class draws, resumed: still the runs never killed."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from corte_student.checkpoint import latest
from corte_student.ledger import Ledger
from serving import running_teacher
from street_scenes.domains import TARGET
from street_scenes.generate import write
from system.test_resume import command, killed_at, run

pytestmark = pytest.mark.run

STEPS = 28
IMAGES = 12  # the first pass ends after 6 steps
SMALL = ("height=32", "width=48", "decoder_width=8", "checkpoint_every=2", "log_every=2")
RECIPES = {
    "labels alone": ("disclosure=labels", "rank_weights=true"),
    "mixed, masked, rare": (
        *("class_mix=0.5", "cut_mix=0.25", "mask_share=0.5", "mask_block=16", "rare_share=0.5"),
        *('views=["identity", "flip"]', "refine=mix", "loss=sce"),
    ),
}
QUERIES = {"labels alone": 2, "mixed, masked, rare": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small folder of target scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    write(TARGET, "dev", IMAGES, 3, folder)
    return folder / "images"


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    """A real service on a real socket."""
    with running_teacher(["--open", "--backend", "street", "--threads", "1"]) as url:
        yield url


def weights(out: Path) -> dict[str, bytes]:
    """Every tensor of the last checkpoint, as bytes."""
    folder = latest(out)
    assert folder is not None and folder.name == f"step-{STEPS:08d}"
    return {name: array.tobytes() for name, array in load_file(folder / "tensors.safetensors").items()}


@pytest.mark.parametrize(("name", "step"), [("labels alone", 14), ("mixed, masked, rare", 4)])
def test_a_killed_run_ends_with_the_same_bits(
    tmp_path: Path, teacher: str, images: Path, name: str, step: int
) -> None:
    """Killed while it refines, or before all classes are known: every tensor is the uninterrupted run's.

    All views are asked, each once, and the run says before it begins how many requests that is.
    """
    sets = [text for value in (*SMALL, *RECIPES[name]) for text in ("--set", value)]
    sets += ["--steps", str(STEPS)]
    whole = run(command(teacher, images, tmp_path / "whole", tmp_path / "whole.sqlite", *sets))
    asked = IMAGES * QUERIES[name]
    assert f"{QUERIES[name]} queries an image (identity, flip" in whole.stderr
    assert f"at most {asked} requests for {IMAGES} images" in whole.stderr
    assert f"requests sent {asked}," in whole.stderr

    args = command(teacher, images, tmp_path / "run", tmp_path / "ledger.sqlite", *sets)
    assert killed_at(args, tmp_path / "run", step, signal.SIGKILL) == -signal.SIGKILL
    run([*args, "--resume"])
    ledger = Ledger.open(tmp_path / "ledger.sqlite")
    assert ledger.counts().answers == asked
    ledger.close()
    wanted, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert resumed.keys() == wanted.keys()
    assert [tensor for tensor in wanted if resumed[tensor] != wanted[tensor]] == []
