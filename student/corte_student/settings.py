"""The settings of a training run: flag over `--set` over recipe over default, frozen once read.

A recipe is a TOML file with the keys of `TrainSettings`, and may carry a class map; `--set key=value` reads
its value as TOML too, so a typo in either is caught by the same rules. Secrets are not here: they never
enter a run folder.
"""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from corte_student.errors import SettingsError
from corte_student.money import Price, price_from

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class TrainSettings(BaseModel):
    """Everything that decides what a run computes; saved with it and compared at a resume."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: str = "corte"
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    steps: Positive = 2000
    batch: Annotated[int, Field(ge=2)] = 8  # BatchNorm needs two

    encoder: str = "mobilenetv3_small_100"
    init: Literal["imagenet", "random"] = "imagenet"
    decoder_width: Positive = 96
    decoder_stride: Literal[2, 4, 8] = 4

    height: Positive = 256
    width: Positive = 512
    scale_min: Annotated[float, Field(gt=0)] = 0.75
    scale_max: Annotated[float, Field(gt=0)] = 1.5
    jitter: Share = 0.4
    blur: Annotated[float, Field(ge=0)] = 1.5

    lr: Annotated[float, Field(gt=0)] = 1e-3
    encoder_lr: Annotated[float, Field(gt=0)] = 1.0  # times lr; below 1 for pretrained encoders
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    lr_warmup: Share = 0.05
    clip: Annotated[float, Field(gt=0)] = 1.0
    loss: Literal["ce", "sce", "gce"] = "ce"
    loss_stride: Positive = 2
    class_balance: Share = 0.25
    ema_span: Annotated[float, Field(gt=0, le=1)] = 0.05  # the share of the run that the ema averages

    threshold: Share = 0.9  # of method threshold, and of threshold_kind fixed
    threshold_kind: Literal["mean", "quantile", "fixed"] = "mean"
    threshold_quantile: Share = 0.5
    threshold_scope: Literal["set", "image"] = "set"
    refine: Literal["none", "arbitrate", "mix", "product"] = "arbitrate"
    refine_from: Share = 0.4
    refine_decay: Share = 0.99
    refine_all_before: bool = True
    refine_agreed: bool = True
    refine_power: Annotated[float, Field(gt=0)] = 1.0
    rank_weights: bool = False

    class_mix: Share = 0.5
    cut_mix: Share = 0.0
    mask_share: Share = 0.0
    mask_block: Positive = 64
    mask_ratio: Share = 0.7
    rare_share: Share = 0.0
    rare_temperature: Annotated[float, Field(gt=0)] = 0.1

    views: list[str] = Field(default=["auto"])
    max_queries: Positive = 4  # an image, whatever the views

    device: Literal["auto", "cpu", "cuda"] = "auto"
    disclosure: str = "auto"
    in_flight: Annotated[int, Field(ge=1, le=256)] = 8
    deadline_s: Annotated[float, Field(gt=0)] = 120.0
    away_share: Share = 0.5  # of the images; with so many answered, training outlasts a teacher that is away
    checkpoint_every: Positive = 250
    keep_checkpoints: bool = False
    log_every: Positive = 20
    memory_mb: Positive = 512

    @model_validator(mode="after")
    def _scales(self) -> "TrainSettings":
        if self.scale_min > self.scale_max:
            raise ValueError("scale_min is above scale_max")
        if self.class_mix + self.cut_mix > 1:
            raise ValueError("class_mix and cut_mix are shares of the same samples: at most 1 together")
        return self


def load_settings(
    recipe: Path | Sequence[Path] | None, flags: dict[str, Any], assignments: list[str]
) -> TrainSettings:
    """Settings from recipes, `key=value` assignments and flags (None means not given), later ones win.

    Raises SettingsError with one line that names the key and what it may be.
    """
    recipes = [] if recipe is None else [recipe] if isinstance(recipe, Path) else list(recipe)
    values: dict[str, Any] = {}
    for path in recipes:
        values |= read_toml(path)
    for table in ("classes", "price"):  # a recipe may carry them; `classmap.py` and `money.py` read them
        values.pop(table, None)
    if ":" in str(values.get("method", "")):
        raise SettingsError(
            f"a recipe names code to run ({values['method']!r}): say it with --method, where you can see it"
        )
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise SettingsError(f"--set takes key=value, not {assignment!r}")
        values[key.strip()] = _value(text.strip())
    values |= {key: value for key, value in flags.items() if value is not None}
    try:
        return TrainSettings.model_validate(values)
    except ValidationError as exc:
        raise SettingsError(_readable(exc, recipes)) from exc


def recipe_price(recipes: Sequence[Path]) -> Price | None:
    """The `[price]` of the last recipe that has one. Raises SettingsError."""
    tables = [values["price"] for values in map(read_toml, recipes) if "price" in values]
    return price_from(tables[-1]) if tables else None


def shipped_recipes() -> dict[str, Path]:
    """The recipes of this package by name."""
    found = (Path(__file__).parent / "recipes").glob("*.toml")
    return {path.stem: path for path in sorted(found, key=lambda path: path.stem)}


def find_recipe(name: str) -> Path:
    """A recipe by its file, or by its name if it ships. Raises SettingsError."""
    shipped = shipped_recipes()
    if name in shipped and not Path(name).exists():
        return shipped[name]
    if not Path(name).is_file():
        raise SettingsError(f"there is no recipe {name}: name a TOML file, or one of {', '.join(shipped)}")
    return Path(name)


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file, or a SettingsError that says what is wrong with it."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as exc:
        raise SettingsError(f"cannot read {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} is not TOML: {exc}") from exc


def encoder_of(weights: Path) -> str:
    """timm's name of the encoder whose weights lie in a `local-dir:` folder. Raises SettingsError."""
    try:
        return str(json.loads((weights / "config.json").read_text())["architecture"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SettingsError(
            f"--weights {weights} holds no config.json of timm's: point it at a folder made by "
            "`hf download timm/NAME --local-dir DIR`"
        ) from exc


def differences(saved: dict[str, Any], now: TrainSettings) -> list[str]:
    """One line for each setting that a resume would change."""
    current = now.model_dump()
    keys = sorted(saved.keys() | current.keys())
    return [f"{k}: {saved.get(k)!r} -> {current.get(k)!r}" for k in keys if saved.get(k) != current.get(k)]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is text, so that --set method=naive needs no quotes


def _readable(exc: ValidationError, recipes: Sequence[Path]) -> str:
    where = f" (recipe {', '.join(map(str, recipes))})" if recipes else ""
    problems = []
    for error in exc.errors():
        key = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            problems.append(f"unknown setting {key!r}; known are {', '.join(TrainSettings.model_fields)}")
        else:
            problems.append(f"{key or 'settings'}: {error['msg']}")
    return "; ".join(problems) + where
