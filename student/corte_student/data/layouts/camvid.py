"""CamVid's 11 classes, and the 32 of the full data set merged into them.

The merge is the usual one of the literature on SegNet's CamVid-11 (Brostow et al. 2009 give the 32).
"""

from collections.abc import Mapping
from typing import Final

from corte_protocol import VOID

_MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "sky": ("Sky",),
    "building": ("Archway", "Bridge", "Building", "Tunnel", "Wall"),
    "pole": ("Column_Pole", "TrafficCone"),
    "road": ("LaneMkgsDriv", "LaneMkgsNonDriv", "Road"),
    "pavement": ("ParkingBlock", "RoadShoulder", "Sidewalk"),
    "tree": ("Tree", "VegetationMisc"),
    "signsymbol": ("Misc_Text", "SignSymbol", "TrafficLight"),
    "fence": ("Fence",),
    "car": ("Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus"),
    "pedestrian": ("Animal", "CartLuggagePram", "Child", "Pedestrian"),
    "bicyclist": ("Bicyclist", "MotorcycleScooter"),
}
CLASSES: Final[tuple[str, ...]] = tuple(_MEMBERS)

# as in fast.ai's codes.txt: the line's number is what the labels store
CODES: Final[tuple[str, ...]] = (
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
)

SEGNET: Final[Mapping[int, int]] = {**{i: i for i in range(len(CLASSES))}, len(CLASSES): VOID, VOID: VOID}
_OF: Final = {member: i for i, members in enumerate(_MEMBERS.values()) for member in members}
FASTAI: Final[Mapping[int, int]] = {code: _OF.get(name, VOID) for code, name in enumerate(CODES)}
