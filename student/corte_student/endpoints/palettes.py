"""Class lists that have a name, and colours for classes that have none: for pictures only, never for
meaning.
"""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Final

from corte_protocol.types import VOID_NAME
from corte_student.data.layouts import camvid, cityscapes

Rgb = tuple[int, int, int]

_CITYSCAPES: Final[Mapping[str, Rgb]] = dict(zip(cityscapes.CLASSES, cityscapes.COLORS, strict=True))
_GOLDEN = 0.618034  # the golden ratio's fraction spreads any number of hues


def colors_for(names: Sequence[str], known: Mapping[str, Rgb] = _CITYSCAPES) -> tuple[Rgb, ...]:
    """One colour a class: Cityscapes' where the name is one of its, black for void, else a hue by place."""
    known = {**_CITYSCAPES, **known, VOID_NAME: (0, 0, 0)}
    return tuple(known[name.lower()] if name.lower() in known else _hue(i) for i, name in enumerate(names))


def _hue(index: int) -> Rgb:
    red, green, blue = colorsys.hsv_to_rgb((index * _GOLDEN) % 1.0, 0.65, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


PALETTES: Final[Mapping[str, Mapping[str, Rgb]]] = {
    "cityscapes": _CITYSCAPES,
    "camvid": dict(zip(camvid.CLASSES, colors_for(camvid.CLASSES), strict=True)),
}
"""What `classes = "NAME"` in a config stands for: names in the order of their ids, with colours."""
