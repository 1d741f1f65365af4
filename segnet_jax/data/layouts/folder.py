"""A folder of one's own: images/ and labels/ (or masks/, annotations/), split by lists, by subfolders, or dealt."""

from collections.abc import Mapping
from pathlib import Path

from segnet_jax.data.label_files.class_table_files import legend_of_folder
from segnet_jax.data.labels.read_options import Reading
from segnet_jax.data.layouts.names.match_names import (
    WITHOUT_LABEL,
    match,
    note_on_labels_alone,
    pictures_below,
    unique_images,
)
from segnet_jax.data.layouts.names.name_lists import names_in, read_name_list
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.data.layouts.pairs import Found
from segnet_jax.system.errors import Fault, UserError

IMAGES = "images"
LABELS = ("labels", "masks", "annotations")
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""Split -> what its folder or its list may be called."""


def why(folder: Path) -> str:
    """By what a folder is known to be laid out so; nothing where it is not."""
    if (folder / IMAGES).is_dir():
        labels = [name for name in LABELS if (folder / name).is_dir()]
        return f"it holds {IMAGES}/ and {labels[0]}/" if labels else ""
    for name in SPLITS["train"]:
        for labels in LABELS:
            if (folder / name / IMAGES).is_dir() and (folder / name / labels).is_dir():
                return f"it holds {name}/{IMAGES}/ and {name}/{labels}/"
    return ""


def find(folder: Path, reading: Reading) -> Found:
    """Finds the pairs of files, the splits and the classes of a folder.

    Args:
      folder: one that `why` knows.
      reading: its owner's wishes.

    Returns:
      What is there; where nothing says which images are for validation, all are in "train" and not yet split.
    """
    faults: list[Fault] = []
    notes: list[str] = []
    legend, has_table = legend_of_folder(folder, faults)
    roots = _split_roots(folder)
    is_split = len(roots) > 1 or None not in roots
    entries: dict[str, list[Entry]] = {}
    for split, (images, labels) in roots.items():
        if split == "test" and not labels.is_dir():
            notes.append(f"note: {_relative(images, folder)} has no labels, and is left out")
            continue
        of_split, alone = pairs_of(images, labels, folder, reading, faults)
        notes += note_on_labels_alone(alone, folder)
        entries[split or "train"] = of_split
    if not is_split and (lists := lists_in(folder)):
        entries, is_split = by_lists(entries["train"], lists, folder, faults), True
    return Found("own-folder", entries, legend, tuple(faults), tuple(notes), is_split, has_table and legend is None)


def pairs_of(
    images: Path, labels: Path, folder: Path, reading: Reading, faults: list[Fault]
) -> tuple[list[Entry], list[Path]]:
    """The pairs of an images' and a labels' folder, and the labels that belong to no image.

    Raises:
      UserError: there is no image at all.
    """
    found = pictures_below(images, folder, faults, reading.images)
    if not found and not faults:
        fix = "save them as PNG or JPEG there" if not reading.images else "give another --images, or none"
        raise UserError(_no_image(images, folder, reading), kind="no-images", file=_relative(images, folder), fix=fix)
    unique = unique_images(found, images, folder, faults)
    pictures = pictures_below(labels, folder, faults) if labels.is_dir() else []
    if not reading.images:
        return match(unique, pictures, labels, folder, faults)
    return match(unique, pictures, labels, folder, faults)[0], []


def lists_in(place: Path) -> dict[str, Path]:
    """Split -> its list in a folder, by the names of `SPLITS` in any case; of several the first."""
    there = sorted(place.glob("*"), reverse=True)  # lower case first; dead links too, which are told when they are read
    found = {}
    for split, names in SPLITS.items():
        of_split = [path for name in names for path in there if path.name.lower() == f"{name}.txt"]
        if of_split:
            found[split] = of_split[0]
    return found


def by_lists(
    entries: list[Entry], lists: Mapping[str, Path], folder: Path, faults: list[Fault]
) -> dict[str, list[Entry]]:
    """Splits pairs by list files; what no list names is for training, where there is no list for that.

    Args:
      entries: all pairs.
      lists: split -> its list.
      folder: the data set's.
      faults: grows; shrinks by the images without a label that nothing is to be done with.
    """
    if "train" in lists:  # then an image that no list names need not have a label
        unlabelled = {fault.file: fault for fault in faults if fault.kind == WITHOUT_LABEL}
        named = set().union(*(names_in(path, unlabelled) for path in lists.values()))
        faults[:] = [fault for fault in faults if fault.file not in unlabelled or fault.file in named]
    splits = {split: read_name_list(path, entries, folder, faults) for split, path in lists.items()}
    if "train" not in splits:
        named = {entry.image for chosen in splits.values() for entry in chosen}
        splits["train"] = [entry for entry in entries if entry.image not in named]
    return {split: splits[split] for split in SPLITS if split in splits}


def _split_roots(folder: Path) -> dict[str | None, tuple[Path, Path]]:
    """Split -> its folders of images and labels; None for one pair of folders that holds all."""
    images = folder / IMAGES
    if not images.is_dir():
        parts = {split: _first(folder, names) for split, names in SPLITS.items()}
        return {
            split: (folder / name / IMAGES, _labels(folder / name))
            for split, name in parts.items()
            if name and (folder / name / IMAGES).is_dir()
        }
    labels = _labels(folder)
    parts = {split: _first(images, names) for split, names in SPLITS.items()}
    if not parts["train"]:
        return {None: (images, labels)}
    named = {split: name for split, name in parts.items() if name}
    inner = {split: _first(labels, SPLITS[split]) or named[split] for split in named}
    flat = not any((labels / name).is_dir() for name in inner.values())
    return {split: (images / named[split], labels if flat else labels / inner[split]) for split in named}


def _labels(folder: Path) -> Path:
    """The folder of labels: of several the first that holds a picture."""
    there = [folder / name for name in LABELS if (folder / name).is_dir()] or [folder / LABELS[0]]
    return next((path for path in there if next(path.rglob("*.png"), None)), there[0])


def _first(folder: Path, names: tuple[str, ...]) -> str:
    return next((name for name in names if (folder / name).is_dir()), "")


def _no_image(images: Path, folder: Path, reading: Reading) -> str:
    where = _relative(images, folder)
    endings = sorted({path.suffix.lower() for path in images.rglob("*") if path.is_file()})
    held = f"it holds files in {' '.join(endings)}" if endings else "it is empty"
    wanted = f" of the name {reading.images}" if reading.images else ""
    return f"no image (.png .jpg){wanted} in {where}/: {held}"


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
