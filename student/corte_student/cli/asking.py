"""Flags that say what a run asks: `train`, `collect` and `plan` read them alike, without loading torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # loaded inside the functions: --help must stay quick
    from corte_protocol import TeacherInfo
    from corte_student.classmap import ClassMap
    from corte_student.money import Price
    from corte_student.settings import TrainSettings
    from corte_student.terms import Terms

Images = Annotated[
    Path, typer.Option("--images", help="Folder of unlabelled target images, read recursively")
]
Recipes = Annotated[
    list[str] | None, typer.Option("--recipe", help="As for train: what it needs of the teacher is asked")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="As for train: key=value, for example in_flight=8")
]
Method = Annotated[str | None, typer.Option("--method", help="As for train")]
ClassesFile = Annotated[Path | None, typer.Option("--classes", help="As for train: TOML class map")]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The settings of the run to come, its class map, and the price in its recipe."""

    settings: "TrainSettings"
    classes: Path | None
    price: "Price | None"

    def classmap(self, info: "TeacherInfo") -> "ClassMap":
        """The class map of the run to come."""
        from corte_student.classmap import ClassMap, load_classmap

        return load_classmap(self.classes, info) if self.classes else ClassMap.identity(info)

    def terms(self, info: "TeacherInfo") -> "Terms":
        """What it will ask of this teacher. Raises SettingsError."""
        from corte_student.methods import NEEDS
        from corte_student.terms import settle

        known = NEEDS.get(self.settings.method)
        if known is not None:
            return settle(info, self.settings, known)
        from corte_student.training import labeller_of  # a method from outside says it itself

        return settle(info, self.settings, labeller_of(self.settings, len(self.classmap(info).names)))


def wanted(
    recipe: Sequence[str] | None,
    set_: Sequence[str] | None,
    classes: Path | None,
    flags: dict[str, Any],
) -> Wanted:
    """Flags as `train` reads them. Raises SettingsError."""
    from corte_student.settings import find_recipe, load_settings, read_toml, recipe_price

    recipes = [find_recipe(name) for name in recipe or []]
    settings = load_settings(recipes, flags, list(set_ or []))
    if classes is None:
        classes = next((path for path in reversed(recipes) if "classes" in read_toml(path)), None)
    return Wanted(settings, classes, recipe_price(recipes))
