"""A canvas that paints an image, its labels and its depths with the same polygons.

Labels and depths share one two-channel array, so that they can never disagree about a polygon's outline.
"""

from __future__ import annotations

import random
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from street_scenes.assets import Material
from street_scenes.domains import SKY, Colour, Image
from street_scenes.layout import Camera
from street_scenes.pool import Pool

Pixels: TypeAlias = NDArray[np.int32]
"""Polygon corners int32[N,2] as (column, row) on the canvas."""

DEPTH_STEPS_PER_METRE = 2.0


class Canvas:
    """An image uint8[H,W,3] with labels and depth steps uint8[H,W,2], and the means to draw on both."""

    def __init__(self, size: tuple[int, int], camera: Camera, pool: Pool, rng: random.Random) -> None:
        """Start with a blank sky of (height, width) pixels."""
        self.size = size
        self.camera = camera
        self.pool = pool
        self.rng = rng
        self.image: Image = np.zeros((*size, 3), np.uint8)
        self.meta: Image = np.full((*size, 2), (SKY, 255), np.uint8)

    def material(self, label: int) -> Material:
        """Draw one of the pool's materials for a class."""
        return self.rng.choice(self.pool.materials[label])

    def flat(self, points: Pixels, colour: Colour, label: int, z: float) -> None:
        """Fill a polygon with one colour."""
        cv2.fillPoly(self.image, [points], colour)
        self.mark(points, label, z)

    def detail(self, points: Pixels, colour: Colour) -> None:
        """Colour a polygon inside an object that is already labelled."""
        cv2.fillPoly(self.image, [points], colour)

    def mark(self, points: Pixels, label: int, z: float) -> None:
        """Label a polygon and give it a depth in metres."""
        cv2.fillPoly(self.meta, [points], (label, depth_step(z)))

    def box(self, points: Pixels) -> tuple[int, int, int, int] | None:
        """Return (left, top, right, bottom) of the polygon on the canvas; None when it lies outside."""
        left, top = np.maximum(points.min(axis=0), 0).tolist()
        right, bottom = np.minimum(points.max(axis=0) + 1, (self.size[1], self.size[0])).tolist()
        return (left, top, right, bottom) if right > left and bottom > top else None

    def textured(self, points: Pixels, material: Material, label: int, z: float, gain: float = 1.0) -> None:
        """Fill a polygon with a random crop of a material."""
        box = self.box(points)
        if box is None:
            return
        left, top, right, bottom = box
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(mask, [points - np.array([left, top], np.int32)], 255)
        self.stamp(mask, left, top, material, label, z, gain)

    def stamp(
        self, mask: Image, left: int, top: int, material: Material, label: int, z: float, gain: float
    ) -> None:
        """Paint a material through a mask whose corner lies at (left, top) inside the canvas."""
        height, width = mask.shape
        crop = self._crop(material.tile, height, width)
        colours = cv2.applyColorMap(crop, material.lut(gain))
        rows, columns = slice(top, top + height), slice(left, left + width)
        cv2.copyTo(colours, mask, self.image[rows, columns])
        marks = np.empty((height, width, 2), np.uint8)
        marks[:] = (label, depth_step(z))
        cv2.copyTo(marks, mask, self.meta[rows, columns])

    def _crop(self, tile: Image, height: int, width: int) -> Image:
        """Cut a random window from a tile; stretch the tile when it is too small."""
        if tile.shape[0] < height or tile.shape[1] < width:
            tile = np.asarray(
                cv2.resize(tile, (max(width, tile.shape[1]), max(height, tile.shape[0]))), np.uint8
            )
        row = self.rng.randint(0, tile.shape[0] - height)
        column = self.rng.randint(0, tile.shape[1] - width)
        return np.ascontiguousarray(tile[row : row + height, column : column + width])

    def warp(self, quad: Pixels, texture: Image, label: int, z: float, gain: float) -> None:
        """Paint a texture onto a quadrilateral given as (top left, top right, bottom right, bottom left)."""
        box = self.box(quad)
        if box is None or abs(cv2.contourArea(quad)) < 4:
            return
        left, top, right, bottom = box
        height, width = texture.shape[:2]
        corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
        local = quad - np.array([left, top], np.int32)
        matrix = cv2.getPerspectiveTransform(corners, local.astype(np.float32))
        size = (right - left, bottom - top)
        wall = cv2.warpPerspective(
            texture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        if gain != 1.0:
            wall = cv2.convertScaleAbs(wall, alpha=gain)
        mask = np.zeros((size[1], size[0]), np.uint8)
        cv2.fillPoly(mask, [local], 255)
        cv2.copyTo(wall, mask, self.image[top:bottom, left:right])
        self.mark(quad, label, z)


def depth_step(z: float) -> int:
    """Quantise a depth in metres to half metres, 254 at most; 255 is the sky."""
    return max(0, min(254, int(z * DEPTH_STEPS_PER_METRE)))
