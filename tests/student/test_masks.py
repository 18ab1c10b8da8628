"""Masks: every kind of PNG, tables and regions against slow loops; hostile bytes do no harm."""

import io
import math
import struct
import tracemalloc
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as Pillow

from corte_protocol import (
    VOID,
    InvalidValue,
    LimitExceeded,
    MalformedFrame,
    ProtocolError,
)
from corte_protocol.types import UInt8
from corte_student.endpoints.masks import (
    ClassMask,
    decode_mask,
    decode_png,
    ids_from_colors,
    ids_from_indices,
    labels_from_masks,
    resized,
)

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
MANY = 1 << 20

Bool = npt.NDArray[np.bool_]


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, bits: int, kind: int) -> bytes:
    """The first chunk of a PNG."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))


def png(values: npt.NDArray[Any], bits: int, kind: int, *before: bytes) -> bytes:
    """A PNG of numbers [H, W, channels], after the specification; `before` are chunks before its data."""
    height, width, _ = values.shape
    rows = b""
    for row in values.reshape(height, -1).tolist():
        text = "".join(f"{v:0{bits}b}" for v in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    data = chunk(b"IDAT", zlib.compress(rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + b"".join((header(width, height, bits, kind), *before, data))
        + chunk(b"IEND", b"")
    )


def drawn(seed: int, bits: int, kind: int, height: int = 5, width: int = 11) -> npt.NDArray[np.int64]:
    """Random numbers of so many bits, [H, W, channels]; alpha is opaque."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, (height, width, CHANNELS[kind]))
    if kind in (GREY_ALPHA, RGB_ALPHA):
        values[..., -1] = (1 << bits) - 1
    return values


def shades(bits: int) -> bytes:
    """A palette of random colours."""
    return chunk(b"PLTE", np.random.default_rng(bits).bytes(3 << bits))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", [GREY, PALETTE])
@given(seed=st.integers(0, 999))
def test_indices_are_read_as_stored(bits: int, kind: int, seed: int) -> None:
    """Grey and palette PNGs of any depth give the numbers in the file, not what a viewer would show."""
    values = drawn(seed, bits, kind)
    before = (shades(bits),) if kind == PALETTE else ()
    assert np.array_equal(decode_png(png(values, bits, kind, *before), max_pixels=55), values[..., 0])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_can_be_read_as_colours(bits: int) -> None:
    """With `colors`, the palette's entries; grey becomes the shade that it shows."""
    values = drawn(1, bits, PALETTE)[..., 0]
    data = png(values[..., None], bits, PALETTE, shades(bits))
    palette = np.frombuffer(np.random.default_rng(bits).bytes(3 << bits), np.uint8).reshape(-1, 3)
    assert np.array_equal(decode_png(data, max_pixels=55, colors=True), palette[values])
    grey = decode_png(png(values[..., None], bits, GREY), max_pixels=55, colors=True)
    assert np.array_equal(grey, np.repeat(values[..., None] * 255 // ((1 << bits) - 1), 3, axis=2))


@pytest.mark.parametrize("kind", [RGB, RGB_ALPHA, GREY_ALPHA])
def test_colours_and_opaque_alpha(kind: int) -> None:
    """Colours come as they are; an alpha channel that hides nothing is left out."""
    values = drawn(3, 8, kind)
    right = values[..., 0] if kind == GREY_ALPHA else values[..., :3]
    assert np.array_equal(decode_png(png(values, 8, kind), max_pixels=55), right)
    as_colors = decode_png(png(values, 8, kind), max_pixels=55, colors=True)
    assert np.array_equal(as_colors, np.repeat(values[..., :1], 3, 2) if kind == GREY_ALPHA else right)


@pytest.mark.parametrize("kind", [RGB_ALPHA, GREY_ALPHA])
def test_transparent_pixels_are_an_error(kind: int) -> None:
    """What shines through has no colour to look up."""
    values = drawn(3, 8, kind)
    values[2, 3, -1] = 254
    with pytest.raises(InvalidValue, match="transparent"):
        decode_png(png(values, 8, kind), max_pixels=55)


def test_a_transparent_palette_entry_is_an_index_but_no_colour() -> None:
    """tRNS hides an entry: its index stays what it is, its colour is refused."""
    values = np.array([[[0], [1]]])
    data = png(values, 8, PALETTE, chunk(b"PLTE", bytes(range(6))), chunk(b"tRNS", b"\x00"))
    assert decode_png(data, max_pixels=2).tolist() == [[0, 1]]
    with pytest.raises(InvalidValue, match="transparent"):
        decode_png(data, max_pixels=2, colors=True)


def test_grey_of_16_bits_up_to_255() -> None:
    """Ids in 16 bits are accepted as long as they are ids."""
    values = drawn(4, 8, GREY)
    assert np.array_equal(decode_png(png(values, 16, GREY), max_pixels=55), values[..., 0])
    values[1, 1] = 256
    with pytest.raises(InvalidValue, match="256"):
        decode_png(png(values, 16, GREY), max_pixels=55)
    with pytest.raises(MalformedFrame):
        decode_png(png(values, 16, GREY), max_pixels=55, colors=True)


@pytest.mark.parametrize("kind", [RGB, RGB_ALPHA, GREY_ALPHA])
def test_colours_of_16_bits_are_refused(kind: int) -> None:
    """Their lower half would be lost without a word."""
    with pytest.raises(MalformedFrame, match="16 bits"):
        decode_png(png(drawn(5, 16, kind), 16, kind), max_pixels=55)


def test_a_size_is_checked_before_it_is_decoded() -> None:
    """A header of 10 gigapixels costs nothing, and one pixel too many is too many."""
    huge = b"\x89PNG\r\n\x1a\n" + header(100_000, 100_000, 8, GREY) + chunk(b"IDAT", zlib.compress(b"\0"))
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded, match="100000 x 100000"):
            decode_png(huge, max_pixels=MANY)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 16
    with pytest.raises(LimitExceeded):
        decode_png(png(drawn(0, 8, GREY), 8, GREY), max_pixels=54)


@pytest.mark.parametrize(
    "second", [header(3000, 3000, 8, GREY), header(11, 5, 8, RGB)], ids=["larger", "of colours"]
)
def test_a_second_header_is_refused(second: bytes) -> None:
    """Only the first one was checked."""
    with pytest.raises(MalformedFrame):
        decode_png(png(drawn(0, 8, GREY), 8, GREY, second), max_pixels=MANY)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_refused(form: str) -> None:
    """Lossy formats change ids, and no decoder but one is exposed to what a service sends."""
    target = io.BytesIO()
    Pillow.new("L", (4, 4)).save(target, form)
    with pytest.raises(MalformedFrame, match="no PNG"):
        decode_png(target.getvalue(), max_pixels=16)


def test_a_png_that_is_cut_off_is_malformed() -> None:
    """At whatever byte."""
    data = png(drawn(0, 8, GREY), 8, GREY)
    for end in range(len(data)):
        with pytest.raises(MalformedFrame):
            decode_png(data[:end], max_pixels=MANY)


@given(st.data(), st.sampled_from([GREY, RGB, PALETTE, RGB_ALPHA]), st.booleans())
def test_damaged_pngs_do_no_harm(data: st.DataObject, kind: int, colors: bool) -> None:
    """Whatever bytes are changed: pixels of the stated size, or our own error."""
    before = (shades(8), chunk(b"tRNS", b"\xff" * 9)) if kind == PALETTE else ()
    damaged = bytearray(png(drawn(1, 8, kind), 8, kind, *before))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode_png(bytes(damaged), max_pixels=MANY, colors=colors)
    except ProtocolError:
        return
    assert pixels.dtype == np.uint8 and pixels.shape[0] * pixels.shape[1] <= MANY


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks_of_any_depth(bits: int) -> None:
    """Black and white mean the same whatever the depth, and as entries of a palette."""
    right = drawn(6, 1, GREY)[..., 0] == 1
    white = (1 << bits) - 1
    assert np.array_equal(decode_mask(png(right[..., None] * white, bits, GREY), max_pixels=55), right)
    inverse = png(
        ~right[..., None] * white, bits, PALETTE, chunk(b"PLTE", (b"\xff" * 3 + b"\0" * 3) * (1 << bits >> 1))
    )
    assert np.array_equal(decode_mask(inverse, max_pixels=55), right)


def test_a_mask_is_cut_above_its_threshold() -> None:
    """Brighter than the threshold belongs to the region; zeros and ones need one of 0."""
    shade = png(np.array([[[126], [127], [128], [255]]]), 8, GREY)
    assert decode_mask(shade, max_pixels=4).tolist() == [[False, False, True, True]]
    assert decode_mask(shade, max_pixels=4, threshold=126).tolist() == [[False, True, True, True]]
    ones = png(np.array([[[0], [1]]]), 8, GREY)
    assert decode_mask(ones, max_pixels=2, threshold=0).tolist() == [[False, True]]
    with pytest.raises(InvalidValue, match="threshold must be 0"):
        decode_mask(ones, max_pixels=2)
    with pytest.raises(InvalidValue, match="colours"):
        decode_mask(png(np.array([[[1, 1, 1], [255, 255, 254]]]), 8, RGB), max_pixels=2)


meanings = st.integers(0, 254) | st.just(VOID)
index_maps = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.integers(0, 9)
)


@given(index_maps, st.dictionaries(st.integers(0, 9), meanings), st.booleans())
def test_indices_are_looked_up(indices: UInt8, table: dict[int, int], unlisted_void: bool) -> None:
    """Each pixel becomes what the table says; what it does not list is void only if that was said."""
    unlisted = sorted(set(indices.ravel().tolist()) - set(table))
    if unlisted and not unlisted_void:
        with pytest.raises(InvalidValue, match=r"index \d, which has no class") as caught:
            ids_from_indices(indices, table)
        assert any(f"index {u}," in str(caught.value) for u in unlisted)
        return
    right = [[table.get(index, VOID) for index in row] for row in indices.tolist()]
    ids = ids_from_indices(indices, table, unlisted_void=unlisted_void)
    assert ids.dtype == np.uint8 and ids.tolist() == right


@pytest.mark.parametrize("table", [{256: 0}, {-1: 0}, {0: 256}, {0: -1}])
def test_impossible_tables(table: dict[int, int]) -> None:
    """Neither indices nor classes beyond a byte."""
    with pytest.raises(InvalidValue):
        ids_from_indices(np.zeros((1, 1), np.uint8), table)


few_values = st.sampled_from([0, 1, 2, 250, 255])
color_maps = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.just(3)),
    elements=few_values,
)
palettes = st.dictionaries(st.tuples(few_values, few_values, few_values), meanings, max_size=8)


@given(color_maps, palettes, st.integers(0, 3), st.booleans())
def test_colours_are_looked_up(
    colors: UInt8, palette: dict[tuple[int, int, int], int], tolerance: int, unlisted_void: bool
) -> None:
    """Each pixel takes the class of the colour that it fits; a palette in which two could fit is refused."""

    def near(a: tuple[int, ...], b: tuple[int, ...], distance: int) -> bool:
        return all(abs(x - y) <= distance for x, y in zip(a, b, strict=True))

    def read() -> UInt8:
        return ids_from_colors(colors, palette, tolerance=tolerance, unlisted_void=unlisted_void)

    if any(a != b and near(a, b, 2 * tolerance) for a in palette for b in palette):
        with pytest.raises(InvalidValue, match="could be two"):
            read()
        return
    right = [
        [next((m for c, m in palette.items() if near(c, tuple(pixel), tolerance)), None) for pixel in row]
        for row in colors.tolist()
    ]
    if not unlisted_void and any(m is None for row in right for m in row):
        with pytest.raises(InvalidValue, match=r"#[0-9a-f]{6}, which has no class"):
            read()
        return
    assert read().tolist() == [[VOID if m is None else m for m in row] for row in right]


def test_indices_and_colours_are_not_confused() -> None:
    """A mask of the other kind is told as such."""
    with pytest.raises(InvalidValue, match="colours where indices"):
        ids_from_indices(np.zeros((2, 2, 3), np.uint8), {0: 0})
    with pytest.raises(InvalidValue, match="indices where colours"):
        ids_from_colors(np.zeros((2, 3), np.uint8), {(0, 0, 0): 0})


@pytest.mark.parametrize(
    "palette", [{(0, 0, 256): 0}, {(0, 0, -1): 0}, {(0, 0, 0): 256}, {(0, 0, 0): -1}, {(0, 0): 0}]
)
def test_impossible_palettes(palette: Mapping[Any, int]) -> None:
    """Neither colours nor classes beyond a byte."""
    with pytest.raises(InvalidValue):
        ids_from_colors(np.zeros((1, 1, 3), np.uint8), palette)


regions = st.lists(
    st.tuples(
        st.integers(0, 4),
        hnp.arrays(np.bool_, (3, 4)),
        st.none() | st.sampled_from([-1.0, 0.0, 0.5, 0.9]),
    ),
    max_size=5,
)


@given(regions)
def test_masks_become_labels(drawn_regions: list[tuple[int, Bool, float | None]]) -> None:
    """A pixel takes the covering mask of the highest score, the earlier of equals, void without any."""
    labels = labels_from_masks([ClassMask(*region) for region in drawn_regions], 3, 4)
    for y in range(3):
        for x in range(4):
            best, top = VOID, -math.inf
            found = False
            for class_id, mask, score in drawn_regions:
                value = -math.inf if score is None else score
                if mask[y, x] and (not found or value > top):
                    best, top, found = class_id, value, True
            assert labels[y, x] == best


def test_a_mask_in_proportion_is_resized() -> None:
    """Half or twice the size fits, a pixel of rounding as well; other proportions are an error."""
    half = np.array([[True, False], [False, True]])
    assert np.array_equal(
        labels_from_masks([ClassMask(7, half)], 4, 4) == 7, np.kron(half, np.ones((2, 2))) > 0
    )
    assert labels_from_masks([ClassMask(1, np.ones((180, 320), np.bool_))], 720, 1280).max() == 1
    assert labels_from_masks([ClassMask(1, np.ones((181, 320), np.bool_))], 721, 1280).max() == 1
    for shape in ((512, 512), (183, 320), (1280, 720)):
        with pytest.raises(
            InvalidValue, match=f"{shape[0]} x {shape[1]} does not fit an image of 720 x 1280"
        ):
            labels_from_masks([ClassMask(1, np.ones(shape, np.bool_))], 720, 1280)


@pytest.mark.parametrize(
    "arguments",
    [
        (256, np.ones((1, 1), np.bool_)),
        (-1, np.ones((1, 1), np.bool_)),
        (0, np.ones((1, 1), np.uint8)),
        (0, np.ones(1, np.bool_)),
        (0, np.ones((0, 1), np.bool_)),
        (0, np.ones((1, 1), np.bool_), math.nan),
    ],
)
def test_a_mask_that_exists_is_legal(arguments: tuple[Any, ...]) -> None:
    """Class, shape, type and score are checked when it is made."""
    with pytest.raises(InvalidValue):
        ClassMask(*arguments)


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)),
    st.integers(1, 20),
    st.integers(1, 20),
)
def test_resizing_takes_the_nearest(ids: UInt8, height: int, width: int) -> None:
    """Each pixel takes the id that its centre falls on, one of both where it falls between two."""
    fitted = resized(ids, height, width)
    assert fitted.shape == (height, width) and fitted.dtype == np.uint8

    def under(place: int, target: int, source: int) -> set[int]:
        at, rest = divmod((2 * place + 1) * source, 2 * target)
        return {at} if rest else {at - 1, at}

    rows, columns = ids.shape
    for y in range(height):
        for x in range(width):
            near = {ids[r, c] for r in under(y, height, rows) for c in under(x, width, columns)}
            assert fitted[y, x] in near
