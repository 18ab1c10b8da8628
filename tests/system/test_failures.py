"""What can go wrong around a run: one clear line, the exit code of its kind, and no paid answer lost."""

import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corte_student.ledger import Ledger
from corte_teacher.keys import create_key
from faulty_teacher import faulty_teacher
from serving import running_teacher

pytestmark = pytest.mark.run

GOOD = 4
SIZE = (40, 48)
CONFINED = (
    "-c",
    "import resource, runpy\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
    "runpy.run_module('corte_student', run_name='__main__', alter_sys=True)",
)
"""Starts corte-student so that no file may grow beyond a few answers: writing fails as on a full disk."""


@dataclass(frozen=True)
class Paid:
    """A finished run whose answers are in `ledger`: what every failure below must leave as it is."""

    url: str
    key: str
    images: Path
    ledger: Path
    out: Path
    told: subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Refused:
    """How runs ended that could not start, by name; each would have written to a folder in `runs`."""

    done: dict[str, subprocess.CompletedProcess[str]]
    runs: Path


@pytest.fixture(scope="module")
def paid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paid]:
    """A service that asks for a key, and a run over four good images, a truncated JPEG and one too large."""
    base = tmp_path_factory.mktemp("paid")
    noise(base / "images", *(f"street/{n}.png" for n in range(GOOD)), "street/cut.jpg")
    cut = base / "images/street/cut.jpg"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    noise(base / "images", "street/large.png", size=(64, 64))
    key = create_key(base / "keys.json", "student")
    limit = ("--max-pixels", "3000")
    with running_teacher(["--keys", str(base / "keys.json"), "--threads", "1", *limit]) as url:
        told = corte(*train(url, base / "images", base / "run", base / "ledger.sqlite"), key=key)
        yield Paid(url, key, base / "images", base / "ledger.sqlite", base / "run", told)


def noise(folder: Path, *names: str, size: tuple[int, int] = SIZE) -> None:
    """Images whose bytes do not compress."""
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)


def corte(
    *args: object, key: str | None = None, start: tuple[str, ...] = ("-m", "corte_student")
) -> subprocess.CompletedProcess[str]:
    """`corte-student ARGS` as a process; whatever it prints, it prints no key."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CORTE_")}
    if key is not None:
        env["CORTE_TEACHER_KEY"] = key
    done = subprocess.run(
        [sys.executable, *start, *map(str, args)],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
        check=False,
    )
    assert key is None or key not in done.stdout + done.stderr
    return done


def train(url: str, images: Path, out: Path, ledger: Path, *more: object) -> list[object]:
    """The arguments of a run of a few tiny steps."""
    sets = ("init=random", "batch=2", "height=32", "width=32", "in_flight=2")
    return [
        *("train", "--teacher-url", url, "--images", images, "--out", out, "--ledger", ledger),
        *("--encoder", "test_byobnet", "--steps", "4"),
        *(text for value in sets for text in ("--set", value)),
        *more,
    ]


def line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line that told the failure, the last on stderr; the exit code was `code`."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (told,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert done.stderr.endswith(f"{told}\n"), done.stderr
    return told


def stored(ledger: Path) -> int:
    """How many answers a ledger holds."""
    opened = Ledger.open(ledger)
    answers = opened.counts().answers
    opened.close()
    return answers


def test_images_that_cannot_be_used_are_set_aside_and_named_at_the_end(paid: Paid) -> None:
    """The run finishes without them, asks for the good ones only, and says at the end which it left out."""
    assert paid.told.returncode == 0, paid.told.stderr
    assert f"requests sent {GOOD}," in paid.told.stderr
    _, done, end = paid.told.stderr.partition("done: 4 steps")
    cut, large = sorted(text for text in end.splitlines() if text.startswith("set aside: "))
    assert done and "street/cut.jpg" in cut and "truncated" in cut
    assert "street/large.png" in large and "64 x 64 pixels are above the teacher's limit of 3000" in large
    assert not any(name in paid.told.stderr.removesuffix(end) for name in ("cut.jpg", "large.png"))
    assert (paid.out / "checkpoints/LATEST").is_file()
    assert stored(paid.ledger) == GOOD


def test_the_key_is_in_no_file(paid: Paid) -> None:
    """Neither the run folder nor the ledger and its side files hold the key that paid for them."""
    files = [p for p in (*paid.out.rglob("*"), *paid.ledger.parent.glob("ledger*")) if p.is_file()]
    assert len(files) > 4
    assert [p for p in files if paid.key.encode() in p.read_bytes()] == []


@pytest.fixture(scope="module")
def refused(paid: Paid, tmp_path_factory: pytest.TempPathFactory) -> Refused:
    """Runs that cannot start, by name, over the ledger of `paid`; two at a time, as each imports torch."""
    base = tmp_path_factory.mktemp("refused")
    (base / "empty").mkdir()
    (base / "empty/notes.txt").write_text("no image")
    (base / "recipe.toml").write_text("lr = 1e-3\nlearning_rate = 1e-3\n")
    names = {"ground": "road", "above": "heaven"}
    entries = (f"[[classes]]\nname = '{name}'\nfrom = ['{of}']\n" for name, of in names.items())
    (base / "classes.toml").write_text("".join(entries))

    def start(
        name: str,
        *more: object,
        url: str = paid.url,
        images: Path = paid.images,
        ledger: Path = paid.ledger,
        key: str | None = paid.key,
    ) -> subprocess.CompletedProcess[str]:
        return corte(*train(url, images, base / "runs" / name, ledger, *more), key=key)

    with socket.socket() as closed, ThreadPoolExecutor(2) as pool:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else answers there meanwhile
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        running = {
            "teacher down": pool.submit(start, "teacher down", url=nobody),
            "no image": pool.submit(start, "no image", images=base / "empty"),
            "wrong key": pool.submit(start, "wrong key", key="ct_00000000_wrong"),
            "key missing": pool.submit(start, "key missing", key=None),
            "unknown class": pool.submit(start, "unknown class", "--classes", base / "classes.toml"),
            "unknown setting": pool.submit(start, "unknown setting", "--recipe", base / "recipe.toml"),
            "ledger in run": pool.submit(start, "ledger in run", ledger=base / "runs/ledger in run/l"),
        }
        done = {name: run.result() for name, run in running.items()}
    return Refused(done, base / "runs")


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("teacher down", 3, ("no teacher answers at http://127.0.0.1:", "corte-teacher serve")),
        ("no image", 4, ("no image in ", "/empty", "jpg", "png")),
        ("wrong key", 3, ("refuses the key (401)", "check CORTE_TEACHER_KEY")),
        ("key missing", 3, ("needs a key (401)", "set CORTE_TEACHER_KEY")),
        ("unknown class", 4, ("'heaven'", "it has road, ", "sky")),
        ("unknown setting", 2, ("'learning_rate'", "recipe.toml", "known are", "lr, ")),
        ("ledger in run", 2, ("lies inside the run", "--ledger")),
    ],
)
def test_a_run_that_cannot_start(refused: Refused, name: str, code: int, words: tuple[str, ...]) -> None:
    """The line names what is wrong, and the remedy or the choices."""
    told = line(refused.done[name], code)
    assert [word for word in words if word not in told] == []


def test_a_run_that_cannot_start_leaves_all_as_it_was(paid: Paid, refused: Refused) -> None:
    """No run folder was made, no ledger in one either, and no answer is lost."""
    assert refused.done and not refused.runs.exists()
    assert stored(paid.ledger) == GOOD


def test_labels_that_do_not_match_their_images(paid: Paid, tmp_path: Path) -> None:
    """A label of another size, then one that is missing: the file is named and nothing is scored."""
    noise(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "labels").mkdir()
    for name, size in (("a.png", SIZE), ("b.png", (8, 8))):
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / "labels" / name)
    folders = ("--images", tmp_path / "images", "--labels", tmp_path / "labels")
    done = corte("evaluate", paid.out, *folders)
    assert "b.png" in line(done, 4) and not done.stdout
    (tmp_path / "labels/b.png").unlink()
    done = corte("evaluate", paid.out, *folders)
    assert "b.png" in line(done, 4) and not done.stdout


def test_a_full_disk_loses_no_answer(tmp_path: Path) -> None:
    """The ledger cannot grow: the line says how many answers are safe, and the rerun asks for the rest."""
    names = [f"{n:02}.png" for n in range(24)]
    noise(tmp_path / "images", *names, size=(96, 128))
    ledger = tmp_path / "ledger.sqlite"
    with faulty_teacher(key="not-a-word") as teacher:
        args = train(teacher.url, tmp_path / "images", tmp_path / "run", ledger, "--set", "batch=6")
        done = corte(*args, key="not-a-word", start=CONFINED)
        told = line(done, 4)
        asked = teacher.asked.total()
        safe = re.search(r"the disk is full: .* --resume; (\d+) answers are safe$", told)
        assert safe is not None and int(safe[1]) <= asked  # those under way come home after the line was made
        assert 0 < asked < len(names)
        assert stored(ledger) == asked
        again = corte(*args, "--resume", key="not-a-word")
    assert again.returncode == 0, again.stderr
    assert f"requests sent {len(names) - asked}, served by the ledger {asked}," in again.stderr
    assert len(teacher.asked) == len(names) and set(teacher.asked.values()) == {1}
    assert stored(ledger) == len(names)


def test_a_teacher_that_falls_silent_loses_no_answer(tmp_path: Path) -> None:
    """After three answers none comes: the line names the way on, and those three are in the ledger."""
    noise(tmp_path / "images", *(f"{n}.png" for n in range(8)))
    with faulty_teacher(hold_after=3) as teacher:
        args = train(teacher.url, tmp_path / "images", tmp_path / "run", tmp_path / "ledger.sqlite")
        told = line(corte(*args, "--set", "deadline_s=5.0"), 3)
    assert teacher.url in told and "no answer came" in told and "--resume" in told
    assert stored(tmp_path / "ledger.sqlite") == 3


@pytest.mark.parametrize(
    ("how", "answered", "code"), [("away_after", 6, 0), ("hold_after", 6, 0), ("away_after", 2, 3)]
)
def test_training_outlasts_a_teacher_that_goes_away(
    tmp_path: Path, how: str, answered: int, code: int
) -> None:
    """With half of the images answered it goes on from those and says so; with fewer it stops, to be
    resumed.
    """
    noise(tmp_path / "images", *(f"{n}.png" for n in range(8)))
    with faulty_teacher(**{how: answered}) as teacher:
        args = train(teacher.url, tmp_path / "images", tmp_path / "run", tmp_path / "ledger.sqlite")
        steps = ("--steps", "8", "--set", "deadline_s=4.0", "--set", "away_share=0.5")
        done = corte(*args, *steps)
        assert done.returncode == code, done.stderr
        assert stored(tmp_path / "ledger.sqlite") == answered
        if code:
            assert "--resume" in line(done, code)
        else:
            assert "answers were missing: " in done.stderr and "2 images were never learned" in done.stderr
        teacher.away_after = teacher.hold_after = None
        teacher.go_on.set()
        before = Counter(teacher.asked)
        again = corte(*args, *steps, *(("--resume",) if code else ("--out", tmp_path / "second")))
    assert again.returncode == 0, again.stderr
    assert "answers were missing" not in again.stderr
    assert len(teacher.asked) == 8 and (teacher.asked - before).total() == 8 - answered


def test_a_run_whose_teacher_changed_goes_on_with_what_it_had(tmp_path: Path) -> None:
    """The message offers `--offline --resume`: it ends the run on the old answers, with no request."""
    noise(tmp_path / "images", *(f"{n}.png" for n in range(8)))
    with faulty_teacher(changes_after=5) as teacher:
        args = train(teacher.url, tmp_path / "images", tmp_path / "run", tmp_path / "ledger.sqlite")
        told = line(corte(*args), 3)
        assert "from revision r1 to r2" in told and "--offline --resume" in told
        attempts = teacher.attempts
        done = corte(*args, "--offline", "--resume")
        assert done.returncode == 0, done.stderr
        assert "revision r1, offline" in done.stderr and "requests sent 0" in done.stderr
        assert "answers were missing: " in done.stderr
        assert teacher.attempts == attempts
        assert "revision" in line(corte(*args, "--resume"), 2), "r2 is another run"
