"""fast.ai's CamVid layout: images/a.png, labels/a_P.png, codes.txt with a class a line, valid.txt."""

from pathlib import Path

from segnet_jax.data.label_files.class_table_files import legend_of_folder
from segnet_jax.data.labels.read_options import Reading
from segnet_jax.data.layouts import folder as own
from segnet_jax.data.layouts.names.match_names import note_on_labels_alone
from segnet_jax.data.layouts.pairs import Found
from segnet_jax.system.errors import Fault

IMAGES, LABELS, CODES, VALID = "images", "labels", "codes.txt", "valid.txt"


def why(folder: Path) -> str:
    """By what a folder is known to be laid out so; nothing where it is not."""
    there = (folder / IMAGES).is_dir() and (folder / LABELS).is_dir() and (folder / CODES).is_file()
    if there and any((folder / LABELS).glob("*_P.png")):
        return f"it holds {CODES}, {IMAGES}/ and {LABELS}/ with names in _P"
    return ""


def find(folder: Path, reading: Reading) -> Found:
    """Finds the pairs; valid.txt names the validation images, and without it, or lists of other splits, they are dealt.

    Args:
      folder: one that `why` knows.
      reading: its owner's wishes.
    """
    faults: list[Fault] = []
    ignored: list[str] = []
    legend, _ = legend_of_folder(folder, faults, ignored)
    entries, alone = own.pairs_of(folder / IMAGES, folder / LABELS, folder, reading, faults)
    notes, lists = [*ignored, *note_on_labels_alone(alone, folder)], own.lists_in(folder, folder, faults)
    if (folder / VALID).is_file():
        lists["val"] = folder / VALID
    splits, is_split = own.by_lists(entries, lists, folder, faults), "val" in lists or "train" in lists
    return Found("fastai", splits, legend, tuple(faults), tuple(notes), is_split, legend is None)
