"""The card: what an operator says about a model, in TOML. Clients see only the class names and colours.

Strategy: a frozen, strict pydantic tree; an unknown key is an error that lists the choices. Groups are
resolved here once into `Card.outputs`, so that a backend sees a plain list of answers and their members.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from corte_protocol.types import MAX_CLASSES
from corte_teacher.errors import StartError

Channel = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Channel, Channel, Channel]
Triple = tuple[float, float, float]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Input(_Section):
    """How pixels enter the model; `mean` and `std` on the 0..1 scale, for float32 only."""

    layout: Literal["nchw", "nhwc"] = "nchw"
    dtype: Literal["float32", "uint8"] = "float32"
    height: Annotated[int, Field(ge=1)] | None = None
    width: Annotated[int, Field(ge=1)] | None = None
    multiple_of: Annotated[int, Field(ge=1, le=1024)] = 1
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.height is None) != (self.width is None):
            raise ValueError("give height and width, or neither")
        if self.height is not None and self.multiple_of != 1:
            raise ValueError("multiple_of is for a model without a fixed height and width")
        if self.dtype == "uint8" and (self.mean != (0.0, 0.0, 0.0) or self.std != (1.0, 1.0, 1.0)):
            raise ValueError("mean and std are for float32 input: leave them out for uint8")
        if any(s <= 0 for s in self.std):
            raise ValueError("std must be positive")
        return self


class Output(_Section):
    """What comes out of the model's first output, with the axes named."""

    kind: Literal["logits", "probabilities", "labels"] = "logits"
    layout: Literal["nchw", "nhwc", "nhw"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.layout is not None and (self.kind == "labels") != (self.layout == "nhw"):
            raise ValueError("layout nhw goes with kind labels, nchw and nhwc with the other kinds")
        return self


class Class(_Section):
    """One class of the model, in the order of its ids."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    color: Colour


class Group(Class):
    """Classes answered as one: their probabilities are added before the best are chosen."""

    members: Annotated[tuple[str, ...], Field(min_length=1)]


class Model(_Section):
    """What torch backends run: for `timm` an encoder and the feature level under its 1x1 head.

    `precision` is the network's; what comes after the logits is always float32.
    """

    encoder: str | None = None
    level: int = -1
    precision: Literal["float32", "bfloat16", "float16"] = "float32"


class Tiles(_Section):
    """Larger images are answered in tiles of this size, neighbours sharing at least `overlap` pixels."""

    height: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    overlap: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if 2 * self.overlap >= min(self.height, self.width):
            raise ValueError("overlap must be less than half of height and of width")
        return self


class Answer(NamedTuple):
    """One class as clients see it, and the ids of the model's classes behind it."""

    name: str
    color: tuple[int, int, int]
    members: tuple[int, ...]


class Card(_Section):
    """All that the service knows about a model."""

    name: Annotated[str, Field(min_length=1)]
    revision: Annotated[str, Field(pattern=r"^[0-9A-Za-z._-]{1,64}$")] | None = None
    model: Model | None = None
    input: Input = Input()
    output: Output = Output()
    tiles: Tiles | None = None
    classes: Annotated[tuple[Class, ...], Field(min_length=2, max_length=MAX_CLASSES)]
    groups: tuple[Group, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = [c.name for c in self.classes]
        taken: set[str] = set()
        for group in self.groups:
            for member in group.members:
                if member not in known:
                    raise ValueError(f"group {group.name!r} names {member!r}: choose from {', '.join(known)}")
                if member in taken:
                    raise ValueError(f"class {member!r} is in two groups, or twice in one")
                taken.add(member)
        names = [answer.name for answer in self.outputs]
        if len(set(known)) != len(known) or len(set(names)) != len(names):
            raise ValueError("class and group names must be distinct")
        if len(names) < 2:
            raise ValueError("at least two classes must remain after grouping")
        return self

    @property
    def outputs(self) -> tuple[Answer, ...]:
        """The classes that clients see: groups stand where their first member stood."""
        ids = {c.name: i for i, c in enumerate(self.classes)}
        group_of = {ids[m]: group for group in self.groups for m in group.members}
        answers: list[Answer] = []
        for i, single in enumerate(self.classes):
            group = group_of.get(i)
            if group is None:
                answers.append(Answer(single.name, single.color, (i,)))
                continue
            members = tuple(sorted(ids[m] for m in group.members))
            if members[0] == i:
                answers.append(Answer(group.name, group.color, members))
        return tuple(answers)

    def answering_fields(self) -> dict[str, Any]:
        """The fields that change answers: what a revision is derived from, with the model's bytes."""
        fields: dict[str, Any] = {
            "input": self.input.model_dump(mode="json"),
            "output": self.output.model_dump(mode="json"),
            "model": self._model_fields(),
            "classes": [[answer.name, list(answer.members)] for answer in self.outputs],
        }
        if self.tiles:  # no key without tiles: cards from before they existed keep their revision
            fields["tiles"] = self.tiles.model_dump(mode="json")
        return fields

    def _model_fields(self) -> dict[str, Any] | None:
        """`model` without the default precision, for the same reason."""
        if self.model is None:
            return None
        fields = self.model.model_dump(mode="json")
        if self.model.precision == "float32":
            del fields["precision"]
        return fields


def read_card(path: Path) -> Card:
    """Read and check a card. Raises StartError with one line that names the file, the key and the remedy."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StartError(f"no card at {path}: write one, or name it with --card") from None
    except OSError as exc:
        raise StartError(f"the card {path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:  # TOML syntax, or not UTF-8
        raise StartError(f"the card {path} is not TOML: {exc}") from exc
    try:
        return Card.model_validate(data)
    except ValidationError as exc:
        raise StartError(f"the card {path}: {_explain(exc)}") from exc


def _explain(exc: ValidationError) -> str:
    """The validator's report as one line."""
    parts = []
    for error in exc.errors(include_url=False, include_input=False):
        loc = error["loc"]
        where = ".".join(str(part) for part in loc) or "as a whole"
        if error["type"] == "extra_forbidden":
            parts.append(f"unknown key {where}: choose from {', '.join(_choices(loc[:-1]))}")
        else:
            parts.append(f"{where}: {error['msg'].removeprefix('Value error, ')}")
    return "; ".join(parts)


def _choices(section: tuple[int | str, ...]) -> list[str]:
    """The keys that a section of the card may hold."""
    sections: dict[str, type[BaseModel]] = {
        "input": Input,
        "output": Output,
        "classes": Class,
        "groups": Group,
        "model": Model,
        "tiles": Tiles,
    }
    return list((sections[str(section[0])] if section else Card).model_fields)
