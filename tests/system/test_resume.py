"""A killed run, resumed, is the run that was never killed."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from corte_student.checkpoint import latest
from serving import running_teacher
from street_scenes.domains import TARGET
from street_scenes.generate import write

pytestmark = pytest.mark.run

STEPS = 36
BATCH = 2
IMAGES = 40  # the first pass ends after 20 steps


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder of target scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    write(TARGET, "dev", IMAGES, 3, folder)
    return folder / "images"


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    """A real service on a real socket."""
    with running_teacher(["--open", "--backend", "street"]) as url:
        yield url


def command(url: str, images: Path, out: Path, ledger: Path, *more: str) -> list[str]:
    """A short run with every stateful part switched on."""
    options = {
        "batch": BATCH,
        "height": 64,
        "width": 96,
        "checkpoint_every": 4,
        "log_every": 4,
        "in_flight": 3,
    }
    sets = [text for key, value in options.items() for text in ("--set", f"{key}={value}")]
    return [
        *(sys.executable, "-m", "corte_student", "train", "--teacher-url", url),
        *("--images", str(images), "--out", str(out), "--ledger", str(ledger)),
        *("--encoder", "test_byobnet", "--steps", str(STEPS), "--seed", "7"),
        *("--set", "init=random", "--set", "refine_from=0.4", *sets, *more),
    ]


def run(args: list[str]) -> subprocess.CompletedProcess[str]:
    """Run to the end and say what was printed if it failed."""
    done = subprocess.run(args, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done


def killed_at(args: list[str], out: Path, step: int, number: signal.Signals) -> int:
    """Start, send the signal once the log shows `step`, and return the exit status."""
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = out / "log.jsonl"
    try:
        while process.poll() is None and not (log.exists() and f'"step": {step},' in log.read_text()):
            time.sleep(0.01)
        process.send_signal(number)
        return process.wait(60)
    finally:
        process.kill()
        process.wait()


def weights(out: Path) -> dict[str, bytes]:
    """Every tensor of the last checkpoint, as bytes."""
    folder = latest(out)
    assert folder is not None and folder.name == f"step-{STEPS:08d}"
    return {name: array.tobytes() for name, array in load_file(folder / "tensors.safetensors").items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher: str, images: Path) -> dict[str, bytes]:
    """The uninterrupted run's tensors."""
    base = tmp_path_factory.mktemp("whole")
    run(command(teacher, images, base / "run", base / "ledger.sqlite"))
    return weights(base / "run")


@pytest.mark.parametrize(
    ("step", "number"),
    [(8, signal.SIGKILL), (28, signal.SIGKILL), (12, signal.SIGTERM)],
    ids=["killed in the first pass", "killed after it", "asked to stop"],
)
def test_a_resumed_run_ends_with_the_same_bits(
    tmp_path: Path, teacher: str, images: Path, whole: dict[str, bytes], step: int, number: signal.Signals
) -> None:
    """Student, ema, optimiser, statistics and generator are bit-identical to an uninterrupted run's."""
    args = command(teacher, images, tmp_path / "run", tmp_path / "ledger.sqlite")
    status = killed_at(args, tmp_path / "run", step, number)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 128 + signal.SIGTERM)
    run([*args, "--resume"])
    resumed = weights(tmp_path / "run")
    assert resumed.keys() == whole.keys()
    assert [name for name in whole if resumed[name] != whole[name]] == []


def test_a_resume_with_other_settings_lists_them_and_stops(
    tmp_path: Path, teacher: str, images: Path
) -> None:
    """What would change is named, the exit code is that of settings, and the run can still be resumed."""
    args = command(teacher, images, tmp_path / "run", tmp_path / "ledger.sqlite")
    killed_at(args, tmp_path / "run", 8, signal.SIGTERM)
    other = subprocess.run(
        [*args, "--resume", "--set", "lr=0.5"], capture_output=True, text=True, timeout=120, check=False
    )
    assert other.returncode == 2 and "lr: 0.001 -> 0.5" in other.stderr
    again = subprocess.run(args, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 4 and "--resume" in again.stderr
    run([*args, "--resume"])


def test_a_second_run_sends_nothing_and_needs_no_teacher(tmp_path: Path, images: Path) -> None:
    """Another method over the same ledger is served by it alone, also when the teacher has gone."""
    ledger = tmp_path / "ledger.sqlite"
    with running_teacher(["--open", "--backend", "street"]) as url:
        first = run(command(url, images, tmp_path / "one", ledger))
        assert f"requests sent {IMAGES}" in first.stderr
        second = run(command(url, images, tmp_path / "two", ledger, "--method", "naive"))
        assert "requests sent 0" in second.stderr
    third = run(command(url, images, tmp_path / "three", ledger, "--method", "soft"))
    assert "requests sent 0" in third.stderr and "offline" in third.stderr
