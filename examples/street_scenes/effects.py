"""What happens between the scene and the file: light, weather and sensor, on the final image uint8[H,W,3]."""

from __future__ import annotations

import random
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from street_scenes.domains import Image
from street_scenes.ground import Sun
from street_scenes.paint import DEPTH_STEPS_PER_METRE

NOISE_BANKS = 4


def draw_sun(rng: random.Random, low: bool, overcast: bool) -> Sun:
    """Draw the sun: high and mild by default, low with long dark shadows when the light factor is on."""
    across, along, depth = rng.uniform(0.15, 0.6) * rng.choice((-1, 1)), rng.uniform(-0.5, 0.5), rng.random()
    stretch, shade = (1.8, 0.50 + 0.2 * depth) if low else (1.0, 0.58 + 0.3 * depth)
    if overcast:
        shade = 0.5 + 0.5 * shade
    return Sun(across * stretch, along * stretch, shade)


def light(image: Image, rng: random.Random, low: bool, side: float) -> Image:
    """Apply exposure and colour cast; a low sun adds a strong cast and a glow from its side."""
    gains = [rng.uniform(0.9, 1.1) * (1 + rng.uniform(-0.04, 0.04)) for _ in range(3)]
    gamma, dusk, warmth, reach = rng.uniform(0.9, 1.1), rng.random(), rng.random(), rng.uniform(0.05, 0.30)
    if low:
        cast = (1.08, 0.95, 0.80) if warmth < 0.65 else (0.86, 0.93, 1.08)
        strength = 0.5 + 0.5 * dusk
        gains = [gain * (1 + strength * (factor - 1)) for gain, factor in zip(gains, cast, strict=True)]
        gamma *= 1.0 + 0.11 * dusk
    levels = np.linspace(0, 1, 256, dtype=np.float32)[:, None] ** gamma * np.asarray(gains, np.float32) * 255
    table = np.clip(levels, 0, 255).astype(np.uint8)[:, None, :]
    lit: Image = np.asarray(cv2.LUT(image, table.reshape(1, 256, 3)), np.uint8)
    if low:
        glow = _glow(image.shape[0], image.shape[1], side > 0)
        lit = np.asarray(cv2.add(lit, cv2.convertScaleAbs(glow, alpha=reach)), np.uint8)
    return lit


@lru_cache(maxsize=8)
def _glow(height: int, width: int, right: bool) -> Image:
    """Return a warm glow around a sun at the upper left or right."""
    rows, columns = np.mgrid[0:height, 0:width]
    centre = width * (0.85 if right else 0.15)
    distance = np.hypot((columns - centre) / width, (rows - height * 0.25) / height)
    strength = np.exp(-((distance / 0.33) ** 2))[..., None] * np.array([130.0, 100.0, 60.0])
    return np.asarray(strength, np.uint8)


def weather(image: Image, depth: Image, rng: random.Random, bad: bool) -> Image:
    """Blend in haze by depth (uint8[H,W] half metres); bad weather is hazy or rainy and pale."""
    thickness, grey, streaks, tone = rng.random(), rng.random(), rng.random(), rng.uniform(150, 215)
    density = 0.003 + 0.007 * thickness if bad else 0.001 + 0.002 * thickness
    steps = np.arange(256, dtype=np.float32) / DEPTH_STEPS_PER_METRE
    table = (255 * (1 - np.exp(-density * steps))).astype(np.uint8)
    haze = cv2.merge([cv2.LUT(depth, table)] * 3)
    tones = np.array([tone * 0.98, tone, tone * 1.03], np.float32)
    air = np.empty_like(image)
    air[:] = np.clip(tones, 0, 255)
    if bad:
        pale = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = np.asarray(cv2.addWeighted(image, 1 - 0.4 * grey, pale, 0.4 * grey, 0), np.uint8)
    near = cv2.multiply(image, cv2.bitwise_not(haze), scale=1 / 255)
    mixed: Image = np.asarray(cv2.add(near, cv2.multiply(air, haze, scale=1 / 255)), np.uint8)
    return _rain(mixed, rng) if bad and streaks < 0.5 else mixed


def _rain(image: Image, rng: random.Random) -> Image:
    """Draw slanted bright streaks."""
    height, width = image.shape[:2]
    layer = np.zeros((height, width), np.uint8)
    slant = rng.uniform(-0.3, 0.3)
    for _ in range(rng.randint(40, 110)):
        column, row, length = rng.randint(0, width), rng.randint(-8, height), rng.randint(5, 12)
        cv2.line(layer, (column, row), (column + round(slant * length), row + length), rng.randint(20, 55), 1)
    return np.asarray(cv2.add(image, cv2.merge([layer] * 3)), np.uint8)


def sensor(image: Image, rng: random.Random, poor: bool) -> Image:
    """Add blur, noise, vignetting and JPEG blocks; a good sensor only adds a little noise."""
    height, width = image.shape[:2]
    blur, sigma, quality = rng.uniform(0.4, 0.7), rng.uniform(3, 8), rng.randint(72, 92)
    bank, row, column = rng.randrange(NOISE_BANKS), rng.randint(0, 64), rng.randint(0, 64)
    if poor:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), blur), np.uint8)
        image = np.asarray(cv2.multiply(image, _vignette(height, width), scale=1 / 255), np.uint8)
    noise = _noise(height + 64, width + 64, bank)[row : row + height, column : column + width]
    strength = (2 + 0.4 * sigma if poor else 0.5 * sigma) / 32
    noisy = np.clip(image + noise * strength, 0, 255).astype(np.uint8)
    if not poor:
        return noisy
    _, packed = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    if decoded is None:
        raise RuntimeError("OpenCV could not decode the JPEG that it has just encoded")
    return np.asarray(decoded, np.uint8)


@lru_cache(maxsize=8)
def _vignette(height: int, width: int) -> Image:
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    fall = 255 * (1 - 0.10 * (rows**2 + columns**2))
    return np.repeat(np.clip(fall, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


@lru_cache(maxsize=8)
def _noise(height: int, width: int, bank: int) -> NDArray[np.float32]:
    """Return Gaussian noise float32[H,W,3] with spread 32."""
    return np.random.default_rng(bank).standard_normal((height, width, 3)).astype(np.float32) * np.float32(32)
