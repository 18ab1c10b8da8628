"""What the tables hold, as data: the rows (what is compared) and the pairs (a teacher and a target).

Rule: all rows of a pair share everything that their own `overrides` do not name. Settings come from the
pair's recipe, then the pair's overrides, then the row's, then the command line's.
"""

import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from accuracy.service import lock
from accuracy.street import RECIPE, REPORT_IMAGES, TRAIN_IMAGES, Scenes
from corte_student.settings import encoder_of, read_toml
from street_scenes.domains import CLASSES, PALETTE

ROOT = Path(__file__).parents[2]
Rgb = tuple[int, int, int]
Kind = Literal["teacher", "student", "truth"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    `kind`: "teacher" scores the black box itself, "student" trains from its answers, "truth" trains from
    the labels. `overrides` are `key=value` as `--set` takes them; of a teacher only `views` is read.
    """

    name: str
    about: str
    kind: Kind
    method: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """The name of the row's folder."""
        return self.name.replace(" ", "-")

    def views(self, more: tuple[str, ...]) -> tuple[str, ...]:
        """The views of each image that a teacher row is asked about; `more` is the pair's set."""
        for assignment in self.overrides:
            if assignment == MORE:
                return more
            if assignment.partition("=")[0].strip() == "views":
                return tuple(tomllib.loads(assignment)["views"])
        return ("identity",)

    def settings(self, more: tuple[str, ...]) -> tuple[str, ...]:
        """The overrides with the pair's view set in its place."""
        listed = ", ".join(f'"{view}"' for view in more)
        return tuple(f"views=[{listed}]" if text == MORE else text for text in self.overrides)


MORE = "views=MORE"
"""Stands for the pair's own view set, chosen on its development data (`accuracy.views`)."""

_WEAK = ("jitter=0.0", "blur=0.0")
_PLUS = ("class_mix=0.5",)
_LABELS = ("disclosure=labels",)

# one line each, in the order of the tables; "multi" asks the pair's view set
ROWS: tuple[Row, ...] = (
    Row("black box", "the hidden model itself", "teacher"),
    Row("black box + flip", "its mean over image and mirror", "teacher", "", ('views=["identity", "flip"]',)),
    Row("black box multi", "its mean over the pair's view set", "teacher", "", (MORE,)),
    Row(
        "naive plain",
        "arg-max, every pixel, weak views, no ema",
        "student",
        "naive",
        (*_WEAK, "ema_span=1e-9"),
    ),
    Row("naive", "the same with strong views, ema scored", "student", "naive"),
    Row("naive multi", "naive at the view set's queries", "student", "naive", (MORE,)),
    Row("naive + mix", "naive with class mixing", "student", "naive", _PLUS),
    Row("threshold", "one fixed absolute threshold, 0.9", "student", "threshold"),
    Row("class-mean", "absolute confidence, mean of each class", "student", "class-mean"),
    Row("random", "random pixels, R2CP's share of each class", "student", "random"),
    Row("soft", "every pixel, weighted by its margin", "student", "soft"),
    Row("distil", "soft distillation", "student", "distil"),
    Row("dine", "DINE-style", "student", "dine"),
    Row("r2cp", "R2CP alone, weak views", "student", "corte", (*_WEAK, "refine=none")),
    Row("r2cp + refine", "and refinement", "student", "corte", _WEAK),
    Row("corte", "and consistency: CoRTe", "student", "corte"),
    Row("corte multi", "CoRTe at the view set's queries", "student", "corte", (MORE,)),
    Row("corte mix", "CoRTe, refinement by mix", "student", "corte", ("refine=mix",)),
    Row("corte product", "CoRTe, refinement by product", "student", "corte", ("refine=product",)),
    Row("corte-plus", "CoRTe and class mixing", "student", "corte", _PLUS),
    Row("corte-plus multi", "the same, several views", "student", "corte", (*_PLUS, MORE)),
    Row(
        "labels",
        "corte-plus from labels, one query",
        "student",
        "corte",
        (*_PLUS, *_LABELS, 'views=["identity"]'),
    ),
    Row("labels multi", "the same, several views", "student", "corte", (*_PLUS, *_LABELS, MORE)),
    Row("target-only", "true labels: the upper bound of this budget", "truth", "naive"),
)


# what else is compared: each part against what lacks it, each row that asks more at equal questions
BESIDE: tuple[tuple[str, str], ...] = (
    ("corte-plus", "corte"),
    ("corte-plus", "naive + mix"),
    ("corte-plus", "labels"),
    ("corte-plus multi", "corte multi"),
    ("corte-plus multi", "naive multi"),
    ("corte-plus multi", "black box multi"),
    ("corte-plus multi", "labels multi"),
)


def _varied(name: str, *overrides: str) -> Row:
    return Row(name, f"corte-plus with {', '.join(overrides)}", "student", "corte", (*_PLUS, *overrides))


# what the defaults rest on: corte-plus with one thing changed, for a seed that no table reports
SENSITIVITY: tuple[Row, ...] = (
    _varied("quantile 0.3", "threshold_kind=quantile", "threshold_quantile=0.3"),
    _varied("quantile 0.6", "threshold_kind=quantile", "threshold_quantile=0.6"),
    _varied("fixed 0.5", "threshold_kind=fixed", "threshold=0.5"),
    _varied("scope image", "threshold_scope=image"),
    _varied("ema span 0.01", "ema_span=0.01"),
    _varied("ema span 0.2", "ema_span=0.2"),
    _varied("refine from 0.1", "refine_from=0.1"),
    _varied("refine from 0.7", "refine_from=0.7"),
    _varied("no warm-up labels", "refine_all_before=false"),
    _varied("no agreement", "refine_agreed=false"),
    _varied("class mix 0.25", "class_mix=0.25"),
    _varied("class mix 1", "class_mix=1.0"),
    _varied("cut mix 0.5", "class_mix=0.0", "cut_mix=0.5"),
    _varied("masked 0.5", "mask_share=0.5", "mask_block=32", "mask_ratio=0.3"),
    _varied("rare 0.5", "rare_share=0.5"),
    _varied("rank weights", "rank_weights=true"),
    _varied("loss sce", "loss=sce"),
    _varied("loss gce", "loss=gce"),
    _varied("no class balance", "class_balance=0.0"),
)
ALL = ROWS + SENSITIVITY


def find_rows(names: str) -> list[Row]:
    """Rows by comma-separated names, in the table's order; `sensitivity` is all of `SENSITIVITY`.

    Raises KeyError with the choices.
    """
    wanted = [name.strip() for name in names.split(",")]
    if "sensitivity" in wanted:
        wanted += [row.name for row in SENSITIVITY]
        wanted.remove("sensitivity")
    unknown = [name for name in wanted if all(name not in (row.name, row.slug) for row in ALL)]
    if unknown:
        raise KeyError(f"no row {', '.join(unknown)}; there are {', '.join(row.name for row in ALL)}")
    return [row for row in ALL if row.name in wanted or row.slug in wanted]


@dataclass(frozen=True, slots=True)
class Data:
    """Where one seed's images and labels lie. Students see `train` without labels; `report` is scored."""

    train: Path
    train_labels: Path
    report: Path
    report_labels: Path


@dataclass(frozen=True, slots=True)
class Pair:
    """A teacher and a target.

    `block`: consecutive frames of a sequence that the bootstrap keeps together, at least. `fixed`: every
    seed is scored on the same images, so the bootstrap draws the same blocks for all seeds. `sequences`:
    the train images are scored too, by sequence. `more` is the view set of rows that ask several. `serve`
    are flags of `corte-teacher serve`. `data` finds or makes the images of a seed, below a folder of the
    pair's own. `needs` must exist. `sizes`: how many images train and report have, where that is a choice.
    """

    name: str
    about: str
    recipe: Path
    classes: tuple[str, ...]
    colors: tuple[Rgb, ...]
    block: int
    seeds: tuple[int, ...]
    layout: str
    serve: tuple[str, ...]
    more: tuple[str, ...]
    data: Callable[[Path, int], Data]
    classmap: Path | None = None
    weights: Path | None = None
    overrides: tuple[str, ...] = ()
    fixed: bool = False
    sequences: bool = False
    needs: tuple[Path, ...] = ()
    sizes: tuple[int, int] | None = None

    @property
    def missing(self) -> list[str]:
        """The files that this pair needs and that are not there."""
        return [str(path) for path in self.needs if not path.exists()]

    def encoder(self) -> dict[str, str]:
        """The flag that names the encoder of `weights`; empty where the recipe's own stands."""
        return {} if self.weights is None else {"encoder": encoder_of(self.weights)}


def _street_data(folder: Path, seed: int, *, sizes: tuple[int, int]) -> Data:
    """Scenes by the generator. The folder's name holds the sizes: a set must never be taken for another."""
    with lock(folder / f"scenes-seed{seed}.lock", wait=True):
        scenes = Scenes.of(folder / "scenes-{}-{}".format(*sizes), seed, *sizes)
    return Data(
        scenes.train / "images", scenes.train / "labels", scenes.report / "images", scenes.report / "labels"
    )


def street(train_images: int = TRAIN_IMAGES, report_images: int = REPORT_IMAGES) -> Pair:
    """Procedural scenes: each seed has images of its own, and every image is a scene of its own."""
    return Pair(
        name="street",
        about=f"{train_images} unlabelled street scenes, {report_images} held-out ones, new for each seed",
        recipe=RECIPE,
        classes=CLASSES,
        colors=PALETTE,
        block=1,
        seeds=(0, 1, 2, 3, 4),
        layout="plain",
        serve=("--backend", "street"),
        more=("identity", "flip"),
        data=partial(_street_data, sizes=(train_images, report_images)),
        overrides=("checkpoint_every=200",),  # a killed queue loses less than a minute
        sizes=(train_images, report_images),
    )


def _camvid_data(folder: Path, seed: int, *, source: Path) -> Data:
    return Data(source / "train", source / "trainannot", source / "val", source / "valannot")


def camvid() -> Pair:
    """A Cityscapes model by others and CamVid, below CORTE_TEST_DATA or ../shared/data."""
    files = Path(os.environ.get("CORTE_TEST_DATA", ROOT / "../shared/data")).resolve()
    recipe = ROOT / "examples" / "recipes" / "camvid.toml"
    model, weights = files / "teachers/deeplab_cityscapes.onnx", files / "backbones/tf_efficientnet_lite0"
    card = ROOT / "examples" / "cards" / "deeplab_cityscapes.toml"
    classes = read_toml(recipe)["classes"]
    return Pair(
        name="camvid",
        about="DeepLab trained on Cityscapes; CamVid train unlabelled, CamVid val scored",
        recipe=recipe,
        classes=tuple(entry["name"] for entry in classes),
        colors=tuple(tuple(entry["color"]) for entry in classes),
        block=15,
        seeds=(0, 1, 2),
        layout="camvid",
        serve=("--backend", "onnx", "--model", str(model), "--card", str(card)),
        more=("columns:2",),
        data=partial(_camvid_data, source=files / "camvid"),
        classmap=recipe,
        weights=weights,
        fixed=True,
        sequences=True,
        needs=(model, weights, files / "camvid" / "val"),
    )


PAIRS: dict[str, Callable[[], Pair]] = {"street": street, "camvid": camvid}
