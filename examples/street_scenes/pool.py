"""Asset pools: what the scenes of one split may draw from, as a pure function of (split, texture factor)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from street_scenes.assets import (
    CarShape,
    Material,
    SignDesign,
    draw_car,
    draw_material,
    draw_sign,
    palettes,
)
from street_scenes.domains import BUILDING, SIGN, Image, Split
from street_scenes.facades import facade

MATERIALS_PER_CLASS = 24


@dataclass(frozen=True, slots=True)
class Pool:
    """Everything that scenes of one split and texture setting may draw from."""

    materials: tuple[tuple[Material, ...], ...]
    facades: tuple[Image, ...]
    cars: tuple[CarShape, ...]
    signs: tuple[SignDesign, ...]


@lru_cache(maxsize=4)
def pool(split: Split, texture: bool) -> Pool:
    """Build the pool of a split; cached, since it takes about a second."""
    rng = random.Random(f"pool|{split}|{texture}")
    chosen = palettes(texture)
    materials = tuple(
        tuple(draw_material(rng, label, chosen[label], texture) for _ in range(MATERIALS_PER_CLASS))
        for label in range(len(chosen))
    )
    facades = tuple(facade(rng, rng.choice(materials[BUILDING]), texture) for _ in range(40))
    shapes = random.Random(
        f"shapes|{split}"
    )  # apart, so that the texture factor leaves every outline as it is
    cars = tuple(draw_car(shapes) for _ in range(14))
    signs = tuple(draw_sign(shapes, chosen[SIGN]) for _ in range(16))
    return Pool(materials, facades, cars, signs)
