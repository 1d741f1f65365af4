"""Match masks of one class each to images by their names: car/0001.png, 0001_car.png or 0001/car.png."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from segnet_jax.data.label_files.class_masks import is_class_mask
from segnet_jax.data.layouts.names.folder_roles import LABEL_WORDS, class_folders, place_of
from segnet_jax.data.layouts.names.match_labels import WITHOUT_LABEL
from segnet_jax.data.layouts.names.name_pairs import VISUAL, nfc, words
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.system.errors import Fault, UserError, listed, shown
from segnet_jax.system.files import relative_path

_MATCHED = 0.9
"""Fraction of the label files that a naming scheme has to explain."""
_SAMPLED, _SAMPLED_CLASSES = 3, 16
"""Masks of a class that are looked at to know whether they are masks, and classes."""
_SEPARATORS = "-_. "


class ClassMasks(NamedTuple):
    """Masks of one class each, matched to images.

    Attributes:
      scheme: how the names state the class, for the log.
      masks: image name -> its masks, pairs (class, path).
      unmatched: label files without an image.
    """

    scheme: str
    masks: Mapping[str, Sequence[tuple[str, Path]]]
    unmatched: Sequence[Path] = ()

    @property
    def classes(self) -> list[str]:
        """Class names, sorted."""
        return sorted({name for masks in self.masks.values() for name, _ in masks}, key=str.casefold)


def masks_of_splits(
    splits: Mapping[str, tuple[Mapping[str, Path], Sequence[Path]]], folder: Path
) -> dict[str, ClassMasks]:
    """Match the masks of all splits, given as (images, label files); empty if no split has masks of one class each.

    A split whose masks alone do not show it, as those of a few images, has the classes of the others.
    """
    found = {split: match_class_masks(*files, folder) for split, files in splits.items()}
    known = sorted({name for each in found.values() if each for name in each.classes})
    if not known:
        return {}
    for split, (images, labels) in splits.items():
        if found[split] is None and labels:
            found[split] = match_class_masks(images, labels, folder, known)
    return {split: each for split, each in found.items() if each is not None}


def match_class_masks(
    images: Mapping[str, Path],
    labels: Sequence[Path],
    folder: Path,
    known: Sequence[str] = (),
    holds_labels: bool = False,
) -> ClassMasks | None:
    """Match label files to images as masks of one class each.

    Args:
      images: name -> image.
      labels: label files.
      folder: the dataset folder.
      known: names of the classes; empty to find them, which takes at least two, and an image with two masks.
      holds_labels: whether the folder contains labels only.

    Returns:
      The masks, or None if the names are not of this kind.

    Raises:
      UserError: If the names number the masks of an image, as masks of single objects.
    """
    index = _Index(images, labels, folder, holds_labels)
    for scheme, find in (
        ("folders are named after the classes", index.by_folder),
        ("names end or begin with the class", index.by_affix),
        ("folders are named after the images", index.by_image_folder),
    ):
        masks: dict[str, list[tuple[str, Path]]] = {}
        unmatched: list[Path] = []
        unknown: list[tuple[str, Path]] = []
        for path in labels:
            image, name = find(path) or ("", "")
            if not image or known and name not in known:
                unmatched.append(path)
                unknown += [(name, path)] if image else []
            else:
                masks.setdefault(image, []).append((name, path))
        found = ClassMasks(scheme, {image: sorted(mine) for image, mine in masks.items()}, unmatched)
        if not known and _are_class_masks(found, images, labels) and _look_like_masks(found):
            _check_not_instances(found, folder)
            return found
        if known and masks and (holds_labels or len(found.masks) * 2 >= len(images)):
            if unknown and holds_labels:
                name, path = unknown[0]
                message = f"{relative_path(path, folder)} is a mask of {shown(name)}, not a class of the network"
                fix = f"move these masks elsewhere; its classes: {listed([*known])}"
                raise UserError(message, kind="unknown-mask", file=path.name, fix=fix)
            return found
    return None


def images_among_masks(paths: Sequence[Path]) -> list[Path]:
    """Return the images of a folder that also contains their masks: a.jpg of a.jpg, a_car.png and a_road.png.

    Empty if there are none: at least half of the images need two or more files whose names continue theirs.
    """
    stems = {nfc(path.stem) for path in paths}
    rests: dict[str, set[str]] = {}
    for path in paths:
        for stem, rest in _cuts(nfc(path.stem))[1:]:
            if stem in stems and nfc(path.stem).startswith(stem) and re.search(r"[^\W\d_]", _class_in(rest)):
                rests.setdefault(stem, set()).add(nfc(path.stem))
    masks = {stem for each in rests.values() for stem in each}
    images = [path for path in paths if nfc(path.stem) not in masks]
    several = sum(len(rests.get(nfc(path.stem), ())) > 1 for path in images)
    return images if images and 2 * several >= len(images) else []


def _are_class_masks(found: ClassMasks, images: Mapping[str, Path], labels: Sequence[Path]) -> bool:
    several = any(len({name for name, _ in mine}) > 1 for mine in found.masks.values())
    explained = len(labels) - len(found.unmatched) >= _MATCHED * len(labels)
    return several and explained and 2 * len(found.masks) >= len(images)


def _look_like_masks(found: ClassMasks) -> bool:
    """Return whether the first masks of each class have two values, unlike labels of all classes."""
    by_class: dict[str, list[Path]] = {}
    for masks in found.masks.values():
        for name, path in masks:
            by_class.setdefault(name, []).append(path)
    chosen = [paths[:_SAMPLED] for paths in itertools.islice(by_class.values(), _SAMPLED_CLASSES)]
    return all(is_class_mask(path, path.name) for paths in chosen for path in paths)


def _check_not_instances(found: ClassMasks, folder: Path) -> None:
    """Raise UserError if the names of the masks are numbers or checksums, or count the objects of a class."""
    numbered = [name for name in found.classes if re.fullmatch(r"(\d+|[0-9a-fA-F]{8,})", name)]
    stems = {name: re.sub(rf"[{_SEPARATORS}]*\d+$", "", name) for name in found.classes}
    uses = Counter(stems.values())
    counted = [name for name, stem in stems.items() if uses[stem] > 1]
    if not numbered and not counted:
        return
    image, masks = max(found.masks.items(), key=lambda item: len(item[1]))
    first = relative_path(masks[0][1], folder)
    raise UserError(
        f"{image} has {len(masks)} masks, {listed([shown(relative_path(path, folder)) for _, path in masks])}, whose "
        f"names differ by numbers ({listed(numbered or counted)}), as masks of single objects, not of classes",
        kind="instance-masks",
        file=first,
        fix="merge the masks of each image into one PNG of class ids (0 for the background, 1 for the first class), "
        "or name each mask after its class only",
    )


def entries_of(
    found: ClassMasks, images: Mapping[str, Path], folder: Path, faults: list[Fault]
) -> tuple[list[Entry], list[Path]]:
    """Return the pairs of images and masks, and the unmatched masks; an image without a mask is a fault."""
    entries = []
    for name, image in images.items():
        if masks := found.masks.get(name):
            entries.append(Entry(name, image, masks[0][1], tuple(masks)))
            continue
        file = relative_path(image, folder)
        message = f"{file} has no mask of any class ({listed(found.classes)})"
        fix = "add an empty mask if it shows none of them, or remove the image"
        faults.append(Fault(WITHOUT_LABEL, file, message, fix))
    return entries, sorted(found.unmatched)


class _Index:
    """Images by their stems and by their folders."""

    def __init__(self, images: Mapping[str, Path], labels: Sequence[Path], folder: Path, holds_labels: bool):
        self.folder, self.holds_labels = folder, holds_labels
        paths = {*labels, *([] if holds_labels else images.values())}
        parents = {path.relative_to(folder).parts[:-1] for path in paths if path.is_relative_to(folder)}
        self.class_folders = class_folders(parents, holds_labels)
        self.by_stem: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        self.by_key: dict[tuple[str, ...], list[str]] = {}
        for name, path in images.items():
            inside = path.is_relative_to(folder)
            key = self.key(path) if inside and not holds_labels else ()
            self.by_stem.setdefault(nfc(path.stem), []).append((name, key))
            self.by_key.setdefault(key, []).append(name)

    def key(self, path: Path) -> tuple[str, ...]:
        """Return the folders of a path without those that only say "images", "masks" or a split."""
        parts: list[str] = []
        folders = path.relative_to(self.folder).parts[:-1]
        is_below = self.holds_labels  # below a folder of labels, any other name is a class or an image
        for depth, part in enumerate(folders, start=1):
            place = place_of((part,))
            is_split = place.split and folders[:depth] not in self.class_folders
            parts += (nfc(part),) if is_below and not is_split else place.key
            is_below = is_below or place.role in ("labels", "colored labels")
        return tuple(parts)

    def by_folder(self, path: Path) -> tuple[str, str] | None:
        """Return image and class of masks/car/0001.png."""
        key = self.key(path)
        for stem, rest in _cuts(nfc(path.stem)):
            for name, of_image in self.by_stem.get(stem, ()):
                extra = _without(key, of_image)
                if extra is not None and len(extra) == 1 and set(words(rest)) <= LABEL_WORDS | {*words(extra[0])}:
                    return name, extra[0]
        return None

    def by_affix(self, path: Path) -> tuple[str, str] | None:
        """Return image and class of masks/0001_car.png or masks/car_0001.png."""
        key = self.key(path)
        for stem, rest in _cuts(nfc(path.stem)):
            for name, of_image in self.by_stem.get(stem, ()):
                if _without(key, of_image) == ():
                    return (name, found) if (found := _class_in(rest)) else None  # a label called as its image
        return None

    def by_image_folder(self, path: Path) -> tuple[str, str] | None:
        """Return image and class of masks/0001/car.png, or 0001/masks/car.png where 0001 holds one image."""
        key, name = self.key(path), _class_in(nfc(path.stem))
        for part in key if name else ():
            for image, of_image in self.by_stem.get(part, ()):
                if _without(key, (*of_image, part)) == ():
                    return image, name
        alone = self.by_key.get(key, ()) if key else ()
        return (alone[0], name) if name and len(alone) == 1 else None


def _without(key: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return a key without the parts of another one; None if it lacks one of them."""
    rest = list(key)
    for part in other:
        if part not in rest:
            return None
        rest.remove(part)
    return tuple(rest)


def _cuts(stem: str) -> list[tuple[str, str]]:
    """Return the ways to cut a name into an image's stem and the rest, the longest stem first."""
    cuts = [(stem, "")]
    for place, letter in enumerate(stem):
        if letter in _SEPARATORS:
            cuts += [(stem[:place], stem[place + 1 :]), (stem[place + 1 :], stem[:place])]
    return sorted(cuts, key=lambda cut: -len(cut[0]))


def _class_in(text: str) -> str:
    """Return the class in the rest of a name: car of car, mask_car and car-mask; "" of a mask or a color picture."""
    parts = [part for part in re.split(rf"[{_SEPARATORS}]+", text) if part]
    while parts and parts[0].lower() in LABEL_WORDS:
        parts = parts[1:]
    while parts and parts[-1].lower() in LABEL_WORDS:
        parts = parts[:-1]
    name = text[text.find(parts[0]) : text.rfind(parts[-1]) + len(parts[-1])] if parts else ""
    return "" if VISUAL & set(words(name)) else name
