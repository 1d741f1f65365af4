"""Layouts of published datasets, with their classes, and of Label Studio."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from segnet_jax.constants import VOID
from segnet_jax.data.label_files.class_table_files import read_class_table
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.data.labels.label_mapping import LabelMapping
from segnet_jax.data.labels.read_options import ReadOptions
from segnet_jax.data.layouts import cityscapes, folder
from segnet_jax.data.layouts.pairs import LayoutFiles


class KnownLayout(NamedTuple):
    """A layout, with the two functions of a layout module."""

    recognize: Callable[[Path], str]
    find: Callable[[Path, ReadOptions], LayoutFiles]


PETS = LabelMapping(
    "Oxford-IIIT Pet's trimaps (1 pet, 2 background, 3 not classified)",
    ClassTable(("pet", "background"), ((128, 0, 0), (0, 0, 0))),
    ((1, 0), (2, 1), (3, VOID), (VOID, VOID)),
)


def _has_folders(*needed: str) -> Callable[[Path], str]:
    def recognize(root: Path) -> str:
        there = all((root / name).is_dir() for name in needed)
        return f"it contains {' and '.join(f'{name}/' for name in needed)}" if there else ""

    return recognize


def _with_default(
    name: str, label_mapping: LabelMapping, fits: Callable[[Mapping[int, int]], bool]
) -> Callable[[Path, ReadOptions], LayoutFiles]:
    def find(root: Path, read_options: ReadOptions) -> LayoutFiles:
        return folder.find(root, read_options)._replace(name=name, default=label_mapping, fits_default=fits)

    return find


def _are_pets(values: Mapping[int, int]) -> bool:
    return {1, 2} <= set(values) <= {1, 2, 3}


def _kitti(values: Mapping[int, int]) -> bool:
    return cityscapes.are_of_cityscapes(values, by_train_ids=False)


def _bdd(values: Mapping[int, int]) -> bool:
    return cityscapes.are_of_cityscapes(values, by_train_ids=True)


def _recognize_coco_stuff(root: Path) -> str:
    found = sorted(path.name for path in root.glob("stuffthingmaps*") if path.is_dir())
    return f"it contains {found[0]}/" if found else ""


def _find_coco_stuff(root: Path, read_options: ReadOptions) -> LayoutFiles:
    """Find COCO-Stuff's pairs; stuffthingmaps contain the ids of labels.txt (where 0 is `unlabeled`) minus one."""
    found = folder.find(root, read_options)._replace(name="coco-stuff")
    label_mapping = found.label_mapping
    if label_mapping is None or not label_mapping.is_explicit or dict(label_mapping.ids).get(0) != VOID:
        return found
    ids = tuple((value - 1 if value != VOID else VOID, class_id) for value, class_id in label_mapping.ids if value > 0)
    note = f"note: COCO-Stuff's stuffthingmaps contain the ids of {label_mapping.source} minus one; 255 is unlabeled"
    return found._replace(label_mapping=dataclasses.replace(label_mapping, ids=ids), notes=(*found.notes, note))


def _recognize_mapillary(root: Path) -> str:
    found = sorted(path.relative_to(root).as_posix() for path in root.glob("*/v[12].[0-9]/labels") if path.is_dir())
    return f"it contains {found[0]}/" if found else ""


def _find_mapillary(root: Path, read_options: ReadOptions) -> LayoutFiles:
    """Find Mapillary Vistas' pairs, of one version: the newest, or the one that --label-files names."""
    versions = sorted({path.parent.name for path in root.glob("*/v[12].[0-9]/labels")})
    version = next((each for each in versions if each in read_options.label_files), versions[-1])
    pattern = read_options.label_files or f"*{version}/labels/*"
    found = folder.find(root, dataclasses.replace(read_options, label_files=pattern))._replace(name="mapillary")
    config = root / f"config_{version}.json"
    if len(versions) == 1:
        return found
    note = f'note: labels of {version}; for others, pass --label-files "*{versions[0]}/labels/*"'
    own = read_class_table(config) if config.is_file() else found.label_mapping
    return found._replace(label_mapping=own, notes=(*found.notes, note))


LAYOUTS = {
    "KITTI": KnownLayout(
        _has_folders("training/image_2", "training/semantic"),
        _with_default(
            "kitti", LabelMapping("Cityscapes' label ids", cityscapes.CLASSES, cityscapes.ids(False)), _kitti
        ),
    ),
    "BDD100K": KnownLayout(
        _has_folders("images/10k", "labels/sem_seg/masks"),
        _with_default("bdd100k", LabelMapping("Cityscapes' train ids", cityscapes.CLASSES, cityscapes.ids(True)), _bdd),
    ),
    "Oxford-IIIT Pet": KnownLayout(
        _has_folders("images", "annotations/trimaps"), _with_default("oxford-pet", PETS, _are_pets)
    ),
    "Mapillary Vistas": KnownLayout(_recognize_mapillary, _find_mapillary),
    "COCO-Stuff": KnownLayout(_recognize_coco_stuff, _find_coco_stuff),
}
"""Layout name -> layout."""
