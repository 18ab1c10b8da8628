"""Facade textures: walls with windows, doors, shop fronts and posters; all of it is labelled building."""

from __future__ import annotations

import random

import cv2
import numpy as np

from street_scenes.assets import Material, Palette, hsv, scaled
from street_scenes.domains import Image

HEIGHT, WIDTH = 160, 224
ANY = Palette((0.0, 1.0), (0.05, 0.9), (0.15, 0.95), (0.1, 0.2))
GLASS = Palette((0.5, 0.7), (0.0, 0.45), (0.12, 0.75), (0.1, 0.2))


def facade(rng: random.Random, wall: Material, texture: bool) -> Image:
    """Draw one facade uint8[160,224,3]; the top row is the eaves, the bottom row the ground."""
    row, column = rng.randint(0, wall.tile.shape[0] - HEIGHT), rng.randint(0, wall.tile.shape[1] - WIDTH)
    crop = np.ascontiguousarray(wall.tile[row : row + HEIGHT, column : column + WIDTH])
    image: Image = np.asarray(cv2.applyColorMap(crop, wall.lut()), np.uint8)
    ground_floor = rng.randint(112, 124)
    _windows(rng, image, wall, ground_floor, texture)
    if rng.random() < 0.5:
        _shop(rng, image, ground_floor)
    else:
        _doors(rng, image, ground_floor)
    for _ in range(rng.choice((0, 1, 1, 2))):
        _poster(rng, image)
    if rng.random() < 0.6:
        cv2.rectangle(image, (0, 0), (WIDTH, rng.randint(3, 12)), scaled(hsv(rng, ANY), 0.7), -1)
    return image


def _windows(rng: random.Random, image: Image, wall: Material, bottom: int, texture: bool) -> None:
    """Draw a regular grid of windows, each a dark or sky-reflecting pane in a frame."""
    rows, columns = rng.randint(2, 4), rng.randint(4, 7)
    pitch_v, pitch_h = (bottom - 10) / rows, WIDTH / columns
    tall, wide = pitch_v * rng.uniform(0.5, 0.75), pitch_h * rng.uniform(0.4, 0.75)
    frame = scaled(wall.light, rng.choice((0.5, 1.25, 1.4)))
    pane = hsv(rng, GLASS)
    arch = texture and rng.random() < 0.4
    for row in range(rows):
        for column in range(columns):
            left, top = round((column + 0.5) * pitch_h - wide / 2), round(12 + row * pitch_v)
            right, low = round(left + wide), round(top + tall)
            cv2.rectangle(image, (left - 2, top - 2), (right + 2, low + 2), frame, -1)
            glass = scaled(pane, rng.uniform(0.55, 1.3))
            cv2.rectangle(image, (left, top), (right, low), glass, -1)
            if rng.random() < 0.4:
                half = np.array([(left, top), (right, top), (left, low)], np.int32)
                cv2.fillConvexPoly(image, half, scaled(glass, 1.35))
            middle = (left + right) // 2
            cv2.line(image, (middle, top), (middle, low), frame, 2)
            if arch:
                cv2.ellipse(image, (middle, top), (round(wide / 2), 5), 0, 180, 360, glass, -1)


def _doors(rng: random.Random, image: Image, top: int) -> None:
    for _ in range(rng.randint(1, 3)):
        left, wide = rng.randint(4, WIDTH - 30), rng.randint(14, 24)
        colour = hsv(rng, ANY)
        cv2.rectangle(image, (left - 2, top + 6), (left + wide + 2, HEIGHT), scaled(colour, 0.6), -1)
        cv2.rectangle(image, (left, top + 8), (left + wide, HEIGHT), colour, -1)


def _shop(rng: random.Random, image: Image, top: int) -> None:
    """Draw a glazed shop front under a fascia or a striped awning."""
    pane = hsv(rng, GLASS)
    cv2.rectangle(image, (6, top + 6), (WIDTH - 6, HEIGHT - 6), pane, -1)
    for left in range(6, WIDTH - 6, rng.randint(24, 48)):
        cv2.rectangle(image, (left, top + 6), (left + 3, HEIGHT - 6), scaled(pane, 0.5), -1)
        shade = scaled(hsv(rng, ANY), 0.8)
        cv2.rectangle(image, (left + 8, HEIGHT - 26), (left + 18, HEIGHT - 8), shade, -1)
    stripe = hsv(rng, ANY)
    for left in range(0, WIDTH, 12):
        colour = stripe if (left // 12) % 2 else scaled(stripe, 1.4)
        cv2.rectangle(image, (left, top - 2), (left + 12, top + 8), colour, -1)


def _poster(rng: random.Random, image: Image) -> None:
    """Draw a poster that shows a person, a car, a tree or sky: the label stays building."""
    wide, tall = rng.randint(18, 44), rng.randint(20, 40)
    left, top = rng.randint(2, WIDTH - wide - 2), rng.randint(70, HEIGHT - tall - 4)
    cv2.rectangle(image, (left - 2, top - 2), (left + wide + 2, top + tall + 2), (240, 240, 235), -1)
    cv2.rectangle(image, (left, top), (left + wide, top + tall), hsv(rng, ANY), -1)
    middle, kind = left + wide // 2, rng.choice(("person", "car", "tree", "sky"))
    ink = hsv(rng, ANY)
    if kind == "person":
        cv2.circle(image, (middle, top + tall // 4), max(2, tall // 8), (205, 160, 130), -1)
        cv2.rectangle(image, (middle - 4, top + tall // 3), (middle + 4, top + tall), ink, -1)
    elif kind == "car":
        cv2.rectangle(image, (left + 3, top + tall // 2), (left + wide - 3, top + tall - 8), ink, -1)
        cv2.circle(image, (left + 8, top + tall - 7), 4, (20, 20, 20), -1)
        cv2.circle(image, (left + wide - 8, top + tall - 7), 4, (20, 20, 20), -1)
    elif kind == "tree":
        cv2.circle(image, (middle, top + tall // 2), tall // 3, (60, 120, 50), -1)
    else:
        cv2.rectangle(image, (left, top), (left + wide, top + tall), (140, 180, 225), -1)
        cv2.circle(image, (middle, top + 8), 5, (240, 240, 240), -1)
