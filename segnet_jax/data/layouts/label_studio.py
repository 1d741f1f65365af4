"""Layout of Label Studio's brush labels as PNG: one mask per region, named after its task, annotation and class."""

import json
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segnet_jax.data.images.picture_header import read_bytes
from segnet_jax.data.images.suffixes import IMAGE_SUFFIXES
from segnet_jax.data.label_files.class_table_files import folder_label_mapping
from segnet_jax.data.labels.read_options import ReadOptions
from segnet_jax.data.layouts.folder import by_lists, lists_in
from segnet_jax.data.layouts.names.folder_roles import place_of
from segnet_jax.data.layouts.names.mask_names import ClassMasks, entries_of, match_class_masks
from segnet_jax.data.layouts.names.match_labels import is_inside, pictures_below, unique_images
from segnet_jax.data.layouts.names.name_pairs import nfc
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.data.layouts.pairs import LayoutFiles
from segnet_jax.system.errors import Fault, UserError, UserErrors, listed, shown
from segnet_jax.system.files import relative_path

_MAX_JSON_BYTES = 50_000_000
_USER = r"(?:\d*|[^/]*?@[^/]*?\.[A-Za-z]+)"  # an id or an address
_NAMES = tuple(
    re.compile(rf"task-(\d+)-annotation-(\d+)-by-{_USER}-{tag}-(.+)-\d+")
    for tag in ("tag", r"[A-Za-z0-9_]+?")  # the name of the labeling control, which is `tag` in their templates
)


class Region(NamedTuple):
    """What the name of a mask says."""

    task: str
    annotation: str
    name: str  # of the class


def region_of(path: Path) -> Region | None:
    """Return the task, annotation and class of a mask, or None if it is not named as Label Studio names them."""
    found = next((match for each in _NAMES if (match := each.fullmatch(path.stem))), None)
    return Region(found[1], found[2], nfc(found[3])) if found else None


def recognize(folder: Path) -> str:
    """Return how the layout was recognized, or "" if it was not."""
    found = next((path for path in folder.glob("**/task-*-annotation-*.png") if region_of(path)), None)
    return f"{shown(relative_path(found, folder))} is a mask of one class, as Label Studio names them" if found else ""


def find(folder: Path, read_options: ReadOptions) -> LayoutFiles:
    """Find the images, the masks of each, the classes and the splits.

    An image belongs to a task if it is called after it (task-1.jpg), or if a JSON export beside the masks says so.

    Args:
      folder: a folder that `recognize` accepts.
      read_options: how its files are read.

    Raises:
      UserError: If no image can be matched to a task.
    """
    faults: list[Fault] = []
    notes: list[str] = []
    label_mapping, has_table = folder_label_mapping(folder, faults, notes)
    pictures = pictures_below(folder, folder, faults, "", read_options.follow_links)
    masks = [path for path in pictures if region_of(path)]
    if read_options.label_files:
        masks = [path for path in masks if Path(relative_path(path, folder)).match(read_options.label_files)]
    photos = [path for path in pictures if not region_of(path) and _role(path, folder) in ("images", "")]
    if read_options.images:
        photos = [path for path in photos if Path(path.name).match(read_options.images)]
    splits: dict[str, list[Path]] = {}
    for path in photos:
        splits.setdefault(place_of(path.relative_to(folder).parts[:-1]).split, []).append(path)
    images_of_splits = {split: unique_images(paths, folder, folder, faults) for split, paths in splits.items()}
    images = {name: path for each in images_of_splits.values() for name, path in each.items()}
    found = match_tasks(images, masks, folder, faults)
    if not found.masks and not faults:
        raise _no_image_of_a_task(folder, masks, photos)
    entries: dict[str, list[Entry]] = {}
    for split, mine in images_of_splits.items():
        if split == "test" and not any(name in found.masks for name in mine):
            notes.append("note: the test images have no masks and are not used")
            continue
        entries[split or "train"] = [*entries.get(split or "train", []), *entries_of(found, mine, folder, faults)[0]]
    if found.unmatched:
        names = [shown(relative_path(path, folder)) for path in found.unmatched]
        notes.append(f"warning: masks without an image: {listed(names)}")
    is_split = "train" in images_of_splits or "val" in images_of_splits
    if not is_split and (lists := lists_in(folder, folder, faults)):
        tested = {split: each for split, each in entries.items() if split == "test"}
        entries = tested | by_lists(entries.get("train", []), lists, folder, faults)
        is_split = "train" in lists or "val" in lists
    is_bad = has_table and label_mapping is None
    return LayoutFiles("label-studio", entries, label_mapping, tuple(faults), tuple(notes), is_split, is_bad)


def _role(path: Path, folder: Path) -> str:
    return place_of(path.relative_to(folder).parts[:-1]).role


def _no_image_of_a_task(folder: Path, masks: Sequence[Path], photos: Sequence[Path]) -> UserError:
    tasks = sorted({region_of(path).task for path in masks}, key=int)
    names = {each.name for each in map(region_of, masks)}
    held = f"{len(photos)} images such as {shown(relative_path(photos[0], folder))}" if photos else "no images"
    return UserError(
        f"{len(masks)} masks from Label Studio ({listed(sorted(names))}) are named after tasks ({listed(tasks)}), not "
        f"images, and of {held} in the folder none can be matched to a task",
        kind="mask-per-class",
        file=relative_path(masks[0], folder),
        fix="put Label Studio's JSON export of the same project beside the masks, which names the image of each task, "
        f"or name the images after the tasks (task-{tasks[0]}.jpg)",
    )


def match_tasks(images: Mapping[str, Path], masks: Sequence[Path], folder: Path, faults: list[Fault]) -> ClassMasks:
    """Match the masks of tasks to images.

    Args:
      images: name -> image.
      masks: masks that `region_of` knows.
      folder: folder with the masks, and at most one level below it the JSON exports.
      faults: list to extend with images that have masks of several annotations, and tasks of several images.
    """
    tasks = _images_of_tasks(images, folder, faults)
    found: dict[str, list[tuple[str, Path]]] = {}
    unmatched: list[Path] = []
    annotations: dict[str, dict[str, list[Path]]] = {}
    for path in masks:
        region = region_of(path)
        image = tasks.get(region.task)
        if image is None:
            unmatched.append(path)
            continue
        found.setdefault(image, []).append((region.name, path))
        annotations.setdefault(image, {}).setdefault(region.annotation, []).append(path)
    for image, mine in annotations.items():
        if len(mine) > 1:
            files = [shown(relative_path(paths[0], folder)) for paths in mine.values()]
            message = f"{images[image].name} has masks of {len(mine)} annotations: {listed(files)}"
            fix = "keep those of one annotation, or choose them by --label-files, such as '*-by-1-*'"
            faults.append(Fault("two-labels", images[image].name, message, fix))
    return ClassMasks("as Label Studio names them", {image: sorted(mine) for image, mine in found.items()}, unmatched)


def _images_of_tasks(images: Mapping[str, Path], folder: Path, faults: list[Fault]) -> dict[str, str]:
    """Return the number of a task -> the name of its image."""
    tasks = {match[1]: name for name, path in images.items() if (match := re.fullmatch(r"task-(\d+)", nfc(path.stem)))}
    stems: dict[str, list[str]] = {}
    for name, path in images.items():
        stems.setdefault(nfc(path.stem), []).append(name)
    for task, texts in _exported_tasks(folder, faults):
        named = {name for text in texts for stem in _stems(text) for name in stems.get(stem, ())}
        named |= {tasks[task]} if task in tasks else set()
        if len(named) > 1:
            message = f"task {task} of Label Studio may be any of the images {listed(sorted(named))}"
            faults.append(Fault("two-images", sorted(named)[0], message, "give the images different names"))
        elif named:
            tasks[task] = next(iter(named))
    return tasks


def _stems(text: str) -> Iterator[str]:
    """Yield the names that the image of a task may have: as stored, or as uploaded, before Label Studio's prefix."""
    path = text.partition("?d=")[2] or text.partition("?")[0]  # of a local file, or an address with a query
    name = nfc(urllib.parse.unquote(path).replace("\\", "/").rpartition("/")[2])
    if not name.lower().endswith(IMAGE_SUFFIXES):
        return
    yield (stem := Path(name).stem)
    if re.match(r"[0-9a-f]{8}-.", stem):
        yield stem[9:]


def _exported_tasks(folder: Path, faults: list[Fault]) -> Iterator[tuple[str, list[str]]]:
    """Yield the tasks of the JSON exports of a folder: the number, and all texts that may name the image."""
    paths = [*sorted(folder.glob("*.json")), *sorted(folder.glob("*/*.json"))]
    for path in paths:
        if not is_inside(path, folder, faults):
            continue
        try:
            if path.stat().st_size > _MAX_JSON_BYTES:
                continue
            tasks = json.loads(read_bytes(path, os.path.relpath(path, folder)))
        except (OSError, UserError, ValueError, RecursionError):
            continue  # the file of another tool
        for task in tasks if isinstance(tasks, list) else ():
            if isinstance(task, dict) and type(task.get("id")) is int:
                yield str(task["id"]), list(_texts(task))


def _texts(task: dict[str, Any]) -> Iterator[str]:
    data = task.get("data")
    for values in (task, data if isinstance(data, dict) else {}):
        yield from (value for value in values.values() if isinstance(value, str))


def masks_for_names(names: Sequence[str], folder: Path, classes: Sequence[str]) -> dict[str, Entry]:
    """Return the masks of one class each in a folder, for `predict --labels`; names without a mask are absent.

    Args:
      names: image names, without extension.
      folder: folder with masks.
      classes: the classes of the masks.

    Raises:
      UserError: If the masks of an image are of several annotations, or a link leaves the folder.
    """
    faults: list[Fault] = []
    images = {nfc(name): Path(f"{name}.png") for name in names}
    paths = pictures_below(folder, folder, faults)
    regions = [path for path in paths if region_of(path)]
    if regions:
        found = match_tasks(images, regions, folder, faults)
    else:
        found = match_class_masks(images, paths, folder, classes, holds_labels=True)
    if faults:
        raise UserErrors(folder, faults)
    masks = found.masks if found else {}
    return {
        name: Entry(name, images[nfc(name)], masks[nfc(name)][0][1], tuple(masks[nfc(name)]))
        for name in names
        if nfc(name) in masks
    }
