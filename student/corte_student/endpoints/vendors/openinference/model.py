"""What an Open Inference server says of a model.

Source: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md,
"Model Metadata". Shapes hold -1 where any length goes.

Rule 1: MLServer and KServe state only what they were told, so everything but the name may be missing.
Rule 2: what the user says wins, unless the metadata shows that it cannot be.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from corte_protocol import VOID, Disclosure, MalformedFrame
from corte_student.endpoints.dialect import Rgb
from corte_student.endpoints.palettes import colors_for
from corte_student.endpoints.tensors import listed
from corte_student.endpoints.vendors.openinference.options import WHERE, Answer, Layout
from corte_student.errors import SettingsError

ANY: Final = -1
"""A side of any length."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One tensor of a model."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def floats(self) -> bool:
        """Whether it holds scores rather than labels."""
        return self.datatype.startswith(("FP", "BF"))


@dataclass(frozen=True, slots=True)
class Model:
    """A model's metadata. Servers that were not told leave `inputs` and `outputs` empty."""

    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    platform: str
    parameters: Mapping[str, Any]

    @property
    def own(self) -> bool:
        """Whether this project's own service speaks: it says in parameters what /v1/info says."""
        return self.platform == "corte" and "disclosure" in self.parameters

    def classes(self) -> tuple[tuple[str, ...], tuple[Rgb, ...]] | None:
        """Names and colours where the parameters state them, as JSON texts or lists; None where not."""
        names, colors = (_listed(self.parameters.get(name)) for name in ("classes", "colors"))
        if names is None or not all(isinstance(name, str) and 0 < len(name) <= 128 for name in names):
            return None
        if not 2 <= len(names) < VOID or len(set(names)) != len(names):
            return None
        told = _colours(colors or ())
        return tuple(names), told if len(told) == len(names) else colors_for(names)

    def own_level(self, classes: int) -> Disclosure:
        """What our own service discloses. Raises InvalidValue."""
        return Disclosure.parse(str(self.parameters["disclosure"]), classes)

    def own_limits(self) -> tuple[int, int] | None:
        """Bytes of a body and pixels that our own service takes."""
        found = [self.parameters.get(name) for name in ("max_body_bytes", "max_pixels")]
        body, pixels = (value if type(value) is int and value > 0 else 0 for value in found)
        return (body, pixels) if body and pixels else None


def read_metadata(body: bytes) -> Model:
    """Raises MalformedFrame for what is no model's metadata."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise MalformedFrame("no JSON") from exc
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        raise MalformedFrame("no metadata of a model")
    platform, parameters = fields.get("platform"), fields.get("parameters")
    return Model(
        _specs(fields.get("inputs")),
        _specs(fields.get("outputs")),
        platform if isinstance(platform, str) else "",
        parameters if isinstance(parameters, dict) else {},
    )


def choose(specs: tuple[Spec, ...], name: str | None, kind: str) -> Spec | None:
    """The tensor called `name`, or the only one there is; None where the model states none.

    Raises SettingsError that lists the names. `kind` is "input" or "output".
    """
    if not specs:
        return None
    found = [spec for spec in specs if name is None or spec.name == name]
    if len(found) == 1:
        return found[0]
    names = listed(spec.name for spec in specs)
    if name is None:
        raise SettingsError(f"the model has several {kind}s, {names}: write `{kind}` into {WHERE}")
    raise SettingsError(f"the model has no {kind} {name!r}, but {names}: correct `{kind}` in {WHERE}")


def agree(stated: Spec, answer: Answer, classes: int, layout: Layout | None) -> None:
    """Raises SettingsError where the metadata contradicts what the user says of the output."""
    if answer == "labels":
        return
    if not stated.floats:
        raise SettingsError(
            f"the output {stated.name!r} holds {stated.datatype[:16]}, no scores: correct `answer` in {WHERE}"
        )
    if len(stated.shape) < 3:
        return
    told = {"nchw": stated.shape[-3], "nhwc": stated.shape[-1]}
    lengths = [told[layout]] if layout else list(told.values())
    if classes not in lengths and ANY not in lengths:
        raise SettingsError(
            f"the output {stated.name!r} has the shape {list(stated.shape)[:8]}, and {classes} classes are "
            f"named: correct `classes` in --teacher-config, or `layout` in {WHERE}"
        )


def _specs(value: object) -> tuple[Spec, ...]:
    """Tensors as stated. Gateways that go through protobuf's JSON make texts of 64-bit lengths."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise MalformedFrame("no list of tensors")
    specs = []
    for entry in value:
        try:
            shape = tuple(int(side) for side in entry.get("shape") or ())
            specs.append(Spec(str(entry["name"]), str(entry["datatype"]).upper(), shape))
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise MalformedFrame("a tensor without name or datatype") from exc
    return tuple(specs)


def _listed(value: object) -> list[Any] | None:
    """A list, or the list in a JSON text: the protocol's parameters are texts, numbers or truth values."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _colours(value: Sequence[object]) -> tuple[Rgb, ...]:
    """The legal RGB triples in a list."""
    found = []
    for entry in value:
        if (
            isinstance(entry, list)
            and len(entry) == 3
            and all(type(v) is int and 0 <= v < 256 for v in entry)
        ):
            red, green, blue = entry
            found.append((red, green, blue))
    return tuple(found)
