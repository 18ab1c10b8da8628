"""COCO's run lengths and base64 text: against slow loops and pycocotools; hostile text does no harm."""

import base64
import contextlib
import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from corte_protocol import (
    InvalidValue,
    LimitExceeded,
    MalformedFrame,
    ProtocolError,
)
from corte_student.endpoints.masks import (
    decode_text,
    mask_from_rle,
)

Bool = npt.NDArray[np.bool_]


def runs_of(mask: Bool) -> list[int]:
    """COCO's runs of a mask, by a slow loop."""
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def told(runs: list[int]) -> str:
    """COCO's compressed text of runs, after rleToString of its C code."""
    text = ""
    for place, run in enumerate(runs):
        rest = run - runs[place - 2] if place > 2 else run
        while True:
            digit, rest = rest & 31, rest >> 5
            more = rest != (-1 if digit & 16 else 0)
            text += chr(48 + digit + 32 * more)
            if not more:
                break
    return text


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_run_lengths(mask: Bool) -> None:
    """Plain and compressed runs give the mask back."""
    size, runs = list(mask.shape), runs_of(mask)
    assert np.array_equal(mask_from_rle(size, runs, max_pixels=mask.size), mask)
    assert np.array_equal(mask_from_rle(size, told(runs), max_pixels=mask.size), mask)
    assert np.array_equal(mask_from_rle(tuple(size), told(runs).encode(), max_pixels=mask.size), mask)


def chessboard() -> Bool:
    """True where row and column add up to an even number."""
    board: Bool = np.indices((5, 7)).sum(axis=0) % 2 == 0
    return board


def strips() -> Bool:
    """Long runs, whose text has several digits, and negative differences."""
    mask = np.zeros((480, 640), np.bool_)
    mask[100:300, 50:60] = True
    mask[:, 200:203] = True
    mask[479, 639] = True
    return mask


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("5220003", np.pad(np.ones((2, 3), np.bool_), 1)),
        ("0<", np.ones((3, 4), np.bool_)),
        ("<", np.zeros((3, 4), np.bool_)),
        ("011000000000000000000000000000000000", chessboard()),
        ("Tag0X6h800000000000000000l`Q2hV1[Q[4QcN", strips()),
    ],
    ids=["box", "full", "empty", "chessboard", "strips"],
)
def test_golden_run_lengths(text: str, mask: Bool) -> None:
    """What pycocotools 2.0.11 made of these masks, frozen."""
    assert np.array_equal(mask_from_rle(list(mask.shape), text, max_pixels=mask.size), mask)
    assert told(runs_of(mask)) == text


@pytest.mark.parametrize(
    ("size", "counts", "error"),
    [
        ([3, 4], [12, 1], "add up to 13"),
        ([3, 4], [11], "add up to 11"),
        ([3, 4], [], "add up to 0"),
        ([3, 4], [-1, 13], "0..12"),
        ([3, 4], [1 << 70], "0..12"),
        ([3, 4], [12.0], "whole numbers"),
        ([3, 4], [True] * 12, "whole numbers"),
        ([3, 4], {"0": 12}, "whole numbers"),
        ([3, 4], None, "whole numbers"),
        ([3, 4], "", "empty"),
        ([3, 4], "<\n", "foreign"),
        ([3, 4], "<p", "foreign"),
        ([3, 4], "<é", "ASCII"),
        ([3, 4], "\\", "cut off"),
        ([3, 4], "P" * 7 + "1", "longer than any"),
        ([3, 4], "P" * 6 + "1", "0..12"),
        ([3, 4], "0000O", "0..12"),
        ([3, 4], "O", "0..12"),
        ([1 << 9000, 4], [12], "sides"),
        ([3, 4], "<1", "add up to 13"),
        ([3, 4], "=", "0..12"),
        ([0, 4], [0], "sides"),
        ([3, -4], [0], "sides"),
        ([3], [3], "two numbers"),
        ([3.0, 4], [12], "two numbers"),
        ("34", [12], "two numbers"),
        (None, [12], "two numbers"),
    ],
)
def test_broken_run_lengths(size: object, counts: object, error: str) -> None:
    """Each is told for what it is."""
    with pytest.raises(ProtocolError, match=error):
        mask_from_rle(size, counts, max_pixels=100)


@given(
    st.text(st.characters(min_codepoint=40, max_codepoint=115), max_size=40) | st.lists(st.integers(-2, 14))
)
def test_hostile_run_lengths_do_no_harm(counts: object) -> None:
    """Any text and any numbers: the stated size, or our own error."""
    with contextlib.suppress(ProtocolError):
        assert mask_from_rle([3, 4], counts, max_pixels=12).shape == (3, 4)


def test_a_stated_size_allocates_nothing() -> None:
    """Beyond the limit it is refused; within it, the runs must add up first."""
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded):
            mask_from_rle([1 << 20, 1 << 20], "<", max_pixels=1 << 20)
        with pytest.raises(InvalidValue):
            mask_from_rle([1 << 20, 1 << 10], "<", max_pixels=1 << 30)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 18


@given(
    st.binary(max_size=100),
    st.sampled_from(["", "data:image/png;base64,", "data:;base64,", "DATA:a/b;c=d;BASE64,"]),
)
def test_text_gives_its_bytes(data: bytes, head: str) -> None:
    """Base64 as it is or in a data URI; the bound is exact."""
    text = head + base64.b64encode(data).decode()
    assert decode_text(text, max_bytes=len(data)) == data
    if data:
        with pytest.raises(LimitExceeded):
            decode_text(text, max_bytes=len(data) - 1)


@pytest.mark.parametrize(
    "text",
    [
        "YWJj\n",
        "YW Jj",
        "YWI",
        "YWI=YWI=",
        "=YWI",
        "YW-_",
        "YWJé",
        "Y",
        "data:image/png,YWJj",
        "data:image/png;base64YWJj",
        f"data:image/png;{'x' * 300};base64,YWJj",
        "data:image/png;base64,YW\nJj",
        b"YWJj",
        None,
        7,
    ],
)
def test_text_that_is_not_base64(text: object) -> None:
    """No line breaks, no foreign alphabet, no padding left out, nothing but text."""
    with pytest.raises(MalformedFrame):
        decode_text(text, max_bytes=100)


def test_long_text_is_not_decoded() -> None:
    """Its length says enough."""
    with pytest.raises(LimitExceeded):
        decode_text("é" * 2000, max_bytes=100)
