"""Everything that stands up but cars: buildings, trees, people, poles, signs and void things."""

from __future__ import annotations

import math

import cv2
import numpy as np

from street_scenes.assets import Palette, SignDesign, hsv, scaled
from street_scenes.domains import BUILDING, PEDESTRIAN, POLE, SIGN, VEGETATION, VOID, Colour
from street_scenes.ground import Sun
from street_scenes.layout import Building, Layout, Point, Road, Thing
from street_scenes.paint import Canvas, Pixels

CLOTHES = Palette((0.0, 1.0), (0.05, 0.85), (0.10, 0.95), (0.1, 0.2))
SKIN = Palette((0.03, 0.10), (0.25, 0.6), (0.3, 0.95), (0.1, 0.2))
BARK = Palette((0.03, 0.14), (0.1, 0.5), (0.15, 0.5), (0.2, 0.3))
LITTER = Palette((0.0, 1.0), (0.1, 0.8), (0.1, 0.9), (0.1, 0.2))


def paint_building(canvas: Canvas, block: Building, road: Road, sun: Sun) -> None:
    """Draw the wall that faces the viewer across the street, then the facade along it."""
    rng = canvas.rng
    near, far = (road.edge(block.side, z, block.setback) for z in (block.start, block.end))
    lit = 1.0 if block.side * sun.across > 0 else 0.5 + 0.5 * sun.shade
    out = near + block.side * 9.0
    end_wall: list[Point] = [
        (near, block.height, block.start),
        (out, block.height, block.start),
        (out, 0.0, block.start),
        (near, 0.0, block.start),
    ]
    wall = canvas.material(BUILDING)
    canvas.textured(
        canvas.camera.project(end_wall), wall, BUILDING, block.start, (0.8 + 0.2 * sun.shade) * 0.95
    )
    face: list[Point] = [
        (near, block.height, block.start),
        (far, block.height, block.end),
        (far, 0.0, block.end),
        (near, 0.0, block.start),
    ]
    middle = (block.start + block.end) / 2
    canvas.warp(canvas.camera.project(face), rng.choice(canvas.pool.facades), BUILDING, middle, lit)
    if rng.random() < 0.3:
        _hanging_sign(canvas, block, road)


def _hanging_sign(canvas: Canvas, block: Building, road: Road) -> None:
    """Hang a shop sign from a facade, square to the street."""
    z = max(5.0, (block.start + block.end) / 2)
    x = road.edge(block.side, z, block.setback) - block.side * 0.5
    if z > 40:
        return
    top, pixels = canvas.rng.uniform(2.6, 4.2), canvas.camera.focal / z
    radius = max(0.45, 0.016 * canvas.size[1] / pixels)
    _draw_sign(canvas, canvas.rng.choice(canvas.pool.signs), x, top, z, radius)


def paint_thing(canvas: Canvas, thing: Thing, sky: Colour) -> None:
    """Draw one thing of any kind but a car."""
    match thing.kind:
        case "pedestrian":
            _pedestrian(canvas, thing)
        case "tree":
            _tree(canvas, thing)
        case "hedge":
            _hedge(canvas, thing)
        case "pole" | "sign":
            _post(canvas, thing, sky)
        case _:
            _litter(canvas, thing)


def _quad(
    canvas: Canvas, x: float, low: float, high: float, z: float, wide: float, lean: float = 0.0
) -> Pixels:
    """Project an upright quadrilateral whose top is shifted by `lean` metres."""
    return canvas.camera.project(
        [
            (x - wide + lean, high, z),
            (x + wide + lean, high, z),
            (x + wide, low, z),
            (x - wide, low, z),
        ]
    )


def _pedestrian(canvas: Canvas, thing: Thing) -> None:
    rng, x, z, tall = canvas.rng, thing.x, thing.z, thing.size
    top, trousers, skin = (hsv(rng, palette) for palette in (CLOTHES, CLOTHES, SKIN))
    hair, stride, build = scaled(hsv(rng, BARK), 0.6), rng.uniform(0.0, 0.22), rng.uniform(0.17, 0.27)
    hips, neck = 0.50 * tall, 0.84 * tall

    def part(quad: Pixels, colour: Colour) -> None:
        canvas.flat(quad, colour, PEDESTRIAN, z)

    for foot, shade in ((-stride, 0.8), (stride, 1.0)):
        part(_quad(canvas, x + foot, 0.0, hips, z, 0.09, -foot * 0.8), scaled(trousers, shade))
        part(_quad(canvas, x + foot, 0.0, 0.07, z, 0.11), (30, 28, 28))
    if rng.random() < 0.25:
        part(_quad(canvas, x, 0.25 * tall, hips, z, build * 1.1), trousers)
    part(_quad(canvas, x, hips * 0.94, neck, z, build * 0.9), top)
    for side in (-1, 1):
        arm = _quad(
            canvas, x + side * (build + rng.uniform(0, 0.12)), hips, neck * 0.97, z, 0.06, -side * 0.05
        )
        part(arm, scaled(top, 0.85 if side < 0 else 1.1))
    canvas.detail(_quad(canvas, x + build * 0.45, hips, neck, z, build * 0.35), scaled(top, 1.15))
    if rng.random() < 0.3:
        part(
            _quad(canvas, x + rng.choice((-1, 1)) * (build + 0.1), 0.35 * tall, 0.6 * tall, z, 0.13),
            hsv(rng, CLOTHES),
        )
    angles = [math.pi * step / 6 for step in range(12)]
    head: list[Point] = [(x + 0.115 * math.cos(a), 0.92 * tall + 0.15 * math.sin(a), z) for a in angles]
    part(canvas.camera.project(head), skin)
    canvas.detail(canvas.camera.project(head[:7]), hair)


def _tree(canvas: Canvas, thing: Thing) -> None:
    """Draw a trunk and a crown of overlapping leafy discs; both are vegetation."""
    rng, x, z, tall = canvas.rng, thing.x, thing.z, thing.size
    bark = hsv(rng, BARK)
    trunk = rng.uniform(0.12, 0.22)
    canvas.flat(_quad(canvas, x, 0.0, tall * 0.6, z, trunk), bark, VEGETATION, z)
    canvas.detail(_quad(canvas, x - trunk * 0.5, 0.0, tall * 0.6, z, trunk * 0.5), scaled(bark, 1.4))
    wide = tall * rng.uniform(0.22, 0.36)
    discs = []
    for _ in range(rng.randint(6, 10)):
        angle, reach = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 0.8) * wide
        centre = (x + reach * math.cos(angle), tall * 0.72 + reach * math.sin(angle), z)
        discs.append(
            (canvas.camera.project([centre])[0], canvas.camera.focal / z * wide * rng.uniform(0.4, 0.65))
        )
    _leaves(canvas, discs, z)


def _leaves(canvas: Canvas, discs: list[tuple[Pixels, float]], z: float) -> None:
    """Paint a union of discs (centre pixel, radius in pixels) with one leafy material."""
    corners = np.concatenate([np.stack([centre - radius, centre + radius]) for centre, radius in discs])
    box = canvas.box(corners.astype(np.int32))
    if box is None:
        return
    left, top, right, bottom = box
    mask = np.zeros((bottom - top, right - left), np.uint8)
    for centre, radius in discs:
        cv2.circle(mask, (int(centre[0]) - left, int(centre[1]) - top), max(2, int(radius)), 255, -1)
    gain = canvas.rng.uniform(0.8, 1.2)
    canvas.stamp(mask, left, top, canvas.material(VEGETATION), VEGETATION, z, gain)


def _hedge(canvas: Canvas, thing: Thing) -> None:
    """Draw a hedge along the street with an uneven top."""
    rng, x, tall, length = canvas.rng, thing.x, thing.size, thing.yaw
    outline: list[Point] = [(x, 0.0, thing.z)]
    outline += [(x, tall * rng.uniform(0.85, 1.1), thing.z + length * step / 6) for step in range(7)]
    outline.append((x, 0.0, thing.z + length))
    canvas.textured(canvas.camera.project(outline), canvas.material(VEGETATION), VEGETATION, thing.z, 0.9)


def _post(canvas: Canvas, thing: Thing, sky: Colour) -> None:
    """Draw a lamp post with an arm, or a post with a sign on top; 2 to 4 pixels of the final image wide."""
    rng, camera, z = canvas.rng, canvas.camera, thing.z
    unit = canvas.size[1] / 512  # two canvas pixels make one final pixel at 128x256
    width = max(4.0, min(8.0, rng.uniform(0.14, 0.24) * camera.focal / z / unit)) * unit
    half = (width - 1) / 2 * z / camera.focal
    material = canvas.material(POLE)
    dark, light = material.dark, scaled(material.light, 1.15)
    canvas.flat(_quad(canvas, thing.x, 0.0, thing.size, z, half), dark, POLE, z)
    canvas.detail(_quad(canvas, thing.x - half * 0.5, 0.0, thing.size, z, half * 0.5), light)
    if thing.kind == "sign":
        radius = max(0.36, 3.8 * 2 * unit * z / camera.focal)
        for step in range(1 + (rng.random() < 0.25)):
            height = thing.size - radius * (0.6 + 2.0 * step)
            _draw_sign(canvas, rng.choice(canvas.pool.signs), thing.x, height, z, radius)
    elif thing.yaw != 0.0:
        thick = 2.2 * unit * z / camera.focal
        tip = thing.x + thing.yaw
        arm: list[Point] = [(thing.x, thing.size, z), (tip, thing.size + 0.2, z)]
        arm += [(tip, thing.size + 0.2 - 2 * thick, z), (thing.x, thing.size - 2 * thick, z)]
        canvas.flat(camera.project(arm), dark, POLE, z)
        canvas.detail(_quad(canvas, tip, thing.size - thick, thing.size + 0.2, z, thick), sky)


def _draw_sign(canvas: Canvas, design: SignDesign, x: float, y: float, z: float, radius: float) -> None:
    """Draw a sign's rim, face and glyph with its centre at (x, y, z); radius in metres."""

    def disc(scale: float) -> Pixels:
        return canvas.camera.project(
            [(x + a * radius * scale, y + b * radius * scale, z) for a, b in design.outline]
        )

    canvas.flat(disc(1.0), design.rim, SIGN, z)
    canvas.detail(disc(0.72), design.face)
    for left, low, wide, tall in design.bars:
        middle = x + (left + wide / 2) * radius
        quad = _quad(canvas, middle, y + low * radius, y + (low + tall) * radius, z, wide * radius / 2)
        canvas.detail(quad, design.glyph)


def _litter(canvas: Canvas, thing: Thing) -> None:
    """Draw a rubbish bin, an animal or debris: void, because no class names it."""
    rng, x, z, tall = canvas.rng, thing.x, thing.z, thing.size
    colour = hsv(rng, LITTER)
    if thing.kind == "bin":
        canvas.flat(_quad(canvas, x, 0.0, tall, z, 0.28), colour, VOID, z)
        canvas.flat(_quad(canvas, x, tall * 0.9, tall * 1.05, z, 0.32), scaled(colour, 0.6), VOID, z)
    elif thing.kind == "animal":
        for leg in (-0.3, -0.2, 0.2, 0.3):
            canvas.flat(_quad(canvas, x + leg, 0.0, 0.35, z, 0.03), scaled(colour, 0.7), VOID, z)
        canvas.flat(_quad(canvas, x, 0.28, 0.58, z, 0.38), colour, VOID, z)
        canvas.flat(_quad(canvas, x + 0.42, 0.5, 0.75, z, 0.12), scaled(colour, 1.1), VOID, z)
    else:
        pieces: list[Point] = []
        for step in range(7):
            angle, reach = math.pi * step / 3.5, rng.uniform(0.3, 0.9) * tall
            pieces.append((x + reach * math.cos(angle), 0.02, z + reach * math.sin(angle)))
        canvas.flat(canvas.camera.project(pieces), colour, VOID, z)


def paint_bonnet(canvas: Canvas, layout: Layout) -> None:
    """Draw the viewer's own bonnet along the bottom edge: void."""
    if not layout.bonnet:
        return
    height, width = canvas.size
    rise, colour = canvas.rng.uniform(0.06, 0.13), hsv(canvas.rng, LITTER)
    centre, axes = (width // 2, int(height * 1.02)), (int(width * 0.6), int(height * rise))
    outline = np.array(cv2.ellipse2Poly(centre, axes, 0, 180, 360, 8), np.int32)
    canvas.flat(outline, colour, VOID, 1.0)
    canvas.detail(outline - np.array([0, -int(height * 0.03)], np.int32), scaled(colour, 1.25))
