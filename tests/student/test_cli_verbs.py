"""The verbs as a person runs them: output, exit codes, one line for each failure."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from corte_student.cli import app, first_cause
from corte_student.errors import DataError, TrainingDiverged, Unavailable
from serving import running_teacher
from small_run import CLASSES, picture_size, save_images, save_label, save_run, small_student

INSPECT = sys.modules["corte_student.cli.inspect"]  # the package has the verb under this name


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    """The street model behind a real socket."""
    with running_teacher(["--open", "--disclosure", "margin", "--threads", "1"]) as url:
        yield url


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two labelled images and a run; class 2 is not in the truth."""
    for image in save_images(tmp_path / "images", {"a.png": (24, 33), "b.png": (40, 20)}):
        width, height = picture_size(image)
        save_label(tmp_path / "labels" / image.name, np.arange(width * height).reshape(height, width) % 2)
    save_run(tmp_path / "run", small_student())
    return tmp_path


def corte(*args: object, env: dict[str, str] | None = None) -> Result:
    """The app in this process, as `corte-student ARGS`."""
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "100", **(env or {})})


def failed(result: Result, code: int) -> str:
    """The one line that a failure prints."""
    assert result.exit_code == code, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.output
    return line


def scored(data: Path, *extra: object) -> list[object]:
    return ["evaluate", data / "run", "--images", data / "images", "--labels", data / "labels", *extra]


def test_help_loads_neither_torch_nor_a_client() -> None:
    """`--help` of every verb works without the heavy modules, so it answers at once."""
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from corte_student.cli import app\n"
        "for verb in ([], ['train'], ['evaluate'], ['predict'], ['inspect']):\n"
        "    assert CliRunner().invoke(app, [*verb, '--help']).exit_code == 0\n"
        "print([m for m in ('torch', 'timm', 'httpx', 'cv2', 'safetensors') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version() -> None:
    """It names the program and the number."""
    assert corte("--version").stdout.startswith("corte-student 0.")


def test_evaluate_prints_a_table_with_the_rule(data: Path) -> None:
    """Classes in their order, the absent one said to be absent, and what the mean is over."""
    result = corte(*scored(data))
    assert result.exit_code == 0, result.output
    places = [result.stdout.index(word) for word in (*CLASSES, "absent", "mIoU", "pixel accuracy")]
    assert places == sorted(places)
    assert "mean over 2 of 3 classes: those that occur in the truth" in result.stdout
    assert "evaluate 2/2" in result.stderr


def test_evaluate_json_is_one_object(data: Path) -> None:
    """Values lie between 0 and 1; null stands only for the class that the truth does not hold."""
    result = corte(*scored(data, "--json"))
    scores = json.loads(result.stdout)
    assert list(scores) == ["miou", "pixel_accuracy", "classes"]
    assert [c["name"] for c in scores["classes"]] == list(CLASSES)
    road, sky, car = (c["iou"] for c in scores["classes"])
    assert car is None
    assert scores["miou"] == pytest.approx((road + sky) / 2)
    assert 0 <= scores["pixel_accuracy"] <= 1


def test_labels_that_do_not_match_are_one_line_and_exit_4(data: Path) -> None:
    """A missing label, another layout, another size, a class too many."""
    assert "2 classes" not in failed(corte(*scored(data, "--layout", "camvid")), 4)
    save_label(data / "labels/a.png", np.full((24, 33), 9))
    assert "a.png holds the value 9" in failed(corte(*scored(data)), 4)
    save_label(data / "labels/a.png", np.zeros((3, 3)))
    assert "must have the size of their image" in failed(corte(*scored(data)), 4)
    (data / "labels/a.png").unlink()
    assert "1 of 2 images have no label" in failed(corte(*scored(data)), 4)


def test_what_is_scored_must_be_said_once(data: Path, tmp_path: Path) -> None:
    """Neither a run nor a teacher, both, an unknown layout, and a run without checkpoint."""
    folders = ["--images", data / "images", "--labels", data / "labels"]
    assert "either a RUN folder or --teacher-url" in failed(corte("evaluate", *folders), 2)
    assert failed(corte(*scored(data, "--teacher-url", "http://127.0.0.1:1")), 2)
    assert "choose one of plain, camvid" in failed(corte(*scored(data, "--layout", "x")), 2)
    assert "no checkpoint" in failed(corte("evaluate", tmp_path / "none", *folders), 4)


def test_predict_writes_files_of_the_input_size(data: Path) -> None:
    """Labels and overlays lie where the line says."""
    result = corte("predict", data / "run", "--images", data / "images", "--out", data / "out")
    assert result.exit_code == 0, result.output
    assert picture_size(data / "out/labels/a.png") == (33, 24)
    assert picture_size(data / "out/overlays/b.jpg") == (20, 40)


def test_predict_names_a_broken_image_at_the_end(data: Path) -> None:
    """The good ones are written first."""
    (data / "images/broken.jpg").write_bytes(b"no image")
    result = corte("predict", data / "run", "--images", data / "images", "--out", data / "out")
    assert "1 of 3 images were left out" in failed(result, 4)
    assert (data / "out/labels/b.png").is_file()


def test_inspect_shows_what_the_teacher_offers(teacher: str) -> None:
    """Level, what it means, the methods it allows, limits and classes; as JSON as well."""
    shown = corte("inspect", "--teacher-url", teacher)
    assert shown.exit_code == 0, shown.output
    assert "margin: the 2 best classes of each pixel" in shown.stdout
    assert "naive, threshold, soft, corte" in shown.stdout
    info = json.loads(corte("inspect", "--teacher-url", teacher, "--json").stdout)
    assert info["disclosure"] == "margin"
    for name in info["classes"]:
        assert name in shown.stdout


def test_the_black_box_is_scored_once_asked_once(teacher: str, data: Path) -> None:
    """A second scoring sends nothing, a narrower level neither, and the numbers are the same."""
    args = ["evaluate", "--teacher-url", teacher, "--images", data / "images", "--labels", data / "labels"]
    args += ["--ledger", data / "ledger.db", "--json"]
    first, second = corte(*args), corte(*args, "--disclosure", "labels")
    assert first.exit_code == second.exit_code == 0, first.output + second.output
    assert "sent 2  saved 0" in first.stderr
    assert "sent 0  saved 2" in second.stderr
    assert json.loads(first.stdout) == json.loads(second.stdout)


def test_the_black_box_is_scored_in_the_classes_of_a_map(teacher: str, data: Path) -> None:
    """Names are the student's; classes that no entry names are void, which is wrong where labelled."""
    info = json.loads(corte("inspect", "--teacher-url", teacher, "--json").stdout)
    first, second, third = info["classes"][:3]
    map_file = data / "map.toml"
    entries = {"ground": [first, second], "built": [third]}
    map_file.write_text(
        "".join(f'[[classes]]\nname = "{name}"\nfrom = {json.dumps(m)}\n' for name, m in entries.items())
    )
    args = ["evaluate", "--teacher-url", teacher, "--images", data / "images", "--labels", data / "labels"]
    args += ["--ledger", data / "ledger.db", "--classes", map_file]
    scores = json.loads(corte(*args, "--json").stdout)
    assert [c["name"] for c in scores["classes"]] == ["ground", "built"]
    map_file.write_text('[[classes]]\nname = "a"\nfrom = ["nonsense"]\n')
    assert "no class 'nonsense'" in failed(corte(*args), 4)


def test_what_methods_need_is_known_without_torch() -> None:
    """The list for verbs that must not load torch says what the pseudo-labellers say."""
    from corte_student.methods import NEEDS
    from corte_student.pseudo_labels import METHODS, Refinement, Selection, build_labeller

    assert set(NEEDS) == set(METHODS)
    for method, known in NEEDS.items():
        labeller = build_labeller(
            method, 2, selection=Selection(), refinement=Refinement(), least=0.5, seed=0
        )
        assert (labeller.needs, labeller.surrogate) == (known.needs, known.surrogate)


def test_more_than_the_teacher_discloses_is_refused(teacher: str, data: Path) -> None:
    """An unknown level is a wrong setting, one too wide the teacher's refusal."""
    args = ["evaluate", "--teacher-url", teacher, "--images", data / "images", "--labels", data / "labels"]
    args += ["--ledger", data / "ledger.db", "--disclosure"]
    assert "this run needs full" in failed(corte(*args, "full"), 3)
    assert "unknown disclosure" in failed(corte(*args, "everything"), 2)


def test_a_teacher_that_is_down_is_exit_3(tmp_path: Path) -> None:
    """One line names it; a key file that is missing is a wrong setting."""
    url = ["inspect", "--teacher-url", "http://127.0.0.1:9", "--deadline", "0.3"]
    assert failed(corte(*url), 3)
    assert "key file" in failed(corte(*url, "--key-file", tmp_path / "none"), 2)


def test_the_leaf_that_is_ours_explains_a_group() -> None:
    """Groups in groups are opened; a failure of ours goes before what it caused."""
    ours = Unavailable("down")
    group = BaseExceptionGroup("", [OSError(), ExceptionGroup("", [ours, DataError("later")])])
    assert first_cause(group) is ours
    assert first_cause(ours) is ours
    plain = ValueError()
    assert first_cause(ExceptionGroup("", [plain])) is plain


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (TrainingDiverged("the loss\nis nan"), 5, "error: the loss is nan"),
        (ExceptionGroup("", [DataError("no image")]), 4, "error: no image"),
    ],
)
def test_errors_become_lines_and_exit_codes(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, line: str
) -> None:
    """In one place, for all verbs; CORTE_DEBUG brings the exception back."""

    def fail(*args: object, **kwargs: object) -> object:
        raise raised

    monkeypatch.setattr(INSPECT, "_ask", fail)
    result = corte("inspect", "--teacher-url", "http://x")
    assert result.exit_code == code
    assert result.stderr.splitlines() == [line]
    if isinstance(raised, Exception):
        debugged = corte("inspect", "--teacher-url", "http://x", env={"CORTE_DEBUG": "1"})
        assert debugged.exception is raised


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody expected is not dressed up as a user's mistake."""
    monkeypatch.setattr(INSPECT, "_ask", lambda *args: 1 / 0)
    assert isinstance(corte("inspect", "--teacher-url", "http://x").exception, ZeroDivisionError)
