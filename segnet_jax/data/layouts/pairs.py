"""From pairs of image and label files to a data set: every file looked at once, all faults told together."""

import functools
import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segnet_jax.constants import Exif
from segnet_jax.data.dataset import Dataset, Split, told_together
from segnet_jax.data.images.decode import read_image
from segnet_jax.data.images.fit import resize_label
from segnet_jax.data.label_files.decode_labels import read_label_by
from segnet_jax.data.label_files.interpretation.evidence import Folder, pixels_of
from segnet_jax.data.label_files.interpretation.interpret import Interpretation, interpret
from segnet_jax.data.label_files.scan import scan
from segnet_jax.data.labels.label_mapping import TUTORIAL, LabelRule, Legend, StoredLabels, rule_of
from segnet_jax.data.labels.read_options import PLAIN, Reading
from segnet_jax.data.layouts.names.pair_files import Pair, sound_pairs
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.data.random_split import deal
from segnet_jax.system.errors import Fault, UserErrors, listed, shown
from segnet_jax.system.files import relative_path


def _never(_values: Mapping[int, int]) -> bool:
    return False


class Found(NamedTuple):
    """What a layout finds in a folder, none of it read yet.

    Attributes:
      name: of the layout.
      entries: split -> its pairs of files.
      legend: the classes that a class file names; None where they are to be found from the labels.
      faults: of lists, names and missing files.
      notes: each a line.
      is_split: whether the folder says itself which image belongs to which split.
      is_nameless: whether there is a class file, but one at fault.
      default: the classes of the dataset that the layout is named for.
      fits_default: value -> pixels to whether labels that hold these may be that dataset's.
    """

    name: str
    entries: Mapping[str, Sequence[Entry]]
    legend: Legend | None
    faults: Sequence[Fault] = ()
    notes: Sequence[str] = ()
    is_split: bool = True
    is_nameless: bool = False
    default: Legend | None = None
    fits_default: Callable[[Mapping[int, int]], bool] = _never


PROPOSED_VAL_SHARE = 0.2
"""Of the images of a folder that does not say which are for validation."""


def open_pairs(
    found: Found,
    folder: Path,
    reading: Reading,
    stored: StoredLabels | None = None,
    legend: Legend | None = None,
) -> Dataset:
    """Read every file that a layout has found and make a dataset of them; images are not decoded.

    Args:
      found: the pairs of files.
      folder: the dataset's.
      reading: the read options.
      stored: what a run stores of its labels: they are read so, unless the folder now names other classes.
      legend: the classes, where the folder names none.

    Returns:
      The dataset; reading a sample of it reports the faults of all.

    Raises:
      UserError: with all faults: those found before, of single files, of pairs unlike in size, of images that are in
        two splits, of labels' values and colors, and of labels of which two readings fit.
    """
    faults = list(found.faults)
    sound, notes = sound_pairs(found.entries, folder, reading, faults), list(found.notes)
    share = reading.val_fraction or (0.0 if found.is_split else PROPOSED_VAL_SHARE)
    if share:
        sound, told = _dealt(sound, share)
        notes.append(told)
    faults += _leaks(sound)
    if stored is not None and found.legend is not None and found.legend.classes.names != stored.classes.names:
        stored = None  # its classes are compared with the run's
    doubts: tuple[Fault, ...] = ()
    if stored is not None:
        classes, rule = stored.classes, stored.rule
    else:
        own = found.legend or legend
        interpreted = None if found.is_nameless else _interpreted(found, own, sound, folder, reading, faults, notes)
        if faults or interpreted is None:
            raise UserErrors(folder, faults)
        classes, rule, doubts = interpreted.legend.classes, interpreted.rule, interpreted.doubts
    if faults:
        raise UserErrors(folder, faults)
    splits = {split: _split(sound[split], folder, rule, reading) for split in sound}
    notes += _notes_on_files(sound, folder)
    sizes = Counter(pair.image_size(reading)[::-1] for each in sound.values() for pair in each)
    dataset = Dataset(found.name, classes, splits, tuple(notes), dict(sizes), rule, doubts)
    return told_together(dataset, folder)


def _interpreted(
    found: Found,
    legend: Legend | None,
    sound: Mapping[str, Sequence[Pair]],
    folder: Path,
    reading: Reading,
    faults: list[Fault],
    notes: list[str],
) -> Interpretation | None:
    """Read all labels and find what they mean."""
    labels = [(pair.entry.label, relative_path(pair.entry.label, folder)) for each in sound.values() for pair in each]
    labels = list(dict.fromkeys(labels))
    scans = scan(labels, reading, faults)
    if not scans:
        return None
    whole = str(folder)
    table = shlex.quote(str(folder / "classes.toml"))
    how_to_name = f"python -m segnet_jax.doctor {shlex.quote(whole)} --classes {table}"
    known = Folder(scans, legend, reading, how_to_name)
    interpreted = interpret(known, found.default, found.fits_default, faults, notes)
    trained = {relative_path(pair.entry.label, folder) for pair in sound.get("train", ())}
    if interpreted and not pixels_of(interpreted.rule, [each for each in scans if each.name in trained])[0].any():
        return interpreted._replace(doubts=())  # that nothing can be trained on is a fault of its own
    return interpreted


def _dealt(sound: Mapping[str, Sequence[Pair]], share: float) -> tuple[dict[str, list[Pair]], str]:
    """The pairs of training and validation dealt anew, and what to say of it; names that both have become unlike."""
    keys: dict[tuple[str, str], Pair] = {}
    names: set[str] = set()
    for split in ("train", "val"):
        for pair in sound.get(split, ()):
            if pair.entry.name in names:
                pair = pair._replace(entry=pair.entry._replace(name=f"{split}-{pair.entry.name}"))
            names.add(pair.entry.name)
            keys[pair.entry.name, pair.image.sha256] = pair
    dealt = deal(list(keys), share)
    splits = {split: [keys[key] for key in chosen] for split, chosen in dealt.splits.items()}
    return splits | {split: list(pairs) for split, pairs in sound.items() if split not in splits}, dealt.told


def _leaks(splits: Mapping[str, Iterable[Pair]]) -> Iterable[Fault]:
    """Pictures that are in two splits: what is scored was trained on then."""
    seen: dict[str, tuple[str, str]] = {}
    for split, pairs in splits.items():
        for entry, image, _ in pairs:
            first_split, first_name = seen.setdefault(image.sha256, (split, entry.name))
            if first_split != split:
                what = f"{entry.name} of {split} is the same picture as {first_name} of {first_split}: a leak"
                fix = f"leave it out of {split} or of {first_split}"
                if {split, first_split} == {"train", "val"}:
                    fix = f"--val-fraction {PROPOSED_VAL_SHARE}"
                yield Fault("same-image-in-two-splits", entry.name, what, fix)


def _split(pairs: Sequence[Pair], folder: Path, rule: LabelRule, reading: Reading) -> Split:
    entries = tuple((pair.entry, pair.exif(reading)) for pair in pairs)
    digest = hashlib.sha256()
    for entry, image, label in pairs:
        digest.update(f"{entry.name}\n{image.sha256}\n{label.sha256}\n".encode())
    told = (_as_at_first(rule), reading.exif == "apply", reading.resize_labels)
    if told != (_as_at_first(rule_of(TUTORIAL, PLAIN)), False, "off"):  # by which alone folders were read at first
        digest.update(repr(told).encode())
    if reading.exif == "by-label" or reading.image_range != (0, 0):
        digest.update(repr((reading.exif, reading.image_range)).encode())
    files = {relative_path(entry.image, folder): image.sha256 for entry, image, _ in pairs}
    files |= {relative_path(entry.label, folder): label.sha256 for entry, _, label in pairs}
    names = tuple(entry.name for entry, _ in entries)
    read = functools.partial(_read, entries, folder, rule, reading)
    return Split(names, read, digest.hexdigest(), files)


def _as_at_first(rule: LabelRule) -> tuple:
    """What a rule says, without that a value means nothing or colors are not looked at: fingerprints depend on it."""
    by_color = rule.by_color if rule.colors is not None else ()
    return rule.num_classes, rule.ids, rule.colors, rule.map, rule.start, rule.unknown_color, rule.threshold, by_color


def _read(
    entries: Sequence[tuple[Entry, Exif]], folder: Path, rule: LabelRule, reading: Reading, index: int
) -> tuple[np.ndarray, np.ndarray]:
    (_, image_path, label_path), exif = entries[index]
    image = read_image(image_path, relative_path(image_path, folder), exif, reading.image_range)
    of_label = "apply" if reading.exif == "by-label" else reading.exif
    label = read_label_by(rule, label_path, relative_path(label_path, folder), of_label)
    if label.shape != image.shape[:2] and reading.resize_labels == "nearest":
        label = resize_label(label, *image.shape[:2])
    return image, label


def _notes_on_files(splits: Mapping[str, Iterable[Pair]], folder: Path) -> Iterable[str]:
    """What is accepted, but may not be what its owner thinks it is."""
    pairs = [pair for each in splits.values() for pair in each]
    images = {shown(relative_path(entry.image, folder)): image.header for entry, image, _ in pairs}
    if jpeg := [name for name, header in images.items() if header.format == "JPEG" and name.lower().endswith(".png")]:
        yield f"note: JPEG inside, though named .png: {listed(jpeg)}"
    if grey := [name for name, header in images.items() if header.kind in ("grey", "grey+alpha")]:
        yield f"note: grey images, repeated over three channels: {listed(grey)}"
