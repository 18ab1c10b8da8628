"""Each data set's layout on a tree in its own byte format: the contract, and the traps that are known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import formats
from corte_student.data.layouts import LAYOUTS, check_classes, find_pairs, pair, read_labels
from corte_student.data.layouts.cityscapes import CLASSES
from corte_student.errors import DataError
from formats import VOID, street
from student.layout_contract import LayoutContract


class TestPlain(LayoutContract):
    """`plain` fixes neither classes nor places."""

    layout, form, classes = "plain", "plain", 5
    remedy = "8-bit PNG that stores one class number a pixel"

    def pairs(self, root: Path) -> list[tuple[Path, Path]]:
        return pair(root / "images", root / "labels", "plain")

    def test_the_layout_names_its_classes(self) -> None:
        """It names none, so that any list of classes fits."""
        assert LAYOUTS["plain"].classes == ()


class TestCamvid(LayoutContract):
    layout, form, classes = "camvid", "camvid", 11
    remedy = "8-bit PNG that stores one class number a pixel"


class TestCamvidFastai(LayoutContract):
    layout, form, classes = "camvid-fastai", "camvid-fastai", 11
    remedy = r"NAME_P\.png of fast\.ai's camvid/labels"


class TestCityscapesIds(LayoutContract):
    layout, form = "cityscapes", "cityscapes"
    remedy = r"_labelIds\.png or \.\.\._labelTrainIds\.png"


class TestCityscapesTrainIds(LayoutContract):
    layout, form = "cityscapes", "cityscapes train ids"
    remedy = r"_labelIds\.png or \.\.\._labelTrainIds\.png"


class TestGta5(LayoutContract):
    layout, form, split = "gta5", "gta5", "train"
    remedy = "palette PNGs of labels/ as downloaded"


class TestSynthia(LayoutContract):
    layout, form, split = "synthia", "synthia", "train"
    remedy = "16-bit PNGs of GT/LABELS as downloaded"


class TestAcdc(LayoutContract):
    layout, form, copies = "acdc", "acdc", 4
    remedy = r"gt's \.\.\._labelTrainIds\.png or \.\.\._labelIds\.png"


class TestBdd100k(LayoutContract):
    layout, form, remedy = "bdd100k", "bdd100k", "not colormaps"


class TestBdd100kOld(LayoutContract):
    layout, form, remedy = "bdd100k", "bdd100k old", "not colormaps"


class TestIdd(LayoutContract):
    layout, form, remedy = "idd", "idd", "--id-type csTrainId"


class TestIddIds(LayoutContract):
    layout, form, remedy = "idd", "idd ids", "--id-type csTrainId"


class TestKitti(LayoutContract):
    layout, form, split = "kitti", "kitti", "train"
    remedy = "not training/instance"


def test_every_layout_is_held_to_the_contract() -> None:
    """None is forgotten."""
    assert {kind.layout for kind in LayoutContract.__subclasses__()} == set(LAYOUTS)
    assert {kind.form for kind in LayoutContract.__subclasses__()} == set(formats.WRITERS)


def row(path: Path, *numbers: int) -> Path:
    """A grey label of one line."""
    return formats.save_grey(path, np.array([numbers], np.uint8))


# What the tables below say of every number, from the data sets' own documents: 255 where it is not listed.
TABLES: Mapping[str, tuple[int, Mapping[int, int]]] = {
    "cityscapes": (34, {v: k for k, v in formats.CITYSCAPES.items() if k != VOID}),
    "kitti": (34, {v: k for k, v in formats.CITYSCAPES.items() if k != VOID}),
    "gta5": (35, {v: k for k, v in formats.GTA5.items() if k != VOID}),
    "synthia": (23, {v: k for k, v in formats.SYNTHIA.items() if k != VOID}),
    "idd": (40, {v: k for k, v in formats.IDD.items() if k != VOID}),
}
NAMES = {"cityscapes": "x_gtFine_labelIds.png", "idd": "x_gtFine_labelids.png"}


@pytest.mark.parametrize("layout", TABLES)
def test_every_number_of_a_format_has_one_meaning(tmp_path: Path, layout: str) -> None:
    """All ids of the format are read, those that are not trained on as void; the next higher is refused."""
    save: Any = {"gta5": formats.save_palette, "synthia": formats.save_red16}.get(layout, formats.save_grey)
    count, meaning = TABLES[layout]
    path = tmp_path / NAMES.get(layout, "x.png")
    save(path, np.arange(count, dtype=np.uint8)[None])
    assert read_labels(path, layout, 19).tolist() == [[meaning.get(v, VOID) for v in range(count)]]
    save(path, np.array([[0, count]], np.uint8))
    with pytest.raises(DataError, match=f"holds the value {count}"):
        read_labels(path, layout, 19)


def test_cityscapes_names_decide_before_values(tmp_path: Path) -> None:
    """The numbers 0 to 18 are legal in both encodings and mean other things: the name says which."""
    assert read_labels(row(tmp_path / "x_gtFine_labelIds.png", 7, 8, 11), "cityscapes", 19).tolist() == [
        [0, 1, 2]
    ]
    assert read_labels(row(tmp_path / "x_gtFine_labelTrainIds.png", 7, 8, 11), "cityscapes", 19).tolist() == [
        [7, 8, 11]
    ]


def test_cityscapes_values_decide_where_the_name_is_silent(tmp_path: Path) -> None:
    """Any number of 19 to 33 makes a file one of ids; else it is one of train ids."""
    assert read_labels(row(tmp_path / "x.png", 7, 26, 255), "cityscapes", 19).tolist() == [[0, 13, 255]]
    assert read_labels(row(tmp_path / "y.png", 7, 13, 255), "cityscapes", 19).tolist() == [[7, 13, 255]]
    with pytest.raises(DataError, match="holds the value 34"):
        read_labels(row(tmp_path / "z.png", 7, 34), "cityscapes", 19)


def test_cityscapes_train_ids_are_preferred_where_both_lie(tmp_path: Path) -> None:
    """Both files say the same; one of them is taken, once."""
    truths = {"a_000000_000019": street(0)}
    formats.write_cityscapes(tmp_path, truths, "val")
    formats.write_cityscapes(tmp_path, truths, "val", train_ids=True)
    ((_, label),) = find_pairs(tmp_path, "cityscapes", "val")
    assert label.name == "a_000000_000019_gtFine_labelTrainIds.png"


def test_a_train_id_name_with_ids_inside_is_refused(tmp_path: Path) -> None:
    """The name was a promise: numbers beyond 18 break it."""
    with pytest.raises(DataError, match="holds the value 26"):
        read_labels(row(tmp_path / "x_gtFine_labelTrainIds.png", 7, 26), "cityscapes", 19)


def test_gta5_reads_the_index_and_not_the_colour(tmp_path: Path) -> None:
    """Road's number is 7 and its colour's luminance 90; 34 is the licence plate, with car's very colour."""
    path = formats.save_palette(tmp_path / "x.png", np.array([[7, 26, 34]], np.uint8))
    with Image.open(path) as picture:
        assert np.asarray(picture.convert("L")).tolist()[0][0] == 90
        assert picture.convert("RGB").getpixel((1, 0)) == picture.convert("RGB").getpixel((2, 0))
    assert read_labels(path, "gta5", 19).tolist() == [[0, 13, VOID]]


def test_gta5_pairs_of_two_sizes_are_left_out_with_a_warning(tmp_path: Path) -> None:
    """A handful of GTA5's images have another size than their labels: they cost no run, and are told."""
    truths = {name: street(i) for i, name in enumerate(("00001", "00002", "00003"))}
    formats.write_gta5(tmp_path, truths, "train")
    formats.save_photo(tmp_path / "images/00002.png", street(0, size=(30, 60)))
    with pytest.warns(UserWarning, match=r"1 of 3 images differ in size .*00002\.png"):
        pairs = find_pairs(tmp_path, "gta5", "train")
    assert [image.stem for image, _ in pairs] == ["00001", "00003"]


def test_gta5_copies_pair_by_stem_and_never_by_count(tmp_path: Path) -> None:
    """Equal counts with a hole on each side pair what belongs together, and both holes are told."""
    formats.write_gta5(tmp_path, {f"{i:05d}": street(i) for i in range(1, 5)}, "train")
    (tmp_path / "images/00002.png").unlink()
    (tmp_path / "labels/00003.png").unlink()
    with pytest.warns(UserWarning) as told:
        pairs = find_pairs(tmp_path, "gta5", "train")
    assert [(i.stem, t.stem) for i, t in pairs] == [("00001", "00001"), ("00004", "00004")]
    assert len(told) == 2
    for image, label in pairs:
        image.unlink()
        label.unlink()
    with pytest.warns(UserWarning), pytest.raises(DataError, match=r"no label in .* belongs to an image"):
        find_pairs(tmp_path, "gta5", "train")


def test_synthia_is_not_the_zeros_that_pillow_reads(tmp_path: Path) -> None:
    """Pillow opens the 16-bit PNG as eight bits and sees only zeros in red; the layout sees the classes."""
    path = formats.save_red16(tmp_path / "x.png", np.array([[3, 21, 22, 1]], np.uint8))
    with Image.open(path) as picture:
        assert not np.asarray(picture)[..., 0].any()
    assert read_labels(path, "synthia", 19).tolist() == [[0, 3, VOID, 10]]


def test_a_synthia_label_that_pillow_saved_is_refused(tmp_path: Path) -> None:
    """A resized copy made with Pillow holds zeros of eight bits: void everywhere, were it read."""
    path = formats.save_red16(tmp_path / "x.png", np.array([[3, 21, 22, 1]], np.uint8))
    with Image.open(path) as picture:
        picture.load()
        picture.save(path)
    with pytest.raises(DataError, match="a copy that Pillow saved has lost its classes"):
        read_labels(path, "synthia", 19)


def test_fastai_codes_are_checked_where_they_lie(tmp_path: Path) -> None:
    """Another order of classes means other numbers; without codes.txt the usual ones are taken."""
    formats.write_camvid_fastai(tmp_path, {"a": street(0, classes=11)}, "val")
    (tmp_path / "codes.txt").write_text("\n".join(reversed(formats.CODES)))
    with pytest.raises(DataError, match="lists other classes than the 32"):
        find_pairs(tmp_path, "camvid-fastai", "val")
    (tmp_path / "codes.txt").unlink()
    assert len(find_pairs(tmp_path, "camvid-fastai", "val")) == 1


def test_fastai_splits_are_what_valid_txt_says(tmp_path: Path) -> None:
    """One folder holds all images: listed ones are `val`, the others `train`."""
    formats.write_camvid_fastai(tmp_path, {"a": street(0, classes=11)}, "val")
    formats.write_camvid_fastai(tmp_path, {"b": street(1, classes=11)}, "train")
    for split, name in (("val", "a"), ("train", "b")):
        assert [image.stem for image, _ in find_pairs(tmp_path, "camvid-fastai", split)] == [name]


def test_fastai_merges_32_codes_into_segnets_11(tmp_path: Path) -> None:
    """Each code is read as the SegNet class that swallowed it, and Void as void."""
    merged = {
        "sky": "Sky",
        "building": "Archway Bridge Building Tunnel Wall",
        "pole": "Column_Pole TrafficCone",
        "road": "LaneMkgsDriv LaneMkgsNonDriv Road",
        "pavement": "ParkingBlock RoadShoulder Sidewalk",
        "tree": "Tree VegetationMisc",
        "signsymbol": "Misc_Text SignSymbol TrafficLight",
        "fence": "Fence",
        "car": "Car OtherMoving SUVPickupTruck Train Truck_Bus",
        "pedestrian": "Animal CartLuggagePram Child Pedestrian",
        "bicyclist": "Bicyclist MotorcycleScooter",
    }
    of = {code: name for name, codes in merged.items() for code in codes.split()}
    labels = read_labels(row(tmp_path / "x_P.png", *range(32)), "camvid-fastai", 11)[0]
    names = LAYOUTS["camvid-fastai"].classes
    assert [None if v == VOID else names[v] for v in labels.tolist()] == [of.get(c) for c in formats.CODES]


def test_idd_polygons_without_masks_name_the_tool(tmp_path: Path) -> None:
    """IDD ships polygons: the error says how they become masks."""
    formats.write_idd(tmp_path, {"a": street(0)}, "val")
    (mask,) = tmp_path.rglob("*_labelcsTrainIds.png")
    mask.unlink()
    with pytest.raises(DataError, match=r"createLabels\.py --id-type csTrainId"):
        find_pairs(tmp_path, "idd", "val")


def test_idd_level_ids_are_refused(tmp_path: Path) -> None:
    """Level 3, the tool's default, has one number for person and animal: nothing takes that apart again."""
    formats.write_idd(tmp_path, {"a": street(0)}, "val")
    (mask,) = tmp_path.rglob("*_labelcsTrainIds.png")
    mask.rename(mask.with_name("a_gtFine_labellevel3Ids.png"))
    with pytest.raises(DataError, match="level ids merge classes"):
        find_pairs(tmp_path, "idd", "val")


def test_kitti_instances_are_refused(tmp_path: Path) -> None:
    """The 16-bit files of training/instance hold class times 256; eight bits of them would be void."""
    formats.write_kitti(tmp_path, {"a": street(0)}, "train")
    with pytest.raises(DataError, match="use training/semantic, not training/instance"):
        read_labels(tmp_path / "training/instance/a.png", "kitti", 19)


def test_acdc_is_one_set_of_four_conditions(tmp_path: Path) -> None:
    """A score without one of them would look like a score over all."""
    formats.write_acdc(tmp_path, {"a": street(0)}, "val")
    assert len(find_pairs(tmp_path, "acdc", "val")) == 4
    (tmp_path / "rgb_anon/night").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"rgb_anon/night/val"):
        find_pairs(tmp_path, "acdc", "val")


def test_a_root_without_the_data_set_says_what_was_looked_for(tmp_path: Path) -> None:
    """Both releases of BDD100K are named; a split without labels lists those with; plain has no tree."""
    with pytest.raises(DataError, match=r"images/10k/val or .*seg/images/val"):
        find_pairs(tmp_path, "bdd100k", "val")
    with pytest.raises(DataError, match="no labelled split 'test': choose train, val"):
        find_pairs(tmp_path, "bdd100k", "test")
    with pytest.raises(DataError, match="layout plain fixes no folders"):
        find_pairs(tmp_path, "plain", "val")


def test_folders_may_be_named_one_by_one(tmp_path: Path) -> None:
    """`--images leftImg8bit/val --labels gtFine/val` is what `evaluate` is given."""
    formats.write_cityscapes(tmp_path, {"a_000000_000019": street(0)}, "val")
    folders = (tmp_path / "leftImg8bit/val", tmp_path / "gtFine/val")
    assert pair(*folders, "cityscapes") == find_pairs(tmp_path, "cityscapes", "val")


def test_cityscapes_family_shares_one_list_of_classes() -> None:
    """A model of the 19 classes fits seven layouts, one of CamVid's 11 none of them."""
    family = [name for name, layout in LAYOUTS.items() if layout.classes == CLASSES]
    assert family == ["cityscapes", "gta5", "synthia", "acdc", "bdd100k", "idd", "kitti"]
    for name in family:
        check_classes(name, CLASSES)
        with pytest.raises(DataError, match="19 classes and the model 11"):
            check_classes(name, LAYOUTS["camvid"].classes)
