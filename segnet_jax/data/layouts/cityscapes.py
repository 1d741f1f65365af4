"""Cityscapes: leftImg8bit/SPLIT/CITY/x_leftImg8bit.png and gtFine/SPLIT/CITY/x_gtFine_labelIds.png.

Source of the table: cityscapesscripts/helpers/labels.py; 19 classes are used for training, and all other ids are void.
"""

from collections.abc import Mapping
from pathlib import Path

from segnet_jax.constants import VOID
from segnet_jax.data.label_files.class_table_files import folder_label_mapping
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.data.labels.label_mapping import LabelMapping
from segnet_jax.data.labels.read_options import ReadOptions
from segnet_jax.data.layouts.names.match_labels import WITHOUT_LABEL, is_inside, pictures_below
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.data.layouts.pairs import LayoutFiles
from segnet_jax.system.errors import Fault, UserError
from segnet_jax.system.files import relative_path

IMAGES, LABELS = "leftImg8bit", "gtFine"
TRAIN_IDS, IDS = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"

# name, id in labelIds, color; the index is the train id
_CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
_MAX_ID = 33

CLASSES = ClassTable(tuple(name for name, _, _ in _CLASSES), tuple(color for _, _, color in _CLASSES))
OF_IDS = {value: VOID for value in (*range(_MAX_ID + 1), VOID)} | {
    value: train_id for train_id, (_, value, _) in enumerate(_CLASSES)
}
"""Value in labelIds -> train id or VOID."""


def roots(folder: Path) -> tuple[Path, Path] | None:
    """Return the folders of images and labels, each in `folder` or its archive's folder, or None if one is missing."""
    found = []
    for name in (IMAGES, LABELS):
        packed = sorted(path for path in folder.glob(f"{name}*/{name}") if path.is_dir())
        direct = folder / name
        if packed:
            found.append(packed[0])
        elif direct.is_dir():
            found.append(direct)
    return (found[0], found[1]) if len(found) == 2 else None


def recognize(folder: Path) -> str:
    """Return how the layout was recognized, or "" if it was not."""
    found = roots(folder)
    if found is None or not any(any(found[1].glob(f"*/*/*{ending}")) for ending in (TRAIN_IDS, IDS)):
        return ""
    return f"it contains {relative_path(found[0], folder)}/ and {relative_path(found[1], folder)}/"


def find(folder: Path, read_options: ReadOptions) -> LayoutFiles:
    """Find the pairs, with labelTrainIds if there are any, else labelIds.

    Raises:
      UserError: If there is no training image.
    """
    faults: list[Fault] = []
    notes: list[str] = []
    images_root, labels_root = roots(folder)
    own, has_table = folder_label_mapping(folder, faults, notes)
    by_train_ids = next(labels_root.glob(f"train/*/*{TRAIN_IDS}"), None) is not None
    ending = TRAIN_IDS if by_train_ids else IDS
    entries: dict[str, list[Entry]] = {}
    for split in ("train", "val"):
        root = images_root / split
        if root.is_dir():
            images = pictures_below(
                root, folder, faults, read_options.images or f"*_{IMAGES}.png", read_options.follow_links
            )
            entries[split] = _pairs(images, images_root, labels_root, ending, folder, faults)
    if not entries.get("train") and not faults:
        message = f"no image in {relative_path(images_root, folder)}/train/*/ has a name ending in _{IMAGES}.png"
        raise UserError(message, kind="no-images", file=f"{IMAGES}/train")
    default = LabelMapping(f"Cityscapes' {'train ids' if by_train_ids else 'label ids'}", CLASSES, ids(by_train_ids))
    notes.append(f"note: labels are Cityscapes' {ending}")
    if (images_root / "test").is_dir():
        notes.append("note: Cityscapes' test images are not used, because their labels are not published")
    has_bad_class_file = has_table and own is None
    return LayoutFiles(
        "cityscapes",
        entries,
        own,
        tuple(faults),
        tuple(notes),
        has_bad_class_file=has_bad_class_file,
        default=default,
        fits_default=lambda values: are_of_cityscapes(values, by_train_ids),
    )


def are_of_cityscapes(values: Mapping[int, int], by_train_ids: bool) -> bool:
    """Return whether labels without a class file can be Cityscapes'; other datasets use this layout too."""
    held = set(values) - {VOID}
    if by_train_ids:
        return held <= set(range(len(CLASSES))) and max(held, default=0) >= 10
    trained = {value for _, value, _ in _CLASSES}
    return held <= set(OF_IDS) and bool(held & trained) and max(held) >= 11


def _pairs(
    images: list[Path], images_root: Path, labels_root: Path, ending: str, folder: Path, faults: list[Fault]
) -> list[Entry]:
    entries = []
    for image in images:
        name = image.name.removesuffix(f"_{IMAGES}.png")
        below = image.relative_to(images_root).parent
        label = labels_root / below / f"{name}{ending}"
        if not is_inside(label, folder, faults):
            continue
        if label.exists():
            entries.append(Entry(name, image, label))
        else:
            file = relative_path(image, folder)
            message = f"{file} has no label: {relative_path(label, folder)} does not exist"
            faults.append(Fault(WITHOUT_LABEL, file, message, "add the label, or remove the image"))
    return entries


def ids(by_train_ids: bool) -> tuple[tuple[int, int], ...]:
    """Return pairs (value in label files, train id or VOID)."""
    if by_train_ids:
        return (*((train_id, train_id) for train_id in range(len(CLASSES))), (VOID, VOID))
    return tuple(OF_IDS.items())
