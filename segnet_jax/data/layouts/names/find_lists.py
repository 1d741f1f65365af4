"""Find the list files of a dataset's splits by their names."""

from collections.abc import Sequence
from pathlib import Path

from segnet_jax.data.layouts.names.folder_roles import SPLIT_WORDS
from segnet_jax.data.layouts.names.match_labels import is_litter
from segnet_jax.data.layouts.names.name_pairs import words
from segnet_jax.system.errors import Fault, listed
from segnet_jax.system.files import relative_path

LIST_FOLDERS = ("", "splits", "lists", "list", "ImageSets", "ImageSets/Segmentation", "annotations")
_LIST_WORDS = ("list", "set", "images", "image", "files", "names", "ids", "id", "split")
LIST_ENDINGS = (".txt", ".lst", ".csv")


def lists_in(place: Path, folder: Path, faults: list[Fault]) -> dict[str, Path]:
    """Return split -> list file, found by name in `place` or, if it is the dataset folder, its list folders.

    If a split has several lists and none is named exactly like the split, `faults` is extended.
    """
    for inner in LIST_FOLDERS if place == folder else ("",):
        if found := _lists(place / inner):
            return {split: _obvious(paths, split, folder, faults) for split, paths in found.items()}
    if place != folder:
        return {}
    others = [path for path in sorted(folder.glob("*")) if path.is_dir() and not is_litter(path.name)]
    by_folder = [found for found in map(_lists, others) if found and all(map(_is_plain, sum(found.values(), [])))]
    if len(by_folder) > 1:
        names = [relative_path(next(iter(found.values()))[0], folder) for found in by_folder]
        message = f"each of {listed(names)} could be a list of the split"
        faults.append(Fault("several-lists", names[0], message, "copy the right lists into the dataset folder"))
    found = by_folder[0] if len(by_folder) == 1 else {}
    return {split: _obvious(paths, split, folder, faults) for split, paths in found.items()}


def _lists(place: Path) -> dict[str, list[Path]]:
    """Return split -> files in a folder that are called like a list of it."""
    found: dict[str, list[Path]] = {}
    for path in sorted(place.glob("*"), reverse=True):  # lower case first; includes dead links
        splits = [SPLIT_WORDS[word] for word in words(path.stem) if word in SPLIT_WORDS]
        if path.suffix.lower() in LIST_ENDINGS and splits and not path.is_dir():
            found.setdefault(splits[-1], []).append(path)
    return found


def _is_plain(path: Path) -> bool:
    """Return whether a file is called like a split and nothing else, as annotation files of other tools are not."""
    return {*words(path.stem)} <= {*SPLIT_WORDS, *_LIST_WORDS}


_SHORT = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


def _obvious(paths: Sequence[Path], split: str, folder: Path, faults: list[Fault]) -> Path:
    """Return the list named exactly like the split; if there is none, several lists are a fault."""
    for name in _SHORT[split]:
        for path in paths:
            if path.stem.lower() == name:
                return path
    if len(paths) > 1:
        names = [relative_path(path, folder) for path in paths]
        message = f"each of {listed(names)} could be the list of {split}"
        faults.append(Fault("several-lists", names[0], message, f"rename the right one to {split}.txt"))
    return paths[0]
