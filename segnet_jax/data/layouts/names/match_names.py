"""Images and the labels that belong to them, by name: a.png, a_L.png, a_mask.png, or whatever the folder has."""

import fnmatch
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from segnet_jax.data.images.picture_header import check_inside
from segnet_jax.data.layouts.names.name_pairs import LABEL_ENDINGS, PICTURES, nfc, pair_names
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.system.errors import Fault, UserError, listed, shown
from segnet_jax.system.files import relative_path

WITHOUT_LABEL = "image-without-label"
"""The kind of that fault."""

_LITTER = frozenset("@eadir __macosx #recycle #snapshot $recycle.bin lost+found thumbs.db desktop.ini".split())
_MOST_FILES = 200_000


def is_litter(name: str) -> bool:
    """Whether a file or folder was left by a Mac, a NAS or an editor and is nobody's picture."""
    return name.startswith((".", "~$")) or name.lower() in _LITTER or "@syno" in name.lower()


def pictures_below(
    root: Path, folder: Path, faults: list[Fault], glob: str = "", follow_links: bool = False
) -> list[Path]:
    """Find all pictures in a folder and below, sorted; hidden files and litter are skipped.

    Args:
      root: where to look.
      folder: the dataset's, which no link may leave.
      faults: grows by links that leave the folder and names that nothing can be called.
      glob: that names must match.
      follow_links: whether links may leave the folder.

    Raises:
      UserError: there are too many files.
    """
    found: list[Path] = []
    if not is_inside(root, folder, faults, follow_links):
        return []

    def note_unreadable(error: OSError) -> None:
        name = shown(os.path.relpath(error.filename or root, folder))
        what = f"the folder {name} cannot be read: {error.strerror}"
        faults.append(Fault("cannot-read", name, what, "see to its permissions"))

    visited: set[str] = set()
    for place, folders, files in os.walk(root, onerror=note_unreadable, followlinks=follow_links):
        if follow_links and (real := os.path.realpath(place)) in visited:
            folders[:] = []
            continue
        elif follow_links:
            visited.add(real)
        inner = [name for name in folders if not name.lower().endswith(PICTURES)]
        # A folder that is called like a picture is reported when it is read.
        files += [name for name in folders if name not in inner and not is_litter(name)]
        folders[:] = sorted(name for name in inner if not is_litter(name))
        for name in files:
            path = Path(place, name)
            if is_litter(name) or not name.lower().endswith(PICTURES):
                continue
            if glob and not fnmatch.fnmatch(nfc(name), nfc(glob)):
                continue
            file = relative_path(path, folder)
            if any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in file):
                what = f"{shown(file)} has a control character in its name"
                faults.append(Fault("control-character", file, what, "rename it"))
            elif not path.is_symlink() or is_inside(path, folder, faults, follow_links):
                found.append(path)
        if len(found) > _MOST_FILES:
            raise UserError(f"{root} holds over {_MOST_FILES} pictures", kind="too-large", file=str(root))
    return sorted(found)


def is_inside(path: Path, folder: Path, faults: list[Fault], follow_links: bool = False) -> bool:
    """Whether no link leads out of the folder, or that is allowed; else `faults` grows."""
    if follow_links:
        return True
    try:
        check_inside(path, folder)
    except UserError as error:
        faults.extend(error.faults)
        return False
    return True


def name_of(path: Path, root: Path) -> str:
    """An image's name: its place below the root, without ending, and with - for /."""
    return nfc(path.relative_to(root).with_suffix("").as_posix().replace("/", "-"))


def unique_images(images: Mapping[str, Path] | Sequence[Path], root: Path, folder: Path, faults: list[Fault]):
    """Give each image its name; two images of one name, whatever their case and ending, are a fault.

    Args:
      images: below the root; or (name, path) pairs.
      root: the images' folder.
      folder: the dataset's.
      faults: grows.

    Returns:
      name -> path.
    """
    return unique_names([(name_of(path, root), path) for path in images], folder, faults)


def unique_names(named: Sequence[tuple[str, Path]], folder: Path, faults: list[Fault]) -> dict[str, Path]:
    """As `unique_images`, of images that have names already."""
    claimed: dict[str, Path] = {}
    unique: dict[str, Path] = {}
    for name, path in named:
        # Names that differ by case alone would be one file where samples are written, on many a disk.
        if (first := claimed.setdefault(name.casefold(), path)) != path:
            file = relative_path(path, folder)
            what = f"{file} claims the name {name}, and so does {relative_path(first, folder)}"
            fix = "rename one of the two images, and its label"
            if path.suffix != first.suffix:
                common = max((path.suffix, first.suffix), key=[each.suffix for _, each in named].count)
                fix = f'--images "*{common}"'
            faults.append(Fault("same-name", file, what, fix))
        else:
            unique[name] = path
    return unique


def match(
    images: Mapping[str, Path],
    labels: Sequence[Path],
    root: Path,
    folder: Path,
    faults: list[Fault],
    suffix: str = "",
) -> tuple[list[Entry], list[Path]]:
    """Find the label of each image.

    Args:
      images: name -> image.
      labels: all that may be one.
      root: the labels' folder.
      folder: the dataset's.
      faults: grows by images without a label, or with two.
      suffix: as of `pair_names`.

    Returns:
      The pairs, and the labels that belong to no image.
    """
    return match_named(images, [(name_of(path, root), path) for path in labels], folder, faults, suffix, root)


def match_named(
    images: Mapping[str, Path],
    labels: Sequence[tuple[str, Path]],
    folder: Path,
    faults: list[Fault],
    suffix: str = "",
    root: Path | None = None,
) -> tuple[list[Entry], list[Path]]:
    """As `match`, of labels that have names already."""
    by_name: dict[str, list[Path]] = {}
    for name, path in labels:
        by_name.setdefault(name, []).append(path)
    pairs = pair_names(list(images), list(by_name), suffix)
    told = {Path(fault.file).stem for fault in faults if fault.kind == "points-outside"}
    entries, alone = [], {path for _, path in labels}
    for name, image in images.items():
        mine = [path for label in pairs.get(name, ()) for path in by_name[label]]
        alone -= set(mine)
        mine = [path for path in mine if path.suffix.lower() == ".png"] or mine  # a preview may lie beside it
        file = relative_path(image, folder)
        if len(mine) > 1:
            what = f"{file} has {len(mine)} labels: {listed([relative_path(path, folder) for path in mine])}"
            fix = "leave one of them, or name the right ones by --label-suffix or --label-files"
            if len({path.parent for path in mine}) == len(mine) and len({path.name for path in mine}) == 1:
                fix += "; masks of one class each must be merged into one picture of class ids"
            faults.append(Fault("two-labels", file, what, fix))
        elif not mine and not told & {image.stem + ending for ending in LABEL_ENDINGS}:
            faults.append(_without_label(image, file, labels, suffix, folder, root))
        elif mine:
            entries.append(Entry(name, image, mine[0]))
    return entries, sorted(alone)


def _without_label(image, file, labels, suffix: str, folder: Path, root: Path | None) -> Fault:
    endings = (suffix,) if suffix else LABEL_ENDINGS
    tried = ", ".join(f"{image.stem}{ending}{'' if '.' in ending else '.png'}" for ending in endings)
    place = f" in {relative_path(root, folder)}/" if root else ""
    there = listed([shown(relative_path(path, folder)) for _, path in labels])
    what = f"{file} has no label; looked for {tried}{place}, found {there or 'no picture there'}"
    fix = "put the label there, take the image away, or name in train.txt and val.txt those that have one"
    return Fault(WITHOUT_LABEL, file, what, fix)


def label_of_name(names: Sequence[str], folder: Path, suffix: str) -> dict[str, list[Path]]:
    """The label files in a folder for images of these names, for `predict --labels`."""
    paths: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURES and not is_litter(path.name) and path.is_file():
            paths.setdefault(nfc(path.stem), []).append(path)
    composed = {name: nfc(name) for name in names}
    pairs = pair_names(list(dict.fromkeys(composed.values())), list(paths), suffix)
    found = {name: [path for label in pairs.get(nfc(name), ()) for path in paths[label]] for name in names}
    return {name: [path for path in mine if path.suffix.lower() == ".png"] or mine for name, mine in found.items()}


def note_on_labels_alone(alone: Iterable[Path], folder: Path) -> list[str]:
    """A line on labels that belong to no image."""
    names = [shown(relative_path(path, folder)) for path in alone]
    return [f"warning: labels that belong to no image: {listed(names)}"] if names else []
