"""fast.ai's CamVid: images/a.png, labels/a_P.png, codes.txt with one class per line, valid.txt."""

from pathlib import Path

from segnet_jax.data.label_files.class_table_files import folder_label_mapping
from segnet_jax.data.labels.read_options import ReadOptions
from segnet_jax.data.layouts import folder as own
from segnet_jax.data.layouts.names.match_labels import unmatched_labels_note
from segnet_jax.data.layouts.pairs import LayoutFiles
from segnet_jax.system.errors import Fault

IMAGES, LABELS, CODES, VALID = "images", "labels", "codes.txt", "valid.txt"


def recognize(folder: Path) -> str:
    """Return how the layout was recognized, or "" if it was not."""
    there = (folder / IMAGES).is_dir() and (folder / LABELS).is_dir() and (folder / CODES).is_file()
    if there and any((folder / LABELS).glob("*_P.png")):
        return f"it contains {CODES}, {IMAGES}/ and {LABELS}/ with names that end in _P"
    return ""


def find(folder: Path, read_options: ReadOptions) -> LayoutFiles:
    """Find the pairs; without valid.txt or another list of validation images, the split is random."""
    faults: list[Fault] = []
    ignored: list[str] = []
    label_mapping, _ = folder_label_mapping(folder, faults, ignored)
    entries, unmatched = own.pairs_of(folder / IMAGES, folder / LABELS, folder, read_options, faults)
    notes, lists = [*ignored, *unmatched_labels_note(unmatched, folder)], own.lists_in(folder, folder, faults)
    if (folder / VALID).is_file():
        lists["val"] = folder / VALID
    splits, is_split = own.by_lists(entries, lists, folder, faults), "val" in lists or "train" in lists
    return LayoutFiles("fastai", splits, label_mapping, tuple(faults), tuple(notes), is_split, label_mapping is None)
