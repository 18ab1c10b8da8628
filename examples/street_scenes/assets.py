"""Assets: materials, car shapes and sign designs, each drawn from a generator that the caller passes in.

Patterns are grey tiles that a colour ramp turns into a material;
palettes overlap between classes on purpose, so that colour alone does not give the class away.
"""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from street_scenes.domains import (
    BUILDING,
    CAR,
    PEDESTRIAN,
    POLE,
    ROAD,
    SIDEWALK,
    SIGN,
    SKY,
    VEGETATION,
    Colour,
    Image,
)

TILE = (320, 640)

Span: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Palette:
    """Ranges in HSV (0..1; a hue may exceed 1 and wraps) and the ramp's half width in value."""

    hue: Span
    saturation: Span
    value: Span
    contrast: Span


@dataclass(frozen=True, slots=True)
class Material:
    """A grey tile uint8[320,640] and the two ends of its colour ramp."""

    tile: Image
    dark: Colour
    light: Colour

    def lut(self, gain: float = 1.0) -> Image:
        """Return the ramp as a user colour map uint8[256,1,3], multiplied by `gain`."""
        steps = np.linspace(0.0, 1.0, 256, dtype=np.float32)[:, None]
        ramp = np.asarray(self.dark, np.float32) * (1 - steps) + np.asarray(self.light, np.float32) * steps
        return np.clip(ramp * gain, 0, 255).astype(np.uint8)[:, None, :]


@dataclass(frozen=True, slots=True)
class CarShape:
    """Side profile as (along, up) pairs from rear bottom over the roof to front bottom; sizes in metres."""

    profile: tuple[tuple[float, float], ...]
    glass: tuple[tuple[float, float], ...]
    length: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class SignDesign:
    """Outline on the unit disc and the colours of rim, face and glyph bars."""

    outline: tuple[tuple[float, float], ...]
    rim: Colour
    face: Colour
    glyph: Colour
    bars: tuple[tuple[float, float, float, float], ...]


def hsv(rng: random.Random, palette: Palette) -> Colour:
    """Draw one colour from a palette."""
    red, green, blue = colorsys.hsv_to_rgb(
        rng.uniform(*palette.hue) % 1.0, rng.uniform(*palette.saturation), rng.uniform(*palette.value)
    )
    return round(red * 255), round(green * 255), round(blue * 255)


def scaled(colour: Colour, gain: float) -> Colour:
    """Multiply a colour by a gain and clip it."""
    red, green, blue = (max(0, min(255, round(channel * gain))) for channel in colour)
    return red, green, blue


def palettes(texture: bool) -> dict[int, Palette]:
    """Return one palette per class; the texture factor tints materials and narrows their differences."""
    source = {
        ROAD: Palette((0.0, 1.0), (0.0, 0.10), (0.26, 0.56), (0.10, 0.22)),
        SIDEWALK: Palette((0.0, 0.15), (0.02, 0.22), (0.40, 0.78), (0.10, 0.22)),
        BUILDING: Palette((0.0, 1.0), (0.02, 0.45), (0.30, 0.92), (0.06, 0.22)),
        VEGETATION: Palette((0.16, 0.42), (0.22, 0.70), (0.20, 0.60), (0.35, 0.60)),
        SKY: Palette((0.52, 0.66), (0.03, 0.50), (0.70, 1.0), (0.03, 0.14)),
        CAR: Palette((0.0, 1.0), (0.0, 0.85), (0.15, 0.95), (0.05, 0.15)),
        PEDESTRIAN: Palette((0.0, 1.0), (0.05, 0.85), (0.12, 0.95), (0.05, 0.15)),
        POLE: Palette((0.05, 0.60), (0.0, 0.30), (0.15, 0.75), (0.05, 0.20)),
        SIGN: Palette((0.0, 1.0), (0.55, 1.0), (0.45, 1.0), (0.05, 0.15)),
    }
    if not texture:
        return source
    return source | {
        ROAD: Palette((0.0, 0.14), (0.02, 0.18), (0.27, 0.58), (0.12, 0.25)),
        SIDEWALK: Palette((0.0, 1.0), (0.0, 0.18), (0.36, 0.72), (0.10, 0.24)),
        BUILDING: Palette((0.98, 1.50), (0.06, 0.50), (0.26, 0.85), (0.08, 0.23)),
        VEGETATION: Palette((0.11, 0.39), (0.22, 0.64), (0.22, 0.64), (0.32, 0.58)),
        SKY: Palette((0.50, 0.70), (0.02, 0.45), (0.69, 1.0), (0.03, 0.16)),
        POLE: Palette((0.02, 0.60), (0.0, 0.45), (0.12, 0.85), (0.05, 0.20)),
        SIGN: Palette((0.0, 1.0), (0.15, 0.60), (0.30, 0.85), (0.05, 0.15)),
    }


def _noise(rng: random.Random, sigma: float, size: tuple[int, int] = TILE) -> NDArray[np.float32]:
    """Return smooth noise float32 with zero mean and unit spread."""
    source = np.random.default_rng(rng.getrandbits(63))
    shrink = max(1, int(sigma / 2))
    small: NDArray[np.float32] = source.standard_normal(
        (size[0] // shrink + 2, size[1] // shrink + 2)
    ).astype(np.float32)
    smooth = cv2.GaussianBlur(small, (0, 0), max(0.4, sigma / shrink))
    field = cv2.resize(smooth, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray((field - field.mean()) / (field.std() + 1e-6))


def _grid(rng: random.Random, pitch: tuple[int, int], line: int, staggered: bool) -> NDArray[np.float32]:
    """Return a brick or slab grid float32: bricks of varying tone with dark joints."""
    height, width = TILE
    tone = np.random.default_rng(rng.getrandbits(63)).standard_normal(
        (height // pitch[0] + 2, width // pitch[1] + 3)
    )
    rows, columns = np.mgrid[0:height, 0:width]
    course = rows // pitch[0]
    shifted = columns + (course % 2) * (pitch[1] // 2 if staggered else 0)
    field = tone[course, shifted // pitch[1]].astype(np.float32) * 0.6
    joints = (rows % pitch[0] < line) | (shifted % pitch[1] < line)
    return np.asarray(np.where(joints, -2.0, field), np.float32)


def _tile(field: np.ndarray) -> Image:
    """Map unit-spread noise to a grey tile uint8 centred on 128."""
    return np.asarray(np.clip(128 + field * 48, 0, 255), np.uint8)


def _pattern(rng: random.Random, label: int, texture: bool) -> Image:
    """Draw the grey tile of one material of a class."""
    grain = _noise(rng, rng.uniform(0.5, 1.0))
    cloud = _noise(rng, rng.uniform(18, 60))
    if label == ROAD:
        if texture and rng.random() < 0.28:
            size = rng.randint(9, 13)
            return _tile(0.7 * _grid(rng, (size, size), 2, True) + 0.5 * grain)
        return _tile(0.9 * grain + 0.6 * cloud)
    if label == SIDEWALK:
        if texture and rng.random() < 0.18:
            return _tile(0.8 * grain + 0.5 * cloud + 0.3 * _grid(rng, (44, 44), 2, False))
        size = rng.randint(20, 34)
        return _tile(_grid(rng, (size, rng.choice((size, 2 * size))), 2, rng.random() < 0.5) + 0.3 * grain)
    if label == VEGETATION:
        coarse = _noise(rng, rng.uniform(1.6, 2.6) if not texture else rng.uniform(1.8, 3.0))
        return _tile(1.0 * coarse + 0.5 * grain + 0.5 * _noise(rng, 8))
    if label == SKY:
        return _tile(1.2 * cloud + 0.5 * _noise(rng, rng.uniform(10, 20)))
    if label == BUILDING and rng.random() < (0.55 if texture else 0.35):
        return _tile(0.8 * _grid(rng, (rng.randint(4, 7), rng.randint(9, 16)), 1, True) + 0.3 * grain)
    return _tile(0.5 * grain + 0.8 * cloud)


def draw_material(rng: random.Random, label: int, palette: Palette, texture: bool) -> Material:
    """Draw one material of a class."""
    base = hsv(rng, palette)
    spread = rng.uniform(*palette.contrast)
    return Material(_pattern(rng, label, texture), scaled(base, 1 - spread), scaled(base, 1 + spread))


def draw_car(rng: random.Random) -> CarShape:
    """Draw a hatchback, saloon, estate or van outline."""
    kind = rng.choice(("hatch", "saloon", "estate", "van"))
    belt, hood = rng.uniform(0.54, 0.62), rng.uniform(0.46, 0.56)
    front, rear = {
        "hatch": (0.22, -0.46),
        "saloon": (0.20, -0.28),
        "estate": (0.20, -0.47),
        "van": (0.38, -0.49),
    }[kind]
    roof_front, roof_rear = front - rng.uniform(0.12, 0.18), rear + rng.uniform(0.04, 0.14)
    profile = (
        (-0.5, 0.14),
        (-0.5, belt * 0.95),
        (rear, belt),
        (roof_rear, 1.0),
        (roof_front, 1.0),
        (front, belt),
        (0.48, hood if kind != "van" else belt * 0.9),
        (0.5, 0.14),
    )
    glass = (
        (rear + 0.05, belt + 0.02),
        (roof_rear + 0.03, 0.93),
        (roof_front - 0.02, 0.93),
        (front - 0.03, belt + 0.02),
    )
    tall = rng.uniform(1.8, 2.2) if kind == "van" else rng.uniform(1.40, 1.65)
    return CarShape(profile, glass, rng.uniform(3.8, 4.9), rng.uniform(1.65, 1.95), tall)


def draw_sign(rng: random.Random, palette: Palette) -> SignDesign:
    """Draw a sign: disc, triangle, square, diamond or octagon with a rim and a few bars."""
    corners, turn = rng.choice(((12, 0.0), (3, -0.25), (3, 0.25), (4, 0.125), (4, 0.0), (8, 0.0625)))
    angles = [2 * np.pi * (step / corners + turn) for step in range(corners)]
    outline = tuple((float(np.cos(angle)), float(np.sin(angle))) for angle in angles)
    white, strong = (235, 235, 230), hsv(rng, palette)
    face, rim = (white, strong) if rng.random() < 0.5 else (strong, white)
    glyph = rng.choice(((20, 20, 20), rim))
    bars = tuple(
        (rng.uniform(-0.4, 0.0), rng.uniform(-0.4, 0.1), rng.uniform(0.15, 0.5), rng.uniform(0.12, 0.35))
        for _ in range(rng.randint(1, 2))
    )
    return SignDesign(outline, rim, face, glyph, bars)
