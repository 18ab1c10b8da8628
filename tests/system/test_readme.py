"""Every command that the README shows is run, in the order in which a reader meets it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import timm

from street_scenes.domains import TARGET
from street_scenes.generate import write

pytestmark = pytest.mark.run

ROOT = Path(__file__).parents[2]
SHORT = ["--steps", "6", "--set", "log_every=1"]
SHORT += ["--set", "batch=2", "--set", "height=64", "--set", "width=96"]
"""Added to `train` and `plan`: what is shown is run, only shorter."""


def commands() -> list[list[str]]:
    """The lines of all `sh` blocks, as words."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README takes for granted: images, labels, encoder weights, a model and its card."""
    base = tmp_path_factory.mktemp("readme")
    write(TARGET, "dev", 4, 0, base / "my-test")
    shutil.copytree(base / "my-test" / "images", base / "my-images")
    encoder = timm.create_model("test_byobnet", num_classes=10)
    timm.models.save_for_hf(encoder, str(base / "my-weights"), safe_serialization=True)
    packaged = files("corte_teacher.backends")
    for name, copy in (("street.onnx", "model.onnx"), ("street.toml", "model.toml")):
        (base / copy).write_bytes((packaged / name).read_bytes())
    return base


def environment() -> dict[str, str]:
    """This interpreter's commands first, no setting of the machine."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CORTE_")}
    home = {"XDG_DATA_HOME": "data", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}
    return env | home


def run(words: list[str], base: Path) -> None:
    """Run one command in `base` and show what it said if it fails."""
    if words[0] == "corte-student" and words[1] in ("train", "plan"):
        words = [*words, *SHORT]
    data = {"XDG_DATA_HOME": str(base / "data")}
    done = subprocess.run(
        words, cwd=base, env=environment() | data, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def served(workplace: Path) -> Iterator[None]:
    """Stands for the reader's first terminal: the README's own `serve`, until the test is over."""
    words = next(c for c in commands() if c[:2] == ["corte-teacher", "serve"])
    process = subprocess.Popen(words, cwd=workplace, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "listening on http://127.0.0.1:8000" in process.stdout.readline()
    yield
    process.terminate()
    assert process.wait(30) == 0
    process.stdout.close()


def test_make_has_the_targets_that_are_shown() -> None:
    """`make demo` and the others exist; they are what CI runs, so they are not run inside it again."""
    shown = [words for words in commands() if words[0] == "make"]
    assert shown and {words[1] for words in shown} == {"demo", "setup"}
    for words in shown:
        subprocess.run([*words, "--dry-run"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.usefixtures("served")
def test_the_students_commands_work_in_order(workplace: Path) -> None:
    """Every command of the student, as shown and in that order, against the service as shown."""
    shown = [words for words in commands() if words[0] == "corte-student"]
    verbs = ["inspect", "train", "predict", "evaluate", "evaluate", "train"]
    verbs += ["doctor", "plan", "collect", "train", "ledger", "inspect"]
    assert [words[1] for words in shown] == verbs
    for words in shown:
        run(words, workplace)
    assert len(list((workplace / "predictions").rglob("*.png"))) == 4


def test_the_owners_commands_work_in_order(workplace: Path) -> None:
    """keys, check and serve, as shown; the service starts and stops with status 0."""
    shown = [words for words in commands() if words[0] == "corte-teacher"][1:]
    assert [words[1] for words in shown] == ["keys", "check", "serve"]
    for words in shown[:2]:
        run(words, workplace)
    process = subprocess.Popen(
        [*shown[2], "--port", "0"], cwd=workplace, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert "listening on" in process.stdout.readline()
    process.terminate()
    assert process.wait(30) == 0
    process.stdout.close()


def test_nothing_shown_is_left_out() -> None:
    """Every command belongs to a tool that the tests above run."""
    assert {words[0] for words in commands()} <= {"make", ".", "corte-student", "corte-teacher"}
