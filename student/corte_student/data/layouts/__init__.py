"""Where a data set keeps its labels, and what the numbers in them mean.

    cityscapes, camvid  classes and tables of values
    layout              the rules of one data set, as values
    presets             the data sets known by name
    pairing             images with their labels
    reading             a label file to class ids

A layout of one's own is an entry of `LAYOUTS`; hold it to `LayoutContract`, tests/student/layout_contract.py.
"""

from corte_student.data.layouts.layout import Encoding, Layout, Place
from corte_student.data.layouts.pairing import find_pairs, pair
from corte_student.data.layouts.presets import LAYOUTS, check_classes, find_layout
from corte_student.data.layouts.reading import read_labels

__all__ = [
    "LAYOUTS",
    "Encoding",
    "Layout",
    "Place",
    "check_classes",
    "find_layout",
    "find_pairs",
    "pair",
    "read_labels",
]
