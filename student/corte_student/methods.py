"""What each method needs of a teacher, known without loading torch; a test holds the labellers to it."""

from dataclasses import dataclass
from typing import Final, Protocol

from corte_protocol import Disclosure


class Needs(Protocol):
    """What decides the terms of a run."""

    @property
    def needs(self) -> Disclosure:
        """The least level."""
        ...

    @property
    def surrogate(self) -> bool:
        """Whether votes and purity may stand in where only labels are disclosed."""
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """The needs of a method of ours."""

    needs: Disclosure
    surrogate: bool = False


_SCORES: Final = Disclosure(1, 8)
NEEDS: Final[dict[str, Known]] = {
    "naive": Known(Disclosure(1, 0)),
    "threshold": Known(_SCORES),
    "soft": Known(_SCORES, surrogate=True),
    "corte": Known(_SCORES, surrogate=True),
    "class-mean": Known(_SCORES),
    "random": Known(_SCORES, surrogate=True),
    "distil": Known(_SCORES),
    "dine": Known(_SCORES),
}
