"""Sky, skyline, carriageway, pavements, markings, shadows and puddles: everything that does not stand up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from street_scenes.assets import Material, scaled
from street_scenes.domains import BUILDING, ROAD, SIDEWALK, SKY, VEGETATION
from street_scenes.layout import FAR, NEAR, Layout, Point, Road
from street_scenes.paint import Canvas, Pixels, depth_step

STEPS = tuple(NEAR * (FAR / NEAR) ** (step / 13) for step in range(14))
TEXELS_PER_METRE = 34.0


@dataclass(frozen=True, slots=True)
class Sun:
    """Ground displacement of a shadow per metre of height, and the gain inside shadows (1 means none)."""

    across: float
    along: float
    shade: float


def paint_sky(canvas: Canvas) -> None:
    """Fill the canvas with clouds that brighten towards the horizon."""
    height, width = canvas.size
    canvas.stamp(np.full((height, width), 255, np.uint8), 0, 0, canvas.material(SKY), SKY, FAR * 2, 1.0)
    canvas.meta[..., 1] = 255
    ramp = np.linspace(0.0, canvas.rng.uniform(10, 70), height // 2, dtype=np.float32)[:, None, None]
    canvas.image[: height // 2] = np.clip(canvas.image[: height // 2] + ramp, 0, 255).astype(np.uint8)


def paint_skyline(canvas: Canvas, layout: Layout) -> None:
    """Put distant houses and trees on the horizon; a closed street ends in them, an open one shows sky."""
    rng, centre = canvas.rng, layout.road.centre(FAR)
    x = -160.0 + centre
    while x < 160.0 + centre:
        wide, tall = rng.uniform(12, 32), rng.uniform(5, 26)
        open_end = not layout.closed and abs(x + wide / 2 - centre) < 14
        if not open_end and rng.random() < 0.85:
            if rng.random() < 0.5:
                quad = [(x, tall, FAR), (x + wide, tall, FAR), (x + wide, 0.0, FAR), (x, 0.0, FAR)]
                facade = rng.choice(canvas.pool.facades)
                canvas.warp(canvas.camera.project(quad), facade, BUILDING, FAR, rng.uniform(0.8, 1.1))
            else:
                crown: list[Point] = [(x, 0.0, FAR)]
                crown += [(x + wide * step / 6, tall * rng.uniform(0.5, 0.8), FAR) for step in range(7)]
                crown.append((x + wide, 0.0, FAR))
                canvas.textured(canvas.camera.project(crown), canvas.material(VEGETATION), VEGETATION, FAR)
        x += wide


def paint_ground(canvas: Canvas, road: Road) -> None:
    """Lay grass or paving, pavements, kerbs and the carriageway, from the outside in."""
    rng = canvas.rng
    paving, asphalt = canvas.material(SIDEWALK), canvas.material(ROAD)
    for side in (-1, 1):
        walk, verge = road.walk[side > 0], road.verge[side > 0]
        plain = _strip(canvas, road, side, -road.half_width, 400.0)
        grassy = verge > 0 or rng.random() < 0.6
        label = VEGETATION if grassy else SIDEWALK
        _lay(canvas, plain, canvas.material(VEGETATION) if grassy else paving, label)
        _lay(canvas, _strip(canvas, road, side, 0.0, walk), paving, SIDEWALK)
        kerb = scaled(paving.light, rng.uniform(0.75, 1.2))
        canvas.detail(_strip(canvas, road, side, 0.0, 0.18), kerb)
    left = [(road.edge(-1, z), 0.0, z) for z in STEPS]
    right = [(road.edge(1, z), 0.0, z) for z in reversed(STEPS)]
    _lay(canvas, canvas.camera.project(left + right), asphalt, ROAD)
    _markings(canvas, road)
    _depths(canvas)


def _strip(canvas: Canvas, road: Road, side: int, inner: float, outer: float) -> Pixels:
    """Return the outline of a ground strip between two distances from the carriageway's edge."""
    near = [(road.edge(side, z, inner), 0.0, z) for z in STEPS]
    far = [(road.edge(side, z, outer), 0.0, z) for z in reversed(STEPS)]
    return canvas.camera.project(near + far)


def _lay(canvas: Canvas, outline: Pixels, material: Material, label: int) -> None:
    """Paint a ground polygon with a material in perspective."""
    box = canvas.box(outline)
    if box is None:
        return
    left, top, right, bottom = box
    offset = canvas.rng.uniform(0, 300)
    texels = np.array([[TEXELS_PER_METRE, 0, offset], [0, TEXELS_PER_METRE, offset], [0, 0, 1.0]])
    to_tile = texels @ np.linalg.inv(canvas.camera.ground_to_pixels())
    to_tile = to_tile @ np.array([[1.0, 0, left], [0, 1.0, top], [0, 0, 1.0]])
    tile = cv2.warpPerspective(
        material.tile,
        to_tile,
        (right - left, bottom - top),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_WRAP,
    )
    mask = np.zeros(tile.shape, np.uint8)
    cv2.fillPoly(mask, [outline - np.array([left, top], np.int32)], 255)
    cv2.copyTo(cv2.applyColorMap(tile, material.lut()), mask, canvas.image[top:bottom, left:right])
    canvas.mark(outline, label, FAR)


def _depths(canvas: Canvas) -> None:
    """Give the rows below the horizon the depth of flat ground; roll is ignored, since haze is smooth."""
    camera = canvas.camera
    horizon = camera.centre[1] + camera.horizon
    for row in range(max(0, int(horizon) + 1), canvas.size[0]):
        canvas.meta[row, :, 1] = depth_step(min(FAR, camera.focal * camera.height / (row - horizon + 1e-3)))


def _markings(canvas: Canvas, road: Road) -> None:
    """Draw a dashed or solid centre line, edge lines and at times a zebra crossing."""
    rng = canvas.rng
    paint = rng.choice(((225, 225, 220), (205, 205, 195), (225, 185, 70)))
    if rng.random() < 0.75:
        dash = rng.choice((2.0, 3.0, 200.0))
        z = 2.0 + rng.random() * 3
        while z < 60:
            _patch(canvas, road.centre, z, min(z + dash, 80.0), -0.08, 0.08, paint)
            z += 2 * dash
    if rng.random() < 0.35:
        for side in (-1, 1):
            across = side * (road.half_width - 0.35)
            _patch(canvas, road.centre, 2.0, 80.0, across - 0.06, across + 0.06, paint)
    if rng.random() < 0.25:
        z, bars = rng.uniform(6, 16), int(road.half_width)
        for bar in range(-bars, bars):
            _patch(canvas, road.centre, z, z + 2.5, bar + 0.2, bar + 0.7, paint)


def _patch(
    canvas: Canvas,
    centre: Callable[[float], float],
    start: float,
    end: float,
    inner: float,
    outer: float,
    paint: tuple[int, int, int],
) -> None:
    """Draw one painted patch that follows the road between two depths."""
    depths = (
        [start + (end - start) * (step / 6) ** 2 for step in range(7)] if end - start > 5 else [start, end]
    )
    near: list[Point] = [(centre(z) + inner, 0.0, z) for z in depths]
    far: list[Point] = [(centre(z) + outer, 0.0, z) for z in reversed(depths)]
    canvas.detail(canvas.camera.project(near + far), paint)


def paint_shadows(canvas: Canvas, layout: Layout, sun: Sun) -> None:
    """Darken the ground where buildings and things block the sun; drawn before they are."""
    mask = np.zeros(canvas.size, np.uint8)

    def drop(x: float, z: float, tall: float) -> Point:
        return x + tall * sun.across, 0.0, max(NEAR, z + tall * sun.along)

    for block in layout.buildings:
        if block.side * sun.across > 0:
            continue
        start, end = (layout.road.edge(block.side, z, block.setback) for z in (block.start, block.end))
        corners = [(start, 0.0, block.start), (end, 0.0, block.end)]
        corners += [drop(end, block.end, block.height), drop(start, block.start, block.height)]
        cv2.fillPoly(mask, [canvas.camera.project(corners)], 255)
    for thing in layout.things:
        tall = {"car": 1.4, "hedge": 1.0, "debris": 0.1}.get(thing.kind, thing.size)
        half = {"car": 1.0, "tree": 1.6, "hedge": 1.2, "pedestrian": 0.25}.get(thing.kind, 0.06)
        corners = [(thing.x - half, 0.0, thing.z), (thing.x + half, 0.0, thing.z)]
        corners += [drop(thing.x + half, thing.z, tall), drop(thing.x - half, thing.z, tall)]
        cv2.fillPoly(mask, [canvas.camera.project(corners)], 255)
    dark = cv2.convertScaleAbs(canvas.image, alpha=sun.shade)
    mask[canvas.meta[..., 0] >= BUILDING] = 0
    cv2.copyTo(dark, mask, canvas.image)


def paint_puddles(canvas: Canvas, layout: Layout, count: int, rng: random.Random) -> None:
    """Mirror what stands beyond into flat ellipses on the road; the label stays road."""
    camera, height = canvas.camera, canvas.size[0]
    for _ in range(count):
        z, wide = rng.uniform(4, 14), rng.uniform(0.6, 1.8)
        middle = layout.road.centre(z) + rng.uniform(-0.7, 0.7) * layout.road.half_width
        angles = [math.pi * step / 8 for step in range(16)]
        rim: list[Point] = [(middle + wide * math.cos(a), 0.0, z + wide * 1.3 * math.sin(a)) for a in angles]
        outline = camera.project(rim)
        box = canvas.box(outline)
        if box is None:
            continue
        left, top, right, bottom = box
        mirror = np.clip(2 * top - np.arange(top, bottom) - int(0.1 * height), 0, height - 1)
        seen = canvas.image[mirror, left:right]
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(mask, [outline - np.array([left, top], np.int32)], 255)
        mask[canvas.meta[top:bottom, left:right, 0] != ROAD] = 0
        mixed = cv2.addWeighted(seen, 0.6, canvas.image[top:bottom, left:right], 0.3, 0)
        cv2.copyTo(mixed, mask, canvas.image[top:bottom, left:right])
