"""Read each pair of files once and check it without decoding."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from segnet_jax.constants import RGB, Exif
from segnet_jax.data.images.exif_rotation import decide_exif, rotation_error
from segnet_jax.data.images.picture_bytes import orientation
from segnet_jax.data.images.picture_header import (
    Header,
    check_image_header,
    check_label_header,
    check_sizes,
    inspect,
    read_bytes,
)
from segnet_jax.data.labels.read_options import ReadOptions
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.system import memory_budget
from segnet_jax.system.errors import Fault, UserError
from segnet_jax.system.files import relative_path


class _File(NamedTuple):
    """A file that passed all checks before decoding."""

    header: Header
    sha256: str
    turned: int  # EXIF orientation, 1 for upright

    def size(self, upright: bool) -> tuple[int, int]:
        """Return width and height, as stored or upright."""
        size = self.header.width, self.header.height
        return size[::-1] if upright and self.turned >= 5 else size


class Pair(NamedTuple):
    """An image and its label; None for a faulty file.

    Attributes:
      entry: the paths.
      image: the image.
      label: the label; of masks of one class each, the first.
      others: the other masks.
    """

    entry: Entry
    image: _File | None
    label: _File | None
    others: tuple[_File | None, ...] = ()

    @property
    def labels(self) -> tuple[_File | None, ...]:
        """All label files, in the order of `Entry.labels`."""
        return (self.label, *self.others)

    @property
    def decide_exif(self) -> str:
        """Whether to "apply" or "ignore" the image's EXIF rotation, by the label's size; "" if undecided."""
        sizes = self.image.size(upright=False), self.label.size(upright=False)
        return decide_exif(self.image.turned, *sizes) if self.label.turned == 1 else ""

    def exif(self, read_options: ReadOptions) -> Exif:
        """Return how the image's EXIF rotation is treated."""
        if read_options.exif != "by-label":
            return read_options.exif
        return "ignore" if self.image.turned == 1 else self.decide_exif or "refuse"

    def image_size(self, read_options: ReadOptions) -> tuple[int, int]:
        """Return width and height of the image as it is read."""
        return self.image.size(upright=self.exif(read_options) == "apply")


def sound_pairs(
    entries: Mapping[str, Sequence[Entry]], folder: Path, read_options: ReadOptions, faults: list[Fault]
) -> dict[str, list[Pair]]:
    """Read all files, add their faults to `faults`, and return the pairs of valid files."""
    check_label = functools.partial(check_label_header, colored=True, threshold=True)
    pixels = read_options.pixels
    check_image = functools.partial(check_image_header, image_range=read_options.image_range, pixels=pixels)
    inspect_image = functools.partial(inspect, as_stored=pixels != RGB)

    def check(entry: Entry) -> tuple[Pair, list[Fault]]:
        mine: list[Fault] = []
        with memory_budget.pictures.scope():
            image = _check(entry.image, folder, check_image, mine, inspect_image)
        with memory_budget.pictures.scope():
            labels = [_check(path, folder, check_label, mine) for path in entry.labels]
            return Pair(entry, image, labels[0], tuple(labels[1:])), mine

    sound: dict[str, list[Pair]] = {}
    turned: list[tuple[str, Pair]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split, of_split in entries.items():
            sound[split] = []
            for pair, mine in pool.map(check, of_split):
                faults.extend(mine)
                if not (pair.image and all(pair.labels)):
                    continue
                if pair.image.turned != 1 or pair.label.turned != 1:
                    turned.append((split, pair))
                if not mine and (read_options.exif != "refuse" or pair.image.turned == pair.label.turned == 1):
                    faults.extend(_unlike(split, pair, folder, read_options))
                sound[split].append(pair)
    faults.extend(_turned(turned, folder, read_options))
    if read_options.exif == "refuse" and turned:
        bad = {pair.entry for _, pair in turned if pair.label.turned != 1}  # such labels cannot be scanned
        sound = {split: [pair for pair in pairs if pair.entry not in bad] for split, pairs in sound.items()}
    return sound


def _check(
    path: Path,
    folder: Path,
    check_header: Callable[[Header, str], None],
    faults: list[Fault],
    inspect: Callable[[bytes, str], Header] = inspect,
) -> _File | None:
    name = relative_path(path, folder)
    try:
        data = read_bytes(path, name)
        header = inspect(data, name)
        check_header(header, name)
        return _File(header, hashlib.sha256(data).hexdigest(), orientation(data))
    except UserError as error:
        faults.extend(error.faults)
        return None


def _turned(pairs: Sequence[tuple[str, Pair]], folder: Path, read_options: ReadOptions) -> list[Fault]:
    """Return the faults of images with an EXIF rotation, each with the fix that fits its label's size."""
    if read_options.exif == "by-label":
        undecided = [pair for _, pair in pairs if not pair.decide_exif]
        return [
            fault
            for pair in undecided
            for fault in rotation_error(
                relative_path(pair.entry.image, folder),
                pair.image.turned,
                "its label's size fits both ways: save it upright, or pass --exif apply or --exif ignore for all",
            ).faults
        ]
    if read_options.exif != "refuse":
        return []
    groups = {way: [pair for _, pair in pairs if pair.decide_exif == way] for way in ("apply", "ignore", "")}
    only = [way for way, mine in groups.items() if mine]
    choices: tuple[str, ...] = ()
    if len(only) == 1 and only[0]:
        fix = f"--exif {only[0]}"
    elif "" not in only:
        fix = "--exif by-label"
    else:
        fix, choices = "compare both, then choose --exif apply or --exif ignore", ("--exif apply", "--exif ignore")
    reason = {
        "apply": "its label is upright",
        "ignore": "its label matches the stored pixels",
        "": "its label's size fits both ways, upright (--exif apply) and as stored (--exif ignore)",
    }
    found = []
    for _, pair in pairs:
        file, path = (pair.image, pair.entry.image) if pair.image.turned != 1 else (pair.label, pair.entry.label)
        (fault,) = rotation_error(relative_path(path, folder), file.turned, fix).faults
        found.append(dataclasses.replace(fault, what=f"{fault.what}; {reason[pair.decide_exif]}", choices=choices))
    return found


def _unlike(split: str, pair: Pair, folder: Path, read_options: ReadOptions) -> Iterable[Fault]:
    """Yield a fault if the sizes of a pair differ."""
    sizes = pair.image_size(read_options), pair.label.size(read_options.exif == "apply")
    if read_options.resize_labels == "nearest" and (sizes[0] != sizes[1][::-1] or sizes[0] == sizes[1]):
        return
    try:
        check_sizes(*sizes, f"{split} {pair.entry.name}", relative_path(pair.entry.label, folder))
    except UserError as error:
        yield from error.faults
