"""Views: one geometry for everything, whole pixels, no void invented."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from corte_student.data.augment import Geometry, ViewSettings, cut, draw_geometry, strengthen

SIZES = st.tuples(st.integers(8, 90), st.integers(8, 90))


@given(SIZES, SIZES, st.integers(0, 10**6), st.floats(0.3, 1.0), st.floats(1.0, 2.5))
@settings(max_examples=100)
def test_a_window_always_fits(
    size: tuple[int, int], view: tuple[int, int], seed: int, low: float, high: float
) -> None:
    """Whatever the sizes, the window lies inside the picture and the view has the size asked for."""
    settings_ = ViewSettings(view[0], view[1], low, high, 0.4, 1.0)
    geometry = draw_geometry(size, settings_, np.random.default_rng(seed))
    assert geometry.top >= 0 and geometry.top + geometry.height <= size[0]
    assert geometry.left >= 0 and geometry.left + geometry.width <= size[1]
    picture = np.zeros((*size, 3), np.uint8)
    assert cut(picture, geometry, settings_, smooth=True).shape == (*view, 3)


@given(st.integers(0, 10**6))
@settings(max_examples=60)
def test_labels_move_with_their_pixels(seed: int) -> None:
    """A picture painted with its own labels shows, after any geometry, the label at each inner pixel."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 6, (5, 6)).astype(np.uint8)
    labels = np.kron(blocks, np.ones((12, 12), np.uint8))
    picture = np.stack([labels * 40] * 3, axis=-1)
    view = ViewSettings(40, 48, 0.7, 1.8, 0.0, 0.0)
    geometry = draw_geometry((60, 72), view, rng)
    seen = cut(picture, geometry, view, smooth=True)[..., 0].astype(int)
    wanted = cut(labels, geometry, view, smooth=False).astype(int) * 40
    flat = np.ones_like(wanted, bool)  # away from borders, where the picture blends and labels do not
    for shift in product(range(-2, 3), repeat=2):
        flat &= np.roll(wanted, shift, (0, 1)) == wanted
    flat[:2] = flat[-2:] = flat[:, :2] = flat[:, -2:] = False
    assert (np.abs(seen - wanted)[flat] <= 1).all()


def test_a_flip_mirrors_everything() -> None:
    """The mirrored window is the window mirrored."""
    plane = np.arange(80, dtype=np.uint8).reshape(8, 10)
    view = ViewSettings(8, 10, 1, 1, 0, 0)
    straight = cut(plane, Geometry(0, 0, 8, 10, False), view, smooth=False)
    mirrored = cut(plane, Geometry(0, 0, 8, 10, True), view, smooth=False)
    np.testing.assert_array_equal(mirrored, straight[:, ::-1])


@given(st.integers(0, 10**6))
@settings(max_examples=30)
def test_the_strong_view_is_photometric_only_and_repeatable(seed: int) -> None:
    """The same generator gives the same view; zero strength and no blur keep colour or give grey."""
    weak = np.random.default_rng(seed).integers(0, 256, (9, 11, 3)).astype(np.uint8)
    view = ViewSettings(9, 11, 1, 1, 0.5, 2.0)
    once = strengthen(weak, view, np.random.default_rng(seed))
    np.testing.assert_array_equal(once, strengthen(weak, view, np.random.default_rng(seed)))
    still = strengthen(weak, ViewSettings(9, 11, 1, 1, 0.0, 0.0), np.random.default_rng(seed))
    grey = (still == still[..., :1]).all()
    assert grey or (np.abs(still.astype(int) - weak) <= 1).all()
