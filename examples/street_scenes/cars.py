"""Cars: a side profile extruded across the width, drawn face by face from far to near."""

from __future__ import annotations

import math

import numpy as np

from street_scenes.assets import CarShape, scaled
from street_scenes.domains import CAR, Colour
from street_scenes.layout import NEAR, Point, Thing
from street_scenes.paint import Canvas

WHEELS = (-0.31, 0.31)
WHEEL_RADIUS = 0.33


class CarFrame:
    """Maps a car's own (along, up, across) coordinates to the street."""

    def __init__(self, shape: CarShape, thing: Thing) -> None:
        """Place a shape at the thing's position and heading."""
        self.shape, self.thing = shape, thing
        self.ahead = (math.sin(thing.yaw), math.cos(thing.yaw))
        self.beside = (math.cos(thing.yaw), -math.sin(thing.yaw))

    def at(self, along: float, up: float, across: float) -> Point:
        """Return the point for fractions of length, height and width."""
        forward, sideways = along * self.shape.length, across * self.shape.width
        return (
            self.thing.x + forward * self.ahead[0] + sideways * self.beside[0],
            up * self.shape.height,
            self.thing.z + forward * self.ahead[1] + sideways * self.beside[1],
        )

    def near_side(self, viewer: float) -> float:
        """Return the sign of the flank that faces a viewer at (viewer, 0)."""
        facing = (viewer - self.thing.x) * self.beside[0] - self.thing.z * self.beside[1]
        return 0.5 if facing > 0 else -0.5


def paint_car(canvas: Canvas, thing: Thing, sky: Colour) -> None:
    """Draw one car with windows that reflect the sky, lights, wheels and the shadow underneath."""
    rng, shape = canvas.rng, canvas.rng.choice(canvas.pool.cars)
    frame = CarFrame(shape, thing)
    if min(frame.at(along, 0, across)[2] for along in (-0.5, 0.5) for across in (-0.5, 0.5)) < 2 * NEAR:
        return
    material = canvas.material(CAR)
    body = scaled(material.dark if rng.random() < 0.5 else material.light, rng.uniform(0.8, 1.2))
    mix, tint = rng.uniform(0.15, 0.6), rng.uniform(20, 70)
    red, green, blue = (round(mix * channel + (1 - mix) * tint) for channel in sky)
    glass = (red, green, blue)
    _contact_shadow(canvas, frame)
    _shell(canvas, frame, body, glass)
    _flank(canvas, frame, body, glass)


def _contact_shadow(canvas: Canvas, frame: CarFrame) -> None:
    corners = [
        frame.at(along, 0.0, across) for along, across in ((-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5))
    ]
    canvas.detail(canvas.camera.project(corners), (28, 28, 30))


def _shell(canvas: Canvas, frame: CarFrame, body: Colour, glass: Colour) -> None:
    """Draw bumper, screens, roof and bonnet as strips across the width."""
    profile, strips = frame.shape.profile, []
    for index in range(len(profile) - 1):
        (rear, low), (front, high) = profile[index], profile[index + 1]
        corners = [frame.at(rear, low, -0.5), frame.at(rear, low, 0.5), frame.at(front, high, 0.5)]
        corners.append(frame.at(front, high, -0.5))
        strips.append((sum(corner[2] for corner in corners), index, corners))
    for _, index, corners in sorted(strips, reverse=True):
        shade = {0: 0.85, 3: 1.2, 5: 1.15, 6: 0.9}.get(index, 1.0)
        canvas.flat(canvas.camera.project(corners), scaled(body, shade), CAR, frame.thing.z)
        if index in (2, 4):
            canvas.detail(canvas.camera.project(_inset(corners)), glass)
            canvas.detail(canvas.camera.project(_inset(corners)[:3]), scaled(glass, 1.3))
        if index in (0, 6):
            _lights(canvas, frame, 0.5 if index == 6 else -0.5)


def _inset(corners: list[Point]) -> list[Point]:
    """Shrink a quadrilateral towards its centre."""
    centre = np.mean(np.array(corners), axis=0)
    return [tuple(centre + 0.84 * (np.array(corner) - centre)) for corner in corners]


def _lights(canvas: Canvas, frame: CarFrame, end: float) -> None:
    """Draw tail or head lights and a number plate on an end of the car, and the tyres below."""
    colour = (245, 240, 215) if end > 0 else (190, 25, 25)
    for across in (-0.40, 0.40):
        _rectangle(canvas, frame, end, across, 0.13, (0.34, 0.46), colour)
        _rectangle(canvas, frame, end, across, 0.11, (0.0, 0.14), (22, 22, 24))
    _rectangle(canvas, frame, end, 0.0, 0.14, (0.22, 0.31), (225, 225, 215))


def _rectangle(
    canvas: Canvas,
    frame: CarFrame,
    end: float,
    across: float,
    half: float,
    up: tuple[float, float],
    colour: Colour,
) -> None:
    corners = [frame.at(end, up[0], across - half), frame.at(end, up[0], across + half)]
    corners += [frame.at(end, up[1], across + half), frame.at(end, up[1], across - half)]
    canvas.flat(canvas.camera.project(corners), colour, CAR, frame.thing.z)


def _flank(canvas: Canvas, frame: CarFrame, body: Colour, glass: Colour) -> None:
    """Draw the side that faces the viewer with its windows and wheels, unless it is seen edge-on."""
    side, camera, shape = frame.near_side(canvas.camera.shift), canvas.camera, frame.shape
    outline = camera.project([frame.at(along, up, side) for along, up in shape.profile])
    canvas.flat(outline, body, CAR, frame.thing.z)
    lower = camera.project(
        [frame.at(along, up, side) for along, up in ((-0.5, 0.14), (-0.5, 0.3), (0.5, 0.3), (0.5, 0.14))]
    )
    canvas.detail(lower, scaled(body, 0.75))
    canvas.detail(camera.project([frame.at(along, up, side) for along, up in shape.glass]), glass)
    shine = [frame.at(along, up, side) for along, up in shape.glass[:3]]
    canvas.detail(camera.project(shine), scaled(glass, 1.25))
    pillar = [
        frame.at(along, up, side)
        for along, up in ((-0.06, 0.55), (-0.06, 0.97), (-0.03, 0.97), (-0.03, 0.55))
    ]
    canvas.detail(camera.project(pillar), scaled(body, 0.9))
    for along in WHEELS:
        for radius, colour in ((WHEEL_RADIUS, (24, 24, 26)), (WHEEL_RADIUS * 0.55, (140, 140, 145))):
            rim = []
            for step in range(10):
                angle = 2 * math.pi * step / 10
                rise = (WHEEL_RADIUS + radius * math.sin(angle)) / shape.height
                rim.append(frame.at(along + radius * math.cos(angle) / shape.length, rise, side))
            canvas.flat(camera.project(rim), colour, CAR, frame.thing.z)
