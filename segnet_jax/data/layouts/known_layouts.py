"""Published datasets whose folders are read as a folder of one's own, but whose labels have classes that are known."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.data.labels.label_mapping import Legend
from segnet_jax.data.labels.read_options import Reading
from segnet_jax.data.layouts import cityscapes, folder
from segnet_jax.data.layouts.pairs import Found
from segnet_jax.system.errors import UserError


class KnownLayout(NamedTuple):
    """A layout, with the two functions that a module of a layout has."""

    why: Callable[[Path], str]
    find: Callable[[Path, Reading], Found]


PETS = Legend(
    "Oxford-IIIT Pet's trimaps (1 pet, 2 background, 3 not classified)",
    ClassTable(("pet", "background"), ((128, 0, 0), (0, 0, 0))),
    ((1, 0), (2, 1), (3, VOID), (VOID, VOID)),
)
_TASK = re.compile(r"task-\d+-annotation-\d+-by-.*-tag-(.+)-\d+\.png")
"""Names of the masks that Label Studio exports: one file for each class of a task."""


def _holds(*needed: str) -> Callable[[Path], str]:
    def why(root: Path) -> str:
        there = all((root / name).is_dir() for name in needed)
        return f"it holds {' and '.join(f'{name}/' for name in needed)}" if there else ""

    return why


def _with_default(
    name: str, legend: Legend, fits: Callable[[Mapping[int, int]], bool]
) -> Callable[[Path, Reading], Found]:
    def find(root: Path, reading: Reading) -> Found:
        return folder.find(root, reading)._replace(name=name, default=legend, fits_default=fits)

    return find


def _are_pets(values: Mapping[int, int]) -> bool:
    return {1, 2} <= set(values) <= {1, 2, 3}


def _kitti(values: Mapping[int, int]) -> bool:
    return cityscapes.are_of_cityscapes(values, by_train_ids=False)


def _bdd(values: Mapping[int, int]) -> bool:
    return cityscapes.are_of_cityscapes(values, by_train_ids=True)


def _coco_stuff_why(root: Path) -> str:
    found = sorted(path.name for path in root.glob("stuffthingmaps*") if path.is_dir())
    return f"it holds {found[0]}/" if found else ""


def _coco_stuff_find(root: Path, reading: Reading) -> Found:
    """COCO-Stuff's stuffthingmaps hold the ids of labels.txt less one, for that counts `unlabeled` as 0."""
    found = folder.find(root, reading)._replace(name="coco-stuff")
    legend = found.legend
    if legend is None or not legend.is_explicit or dict(legend.ids).get(0) != VOID:
        return found
    ids = tuple((value - 1 if value != VOID else VOID, class_id) for value, class_id in legend.ids if value > 0)
    note = f"note: COCO-Stuff's stuffthingmaps hold the ids of {legend.source} less one; 255 is unlabeled"
    return found._replace(legend=dataclasses.replace(legend, ids=ids), notes=(*found.notes, note))


def _label_studio_why(root: Path) -> str:
    found = next((path for path in root.glob("**/*-tag-*.png") if _TASK.fullmatch(path.name)), None)
    return f"{found.relative_to(root)} is a mask of one class, as Label Studio names them" if found else ""


def _label_studio_find(root: Path, reading: Reading) -> Found:
    names = [path.name for path in root.glob("**/*-tag-*.png")]
    classes = sorted({match[1] for match in map(_TASK.fullmatch, names) if match})
    what = (
        f"{len(names)} masks of Label Studio, one for each class of a task ({', '.join(classes[:6])}), name tasks, "
        "not images"
    )
    fix = (
        "merge the masks of a task into one PNG of class ids (0 for none, 1 for the first class) that is called like "
        "its image, whose name stands in Label Studio's JSON export under the task's id"
    )
    raise UserError(what, kind="mask-per-class", file=names[0], fix=fix)


LAYOUTS = {
    "KITTI": KnownLayout(
        _holds("training/image_2", "training/semantic"),
        _with_default("kitti", Legend("Cityscapes' label ids", cityscapes.CLASSES, cityscapes.ids(False)), _kitti),
    ),
    "BDD100K": KnownLayout(
        _holds("images/10k", "labels/sem_seg/masks"),
        _with_default("bdd100k", Legend("Cityscapes' train ids", cityscapes.CLASSES, cityscapes.ids(True)), _bdd),
    ),
    "Oxford-IIIT Pet": KnownLayout(
        _holds("images", "annotations/trimaps"), _with_default("oxford-pet", PETS, _are_pets)
    ),
    "COCO-Stuff": KnownLayout(_coco_stuff_why, _coco_stuff_find),
    "Label Studio": KnownLayout(_label_studio_why, _label_studio_find),
}
"""Name -> layout; all others are known by `folder.why`."""
