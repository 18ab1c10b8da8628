"""Render one labelled image as a pure function of (domain, split, seed, index, size)."""

from __future__ import annotations

import random

import cv2
import numpy as np

from street_scenes.cars import paint_car
from street_scenes.domains import Colour, Domain, Image, Split
from street_scenes.effects import draw_sun, light, sensor, weather
from street_scenes.ground import Sun, paint_ground, paint_puddles, paint_shadows, paint_sky, paint_skyline
from street_scenes.layout import Layout, sample
from street_scenes.objects import paint_bonnet, paint_building, paint_thing
from street_scenes.paint import Canvas
from street_scenes.pool import pool

SUPERSAMPLING = 2


def render(
    domain: Domain, split: Split, seed: int, index: int, size: tuple[int, int] = (128, 256)
) -> tuple[Image, Image]:
    """Return (image uint8[H,W,3] RGB, label uint8[H,W], 255 is void) of one scene.

    The image is averaged over 2x2 canvas pixels; the label is that of the lower right one of the four.
    """
    key = f"{split}|{seed}|{index}"
    height, width = size
    large = (height * SUPERSAMPLING, width * SUPERSAMPLING)
    layout = sample(domain, key, large)
    effects = random.Random(f"effects|{key}")
    sun = draw_sun(effects, domain.light, domain.weather)
    canvas = Canvas(large, layout.camera, pool(split, domain.texture), random.Random(f"paint|{key}"))
    _paint(canvas, layout, sun)
    puddles = effects.choice((0, 0, 0, 1)) + domain.weather
    paint_puddles(canvas, layout, puddles, effects)
    paint_bonnet(canvas, layout)
    image: Image = np.asarray(
        cv2.resize(canvas.image, (width, height), interpolation=cv2.INTER_AREA), np.uint8
    )
    label, depth = np.ascontiguousarray(canvas.meta[1::SUPERSAMPLING, 1::SUPERSAMPLING].transpose(2, 0, 1))
    image = weather(image, depth, random.Random(f"weather|{key}"), domain.weather)
    image = light(image, random.Random(f"light|{key}"), domain.light, sun.across)
    return sensor(image, random.Random(f"sensor|{key}"), domain.sensor), label


def _paint(canvas: Canvas, layout: Layout, sun: Sun) -> None:
    """Paint from the back to the front."""
    paint_sky(canvas)
    sky = _mean_colour(canvas.image[: canvas.size[0] // 4])
    paint_skyline(canvas, layout)
    paint_ground(canvas, layout.road)
    paint_shadows(canvas, layout, sun)
    for block in layout.buildings:
        paint_building(canvas, block, layout.road, sun)
    for thing in layout.things:
        if thing.kind == "car":
            paint_car(canvas, thing, sky)
        else:
            paint_thing(canvas, thing, sky)


def _mean_colour(patch: Image) -> Colour:
    red, green, blue = (round(float(value)) for value in patch.mean(axis=(0, 1)))
    return red, green, blue
