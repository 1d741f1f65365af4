"""Read masks of one class each, and merge those of an image into one label."""

import itertools
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segnet_jax.constants import VOID, Exif
from segnet_jax.data.images.picture_header import EXPORT_IDS, MAX_PIXELS
from segnet_jax.data.label_files.decode_labels import read_in_threads, read_label_by, read_stored
from segnet_jax.data.label_files.stored_pixels import Stored, dark_and_bright, is_bimodal
from segnet_jax.data.labels.label_mapping import LabelRule
from segnet_jax.system.errors import Fault, UserError, UserErrors, listed

Masks = Sequence[tuple[str, Path]]
"""Pairs of a class and one of its masks; a class may have several masks."""


@dataclass(frozen=True)
class MaskScan:
    """Pixels of the masks of one image.

    Attributes:
      name: display name of the first mask for error messages.
      pixels: class -> pixels in its masks.
      overlaps: (class, class), sorted -> pixels in masks of both.
      uncovered: pixels in no mask.
      total: pixels of the image.
    """

    name: str
    pixels: Mapping[str, int] = field(default_factory=dict)
    overlaps: Mapping[tuple[str, str], int] = field(default_factory=dict)
    uncovered: int = 0
    total: int = 0


def read_label_files(
    rule: LabelRule,
    label: Path,
    masks: Masks,
    name_of: Callable[[Path], str] = str,
    exif: Exif = "refuse",
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Read the label of an image, or merge its masks of one class each; the arguments are those of `read_class_masks`.

    Raises:
      UserError: If the label or a mask is invalid, or the rule is for the other kind.
    """
    if masks and rule.masks:
        return read_class_masks(rule, masks, name_of, exif, max_pixels)
    if not masks and not rule.masks:
        return read_label_by(rule, label, name_of(label), exif, max_pixels)
    kinds = ["a label of all classes", "a mask of one class"]
    expected = "labels of all classes" if masks else "masks of one class each"
    message = f"{name_of(label)} is {kinds[bool(masks)]}, but the run reads {expected}"
    raise UserError(message, kind="mask-per-class", file=name_of(label), fix="use labels of the same kind")


def read_class_masks(
    rule: LabelRule,
    masks: Masks,
    name_of: Callable[[Path], str] = str,
    exif: Exif = "refuse",
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Merge the masks of an image into a label.

    Args:
      rule: the class id of each mask, and what overlaps and other pixels are.
      masks: the masks of the image.
      name_of: returns the display name of a file for error messages.
      exif: how an EXIF rotation is treated.
      max_pixels: size limit.

    Returns:
      uint8 [H,W], 0..C-1 or VOID; with several classes per pixel, bits as in `nn.label_bits`, or VOID.

    Raises:
      UserError: If a mask is invalid or of an unknown class, or masks of two classes overlap without an order.
    """
    ids = dict(rule.masks)
    if unknown := sorted({name for name, _ in masks} - ids.keys()):
        file = next(name_of(path) for name, path in masks if name == unknown[0])
        message = f"{file} is a mask of {unknown[0]}, which is not a class: {listed([*ids])}"
        raise UserError(message, kind="unknown-mask", file=file, fix="rename it, or omit it by --label-files")
    areas = _areas(masks, rule.threshold, name_of, exif, max_pixels)
    if rule.multi_label:
        return _several_classes(areas, ids)
    names = sorted(areas, key=lambda name: rule.mask_order.index(name) if name in rule.mask_order else -1)
    label, owner = None, None
    for place, name in enumerate(names, start=1):
        area = areas[name]
        if label is None:
            label, owner = np.full(area.shape, rule.unmasked, np.uint8), np.zeros(area.shape, np.uint8)
        covered = np.bincount(owner[area], minlength=1)
        for below in np.flatnonzero(covered[1:]):
            other = names[below]
            if not {name, other} <= {*rule.mask_order}:
                file = name_of(next(path for each, path in masks if each == name))
                pixels = int((areas[other] & area).sum())
                message = f"the masks of {other} and {name} overlap in {pixels} pixels of {file}"
                order = f"--mask-order {shlex.quote(other)} {shlex.quote(name)}"
                fix = f"--mask-order with both, the one on top last, such as {order}"
                raise UserError(message, kind="overlapping-masks", file=file, fix=f"state {fix}")
        label[area], owner[area] = ids[name], place
    return label


def _several_classes(areas: Mapping[str, np.ndarray], ids: Mapping[str, int]) -> np.ndarray:
    """Return the label of pixels with any number of classes, uint8 [H,W] of bits; VOID in the masks of void classes."""
    label = np.zeros(next(iter(areas.values())).shape, np.uint8)
    for name, area in areas.items():
        label[area] |= np.uint8(VOID if ids[name] == VOID else 1 << ids[name])
    return label


def _areas(
    masks: Masks, threshold: int, name_of: Callable[[Path], str], exif: Exif, max_pixels: int
) -> dict[str, np.ndarray]:
    """Return class -> bool [H,W], the pixels in its masks.

    Raises:
      UserError: If a mask is invalid or of another size.
    """
    areas: dict[str, np.ndarray] = {}
    faults: list[Fault] = []
    for name, path in masks:
        file = name_of(path)
        try:
            area = area_of(read_stored(path, file, True, True, exif, max_pixels), file, threshold)
        except UserError as error:
            faults += error.faults
            continue
        first = next(iter(areas.values()), area)
        if area.shape != first.shape:
            size, expected = (f"{each.shape[1]}x{each.shape[0]}" for each in (area, first))
            message = f"mask {file} is {size}, but the first mask of its image is {expected}"
            faults.append(Fault("label-size-differs", file, message, "export all masks at the image's size"))
        else:
            areas[name] = areas[name] | area if name in areas else area
    if faults:
        raise UserErrors(name_of(masks[0][1]), faults)
    return areas


def area_of(stored: Stored, name: str, threshold: int = 0) -> np.ndarray:
    """Return the pixels in a mask, bool [H,W]: those that are not 0 (black), or from a threshold on.

    Raises:
      UserError: If the mask has several values, as smoothed edges or class ids, and there is no threshold.
    """
    if threshold:
        return stored.grey() >= threshold
    values = _values(stored)
    held = np.unique(values)
    if stored.lossy or np.count_nonzero(held) > 1:
        what = f"is {stored.lossy}, which is lossy" if stored.lossy else f"contains {held.size} values"
        shown = "" if stored.lossy else f" ({listed([*map(str, held)])})"
        message = f"mask {name} {what}{shown}, but a mask of one class is 0 outside and has one other value inside"
        if _is_soft(stored):
            kind = "lossy-label" if stored.lossy else "soft-edges"
            message += "; it is black and white except at edges"
            raise UserError(message, kind=kind, file=name, fix="--threshold 128")
        raise UserError(message, kind="mask-values", file=name, fix=EXPORT_IDS)
    return values > 0


def is_class_mask(path: Path, name: str) -> bool:
    """Return whether a file may be a mask of one class: of two values, or black and white except at edges."""
    try:
        stored = read_stored(path, name, True, True, "apply")
    except UserError:
        return True  # which is reported when it is read
    is_soft = _is_soft(stored)
    if stored.lossy or is_soft:
        return is_soft
    held = np.unique(_values(stored))
    return np.count_nonzero(held) <= 1 and (held.size > 1 or held[0] in (0, VOID))


def _is_soft(stored: Stored) -> bool:
    """Return whether a mask is black and white with grays at edges, and not one of a few class ids."""
    grey = stored.grey()
    dark, bright = dark_and_bright(grey)
    return bool(is_bimodal(grey) and bright.any() and (stored.lossy or not (dark | bright).all()))


def _values(stored: Stored) -> np.ndarray:
    """Return the values of a mask [H,W]; of colors, their brightness.

    A palette is read by its brightness where index 0 is not black, or another index is: 0 then does not mean outside.
    """
    values = stored.values()
    if values is None:
        return stored.grey()
    if stored.kind == "palette":
        grey = stored.grey()
        if grey[values == 0].any() or (grey.any() and not grey[values > 0].all()):
            return grey
    return values


def scan_masks(
    images: Sequence[Masks], threshold: int, exif: Exif, name_of: Callable[[Path], str], faults: list[Fault]
) -> list[MaskScan]:
    """Read all masks.

    Args:
      images: the masks of each image.
      threshold: brightness from which pixels are in a mask; 0 for none.
      exif: how an EXIF rotation is treated.
      name_of: returns the display name of a file for error messages.
      faults: list to extend with unreadable and invalid masks.
    """

    def read(masks: Masks) -> MaskScan:
        return _scan(_areas(masks, threshold, name_of, exif, MAX_PIXELS), name_of(masks[0][1]))

    return read_in_threads(read, images, faults)


def _scan(areas: Mapping[str, np.ndarray], name: str) -> MaskScan:
    count = np.zeros(next(iter(areas.values())).shape, np.uint8)
    for area in areas.values():
        count += area
    overlaps = {}
    if (count > 1).any():
        for pair in itertools.combinations(sorted(areas), 2):
            if pixels := int((areas[pair[0]] & areas[pair[1]]).sum()):
                overlaps[pair] = pixels
    pixels = {each: int(area.sum()) for each, area in areas.items()}
    return MaskScan(name, pixels, overlaps, int((count == 0).sum()), count.size)
