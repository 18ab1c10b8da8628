"""Pseudo-labels: which pixels of the teacher's answers to learn from, and what the student's ema adds.

    base        Answers, PseudoLabels, the PseudoLabeller protocol
    relative    CoRTe: relative confidence and refinement
    baselines   what it is measured against

A labeller of your own, named as `package.module:factory`, takes the same place: see examples/.
"""

import importlib
from collections.abc import Callable
from typing import cast

from corte_student.errors import SettingsError
from corte_student.pseudo_labels.base import Answers, Plain, PseudoLabeller, PseudoLabels, masked
from corte_student.pseudo_labels.baselines import ClassMean, Dine, Distil, Naive, RandomMask, Threshold
from corte_student.pseudo_labels.relative import Corte, Refinement, Selection, Soft

__all__ = [
    "METHODS",
    "Answers",
    "Plain",
    "PseudoLabeller",
    "PseudoLabels",
    "Refinement",
    "Selection",
    "build_labeller",
    "masked",
]

METHODS = ("corte", "naive", "threshold", "class-mean", "random", "soft", "distil", "dine")


def build_labeller(
    method: str,
    classes: int,
    *,
    selection: Selection,
    refinement: Refinement,
    least: float,
    seed: int,
) -> PseudoLabeller:
    """The labeller called `method`, or the one that the factory `package.module:factory` makes of `classes`.

    Raises SettingsError for a name that is neither.
    """
    built: dict[str, Callable[[], PseudoLabeller]] = {
        "corte": lambda: Corte(classes, selection, refinement),
        "naive": Naive,
        "threshold": lambda: Threshold(least),
        "class-mean": ClassMean,
        "random": lambda: RandomMask(seed),
        "soft": Soft,
        "distil": Distil,
        "dine": lambda: Dine(classes),
    }
    if method in built:
        return built[method]()
    if ":" in method:
        return _from_outside(method, classes)
    raise SettingsError(f"unknown method {method!r}: choose {', '.join(METHODS)}, or package.module:factory")


def _from_outside(path: str, classes: int) -> PseudoLabeller:
    module, _, name = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise SettingsError(
            f"the method {path!r} cannot be imported ({exc}): name it package.module:factory, "
            "with the package on PYTHONPATH or installed"
        ) from exc
    labeller = factory(classes)
    missing = [part for part in _PARTS if not hasattr(labeller, part)]
    if missing:
        raise SettingsError(f"the method {path!r} lacks {', '.join(missing)}: derive it from Plain")
    return cast(PseudoLabeller, labeller)


_PARTS = ("needs", "surrogate", "tests", "wants_scores", "wants_ema", "__call__", "state", "restore")
