"""Scene geometry: camera, road, buildings and things, in metres, before a single pixel is drawn.

Axes: x to the right, y up from the ground, z forward from the camera. A road's centre runs along
x = bend * z + curve * z * z. Every group of draws has its own generator, so no factor disturbs another.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from street_scenes.domains import Domain

NEAR = 1.0
FAR = 110.0

Point: TypeAlias = tuple[float, float, float]
Kind: TypeAlias = Literal["car", "pedestrian", "tree", "hedge", "pole", "sign", "bin", "animal", "debris"]


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole in pixels of the canvas it draws on; `horizon` counts from the centre row."""

    focal: float
    height: float
    horizon: float
    roll: float
    centre: tuple[float, float]
    shift: float

    def project(self, points: Sequence[Point]) -> NDArray[np.int32]:
        """Project points in metres to pixels int32[N,2]; points behind the near plane move onto it."""
        cosine, sine = math.cos(self.roll), math.sin(self.roll)
        pixels = []
        for x, y, z in points:
            scale = self.focal / (z if z > NEAR else NEAR)
            across, down = (x - self.shift) * scale, (self.height - y) * scale + self.horizon
            u = self.centre[0] + across * cosine - down * sine
            v = self.centre[1] + across * sine + down * cosine
            pixels.append((round(max(-9000.0, min(9000.0, u))), round(max(-9000.0, min(9000.0, v)))))
        return np.array(pixels, np.int32)

    def ground_to_pixels(self) -> NDArray[np.float64]:
        """Return the homography float64[3,3] from (x, z, 1) on the ground to the canvas."""
        cosine, sine = math.cos(self.roll), math.sin(self.roll)
        across = np.array([self.focal, 0.0, -self.focal * self.shift])
        down = np.array([0.0, self.horizon, self.focal * self.height])
        depth = np.array([0.0, 1.0, 0.0])
        u = self.centre[0] * depth + across * cosine - down * sine
        v = self.centre[1] * depth + across * sine + down * cosine
        return np.stack([u, v, depth])


@dataclass(frozen=True, slots=True)
class Road:
    """Cross-section and course of the street, in metres; pairs are (left, right)."""

    half_width: float
    walk: tuple[float, float]
    verge: tuple[float, float]
    bend: float
    curve: float

    def centre(self, z: float) -> float:
        """Return x of the centre line at depth z."""
        return self.bend * z + self.curve * z * z

    def edge(self, side: int, z: float, beyond: float = 0.0) -> float:
        """Return x at `beyond` metres outside the carriageway on a side (-1 left, 1 right)."""
        return self.centre(z) + side * (self.half_width + beyond)


@dataclass(frozen=True, slots=True)
class Building:
    """One block along a side of the street."""

    side: int
    start: float
    end: float
    height: float
    setback: float


@dataclass(frozen=True, slots=True)
class Thing:
    """One object that stands on the ground at (x, z)."""

    kind: Kind
    x: float
    z: float
    size: float
    yaw: float


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole scene."""

    camera: Camera
    road: Road
    buildings: tuple[Building, ...]
    things: tuple[Thing, ...]
    closed: bool
    bonnet: bool


@dataclass(frozen=True, slots=True)
class Rates:
    """Mean counts of things per scene, and the share of building plots that stay empty."""

    car: float
    pedestrian: float
    tree: float
    hedge: float
    pole: float
    sign: float
    litter: float
    gap: float


SOURCE_RATES = Rates(car=4.5, pedestrian=4.5, tree=4.0, hedge=2.0, pole=5.0, sign=4.0, litter=1.0, gap=0.25)
TARGET_RATES = Rates(car=3.0, pedestrian=7.0, tree=2.6, hedge=1.0, pole=6.0, sign=6.0, litter=2.0, gap=0.16)


def sample(domain: Domain, key: str, size: tuple[int, int]) -> Layout:
    """Sample the scene of a key for a canvas of (height, width) pixels."""
    road_rng, block_rng, thing_rng = (random.Random(f"{part}|{key}") for part in ("road", "block", "thing"))
    rates = TARGET_RATES if domain.frequency else SOURCE_RATES
    road = _road(road_rng, domain.frequency)
    camera = _camera(random.Random(f"camera|{key}"), domain.camera, road, size)
    return Layout(
        camera=camera,
        road=road,
        buildings=tuple(_buildings(block_rng, road, rates.gap)),
        things=tuple(_things(thing_rng, road, rates)),
        closed=road_rng.random() < 0.5,
        bonnet=road_rng.random() < (0.30 if domain.frequency else 0.15),
    )


def _camera(rng: random.Random, shifted: bool, road: Road, size: tuple[int, int]) -> Camera:
    """The camera factor raises the camera, zooms, tilts and rolls it; otherwise a passenger car's view."""
    height, width = size
    lens, pitch, roll, tall = rng.random(), rng.uniform(-1, 1), rng.gauss(0, 1), rng.random()
    if shifted:
        focal, roll_angle = 0.52 + 0.36 * lens, math.radians(3.0) * roll
        horizon, tallness = -0.03 + 0.12 * pitch, 1.4 + 1.0 * tall
    else:
        focal, roll_angle = 0.60 + 0.14 * lens, math.radians(1.0) * roll
        horizon, tallness = -0.04 + 0.09 * pitch, 1.3 + 0.5 * tall
    return Camera(
        focal=focal * width,
        height=tallness,
        horizon=horizon * height,
        roll=roll_angle,
        centre=(width * (0.5 + rng.uniform(-0.12, 0.12)), height * 0.5),
        shift=rng.uniform(-0.5, 0.8) * road.half_width,
    )


def _road(rng: random.Random, shifted: bool) -> Road:
    narrow = 0.8 if shifted else 1.0
    return Road(
        half_width=rng.uniform(3.0, 5.5) * narrow,
        walk=(rng.uniform(1.5, 4.0) / narrow, rng.uniform(1.5, 4.0) / narrow),
        verge=(rng.choice((0.0, 0.0, 2.5)), rng.choice((0.0, 0.0, 3.0))),
        bend=rng.uniform(-0.06, 0.06),
        curve=rng.choice((-1, 1)) * rng.uniform(0.0, 0.0045),
    )


def _buildings(rng: random.Random, road: Road, gap: float) -> list[Building]:
    blocks = []
    for side in (-1, 1):
        z = rng.uniform(1.5, 6.0)
        setback = road.walk[side > 0] + road.verge[side > 0]
        while z < FAR:
            length = rng.uniform(6.0, 16.0)
            height, empty, back = rng.uniform(4.0, 17.0), rng.random(), rng.choice((0.0, 0.0, 1.5))
            if empty >= gap:
                blocks.append(Building(side, z, z + length, height, setback + back))
            z += length + rng.choice((0.0, 0.0, 1.5))
    return sorted(blocks, key=lambda block: -block.start)


def _count(rng: random.Random, mean: float) -> int:
    """Draw a count whose mean is `mean`, between half and one and a half of it."""
    return int(mean * rng.uniform(0.5, 1.5) + rng.random())


def _depth(rng: random.Random, near: float, far: float) -> float:
    """Draw a depth that is uniform in the logarithm, so that near and far sizes are equally common."""
    return math.exp(rng.uniform(math.log(near), math.log(far)))


def _things(rng: random.Random, road: Road, rates: Rates) -> list[Thing]:
    groups = [random.Random(rng.getrandbits(60)) for _ in range(6)]
    things = [_car(groups[0], road) for _ in range(_count(groups[0], rates.car))]
    things += [_walker(groups[1], road) for _ in range(_count(groups[1], rates.pedestrian))]
    things += [_plant(groups[2], road, "tree") for _ in range(_count(groups[2], rates.tree))]
    things += [_plant(groups[3], road, "hedge") for _ in range(_count(groups[3], rates.hedge))]
    things += [_post(groups[4], road, "pole") for _ in range(_count(groups[4], rates.pole))]
    things += [_post(groups[4], road, "sign") for _ in range(_count(groups[4], rates.sign))]
    things += [_litter(groups[5], road) for _ in range(_count(groups[5], rates.litter))]
    return sorted(things, key=lambda thing: -thing.z)


def _car(rng: random.Random, road: Road) -> Thing:
    """Parked along a kerb, driving in a lane, or crossing."""
    z, where, side = _depth(rng, 6.0, 40.0), rng.random(), rng.choice((-1, 1))
    along = math.atan(road.bend + 2 * road.curve * z)
    if where < 0.6:
        return Thing(
            "car", road.edge(side, z, -1.1), z, 1.0, along + rng.choice((0.0, math.pi)) + rng.gauss(0, 0.04)
        )
    lane = road.centre(z) + side * road.half_width * 0.45
    if where < 0.85:
        return Thing("car", lane, z, 1.0, along + (0.0 if side > 0 else math.pi) + rng.gauss(0, 0.06))
    return Thing("car", lane, z, 1.0, along + side * math.pi / 2 + rng.gauss(0, 0.4))


def _walker(rng: random.Random, road: Road) -> Thing:
    z, side = _depth(rng, 4.5, 17.0), rng.choice((-1, 1))
    beyond = (
        rng.uniform(0.2, road.walk[side > 0]) if rng.random() < 0.75 else rng.uniform(-road.half_width, 0)
    )
    return Thing("pedestrian", road.edge(side, z, beyond), z, rng.uniform(1.5, 1.95), rng.uniform(-1, 1))


def _plant(rng: random.Random, road: Road, kind: Kind) -> Thing:
    z, side = _depth(rng, 6.0, 60.0), rng.choice((-1, 1))
    walk, verge = road.walk[side > 0], road.verge[side > 0]
    beyond = walk + rng.uniform(0.2, 0.8) * verge + 0.3 if verge > 0 or kind == "hedge" else walk * 0.8
    size = rng.uniform(3.5, 9.0) if kind == "tree" else rng.uniform(0.8, 2.0)
    return Thing(kind, road.edge(side, z, beyond), z, size, rng.uniform(3.0, 9.0))


def _post(rng: random.Random, road: Road, kind: Kind) -> Thing:
    z, side = _depth(rng, 5.5, 22.0), rng.choice((-1, 1))
    size = rng.uniform(4.0, 8.0) if kind == "pole" else rng.uniform(2.3, 3.6)
    return Thing(
        kind, road.edge(side, z, rng.uniform(0.3, 1.0)), z, size, -side * rng.choice((0.0, 1.0, 1.6))
    )


def _litter(rng: random.Random, road: Road) -> Thing:
    kinds: tuple[Kind, ...] = ("bin", "animal", "debris")
    kind, z, side = rng.choice(kinds), _depth(rng, 4.5, 18.0), rng.choice((-1, 1))
    beyond = rng.uniform(-road.half_width, 0.0) if kind == "debris" else rng.uniform(0.2, 1.5)
    return Thing(kind, road.edge(side, z, beyond), z, rng.uniform(0.5, 1.1), rng.uniform(-1, 1))
