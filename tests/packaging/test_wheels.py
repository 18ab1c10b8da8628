"""What the three wheels hold, and that the student's lives without the teacher's side."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import HeaderParser
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(sysconfig.get_path("purelib"))
FOLDERS = {"protocol": "shared", "teacher": "teacher_service", "student": "student"}
TEACHERS_SIDE = ("corte_teacher", "fastapi", "starlette", "uvicorn", "onnxruntime", "onnx")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three wheels by side, built from this checkout as a release would build them."""
    out = tmp_path_factory.mktemp("wheels")
    for folder in FOLDERS.values():
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(out), str(ROOT / folder))
    return {side: next(out.glob(f"corte_{side}-*.whl")) for side in FOLDERS}


def run(*command: str) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def content(wheel: Path) -> set[str]:
    """Every file in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def info(wheel: Path) -> str:
    """The name of a wheel's metadata folder."""
    return "-".join(wheel.stem.split("-")[:2]) + ".dist-info"


def sources(side: str) -> set[str]:
    """The package's files in the checkout."""
    root = ROOT / FOLDERS[side]
    files = (p for p in (root / f"corte_{side}").rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(root).as_posix() for p in files}


@pytest.mark.parametrize("side", FOLDERS)
def test_a_wheel_holds_its_package_and_licence_only(wheels: dict[str, Path], side: str) -> None:
    """One package, complete, with py.typed, and beside it metadata with the licence: nothing else."""
    files = content(wheels[side])
    metadata = {name for name in files if name.startswith(f"{info(wheels[side])}/")}
    assert files - metadata == sources(side)
    assert f"corte_{side}/py.typed" in files
    assert f"{info(wheels[side])}/licenses/LICENSE" in metadata


def test_only_the_teacher_ships_a_model(wheels: dict[str, Path]) -> None:
    """The street model and its card are the teacher's; the student ships two recipes and no other data."""
    teacher = content(wheels["teacher"])
    assert {"corte_teacher/backends/street.onnx", "corte_teacher/backends/street.toml"} <= teacher
    for side in ("protocol", "student"):
        names = {name for name in content(wheels[side]) if name.startswith("corte_")}
        recipes = {name for name in names if name.endswith(".toml")}
        shipped = {f"corte_student/recipes/{name}.toml" for name in ("corte", "corte-plus")}
        assert recipes == (shipped if side == "student" else set())
        assert {Path(name).suffix for name in names - recipes} - {"", ".txt"} == {".py", ".typed"}, side


def test_versions_are_equal_and_pinned_to_each_other(wheels: dict[str, Path]) -> None:
    """All three carry one version; both sides need exactly the protocol of that version."""
    (version,) = {wheel.name.split("-")[1] for wheel in wheels.values()}
    for side in ("teacher", "student"):
        with zipfile.ZipFile(wheels[side]) as archive:
            text = archive.read(f"{info(wheels[side])}/METADATA").decode()
        needs = HeaderParser().parsestr(text).get_all("Requires-Dist", [])
        ours = [need for need in needs if need.startswith("corte")]
        assert ours == [f"corte-protocol=={version}"], side


@pytest.fixture(scope="module")
def students_python(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]) -> str:
    """A fresh environment: both wheels, installed by pip, beside what they declare to need.

    The declared dependencies are linked from this environment instead of downloaded; pip itself then
    checks that they are all there, because it installs with dependencies and without an index.
    """
    home = tmp_path_factory.mktemp("student") / "venv"
    venv.EnvBuilder(symlinks=True).create(home)
    python = home / "bin" / "python"
    site = Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for name in own_entries(needed_by("corte-student") - {"corte-student", "corte-protocol"}):
        (site / name).symlink_to(SITE / name)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    run(*pip, "install", "--no-index", str(wheels["protocol"]), str(wheels["student"]))
    return str(python)


def needed_by(name: str) -> set[str]:
    """The names of `name` and of all that it declares to need on this platform, and they in turn."""
    todo, seen = [Requirement(name)], set[tuple[str, frozenset[str]]]()
    while todo:
        need = todo.pop()
        key = (canonicalize_name(need.name), frozenset(need.extras))
        if key in seen:
            continue
        seen.add(key)
        for text in distribution(need.name).requires or ():
            further = Requirement(text)
            marker = further.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *need.extras)):
                todo.append(further)
    return {found for found, _ in seen}


def own_entries(names: set[str]) -> set[str]:
    """What these distributions put directly into site-packages, which they must share with no other."""
    ours, others = set[str](), set[str]()
    for installed in distributions(path=[str(SITE)]):
        (ours if canonicalize_name(installed.name) in names else others).update(top_level(installed))
    assert not ours & others, "a folder shared with a distribution that is not needed cannot be linked"
    return ours


def top_level(installed: Distribution) -> set[str]:
    """The first part of every path that a distribution owns; scripts and caches left out."""
    return {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}


def test_the_student_alone_trains_and_has_no_teacher(students_python: str) -> None:
    """With its own dependencies only, training imports; the teacher and every server package do not."""
    script = (
        "import importlib, sys\n"
        "import corte_student.training, corte_student.endpoints\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ModuleNotFoundError as exc:\n"
        "        print(exc.name)\n"
        "print(corte_student.__file__)\n"
    )
    *missing, file = run(students_python, "-I", "-c", script, *TEACHERS_SIDE).split("\n")[:-1]
    assert missing == list(TEACHERS_SIDE)
    assert Path(file).is_relative_to(Path(students_python).parents[1]), "not the installed wheel"


def test_the_students_command_runs_from_its_wheel(students_python: str) -> None:
    """The wheel's console script is there and answers."""
    assert run(str(Path(students_python).with_name("corte-student")), "--version").startswith(
        "corte-student "
    )
