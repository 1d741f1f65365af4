"""Datasets from pairs of image and label files; every file is checked, and all faults are reported together."""

import functools
import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segnet_jax.constants import RGB, Exif
from segnet_jax.data.dataset import Dataset, Split, report_all_faults
from segnet_jax.data.images.decode import read_image
from segnet_jax.data.images.fit import resize_label
from segnet_jax.data.label_files.class_masks import read_label_files, scan_masks
from segnet_jax.data.label_files.interpretation.evidence import Interpretation, LabelEvidence, pixels_of
from segnet_jax.data.label_files.interpretation.interpret import interpret
from segnet_jax.data.label_files.interpretation.mask_classes import interpret_masks
from segnet_jax.data.label_files.scan import scan
from segnet_jax.data.labels.label_mapping import TUTORIAL, LabelMapping, LabelRule, StoredLabels, make_label_rule
from segnet_jax.data.labels.read_options import DEFAULTS, ReadOptions
from segnet_jax.data.layouts.names.check_pairs import Pair, sound_pairs
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.data.random_split import split_randomly
from segnet_jax.system.errors import Fault, UserErrors, listed, shown
from segnet_jax.system.files import relative_path


def _never(_values: Mapping[int, int]) -> bool:
    return False


class LayoutFiles(NamedTuple):
    """The files that a layout found in a folder, not yet read.

    Attributes:
      name: layout name.
      entries: split -> its pairs of files.
      label_mapping: the class file's mapping; None to infer it from the labels.
      faults: faults of lists, names and missing files.
      notes: lines for the log.
      is_split: whether the folder defines training and validation images.
      has_bad_class_file: whether there is a class file that could not be used.
      default: label mapping of the dataset that the layout is named after.
      fits_default: function from {value: pixels} to whether such labels can be that dataset's.
    """

    name: str
    entries: Mapping[str, Sequence[Entry]]
    label_mapping: LabelMapping | None
    faults: Sequence[Fault] = ()
    notes: Sequence[str] = ()
    is_split: bool = True
    has_bad_class_file: bool = False
    default: LabelMapping | None = None
    fits_default: Callable[[Mapping[int, int]], bool] = _never


DEFAULT_VAL_FRACTION = 0.2
"""Fraction of the images used for validation if the folder has no split."""


def open_pairs(
    found: LayoutFiles,
    folder: Path,
    read_options: ReadOptions,
    stored: StoredLabels | None = None,
    label_mapping: LabelMapping | None = None,
) -> Dataset:
    """Check every file of a layout, without decoding images, and return the dataset.

    Args:
      found: the pairs of files.
      folder: the dataset folder.
      read_options: how its files are read.
      stored: a run's classes and label rule, used unless the folder's class file names other classes.
      label_mapping: label mapping for a folder without a class file.

    Returns:
      The dataset; reading a faulty sample raises an error with the faults of all samples.

    Raises:
      UserError: If layout, files, pairs or labels have faults, or splits share images; the error lists all faults.
    """
    faults = list(found.faults)
    sound, notes = sound_pairs(found.entries, folder, read_options, faults), list(found.notes)
    fraction = read_options.val_fraction or (0.0 if found.is_split else DEFAULT_VAL_FRACTION)
    if fraction:
        sound, note = _split_randomly(sound, fraction)
        notes.append(note)
    faults += _leaks(sound)
    if not faults and not any(sound.values()):
        message = f"no pair of image and label was found in {shown(str(folder))}"
        faults.append(Fault("no-pairs", "", message, "name each label like its image, and the folders of both alike"))
        raise UserErrors(folder, faults)
    if (
        stored is not None
        and found.label_mapping is not None
        and found.label_mapping.classes.names != stored.classes.names
    ):
        stored = None  # the caller compares the folder's classes with the run's
    elif (
        stored is not None
        and not stored.rule.masks
        and any(pair.entry.masks for each in sound.values() for pair in each)
    ):
        stored, label_mapping = None, stored.label_mapping  # the masks say their classes by name
    doubts: tuple[Fault, ...] = ()
    if stored is not None:
        classes, rule = stored.classes, stored.rule
    else:
        own = found.label_mapping or label_mapping
        interpreted = (
            None if found.has_bad_class_file else _interpreted(found, own, sound, folder, read_options, faults, notes)
        )
        if faults or interpreted is None:
            raise UserErrors(folder, faults)
        classes, rule, doubts = interpreted.label_mapping.classes, interpreted.rule, interpreted.doubts
    if faults:
        raise UserErrors(folder, faults)
    splits = {split: _split(sound[split], folder, rule, read_options) for split in sound}
    notes += _notes_on_files(sound, folder, read_options)
    sizes = Counter(pair.image_size(read_options)[::-1] for each in sound.values() for pair in each)
    dataset = Dataset(found.name, classes, splits, tuple(notes), dict(sizes), rule, doubts)
    return report_all_faults(dataset, folder)


def _interpreted(
    found: LayoutFiles,
    label_mapping: LabelMapping | None,
    sound: Mapping[str, Sequence[Pair]],
    folder: Path,
    read_options: ReadOptions,
    faults: list[Fault],
    notes: list[str],
) -> Interpretation | None:
    """Scan and interpret all labels, or return None if there are faults."""
    if masks := [pair.entry.masks for each in sound.values() for pair in each if pair.entry.masks]:
        exif = "apply" if read_options.exif == "by-label" else read_options.exif
        name_of = functools.partial(relative_path, folder=folder)
        mask_scans = scan_masks(masks, read_options.threshold, exif, name_of, faults)
        names = sorted({name for each in masks for name, _ in each}, key=str.casefold)
        return None if faults else interpret_masks(mask_scans, names, label_mapping, read_options, faults, notes)
    if read_options.mask_order or read_options.unmasked != "auto" or read_options.multi_label:
        flags = "--mask-order, --unmasked and --multi-label"
        message = f"{flags} are for masks of one class each, but the folder has labels of all classes"
        faults.append(Fault("mask-per-class", "", message, "omit them"))
        return None
    labels = [(pair.entry.label, relative_path(pair.entry.label, folder)) for each in sound.values() for pair in each]
    labels = list(dict.fromkeys(labels))
    scans = scan(labels, read_options, faults)
    if not scans:
        return None
    whole = str(folder)
    table = shlex.quote(str(folder / "classes.toml"))
    class_file_command = f"python -m segnet_jax.doctor {shlex.quote(whole)} --classes {table}"
    evidence = LabelEvidence(scans, label_mapping, read_options, class_file_command)
    interpreted = interpret(evidence, found.default, found.fits_default, faults, notes)
    trained = {relative_path(pair.entry.label, folder) for pair in sound.get("train", ())}
    if interpreted and not pixels_of(interpreted.rule, [each for each in scans if each.name in trained])[0].any():
        return interpreted._replace(doubts=())  # without training pixels, another fault is reported
    return interpreted


def _split_randomly(sound: Mapping[str, Sequence[Pair]], fraction: float) -> tuple[dict[str, list[Pair]], str]:
    """Split training and validation pairs anew, adding the old split to duplicate names; return splits and a note."""
    keys: dict[tuple[str, str], Pair] = {}
    names: set[str] = set()
    for split in ("train", "val"):
        for pair in sound.get(split, ()):
            if pair.entry.name in names:
                pair = pair._replace(entry=pair.entry._replace(name=f"{split}-{pair.entry.name}"))
            names.add(pair.entry.name)
            keys[pair.entry.name, pair.image.sha256] = pair
    chosen = split_randomly(list(keys), fraction)
    splits = {split: [keys[key] for key in of_split] for split, of_split in chosen.splits.items()}
    return splits | {split: list(pairs) for split, pairs in sound.items() if split not in splits}, chosen.note


def _leaks(splits: Mapping[str, Iterable[Pair]]) -> Iterable[Fault]:
    """Yield a fault for each image that is in two splits."""
    seen: dict[str, tuple[str, str]] = {}
    for split, pairs in splits.items():
        for entry, image in (pair[:2] for pair in pairs):
            first_split, first_name = seen.setdefault(image.sha256, (split, entry.name))
            if first_split != split:
                message = f"{entry.name} in {split} is the same image as {first_name} in {first_split}"
                fix = f"remove it from {split} or {first_split}"
                if {split, first_split} == {"train", "val"}:
                    fix = f"--val-fraction {DEFAULT_VAL_FRACTION}"
                yield Fault("same-image-in-two-splits", entry.name, message, fix)


def _split(pairs: Sequence[Pair], folder: Path, rule: LabelRule, read_options: ReadOptions) -> Split:
    entries = tuple((pair.entry, pair.exif(read_options)) for pair in pairs)
    digest = hashlib.sha256()
    for pair in pairs:
        sums = "\n".join(file.sha256 for file in pair.labels)
        digest.update(f"{pair.entry.name}\n{pair.image.sha256}\n{sums}\n".encode())
    settings = (_fingerprinted(rule), read_options.exif == "apply", read_options.resize_labels)
    # The original settings add nothing, so that old fingerprints stay valid.
    if settings != (_fingerprinted(make_label_rule(TUTORIAL, DEFAULTS)), False, "off"):
        digest.update(repr(settings).encode())
    if read_options.exif == "by-label" or read_options.image_range != (0, 0):
        digest.update(repr((read_options.exif, read_options.image_range)).encode())
    if read_options.pixels != RGB:
        digest.update(repr(tuple(read_options.pixels)).encode())
    if rule.masks:
        names = [[name for name, _ in pair.entry.masks] for pair in pairs]
        digest.update(repr((rule.masks, rule.mask_order, rule.unmasked, names)).encode())
        digest.update(b"multi-label" if rule.multi_label else b"")
    files = {relative_path(pair.entry.image, folder): pair.image.sha256 for pair in pairs}
    for pair in pairs:
        for path, file in zip(pair.entry.labels, pair.labels, strict=True):
            files[relative_path(path, folder)] = file.sha256
    names = tuple(entry.name for entry, _ in entries)
    read = functools.partial(_read, entries, folder, rule, read_options)
    return Split(names, read, digest.hexdigest(), files, read_options.pixels)


def _fingerprinted(rule: LabelRule) -> tuple:
    """Return the fields of a rule that enter the fingerprint; `by_color` only if the rule has colors."""
    by_color = rule.by_color if rule.colors is not None else ()
    return rule.num_classes, rule.ids, rule.colors, rule.map, rule.start, rule.unknown_color, rule.threshold, by_color


def _read(
    entries: Sequence[tuple[Entry, Exif]], folder: Path, rule: LabelRule, read_options: ReadOptions, index: int
) -> tuple[np.ndarray, np.ndarray]:
    (_, image_path, label_path, masks), exif = entries[index]
    name = relative_path(image_path, folder)
    image = read_image(image_path, name, exif, read_options.image_range, pixels=read_options.pixels)
    label_exif = "apply" if read_options.exif == "by-label" else read_options.exif
    label = read_label_files(rule, label_path, masks, functools.partial(relative_path, folder=folder), label_exif)
    if label.shape != image.shape[:2] and read_options.resize_labels == "nearest":
        label = resize_label(label, *image.shape[:2])
    return image, label


def _notes_on_files(splits: Mapping[str, Iterable[Pair]], folder: Path, read_options: ReadOptions) -> Iterable[str]:
    """Yield notes on accepted but unexpected image files."""
    pairs = [pair for each in splits.values() for pair in each]
    images = {shown(relative_path(entry.image, folder)): image.header for entry, image in (pair[:2] for pair in pairs)}
    if jpeg := [name for name, header in images.items() if header.format == "JPEG" and name.lower().endswith(".png")]:
        yield f"note: JPEG files named .png: {listed(jpeg)}"
    if read_options.pixels != RGB:
        yield f"note: images are read as stored, {read_options.pixels}"
    elif grey := [name for name, header in images.items() if header.kind in ("grey", "grey+alpha")]:
        yield f"note: gray images, repeated over three channels: {listed(grey)}"
