"""Pascal VOC's segmentation layout, also written by CVAT and labelme: JPEGImages, SegmentationClass, ImageSets.

Without a class file, labels are read as VOC's 21 classes and 255 as void, but only if names or values match, because
tools write this layout for any classes.
Source of the names and their order: the VOC2012 development kit; the palette is its `VOClabelcolormap`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from segnet_jax.constants import VOID
from segnet_jax.data.label_files.class_table_files import folder_label_mapping
from segnet_jax.data.labels.classes import ClassTable, distinct_colors
from segnet_jax.data.labels.label_mapping import LabelMapping
from segnet_jax.data.labels.read_options import ReadOptions
from segnet_jax.data.layouts.folder import by_lists, lists_in
from segnet_jax.data.layouts.names.match_labels import WITHOUT_LABEL, is_inside, match, pictures_below, unique_images
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.data.layouts.pairs import LayoutFiles
from segnet_jax.system.errors import Fault, UserError, listed, shown

IMAGES, LABELS, LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
LABELS_PNG = "SegmentationClassPNG"

_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
CLASSES = ClassTable(tuple(_NAMES), distinct_colors(len(_NAMES)))
_COLORS = {color: class_id for class_id, color in enumerate(CLASSES.colors)} | {(224, 224, 192): VOID}
LABEL_MAPPING = LabelMapping(
    "Pascal VOC",
    CLASSES,
    (*((class_id, class_id) for class_id in range(len(CLASSES))), (VOID, VOID)),
    tuple(_COLORS.items()),
)


def recognize(folder: Path) -> str:
    """Return how the layout was recognized, or "" if it was not."""
    there = (folder / IMAGES).is_dir() and (folder / LABELS).is_dir()
    return f"it contains {IMAGES}/ and {_label_folder(folder)}/" if there else ""


def _label_folder(folder: Path) -> str:
    """Return the name of the label folder; labelme's older scripts write arrays to SegmentationClass."""
    return LABELS_PNG if (folder / LABELS_PNG).is_dir() else LABELS


def find(folder: Path, read_options: ReadOptions) -> LayoutFiles:
    """Find the listed pairs; without a list for training or validation, pairs that are not in test are split randomly.

    Raises:
      UserError: If there is no label.
    """
    faults: list[Fault] = []
    ignored: list[str] = []
    own, has_table = folder_label_mapping(folder, faults, ignored)
    place = _label_folder(folder)
    labels = pictures_below(folder / place, folder, faults, "", read_options.follow_links)
    if not labels and not faults:
        raise UserError(f"no label in {place}/", kind="no-images", file=place)
    images = pictures_below(folder / IMAGES, folder, faults, read_options.images, read_options.follow_links)
    # VOC has six times as many images as labels: a missing label is a fault only if a list names the image.
    unique = unique_images(images, folder / IMAGES, folder, faults)
    without_label: list[Fault] = []
    entries, _ = match(unique, labels, folder / place, folder, without_label, read_options.label_suffix)
    faults += [fault for fault in without_label if fault.kind != WITHOUT_LABEL]
    lists, notes = _lists(folder, entries, faults)
    splits, is_split = by_lists(entries, lists, folder, faults), "val" in lists or "train" in lists
    if not is_split and (without := len(images) - len(entries)):
        notes.append(f"note: {without} of {len(images)} images in {IMAGES}/ have no label and are not used")
    has_lists = "train" in lists or "val" in lists
    names = [entry.name for entry in entries]
    return LayoutFiles(
        "pascal-voc",
        splits,
        own,
        tuple(faults),
        (*ignored, *notes),
        is_split,
        has_table and own is None,
        LABEL_MAPPING,
        lambda values: _is_voc(values, has_lists, names),
    )


def _is_voc(values: Mapping[int, int], has_lists: bool, names: Sequence[str]) -> bool:
    """Return whether labels without a class file can be Pascal VOC's."""
    if not set(values) <= {*range(len(CLASSES)), VOID}:
        return False
    is_named = all(re.fullmatch(r"\d{4}_\d{6}", name) for name in names)
    return is_named or has_lists and len(CLASSES) - 1 in values


def _lists(folder: Path, entries: list[Entry], faults: list[Fault]) -> tuple[dict[str, Path], list[str]]:
    """Return split -> list file, and notes on unused lists such as CVAT's default.txt."""
    place, notes = folder / LISTS, []
    lists = lists_in(place, folder, faults) if is_inside(place, folder, faults) else {}
    if not lists and not any(place.glob("*.txt")):
        lists = lists_in(folder, folder, faults)
    others = sorted({path.name for path in place.glob("*.txt")} - {path.name for path in lists.values()})
    if "test" in lists and not by_lists(entries, {"test": lists["test"]}, folder, [])["test"]:
        notes.append(f"note: {LISTS}/{lists.pop('test').name} lists no image with a label and is not used")
    if others:
        used = listed([path.name for path in lists.values()]) or "none"
        notes.append(f"note: lists in {LISTS} that are not used: {shown(listed(others))}; used: {used}")
    return lists, notes
