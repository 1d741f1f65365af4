"""Find image files, and match labels to images by name."""

import fnmatch
import os
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from segnet_jax.data.images.picture_header import check_inside
from segnet_jax.data.images.suffixes import IMAGE_SUFFIXES
from segnet_jax.data.layouts.names.name_pairs import LABEL_ENDINGS, nfc, pair_names
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.system.errors import Fault, UserError, listed, shown
from segnet_jax.system.files import relative_path

WITHOUT_LABEL = "image-without-label"
"""Fault kind of an image without a label."""

_LITTER = frozenset("@eadir __macosx #recycle #snapshot $recycle.bin lost+found thumbs.db desktop.ini".split())
_MAX_FILES = 200_000


def is_litter(name: str) -> bool:
    """Return whether a name is that of a system file or folder of macOS, a NAS or an editor."""
    return name.startswith((".", "~$")) or name.lower() in _LITTER or "@syno" in name.lower()


def pictures_below(
    root: Path, folder: Path, faults: list[Fault], glob: str = "", follow_links: bool = False
) -> list[Path]:
    """Find all image files below `root`, sorted; hidden and system files are skipped.

    Unusable names and, unless links are followed, links that leave `folder` are added to `faults`.

    Raises:
      UserError: If there are too many files.
    """
    found: list[Path] = []
    if not is_inside(root, folder, faults, follow_links):
        return []

    def note_unreadable(error: OSError) -> None:
        name = shown(os.path.relpath(error.filename or root, folder))
        message = f"the folder {name} cannot be read: {error.strerror}"
        faults.append(Fault("cannot-read", name, message, "check its permissions"))

    above: dict[str, frozenset[str]] = {}  # folder -> where it and those above it are
    entered: set[str] = set()  # linked folders: entering each once bounds the walk
    for place, folders, files in os.walk(root, onerror=note_unreadable, followlinks=True):
        real = above.pop(place, frozenset()) | {os.path.realpath(place)}
        links = [name for name in folders if os.path.islink(os.path.join(place, name)) and not is_litter(name)]
        for name in sorted(links):
            path = Path(place, name)
            target = os.path.realpath(path)
            if target in real | entered or not is_inside(path, folder, faults, follow_links):
                folders.remove(name)
            entered.add(target)
        above |= {os.path.join(place, name): real for name in folders}
        inner = [name for name in folders if not name.lower().endswith(IMAGE_SUFFIXES)]
        # A folder named like an image file is reported when it is read.
        files += [name for name in folders if name not in inner and not is_litter(name)]
        folders[:] = sorted(name for name in inner if not is_litter(name))
        for name in files:
            path = Path(place, name)
            if is_litter(name) or not name.lower().endswith(IMAGE_SUFFIXES):
                continue
            if glob and not fnmatch.fnmatch(nfc(name), nfc(glob)):
                continue
            file = relative_path(path, folder)
            if any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in file):
                message = f"{shown(file)} has a control character in its name"
                faults.append(Fault("control-character", file, message, "rename it"))
            elif not path.is_symlink() or is_inside(path, folder, faults, follow_links):
                found.append(path)
        if len(found) > _MAX_FILES:
            message = f"{root} contains over {_MAX_FILES:,} image files"
            raise UserError(message, kind="too-large", file=str(root), fix="split the dataset into several folders")
    return sorted(found)


def is_inside(path: Path, folder: Path, faults: list[Fault], follow_links: bool = False) -> bool:
    """Return whether a path stays in the folder or links may leave it; otherwise, extend `faults`."""
    if follow_links:
        return True
    try:
        check_inside(path, folder)
    except UserError as error:
        faults.extend(error.faults)
        return False
    return True


def name_of(path: Path, root: Path) -> str:
    """Return an image's name: its path below the root, without extension and with - for /."""
    return nfc(path.relative_to(root).with_suffix("").as_posix().replace("/", "-"))


def unique_images(images: Mapping[str, Path] | Sequence[Path], root: Path, folder: Path, faults: list[Fault]):
    """Return name -> path of each image; images with the same name, ignoring case and extension, are a fault."""
    return unique_names([(name_of(path, root), path) for path in images], folder, faults)


def unique_names(named: Sequence[tuple[str, Path]], folder: Path, faults: list[Fault]) -> dict[str, Path]:
    """Index named images, with the checks of `unique_images`."""
    claimed: dict[str, Path] = {}
    unique: dict[str, Path] = {}
    for name, path in named:
        # Sample files are written by name, and many file systems ignore case.
        if (first := claimed.setdefault(name.casefold(), path)) != path:
            file = relative_path(path, folder)
            message = f"{file} and {relative_path(first, folder)} have the same name, {name}"
            fix = "rename one of the two images, and its label"
            if path.suffix != first.suffix:
                common = max((path.suffix, first.suffix), key=[each.suffix for _, each in named].count)
                fix = f'--images "*{common}"'
            faults.append(Fault("same-name", file, message, fix))
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
    """Find the label of each image (name -> path) among the files below `root`.

    Images with no label or several are added to `faults`.

    Returns:
      The pairs, and the labels without an image.
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
    """Find the label of each image like `match`, for labels given as (name, path)."""
    by_name: dict[str, list[Path]] = {}
    for name, path in labels:
        by_name.setdefault(name, []).append(path)
    pairs = pair_names(list(images), list(by_name), suffix)
    reported = {Path(fault.file).stem for fault in faults if fault.kind == "points-outside"}
    entries, unmatched = [], {path for _, path in labels}
    for name, image in images.items():
        mine = [path for label in pairs.get(name, ()) for path in by_name[label]]
        unmatched -= set(mine)
        mine = [path for path in mine if path.suffix.lower() == ".png"] or mine  # the others may be previews
        file = relative_path(image, folder)
        if len(mine) > 1:
            message = f"{file} has {len(mine)} labels: {listed([relative_path(path, folder) for path in mine])}"
            choices = label_choices(mine, [path for _, path in labels], folder)
            fix = "keep one of them, or choose with --label-suffix or --label-files"
            if len({path.parent for path in mine}) == len(mine) and len({path.name for path in mine}) == 1:
                fix += "; masks of one class each must be merged into one image of class ids"
            faults.append(Fault("two-labels", file, message, fix, choices))
        elif not mine and not reported & {image.stem + ending for ending in LABEL_ENDINGS}:
            faults.append(_without_label(image, file, labels, suffix, folder, root))
        elif mine:
            entries.append(Entry(name, image, mine[0]))
    return entries, sorted(unmatched)


def label_choices(mine: Sequence[Path], labels: Sequence[Path], folder: Path) -> tuple[str, ...]:
    """Return a --label-files flag for each label of an image; empty if no pattern tells them apart."""
    files, everything = ([relative_path(path, folder) for path in paths] for paths in (mine, labels))
    found = []
    for file in files:
        others = [other for other in files if other != file]
        patterns = [f"*{part}/*" for part in Path(file).parts[:-1]]
        ends = [file[start:] for start in range(len(file) - 1, file.rfind("/"), -1)]
        patterns += [f"*{end}" for end in sorted(ends, key=lambda end: end[0] not in "_-.")]
        for pattern in patterns:
            few = sum(fnmatch.fnmatchcase(each, pattern) for each in everything) < max(
                2, len(everything) // (2 * len(files))
            )
            if few or any(fnmatch.fnmatchcase(other, pattern) for other in others):
                continue
            found.append(f"--label-files {shlex.quote(pattern)}")
            break
    return tuple(found) if len(found) == len(files) else ()


def other_labels(pairs: Sequence[Entry], unmatched: Sequence[Path], folder: Path) -> list[Fault]:
    """Return a fault if another folder has about as many labels as are used, but under names that match no image."""
    used = {entry.label.parent for entry in pairs}
    other = [path for path in unmatched if path.parent not in used]
    if len(pairs) < 3 or len(other) < 0.8 * len(pairs) or len({path.parent for path in other}) != 1:
        return []
    mine = [pairs[0].label, other[0]]
    names = [relative_path(path, folder) for path in mine]
    choices = label_choices(mine, [*(entry.label for entry in pairs), *other], folder)
    message = f"labels may be those like {names[0]}, which match the images' names, or those like {names[1]}"
    return [Fault("two-labels", names[1], message, "choose with --label-files, or remove one folder", choices)]


def _without_label(image, file, labels, suffix: str, folder: Path, root: Path | None) -> Fault:
    endings = (suffix,) if suffix else LABEL_ENDINGS
    tried = ", ".join(f"{image.stem}{ending}{'' if '.' in ending else '.png'}" for ending in endings)
    place = f" in {relative_path(root, folder)}/" if root else ""
    there = listed([shown(relative_path(path, folder)) for _, path in labels])
    message = f"{file} has no label; looked for {tried}{place}, found {there or 'no image file there'}"
    fix = "add the label, remove the image, or list the images with a label in train.txt and val.txt"
    return Fault(WITHOUT_LABEL, file, message, fix)


def labels_for_names(names: Sequence[str], folder: Path, suffix: str) -> dict[str, list[Path]]:
    """Return image name -> label files in a folder, for `predict --labels`."""
    paths: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not is_litter(path.name) and path.is_file():
            paths.setdefault(nfc(path.stem), []).append(path)
    composed = {name: nfc(name) for name in names}
    pairs = pair_names(list(dict.fromkeys(composed.values())), list(paths), suffix)
    found = {name: [path for label in pairs.get(nfc(name), ()) for path in paths[label]] for name in names}
    return {name: [path for path in mine if path.suffix.lower() == ".png"] or mine for name, mine in found.items()}


def unmatched_labels_note(unmatched: Iterable[Path], folder: Path) -> list[str]:
    """Return a warning about labels without an image, as a list of at most one line."""
    names = [shown(relative_path(path, folder)) for path in unmatched]
    return [f"warning: labels without an image: {listed(names)}"] if names else []
