"""Weak and strong views of a picture and the maps that belong to it, in one geometry.

Strategy: one window (random scale and place) is cut from everything at once and resized, bilinear for the
picture, nearest at half-pixel centres for maps, so a label never moves against its pixels. The weak view
is that; the strong view adds photometric change only (colour, grey, blur). CoRTe trains the student for
consistency between views; these transforms are this project's choice. OpenCV, in worker threads:
it lets go of the interpreter's lock.

Legend: h w view size, H W picture size.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ViewSettings:
    """Size of a view in pixels, the range of scales, and how strong the strong view is."""

    height: int
    width: int
    scale_min: float
    scale_max: float
    jitter: float
    blur: float


@dataclass(frozen=True, slots=True)
class Geometry:
    """A window of the picture in whole pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def draw_geometry(size: tuple[int, int], view: ViewSettings, rng: np.random.Generator) -> Geometry:
    """A window of the view's aspect that lies wholly inside a picture of `size` (H, W).

    Scale 1 shows the picture's own pixels; where the window would not fit, the scale is raised until it does.
    """
    fits = max(view.height / size[0], view.width / size[1])
    scale = max(float(rng.uniform(view.scale_min, view.scale_max)), fits)
    height = min(size[0], max(1, round(view.height / scale)))
    width = min(size[1], max(1, round(view.width / scale)))
    top = int(rng.integers(0, size[0] - height + 1))
    left = int(rng.integers(0, size[1] - width + 1))
    return Geometry(top, left, height, width, bool(rng.integers(0, 2)))


def cut(plane: UInt8, geometry: Geometry, view: ViewSettings, *, smooth: bool) -> UInt8:
    """The window of `plane` [H, W] or [H, W, 3] at the view's size; bilinear if `smooth`, else nearest."""
    rows = slice(geometry.top, geometry.top + geometry.height)
    columns = slice(geometry.left, geometry.left + geometry.width)
    part = plane[rows, columns]
    if part.shape[:2] != (view.height, view.width):
        how = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST_EXACT
        part = np.asarray(cv2.resize(part, (view.width, view.height), interpolation=how), np.uint8)
    if geometry.flip:
        part = part[:, ::-1]
    return np.ascontiguousarray(part)


def strengthen(weak: UInt8, view: ViewSettings, rng: np.random.Generator) -> UInt8:
    """The strong view of a weak one, uint8 [h, w, 3]: colour jitter, grey in 1 of 5, blur in half of all."""
    matrix, offset = _colour_matrix(view.jitter, rng)
    strong = cv2.transform(weak, np.hstack([matrix, offset[:, None]]))  # saturates to 0..255
    if rng.random() < 0.2:
        grey = cv2.cvtColor(strong, cv2.COLOR_RGB2GRAY)
        strong = cv2.merge([grey, grey, grey])
    if rng.random() < 0.5 and view.blur > 0:
        sigma = float(rng.uniform(0.1, view.blur))
        strong = cv2.GaussianBlur(strong, (0, 0), sigma)
    return np.asarray(strong, np.uint8)


def _colour_matrix(
    strength: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Brightness, contrast, saturation and hue as one affine map of RGB.

    Hue is a rotation about the grey axis: the luma-preserving approximation that image editors use.
    """
    bright, contrast, saturation = (1 + strength * rng.uniform(-1, 1, 3)).tolist()
    angle = 0.5 * strength * float(rng.uniform(-1, 1))
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    rotate = grey + np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * cross
    saturate = saturation * np.eye(3) + (1 - saturation) * grey
    matrix = bright * contrast * (saturate @ rotate)
    offset = np.full(3, 128 * bright * (1 - contrast))
    return matrix, offset
