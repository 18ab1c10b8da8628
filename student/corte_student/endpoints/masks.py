"""Masks as other services send them, to labels and ranked scores. Pure functions: no I/O, no vendor.

Rule 1: a size is checked before anything of it is allocated, and a sum before it is believed. Rule 2: an
index or colour without a class is an error that names it; it is void only where the caller says so. Rule 3:
class ids are never interpolated. Rule 4: an error's text holds sizes, indices and colours, and nothing else
of an answer.

All raise ProtocolError: MalformedFrame for bytes that are not the format, InvalidValue for content that
breaks a rule, LimitExceeded beyond a bound.

Legend: C classes, K classes kept a pixel, H W image size, h w size of a mask.
"""

import binascii
import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final, cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from corte_protocol import VOID, InvalidValue, LimitExceeded, MalformedFrame, ProtocolError
from corte_protocol.types import MAX_CLASSES, Float16, UInt8

Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating]
Keys = npt.NDArray[np.uint64]
Rgb = tuple[int, int, int]

_PNG_HEAD: Final = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_PNG_END: Final = b"IEND\xaeB`\x82"
_PNG_LEAST: Final = 33  # signature and the whole IHDR chunk
_MODES: Final = {  # (colour type, bits) as in the PNG specification, to Pillow's mode; no colours of 16 bits,
    # which Pillow cuts to 8
    (0, 1): "1",
    (0, 2): "L",
    (0, 4): "L",
    (0, 8): "L",
    (0, 16): "I;16",
    (2, 8): "RGB",
    (3, 1): "P",
    (3, 2): "P",
    (3, 4): "P",
    (3, 8): "P",
    (4, 8): "LA",
    (6, 8): "RGBA",
}
_STRETCHED: Final = {2: 85, 4: 17}  # Pillow spreads grey of so many bits over 0..255 by this factor
_VALUES: Final = 256
_URI_HEAD: Final = 256
_MAX_SIDE: Final = (1 << 31) - 1
_RLE_DIGITS: Final = 7  # of five bits: more than any size in pixels needs
_SIGN: Final = np.uint32(1 << 31)
_FEW: Final = 8  # up to so many places, inserting is faster than sorting
_BLOCK: Final = 1 << 15  # pixels ranked at a time: their planes stay in the cache
_SUM_SLACK: Final = 1e-2
_RANGE_SLACK: Final = 1e-3


def decode_png(data: bytes, *, max_pixels: int, colors: bool = False) -> UInt8:
    """A PNG's pixels, uint8: [H, W] for grey and palette PNGs, as the numbers stored, else [H, W, 3] RGB.

    With `colors` always RGB: grey repeated, a palette's colours looked up. Grey of 16 bits must not exceed
    255; an alpha channel must be opaque. Source: https://www.w3.org/TR/png-3/
    """
    width, height, bits, mode = _png_header(data, max_pixels)
    if colors and mode == "I;16":
        raise MalformedFrame("a PNG of 16-bit grey where colours are expected")
    try:
        with Pillow.open(io.BytesIO(data), formats=("PNG",)) as picture:
            # a second header would count for Pillow, and was not checked
            if picture.size != (width, height) or picture.mode != mode:
                raise MalformedFrame("a PNG with contradicting headers")
            if colors or mode in ("RGB", "RGBA", "LA"):
                pixels = _opaque(picture)
                return pixels if colors or mode != "LA" else np.ascontiguousarray(pixels[..., 0])
            stored = np.asarray(picture)
    except ProtocolError:
        raise
    except Exception as exc:  # broken bytes make Pillow raise almost anything
        raise MalformedFrame(f"a PNG of {height} x {width} that cannot be decoded") from exc
    if mode == "I;16" and int(stored.max()) >= _VALUES:
        raise InvalidValue(f"a PNG holds the value {int(stored.max())}, more than 255")
    indices: UInt8 = stored.astype(np.uint8)
    return indices // np.uint8(_STRETCHED[bits]) if mode == "L" and bits in _STRETCHED else indices


def decode_mask(data: bytes, *, max_pixels: int, threshold: int = 127) -> Bool:
    """One region as a PNG in shades of grey, to bool [H, W]: brighter than `threshold` of 255.

    Any kind of PNG will do, of one bit or with a palette, as long as all its colours are grey.
    """
    pixels = decode_png(data, max_pixels=max_pixels, colors=True)
    grey = pixels[..., 0]
    if (pixels[..., 1:] != grey[..., None]).any():
        raise InvalidValue("a mask holds colours, not grey")
    if threshold >= 1 and int(grey.max()) == 1:
        raise InvalidValue("a mask of zeros and ones: its threshold must be 0")
    return grey > threshold


def ids_from_indices(indices: UInt8, table: Mapping[int, int], *, unlisted_void: bool = False) -> UInt8:
    """Stored indices uint8 [H, W] to class ids by `table`; VOID is a legal class of it.

    What it does not list is an error, or void with `unlisted_void`.
    """
    if not all(0 <= index < _VALUES and 0 <= meant <= VOID for index, meant in table.items()):
        raise InvalidValue("a table of indices maps 0..255 to classes 0..254 or void")
    if indices.ndim != 2:
        raise InvalidValue("a mask of colours where indices are expected")
    meanings = np.full(_VALUES, -1, np.int16)
    meanings[list(table)] = list(table.values())
    if unlisted_void:
        meanings[meanings < 0] = VOID
    ids = meanings[indices]
    if (ids < 0).any():
        raise InvalidValue(f"a mask holds the index {int(indices[ids < 0][0])}, which has no class")
    return ids.astype(np.uint8)


def ids_from_colors(
    colors: UInt8, palette: Mapping[Rgb, int], *, tolerance: int = 0, unlisted_void: bool = False
) -> UInt8:
    """RGB uint8 [H, W, 3] to class ids by `palette`; a colour may be off by `tolerance` in each channel.

    What it does not list is an error, or void with `unlisted_void`.
    """
    _check_palette(palette, tolerance)
    if colors.ndim != 3 or colors.shape[2] != 3:
        raise InvalidValue("a mask of indices where colours are expected")
    wide = colors.astype(np.uint32)
    codes = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    present = np.unique(codes)  # few in a map of classes: everything below is done on them
    shades = np.stack([present >> 16, present >> 8 & 255, present & 255], axis=1).astype(np.int16)
    meanings = np.full(len(present), VOID if unlisted_void else -1, np.int16)
    for color, meant in palette.items():
        meanings[(np.abs(shades - np.array(color, np.int16)) <= tolerance).all(axis=1)] = meant
    if (meanings < 0).any():
        raise InvalidValue(
            f"a mask holds the colour #{int(present[meanings < 0][0]):06x}, which has no class"
        )
    return meanings.astype(np.uint8)[np.searchsorted(present, codes)]


@dataclass(frozen=True, slots=True, eq=False)
class ClassMask:
    """One region of an answer: bool [h, w] of a class (or VOID), with its score if it has one."""

    class_id: int
    mask: Bool
    score: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.class_id <= VOID:
            raise InvalidValue(f"a mask's class must be 0..{VOID}, not {self.class_id}")
        if self.mask.dtype != np.bool_ or self.mask.ndim != 2 or 0 in self.mask.shape:
            raise InvalidValue(f"a mask is bool [h, w], not {self.mask.dtype} {list(self.mask.shape)}")
        if self.score is not None and not isfinite(self.score):
            raise InvalidValue("a mask's score is not a number")


def labels_from_masks(masks: Sequence[ClassMask], height: int, width: int) -> UInt8:
    """Masks painted on each other, uint8 [H, W]: VOID where there is none.

    The higher score wins, one without a score is below all, ties go to the earlier. A mask of another size is
    resized to the nearest pixel if its sides are in proportion, within a pixel.
    """
    labels = np.full((height, width), VOID, np.uint8)
    order = sorted(masks, key=lambda m: -np.inf if m.score is None else m.score, reverse=True)
    for item in reversed(order):  # sorting keeps the order of ties, and the best is painted last
        labels[_fitted(item.mask, height, width)] = item.class_id
    return labels


def mask_from_rle(size: object, counts: object, *, max_pixels: int) -> Bool:
    """A COCO run-length encoded mask, bool [h, w]: `size` is [h, w], `counts` a list or COCO's own text.

    Runs go down the columns and begin with zeros. In text, a run is told from the fourth on as its difference
    to the run two before, in digits of five bits, the lowest first: 48 + digit, + 32 if more follow; bit 4 of
    the last digit is the sign. Source: https://github.com/cocodataset/cocoapi (common/maskApi.h, rleToString)
    """
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int for n in size)):
        raise MalformedFrame("the size of a run-length encoded mask is two numbers")
    height, width = cast(Sequence[int], size)
    if not (1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE):
        raise InvalidValue(f"a mask's sides must be of 1..{_MAX_SIDE} pixels")
    if height * width > max_pixels:
        raise LimitExceeded(f"a mask of {height} x {width} is beyond {max_pixels} pixels")
    pixels = height * width
    if isinstance(counts, str | bytes):
        runs = _rle_runs(counts, pixels)
    elif isinstance(counts, list | tuple) and all(type(n) is int for n in counts):
        if any(not 0 <= n <= pixels for n in counts):
            raise InvalidValue(f"a run of a mask must be of 0..{pixels} pixels")
        runs = np.array(counts, np.int64)
    else:
        raise MalformedFrame("the runs of a mask are a list of whole numbers, or text")
    if int(runs.sum()) != pixels:
        raise InvalidValue(f"the runs of a mask add up to {int(runs.sum())} pixels, not {height} x {width}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def decode_text(text: object, *, max_bytes: int) -> bytes:
    """The bytes in base64 text or in a base64 data URI, whatever its media type.

    Only the standard alphabet with its padding: no line breaks, nothing left out. Sources: RFC 4648,
    section 4; RFC 2397.
    """
    if not isinstance(text, str):
        raise MalformedFrame("base64 is text")
    start = 0
    if text[:5].lower() == "data:":
        comma = text.find(",", 0, _URI_HEAD)
        if comma < 0 or not text[:comma].lower().endswith(";base64"):
            raise MalformedFrame("a data URI that is not base64")
        start = comma + 1
    if len(text) - start > 4 * (max_bytes // 3 + 1):
        raise LimitExceeded(f"{len(text) - start} characters of base64 are beyond {max_bytes} bytes")
    try:
        data = binascii.a2b_base64(text[start:], strict_mode=True)
    except ValueError as exc:  # binascii.Error, or a character beyond ASCII
        raise MalformedFrame("text that is not base64") from exc
    if len(data) > max_bytes:
        raise LimitExceeded(f"{len(data)} bytes of base64 are beyond {max_bytes}")
    return data


def resized(ids: UInt8, height: int, width: int) -> UInt8:
    """Class ids uint8 [h, w] on another grid, uint8 [H, W]: each pixel takes the nearest one."""
    if ids.shape == (height, width):
        return ids
    return np.asarray(cv2.resize(ids, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def ranked(scores: Floats, k: int) -> tuple[UInt8, Float16]:
    """The `k` best classes of each pixel, best first, ties to the lower id: uint8 and float16 [K, H, W].

    `scores` [C, H, W] are logits or shares; beyond float16 they become infinite.
    """
    count, height, width = _shape(scores)
    if not 1 <= k <= count:
        raise InvalidValue(f"{k} of {count} classes cannot be ranked")
    if np.isnan(scores.min()):
        raise InvalidValue("scores that are no numbers")
    classes = np.zeros((k, height, width), np.uint8)
    best = np.empty((k, height, width), np.float16)
    rows = max(1, _BLOCK // width)
    for top in range(0, height, rows):
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(scores[:, top : top + rows], np.float32)
            ids, values = _unkeyed(_best(_keys(block), k))
            classes[:, top : top + rows] = ids
            best[:, top : top + rows] = values
    return classes, best


def softmax(scores: Floats) -> Float32:
    """Logits [C, H, W] to shares that add up to one over C, float32. A logit may be minus infinity."""
    _shape(scores)
    with np.errstate(over="ignore"):
        shares = scores.astype(np.float32)
    highest = shares.max(axis=0)
    if not np.isfinite(highest).all():
        raise InvalidValue("logits that are no numbers, or infinite")
    shares -= highest
    np.exp(shares, out=shares)
    shares /= shares.sum(axis=0)
    return shares


def normalised(scores: Floats) -> bool:
    """Whether the scores [C, H, W] of each pixel are shares: between 0 and 1 and one in sum, within 0.01."""
    _shape(scores)
    # not a number is on neither side
    if not (scores.min() >= -_RANGE_SLACK and scores.max() <= 1 + _RANGE_SLACK):
        return False
    total = scores.sum(axis=0, dtype=np.float32)
    return bool((np.abs(total - 1) <= _SUM_SLACK).all())


def within_one(scores: Floats) -> Float32:
    """Shares [C, H, W] as `Prediction` wants them, float32: none below 0, at most one in sum over C."""
    _shape(scores)
    shares: Float32 = np.maximum(scores.astype(np.float32, copy=False), np.float32(0))
    shares /= np.maximum(shares.sum(axis=0), np.float32(1))
    return shares


def _png_header(data: bytes, max_pixels: int) -> tuple[int, int, int, str]:
    """Width, height, bits a channel and Pillow's mode, from the header alone."""
    if len(data) < _PNG_LEAST or not data.startswith(_PNG_HEAD):
        raise MalformedFrame(f"{len(data)} bytes that are no PNG")
    width, height, bits, kind = struct.unpack(">IIBB", data[16:26])
    if height * width > max_pixels:
        raise LimitExceeded(f"a PNG of {height} x {width} is beyond {max_pixels} pixels")
    mode = _MODES.get((kind, bits))
    if mode is None or height < 1 or width < 1:
        raise MalformedFrame(f"a PNG of {height} x {width}, colour type {kind} with {bits} bits")
    if _PNG_END not in data:  # Pillow would be content with all pixels, checked by no sum
        raise MalformedFrame(f"a PNG of {height} x {width} that is cut off")
    return width, height, bits, mode


def _opaque(picture: Pillow.Image) -> UInt8:
    """RGB uint8 [H, W, 3] of a picture that nothing shines through."""
    if picture.has_transparency_data:
        pixels = np.asarray(picture.convert("RGBA"), np.uint8)
        if (pixels[..., 3] != _VALUES - 1).any():
            raise InvalidValue("a PNG with transparent pixels")
        return np.ascontiguousarray(pixels[..., :3])
    return np.asarray(picture.convert("RGB"), np.uint8)


def _check_palette(palette: Mapping[Rgb, int], tolerance: int) -> None:
    if not all(len(c) == 3 and all(0 <= v < _VALUES for v in c) for c in palette):
        raise InvalidValue("a palette's colour is three numbers from 0 to 255")
    if not all(0 <= meant <= VOID for meant in palette.values()) or tolerance < 0:
        raise InvalidValue("a palette maps colours to classes 0..254 or void")
    listed = np.array(list(palette), np.int16).reshape(-1, 3)
    apart = np.abs(listed[:, None] - listed[None]).max(axis=2, initial=0)
    if (apart <= 2 * tolerance).sum() > len(palette):  # each is near itself
        raise InvalidValue(f"with a tolerance of {tolerance}, a colour could be two of the palette")


def _fitted(mask: Bool, height: int, width: int) -> Bool:
    rows, columns = mask.shape
    if (rows, columns) == (height, width):
        return mask
    # one pixel more or less on either side, as rounding leaves it
    if abs(columns * height - rows * width) > max(height, width):
        raise InvalidValue(f"a mask of {rows} x {columns} does not fit an image of {height} x {width}")
    return resized(mask.view(np.uint8), height, width).view(np.bool_)


def _rle_runs(text: str | bytes, pixels: int) -> npt.NDArray[np.int64]:
    """The runs in COCO's compressed text, int64, each of 0..`pixels`."""
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError as exc:
        raise MalformedFrame("the runs of a mask hold a character beyond ASCII") from exc
    digits = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not digits.size or ((digits < 0) | (digits > 63)).any() or digits[-1] & 32:
        raise MalformedFrame("the runs of a mask are empty, cut off, or hold a foreign character")
    ends = np.flatnonzero((digits & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if int(lengths.max()) > _RLE_DIGITS:
        raise InvalidValue("a run of a mask is longer than any mask")
    places = np.arange(digits.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((digits & 31) << 5 * places, starts)
    runs -= np.where(digits[ends] & 16, np.int64(1) << 5 * lengths, 0)
    # from the fourth on, each is told by its difference to the one two places earlier
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if ((runs < 0) | (runs > pixels)).any():
        raise InvalidValue(f"a run of a mask must be of 0..{pixels} pixels")
    return runs


def _shape(scores: Floats) -> tuple[int, int, int]:
    if scores.ndim != 3 or 0 in scores.shape or scores.shape[0] > MAX_CLASSES or scores.dtype.kind != "f":
        raise InvalidValue(f"scores are [C, H, W] of 1..{MAX_CLASSES} classes, not {list(scores.shape)}")
    count, height, width = scores.shape
    return count, height, width


def _keys(scores: Float32) -> Keys:
    """A number for each class of each pixel, [C, H, W]: the larger is the better, ties to the lower id.

    The bits of a float, its sign turned around, are in the order of its value; below them stands the class.
    """
    bits = (scores + np.float32(0)).view(np.uint32)  # minus zero is zero
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    classes = np.arange(_VALUES - 1, _VALUES - 1 - len(scores), -1, dtype=np.uint64)
    keys: Keys = ordered.astype(np.uint64) << np.uint64(8) | classes[:, None, None]
    return keys


def _best(keys: Keys, k: int) -> Keys:
    """The `k` largest of each pixel in order. Spoils `keys`."""
    if k > _FEW:
        keys.sort(axis=0)
        return keys[: -k - 1 : -1]
    best = [np.zeros(keys.shape[1:], np.uint64) for _ in range(k)]
    spare = np.empty_like(best[0])
    for index, key in enumerate(keys):
        for place in range(min(index + 1, k)):
            np.maximum(best[place], key, out=spare)
            np.minimum(best[place], key, out=key)  # what is displaced goes on to the next place
            best[place], spare = spare, best[place]
    return np.stack(best)


def _unkeyed(keys: Keys) -> tuple[UInt8, Float32]:
    """Classes and scores of keys."""
    ordered = (keys >> np.uint64(8)).astype(np.uint32)
    bits = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered)
    return ~keys.astype(np.uint8), bits.view(np.float32)
