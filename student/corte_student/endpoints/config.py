"""What the user knows of a teacher that does not say it of itself: the file behind `--teacher-config`.

Strategy: one TOML file for every kind. The keys below are common; a table named like the kind holds that
kind's own (its adapter checks them); `[price]` says what a request costs. A key that nobody reads is an
error, and a secret has no place here: the key comes from CORTE_TEACHER_KEY or --key-file.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from corte_protocol import VOID
from corte_student.endpoints.palettes import PALETTES, colors_for
from corte_student.errors import SettingsError
from corte_student.money import Price, price_from

Rgb = tuple[int, int, int]
Positive = Annotated[int, Field(ge=1)]
Kind = Literal[
    "corte",
    "openinference",
    "huggingface",
    "sagemaker",
    "vertex",
    "azureml",
    "roboflow",
    "replicate",
    "custom",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Strict(BaseModel):
    """Frozen, and every unknown key is an error. Strict types, except that TOML's lists become tuples."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TeacherConfig(Strict):
    """The file's common keys. `options` is the table of the kind itself."""

    kind: Kind | None = None
    url: str | None = None
    model: str | None = None
    classes: tuple[str, ...] | str | None = None
    colors: tuple[Rgb, ...] | None = None
    revision: Annotated[str, Field(pattern=r"^[0-9A-Za-z._-]{1,64}$")] | None = None
    max_body_bytes: Positive | None = None
    max_pixels: Positive | None = None
    link_hosts: tuple[str, ...] | None = None
    price: dict[str, Any] | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _named(self) -> Self:
        if isinstance(self.classes, str) and self.classes not in PALETTES:
            raise ValueError(
                f"classes = {self.classes!r}: give a list of names, or one of {', '.join(PALETTES)}"
            )
        names = self.class_names
        if names is not None and (
            not 1 <= len(names) < VOID or len(set(names)) != len(names) or not all(names)
        ):
            raise ValueError(f"classes must be 1 to {VOID - 1} distinct names, in the order of their ids")
        if self.colors is not None and len(self.colors) != len(names or ()):
            raise ValueError("colors: one [red, green, blue] a class")
        return self

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names by id, or None where the file says nothing of them."""
        if isinstance(self.classes, str):
            return tuple(PALETTES[self.classes])
        return self.classes

    def listed(self, kind: str) -> tuple[tuple[str, ...], tuple[Rgb, ...]]:
        """Names and colours. Raises SettingsError where the file has none: this kind cannot do without."""
        names = self.class_names
        if names is None:
            raise SettingsError(
                f'a teacher of kind {kind} does not say its classes: write `classes = ["road", ...]` '
                '(or "cityscapes") into a TOML file and give it with --teacher-config'
            )
        if self.colors is not None:
            return names, self.colors
        known = PALETTES[self.classes] if isinstance(self.classes, str) else {}
        return names, colors_for(names, known)

    def priced(self) -> Price | None:
        """What a request costs, where the file says it."""
        return None if self.price is None else price_from(self.price)


T = TypeVar("T", bound=Strict)


def read_config(path: Path) -> TeacherConfig:
    """Read `--teacher-config`. Raises SettingsError in one line."""
    try:
        values = tomllib.loads(path.read_text())
    except OSError as exc:
        raise SettingsError(f"cannot read {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} is not TOML: {exc}") from exc
    return config_from(values, str(path))


def config_from(values: Mapping[str, Any], source: str) -> TeacherConfig:
    """The config in parsed TOML; `source` names it in errors."""
    given = dict(values)
    kind = given.get("kind")
    tables = [name for name in KINDS if name in given]
    if tables and ((kind is not None and tables != [kind]) or len(tables) > 1):
        raise SettingsError(f"{source}: a table for {', '.join(tables)}, and the kind is {kind!r}: keep one")
    if tables:
        given["kind"] = tables[0]
        given["options"] = given.pop(tables[0])
    elif "options" in given:
        raise SettingsError(f"{source}: unknown key 'options': name the table like the kind")
    return checked(TeacherConfig, given, source)


def checked(model: type[T], values: Mapping[str, Any], source: str) -> T:
    """`values` as `model`. Raises SettingsError that names the key and what there is."""
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        problems = []
        for error in exc.errors():
            key = ".".join(str(part) for part in error["loc"])
            if error["type"] == "extra_forbidden":
                known = ", ".join(name for name in model.model_fields if name != "options")
                problems.append(f"unknown key {key!r}; known are {known}")
            else:
                told = error["msg"].removeprefix("Value error, ")
                problems.append(f"{key}: {told}" if key else told)
        raise SettingsError(f"{source}: {'; '.join(problems)}") from exc
