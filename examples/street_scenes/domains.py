"""What a domain is: six switchable factors, three splits, nine classes and a void label.

A factor changes only what its name says, and every other draw of a scene stays the same, so that the effect
of one factor can be measured on paired images.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Split: TypeAlias = Literal["train", "dev", "report"]
Colour: TypeAlias = tuple[int, int, int]
Image: TypeAlias = NDArray[np.uint8]
"""uint8[H,W,3], RGB; masks, labels and grey tiles are uint8[H,W]."""

SPLITS: Final[tuple[Split, ...]] = ("train", "dev", "report")
CLASSES: Final = ("road", "sidewalk", "building", "vegetation", "sky", "car", "pedestrian", "pole", "sign")
PALETTE: Final[tuple[Colour, ...]] = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (107, 142, 35),
    (70, 130, 180),
    (0, 0, 142),
    (220, 20, 60),
    (153, 153, 153),
    (220, 220, 0),
)
ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, CAR, PEDESTRIAN, POLE, SIGN = range(9)
VOID: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """Which factors of the shift are on; all off is the source, all on is the target."""

    texture: bool = False
    light: bool = False
    weather: bool = False
    sensor: bool = False
    camera: bool = False
    frequency: bool = False

    def only(self, factor: str) -> Domain:
        """Return a domain in which `factor` alone is on."""
        if factor not in FACTORS:
            raise ValueError(f"unknown factor {factor!r}; choose one of {', '.join(FACTORS)}")
        return replace(SOURCE, **{factor: True})


FACTORS: Final = tuple(field.name for field in fields(Domain))
SOURCE: Final = Domain()
TARGET: Final = Domain(texture=True, light=True, weather=True, sensor=True, camera=True, frequency=True)
DOMAINS: Final = {"source": SOURCE, "target": TARGET}
