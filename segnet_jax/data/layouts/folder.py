"""Layout of any folder whose subfolder names distinguish images from labels."""

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from segnet_jax.data.label_files.class_table_files import find_class_table, folder_label_mapping
from segnet_jax.data.labels.read_options import DEFAULTS, ReadOptions
from segnet_jax.data.layouts.names.find_lists import lists_in
from segnet_jax.data.layouts.names.folder_roles import (
    Place,
    class_folders,
    folders_with_pictures,
    images_among,
    place_of,
)
from segnet_jax.data.layouts.names.mask_names import entries_of, images_among_masks, masks_of_splits
from segnet_jax.data.layouts.names.match_labels import (
    WITHOUT_LABEL,
    match,
    match_named,
    other_labels,
    pictures_below,
    unique_images,
    unique_names,
    unmatched_labels_note,
)
from segnet_jax.data.layouts.names.name_lists import names_in, read_name_list
from segnet_jax.data.layouts.names.name_pairs import nfc
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.data.layouts.names.split_tables import split_table
from segnet_jax.data.layouts.pairs import LayoutFiles
from segnet_jax.system.errors import Fault, UserError, listed, shown
from segnet_jax.system.files import relative_path

IMAGES = "images"
LABELS = ("labels", "masks", "annotations")
SPLITS = ("train", "val", "test")


class Pictures(NamedTuple):
    """The images and labels of one split.

    Attributes:
      images: pairs (name, path).
      labels: pairs (name, path); names equal the images' names except for a prefix or suffix.
      folders: relative paths of the image folders and of the label folders.
    """

    images: list[tuple[str, Path]]
    labels: list[tuple[str, Path]]
    folders: tuple[list[str], list[str]]


def recognize(folder: Path) -> str:
    """Return how the layout was recognized, or "" if it was not."""
    if (folder / IMAGES).is_dir():
        labels = [name for name in LABELS if (folder / name).is_dir()]
        if labels:
            return f"it contains {IMAGES}/ and {labels[0]}/"
    found = survey(folder, DEFAULTS, [])
    images = sorted({each for of_split in found.values() for each in of_split.folders[0]})
    labels = sorted({each for of_split in found.values() for each in of_split.folders[1]})
    if not images or not labels or _is_wrapped(folder, [*images, *labels]):
        return ""
    return f"it contains images in {listed(images)} and labels in {listed(labels)}"


def _is_wrapped(folder: Path, places: Sequence[str]) -> bool:
    """Return whether all files are in one subfolder, which is then the dataset itself."""
    tops = {place.split("/")[0] for place in places}
    if len(tops) != 1 or any("/" not in place for place in places) or find_class_table(folder):
        return False
    top = place_of(tuple(tops))
    return not top.role and not top.split


def find(folder: Path, read_options: ReadOptions) -> LayoutFiles:
    """Find the pairs, splits and classes of a folder.

    If nothing defines the validation images, all pairs are in "train" and `is_split` is False.
    """
    faults: list[Fault] = []
    notes: list[str] = []
    label_mapping, has_table = folder_label_mapping(folder, faults, notes)
    found, report_unmatched = survey(folder, read_options, faults), not read_options.images
    if not any(of_split.images for of_split in found.values()) and not faults:
        images = folder / IMAGES
        fix = "save them as PNG or JPEG there" if not read_options.images else "change or omit --images"
        raise UserError(
            _no_image(images, folder, read_options), kind="no-images", file=relative_path(images, folder), fix=fix
        )
    if found and not any(each.labels for split, each in found.items() if split) and "" in found:
        flat = found[""]
        if flat.labels and not flat.images:  # images by split, all labels in one folder
            found = {split: each._replace(labels=flat.labels) for split, each in found.items() if split}
            report_unmatched = False
    is_split = "train" in found or "val" in found
    if is_split and "" in found:
        loose = [relative_path(path, folder) for _, path in found.pop("").images]
        if loose:
            notes.append(f"warning: images outside the split folders are not used: {shown(listed(loose))}")
    entries: dict[str, list[Entry]] = {}
    files = {split: (dict(each.images), [path for _, path in each.labels]) for split, each in found.items()}
    class_masks = {} if read_options.label_suffix else masks_of_splits(files, folder)
    for split in ("", *SPLITS):
        if split not in found:
            continue
        of_split = found[split]
        if split in ("val", "test") and of_split.images and not of_split.labels:
            notes.append(f"note: {listed(of_split.folders[0])} has no labels and is not used")
            continue
        named = unique_names(of_split.images, folder, faults)
        root = folder / of_split.folders[1][0] if len(of_split.folders[1]) == 1 else None
        if split in class_masks:
            pairs, unmatched = entries_of(class_masks[split], named, folder, faults)
        else:
            pairs, unmatched = match_named(named, of_split.labels, folder, faults, read_options.label_suffix, root)
            faults += other_labels(pairs, unmatched if report_unmatched else [], folder)
        notes += unmatched_labels_note(unmatched if report_unmatched else [], folder)
        entries[split or "train"] = pairs
    lists = lists_in(folder, folder, faults)
    if not is_split and lists:
        tested = entries.pop("test", [])
        entries, is_split = by_lists(entries.get("train", []), lists, folder, faults), True
        if tested and "test" not in entries:
            entries["test"] = tested
        is_split = "train" in lists or "val" in lists
    elif not is_split:
        table, note = split_table(folder, [entry for of_split in entries.values() for entry in of_split])
        entries, is_split = table or entries, "train" in table or "val" in table
        notes += [note] if table else []
    elif lists:
        entries = _listed_of_splits(entries, lists, folder, faults)
    return LayoutFiles(
        "own-folder", entries, label_mapping, tuple(faults), tuple(notes), is_split, has_table and label_mapping is None
    )


def _listed_of_splits(
    entries: Mapping[str, list[Entry]], lists: Mapping[str, Path], folder: Path, faults: list[Fault]
) -> dict[str, list[Entry]]:
    """Restrict splits defined by folders to the listed images; a list with images of another split is a fault."""
    everything = [entry for of_split in entries.values() for entry in of_split]
    chosen = dict(entries)
    for split, path in lists.items():
        named = read_name_list(path, everything, folder, faults)
        images = {entry.image for entry in entries.get(split, ())}
        strange = [relative_path(entry.image, folder) for entry in named if entry.image not in images]
        if strange:
            message = f"{path.name} lists images in the folder of another split: {shown(listed(strange))}"
            faults.append(Fault("split-contradiction", path.name, message, "delete the list, or move the images"))
        else:
            chosen[split] = named
    return chosen


def survey(folder: Path, read_options: ReadOptions, faults: list[Fault]) -> dict[str, Pictures]:
    """Sort the image files below a folder into images and labels of each split ("" if no folder names one).

    Links that leave the folder and unusable file names are added to `faults`.
    """
    found = folders_with_pictures(folder, pictures_below(folder, folder, faults, "", read_options.follow_links))
    places = {parts: place_of(parts) for parts in found} | class_folders(found)
    images: dict[str, list[tuple[Place, Path]]] = {}
    labels: dict[str, dict[str, list[tuple[Place, Path]]]] = {}
    named_images = any(place.role == "images" for place in places.values())
    named_labels = any(place.role in ("labels", "colored labels") for place in places.values())
    for parts, paths in found.items():
        place = places[parts]
        role = place.role
        if role == "other" or role == "" and named_images and place.split == "":
            continue
        mine = paths if named_labels else images_among(paths)
        if len(mine) == len(paths) and not named_labels:
            mine = images_among_masks(paths) or mine
        mine = [] if role in ("labels", "colored labels") else mine
        images.setdefault(place.split, []).extend((place, path) for path in mine)
        rest = [path for path in paths if path not in set(mine)]
        if read_options.label_files:
            rest = [path for path in rest if _matches(relative_path(path, folder), read_options.label_files)]
        kind = "colored labels" if role == "colored labels" else "labels"
        labels.setdefault(place.split, {}).setdefault(kind, []).extend((place, path) for path in rest)
    return {
        split: _pictures(images.get(split, []), labels.get(split, {}), folder, read_options)
        for split in ("", *SPLITS)
        if split in images or split in labels
    }


def _matches(file: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(nfc(file), nfc(pattern)) or Path(nfc(file)).match(nfc(pattern))


def _pictures(
    images: Sequence[tuple[Place, Path]],
    labels: Mapping[str, Sequence[tuple[Place, Path]]],
    folder: Path,
    read_options: ReadOptions,
) -> Pictures:
    """Name the images and labels of a split by file and, where both have them, subfolders."""
    images = [
        (place, path)
        for place, path in images
        if not read_options.images or fnmatch.fnmatch(nfc(path.name), nfc(read_options.images))
    ]
    chosen = labels.get("labels") or labels.get("colored labels") or []
    ours, theirs = ({place.key for place, _ in each} for each in (images, chosen))
    by_key = ours <= theirs or len({path.stem for _, path in images}) < len(images)
    prefix = _common([*ours, *(theirs if by_key else ())])

    def name(place: Place, path: Path, with_key: bool) -> str:
        key = place.key[prefix:] if with_key else ()
        return "-".join((*key, nfc(path.stem)))

    return Pictures(
        [(name(place, path, by_key), path) for place, path in images],
        [(name(place, path, by_key), path) for place, path in chosen],
        tuple(sorted({relative_path(path.parent, folder) for _, path in each}) for each in (images, chosen)),
    )


def _common(keys: Sequence[tuple[str, ...]]) -> int:
    """Return the length of the common prefix of all keys."""
    number = 0
    while keys and all(len(key) > number for key in keys) and len({key[number] for key in keys}) == 1:
        number += 1
    return number


def pairs_of(
    images: Path, labels: Path, folder: Path, read_options: ReadOptions, faults: list[Fault]
) -> tuple[list[Entry], list[Path]]:
    """Return the pairs of an image and a label folder, and the labels without an image.

    Raises:
      UserError: If there is no image.
    """
    found = pictures_below(images, folder, faults, read_options.images, read_options.follow_links)
    if not found and not faults:
        fix = "save them as PNG or JPEG there" if not read_options.images else "change or omit --images"
        raise UserError(
            _no_image(images, folder, read_options), kind="no-images", file=relative_path(images, folder), fix=fix
        )
    unique = unique_images(found, images, folder, faults)
    pictures = pictures_below(labels, folder, faults, "", read_options.follow_links) if labels.is_dir() else []
    entries, unmatched = match(unique, pictures, labels, folder, faults, read_options.label_suffix)
    return entries, [] if read_options.images else unmatched


def by_lists(
    entries: list[Entry], lists: Mapping[str, Path], folder: Path, faults: list[Fault]
) -> dict[str, list[Entry]]:
    """Split pairs by list files; without a training list, unlisted pairs are for training.

    With a training list, missing labels of unlisted images are removed from `faults`.
    """
    if "train" in lists:  # unlisted images then need no label
        unlabeled = {fault.file: fault for fault in faults if fault.kind == WITHOUT_LABEL}
        named = set().union(*(names_in(path, unlabeled) for path in lists.values()))
        faults[:] = [fault for fault in faults if fault.file not in unlabeled or fault.file in named]
    splits = {split: read_name_list(path, entries, folder, faults) for split, path in lists.items()}
    if "train" not in splits:
        named = {entry.image for chosen in splits.values() for entry in chosen}
        splits["train"] = [entry for entry in entries if entry.image not in named]
    return {split: splits[split] for split in SPLITS if split in splits}


def _no_image(images: Path, folder: Path, read_options: ReadOptions) -> str:
    where = relative_path(images, folder)
    endings = sorted({path.suffix.lower() for path in images.rglob("*") if path.is_file()})
    held = f"it contains {' '.join(endings)} files" if endings else "it is empty"
    pattern = f" named {read_options.images}" if read_options.images else ""
    return f"no image (.png .jpg .gif .webp .tif .bmp){pattern} in {where}/: {held}"
