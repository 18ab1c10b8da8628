"""A real source model and real target images: DeepLab (Cityscapes) teaches a student about CamVid."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serving import running_teacher

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("CORTE_TEST_DATA", ROOT / "../shared/data")).resolve()
MODEL = DATA / "teachers/deeplab_cityscapes.onnx"
WEIGHTS = DATA / "backbones/tf_efficientnet_lite0"
CAMVID = DATA / "camvid"
RECIPE = ROOT / "examples/recipes/camvid.toml"
CARD = ROOT / "examples/cards/deeplab_cityscapes.toml"
CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("signsymbol", "fence", "car", "pedestrian", "bicyclist"),
)
TRAIN, VAL = 8, 4

missing = [str(path) for path in (MODEL, WEIGHTS, CAMVID) if not path.exists()]
pytestmark = [
    pytest.mark.run,
    pytest.mark.real_data,
    pytest.mark.skipif(bool(missing), reason=f"REAL DATA MISSING: no {missing}; set CORTE_TEST_DATA"),
]


@dataclass(frozen=True)
class Pair:
    """The served teacher, a little of CamVid, and the first run over it."""

    url: str
    base: Path
    told: str

    @property
    def val(self) -> tuple[object, ...]:
        """The flags that name the labelled images."""
        return ("--images", self.base / "val", "--labels", self.base / "valannot", "--layout", "camvid")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The service at margin with the card of examples/, and a student trained from it for six small steps."""
    base = tmp_path_factory.mktemp("pair")
    spread(CAMVID / "train", base / "train", TRAIN)
    spread(CAMVID / "val", base / "val", VAL)
    (base / "valannot").mkdir()
    for image in (base / "val").iterdir():
        shutil.copy(CAMVID / "valannot" / f"{image.stem}.png", base / "valannot")
    args = [
        "--backend",
        "onnx",
        "--model",
        str(MODEL),
        "--card",
        str(CARD),
        "--disclosure",
        "margin",
        "--open",
    ]
    with running_teacher(args) as url:
        yield Pair(url, base, train(url, base, "run").stderr)


def spread(source: Path, target: Path, count: int) -> None:
    """Copy `count` images from all over a folder: neighbours are frames of one scene."""
    target.mkdir()
    files = sorted(source.iterdir())
    for file in files[:: len(files) // count][:count]:
        shutil.copy(file, target)


def train(url: str, base: Path, out: str) -> subprocess.CompletedProcess[str]:
    """A short run with the recipe of examples/ and real encoder weights."""
    sets = ("height=96", "width=128", "batch=2", "scale_min=0.3", "scale_max=0.6")
    return corte(
        *("train", "--teacher-url", url, "--images", base / "train", "--out", base / out),
        *("--ledger", base / "ledger.sqlite", "--recipe", RECIPE, "--weights", WEIGHTS, "--steps", "6"),
        *(text for value in sets for text in ("--set", value)),
    )


def corte(*args: object) -> subprocess.CompletedProcess[str]:
    """`corte-student ARGS` as a process that must succeed."""
    command = [sys.executable, "-m", "corte_student", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done


def scores(text: str) -> dict[str, Any]:
    """The object of `evaluate --json`, its form checked: values in 0..1, null for absent classes."""
    found: dict[str, Any] = json.loads(text)
    assert list(found) == ["miou", "pixel_accuracy", "classes"]
    assert [entry["name"] for entry in found["classes"]] == list(CLASSES)
    assert all(list(entry) == ["name", "iou"] for entry in found["classes"])
    present = [entry["iou"] for entry in found["classes"] if entry["iou"] is not None]
    assert all(
        isinstance(v, float) and 0 <= v <= 1 for v in (found["miou"], found["pixel_accuracy"], *present)
    )
    assert found["miou"] == pytest.approx(sum(present) / len(present))
    return found


def test_each_image_is_asked_once(pair: Pair) -> None:
    """The first run sends every image, the second none, and the census tells how 19 classes become 11."""
    assert f"requests sent {TRAIN}," in pair.told
    census = [" ".join(line.split()[1:]) for line in pair.told.splitlines()]
    assert "building building, wall" in census and "signsymbol traffic light, traffic sign" in census
    again = train(pair.url, pair.base, "again")
    assert f"requests sent 0, served by the ledger {TRAIN}," in again.stderr


def test_the_black_box_is_scored_on_camvid(pair: Pair) -> None:
    """Through the 19 to 11 map DeepLab is far better than chance, and best where the scene is easy."""
    more = ("--classes", RECIPE, "--ledger", pair.base / "ledger.sqlite", "--json")
    found = scores(corte("evaluate", "--teacher-url", pair.url, *pair.val, *more).stdout)
    assert found["miou"] > 0.3
    iou = {entry["name"]: entry["iou"] for entry in found["classes"]}
    assert iou["road"] > 0.6 and iou["sky"] > 0.6


def test_the_student_is_scored_and_its_labels_have_the_size_of_the_images(pair: Pair) -> None:
    """`evaluate --json` has the promised form, and `predict` writes labels and overlays of the exact size."""
    scores(corte("evaluate", pair.base / "run", *pair.val, "--json").stdout)
    corte("predict", pair.base / "run", "--images", pair.base / "val", "--out", pair.base / "out")
    images = sorted((pair.base / "val").iterdir())
    assert len(images) == VAL
    for image in images:
        with (
            Image.open(image) as source,
            Image.open(pair.base / f"out/labels/{image.stem}.png") as labels,
            Image.open(pair.base / f"out/overlays/{image.stem}.jpg") as overlay,
        ):
            assert labels.size == overlay.size == source.size
            assert labels.mode == "P" and max(labels.tobytes()) < len(CLASSES)
