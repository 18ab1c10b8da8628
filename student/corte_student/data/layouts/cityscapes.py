"""Cityscapes' classes, and what other street data sets' numbers mean in them.

Facts: `cityscapesscripts/helpers/labels.py` (ids, train ids, colours), SYNTHIA's README (RAND_CITYSCAPES),
`helpers/anue_labels.py` of AutoNUE/public-code (IDD).
"""

from collections.abc import Iterable, Mapping
from typing import Final

from corte_protocol import VOID

# name, colour; the place in the list is the train id
_TRAINED: Final = (
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)
CLASSES: Final[tuple[str, ...]] = tuple(name for name, _ in _TRAINED)
COLORS: Final[tuple[tuple[int, int, int], ...]] = tuple(color for _, color in _TRAINED)


def _meaning(stored_of_class: tuple[int, ...], known: Iterable[int]) -> Mapping[int, int]:
    """Stored value to train id: the values in the order of the train ids, all other known ones void."""
    return {**dict.fromkeys(known, VOID), **{stored: i for i, stored in enumerate(stored_of_class)}}


_CITYSCAPES: Final = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# terrain (16), truck (18) and train (20) have numbers but no pixel
_SYNTHIA: Final = (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)
# by the column csTrainId, where "non-drivable fallback" (5) is terrain; csId holds a typing error (355)
_IDD: Final = (0, 3, 29, 20, 21, 26, 25, 24, 32, 5, 33, 6, 8, 12, 13, 14, 17, 9, 10)

TRAIN_IDS: Final = _meaning(tuple(range(len(CLASSES))), (VOID,))
IDS: Final = _meaning(_CITYSCAPES, (*range(34), VOID))  # licence plates are -1, which eight bits hold as 255
GTA5_IDS: Final = _meaning(_CITYSCAPES, range(35))  # 34 is the licence plate, and there is no 255
SYNTHIA_IDS: Final = _meaning(_SYNTHIA, range(23))
IDD_IDS: Final = _meaning(_IDD, (*range(40), VOID))
