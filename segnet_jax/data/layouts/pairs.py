"""From pairs of image and label files to a data set: every file looked at once, all faults told together."""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segnet_jax.data.dataset import Dataset, Split, faults_of, told_together
from segnet_jax.data.images.decode import read_image, turned_picture
from segnet_jax.data.images.fit import resize_label
from segnet_jax.data.images.picture_bytes import orientation
from segnet_jax.data.images.picture_header import (
    Header,
    check_image_header,
    check_label_header,
    check_sizes,
    inspect,
    read_bytes,
)
from segnet_jax.data.label_files.decode_labels import read_label_by
from segnet_jax.data.label_files.label_values import legend_of_values
from segnet_jax.data.labels.label_mapping import TUTORIAL, LabelRule, Legend, rule_of
from segnet_jax.data.labels.read_options import PLAIN, Reading
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.data.random_split import deal
from segnet_jax.system import budget
from segnet_jax.system.errors import Fault, UserError, UserErrors, listed, shown


class _File(NamedTuple):
    """A file that was read and is sound, as far as can be told without decoding it."""

    header: Header
    sha256: str
    turned: int  # EXIF orientation, 1 for upright

    def size(self, upright: bool) -> tuple[int, int]:
        """Width and height, of the stored pixels or of the picture held upright."""
        size = self.header.width, self.header.height
        return size[::-1] if upright and self.turned >= 5 else size


class Pair(NamedTuple):
    """An image and its label; None for a file that is not sound."""

    entry: Entry
    image: _File | None
    label: _File | None


class Found(NamedTuple):
    """What a layout finds in a folder, nothing of it read yet.

    Attributes:
      name: of the layout.
      entries: split -> its pairs of files.
      legend: the classes; None where they are to be found from the labels' values.
      faults: of lists, names and missing files.
      notes: each a line.
      is_split: whether the folder says itself which image belongs to which split.
      is_nameless: whether there is a class table, but one at fault.
    """

    name: str
    entries: Mapping[str, Sequence[Entry]]
    legend: Legend | None
    faults: Sequence[Fault] = ()
    notes: Sequence[str] = ()
    is_split: bool = True
    is_nameless: bool = False


PROPOSED_VAL_SHARE = 0.2
"""Of the images of a folder that does not say which are for validation."""


def open_pairs(found: Found, folder: Path, reading: Reading) -> Dataset:
    """Reads every file that a layout has found, without decoding images, and makes a data set of them.

    Args:
      found: the pairs of files.
      folder: the data set's.
      reading: its owner's wishes.

    Returns:
      The data set; reading a record of it tells the faults of all.

    Raises:
      UserError: with all faults: those found before, of single files, of pairs unlike in size, of images that are in
        two splits, and, where there are such or the classes are not named, of labels' values.
    """
    faults = list(found.faults)
    sound, notes = sound_pairs(found, folder, reading, faults), list(found.notes)
    share = reading.val_fraction or (0.0 if found.is_split else PROPOSED_VAL_SHARE)
    if share:
        sound, told = _dealt(sound, share)
        notes.append(told)
    faults += _leaks(sound)
    legend = found.legend
    if legend is None and not found.is_nameless:
        labels = [(pair.entry.label, _relative(pair.entry.label, folder)) for each in sound.values() for pair in each]
        legend = legend_of_values(labels, folder, reading, faults, notes)
    if legend is None:
        raise UserErrors(folder, faults)
    rule = rule_of(legend, reading)
    splits = {split: _split(sound[split], folder, rule, reading) for split in sound}
    if faults:
        raise UserErrors(folder, [*faults, *faults_of(splits.values())])
    notes += _notes_on_files(sound, folder)
    sizes = Counter(pair.image.size(reading.exif == "apply")[::-1] for each in sound.values() for pair in each)
    return told_together(Dataset(found.name, legend.classes, splits, tuple(notes), dict(sizes)), folder)


def sound_pairs(found: Found, folder: Path, reading: Reading, faults: list[Fault]) -> dict[str, list[Pair]]:
    """Reads all files; what is wrong with them is added to `faults`, and the pairs that are sound are given.

    Args:
      found: the pairs of files.
      folder: the data set's.
      reading: its owner's wishes.
      faults: grows.
    """
    colored = found.legend is None or found.legend.colors is not None
    check_label = functools.partial(check_label_header, colored=colored)

    def check(entry: Entry) -> tuple[Pair, list[Fault]]:
        mine: list[Fault] = []
        with budget.pictures.scope():
            image = _check(entry.image, folder, check_image_header, mine)
        with budget.pictures.scope():
            return Pair(entry, image, _check(entry.label, folder, check_label, mine)), mine

    sound: dict[str, list[Pair]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split, entries in found.entries.items():
            sound[split] = []
            for pair, mine in pool.map(check, entries):
                if not mine:
                    mine = list(_unlike(split, pair, folder, reading))
                faults.extend(mine)
                if pair.image and pair.label:
                    sound[split].append(pair)
    return sound


def _check(path: Path, folder: Path, check_header: Callable[[Header, str], None], faults: list[Fault]) -> _File | None:
    name = _relative(path, folder)
    try:
        data = read_bytes(path, name)
        header = inspect(data, name)
        check_header(header, name)
        return _File(header, hashlib.sha256(data).hexdigest(), orientation(data))
    except UserError as error:
        faults.extend(error.faults)
        return None


def _unlike(split: str, pair: Pair, folder: Path, reading: Reading) -> Iterable[Fault]:
    """What is wrong with a pair of sound files: a rotation that is not spoken of, or two sizes."""
    entry, image, label = pair
    for file, path in ((image, entry.image), (label, entry.label)):
        if file.turned != 1 and reading.exif == "refuse":
            as_stored = file.turned >= 5 and image.size(upright=False) == label.size(upright=False) != image.size(True)
            fix = "--exif ignore" if as_stored or file.turned < 5 and file is label else "--exif apply"
            yield from turned_picture(_relative(path, folder), file.turned, fix).faults
            return
    sizes = [file.size(upright=reading.exif == "apply") for file in (image, label)]
    if reading.resize_labels == "nearest" and (sizes[0] != sizes[1][::-1] or sizes[0] == sizes[1]):
        return
    try:
        check_sizes(*sizes, f"{split} {entry.name}", _relative(entry.label, folder))
    except UserError as error:
        yield from error.faults


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
    entries = tuple(pair.entry for pair in pairs)
    digest = hashlib.sha256()
    for entry, image, label in pairs:
        digest.update(f"{entry.name}\n{image.sha256}\n{label.sha256}\n".encode())
    told = (rule, reading.exif == "apply", reading.resize_labels)
    if told != (rule_of(TUTORIAL, PLAIN), False, "off"):  # by which alone folders were read at first
        digest.update(repr(told).encode())
    files = {_relative(entry.image, folder): image.sha256 for entry, image, _ in pairs}
    files |= {_relative(entry.label, folder): label.sha256 for entry, _, label in pairs}
    names = tuple(entry.name for entry in entries)
    read = functools.partial(_read, entries, folder, rule, reading)
    return Split(names, read, digest.hexdigest(), files)


def _read(
    entries: Sequence[Entry], folder: Path, rule: LabelRule, reading: Reading, index: int
) -> tuple[np.ndarray, np.ndarray]:
    _, image_path, label_path = entries[index]
    image = read_image(image_path, _relative(image_path, folder), reading.exif)
    label = read_label_by(rule, label_path, _relative(label_path, folder), reading.exif)
    if label.shape != image.shape[:2] and reading.resize_labels == "nearest":
        label = resize_label(label, *image.shape[:2])
    return image, label


def _notes_on_files(splits: Mapping[str, Iterable[Pair]], folder: Path) -> Iterable[str]:
    """What is accepted, but may not be what its owner thinks it is."""
    pairs = [pair for each in splits.values() for pair in each]
    images = {shown(_relative(entry.image, folder)): image.header for entry, image, _ in pairs}
    if jpeg := [name for name, header in images.items() if header.format == "JPEG" and name.lower().endswith(".png")]:
        yield f"note: JPEG inside, though named .png: {listed(jpeg)}"
    if grey := [name for name, header in images.items() if header.kind in ("grey", "grey+alpha")]:
        yield f"note: grey images, repeated over three channels: {listed(grey)}"


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
