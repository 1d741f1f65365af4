"""Images and the labels that belong to them, by name: a.png, a_L.png (as CamVid) or a_P.png (as fast.ai)."""

import fnmatch
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from segnet_jax.data.images.picture_header import check_inside
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.system.errors import Fault, UserError, listed, shown

PICTURES = (".png", ".jpg", ".jpeg")
LABEL_ENDINGS = ("", "_L", "_P")
"""Behind an image's name, in the name of its label."""

WITHOUT_LABEL = "image-without-label"
"""The kind of that fault."""

_MOST_FILES = 200_000


def pictures_below(root: Path, folder: Path, faults: list[Fault], glob: str = "") -> list[Path]:
    """All PNG and JPEG files in a folder and below, sorted; hidden ones are passed over, links to folders not entered.

    Args:
      root: where to look.
      folder: the data set's, which no link may leave.
      faults: grows by links that leave the folder and names that nothing can be called.
      glob: that names must match.

    Raises:
      UserError: there are too many files.
    """
    found: list[Path] = []
    if not is_inside(root, folder, faults):
        return []

    def tell(error: OSError) -> None:
        name = shown(os.path.relpath(error.filename or root, folder))
        what = f"the folder {name} cannot be read: {error.strerror}"
        faults.append(Fault("cannot-read", name, what, "see to its permissions"))

    for place, folders, files in os.walk(root, onerror=tell):
        inner = [name for name in folders if not name.lower().endswith(PICTURES)]
        files += [name for name in folders if name not in inner]  # called like a picture: to be told when it is read
        folders[:] = [name for name in inner if not name.startswith(".")]
        for name in files:
            path = Path(place, name)
            if name.startswith(".") or not name.lower().endswith(PICTURES):
                continue
            if glob and not fnmatch.fnmatch(name, glob):
                continue
            file = _relative(path, folder)
            if any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in file):
                what = f"{shown(file)} has a control character in its name"
                faults.append(Fault("control-character", file, what, "rename it"))
            elif not path.is_symlink() or is_inside(path, folder, faults):
                found.append(path)
        if len(found) > _MOST_FILES:
            raise UserError(f"{root} holds over {_MOST_FILES} pictures", kind="too-large", file=str(root))
    return sorted(found)


def is_inside(path: Path, folder: Path, faults: list[Fault]) -> bool:
    """Whether no link leads out of the folder; else `faults` grows."""
    try:
        check_inside(path, folder)
    except UserError as error:
        faults.extend(error.faults)
        return False
    return True


def name_of(path: Path, root: Path) -> str:
    """An image's name: its place below the root, without ending, and with - for /."""
    return path.relative_to(root).with_suffix("").as_posix().replace("/", "-")


def unique_images(images: Sequence[Path], root: Path, folder: Path, faults: list[Fault]) -> dict[str, Path]:
    """Gives each image its name; two images of one name, whatever their case and ending, are a fault.

    Args:
      images: below the root.
      root: the images' folder.
      folder: the data set's.
      faults: grows.
    """
    claimed: dict[str, Path] = {}
    unique: dict[str, Path] = {}
    for path in images:
        name = name_of(path, root)
        # Names that differ by case alone would be one file where samples are written, on many a disk.
        if (first := claimed.setdefault(name.casefold(), path)) != path:
            file = _relative(path, folder)
            what = f"{file} claims the name {name}, and so does {_relative(first, folder)}"
            fix = "rename one of the two images, and its label"
            if path.suffix != first.suffix:
                common = max((path.suffix, first.suffix), key=[each.suffix for each in images].count)
                fix = f'--images "*{common}"'
            faults.append(Fault("same-name", file, what, fix))
        else:
            unique[name] = path
    return unique


def match(
    images: Mapping[str, Path], labels: Sequence[Path], root: Path, folder: Path, faults: list[Fault]
) -> tuple[list[Entry], list[Path]]:
    """Finds the label of each image.

    Args:
      images: name -> image.
      labels: all that may be one.
      root: the labels' folder.
      folder: the data set's.
      faults: grows by images without a label, or with two.

    Returns:
      The pairs, and the labels that belong to no image.
    """
    by_name: dict[str, list[Path]] = {}
    for path in labels:
        by_name.setdefault(name_of(path, root), []).append(path)
    told = {Path(fault.file).stem for fault in faults if fault.kind == "points-outside"}
    entries, alone = [], set(labels)
    for name, image in images.items():
        mine = [path for ending in LABEL_ENDINGS for path in by_name.get(name + ending, ())]
        alone -= set(mine)
        mine = [path for path in mine if path.suffix.lower() == ".png"] or mine  # a preview may lie beside it
        file = _relative(image, folder)
        if len(mine) > 1:
            what = f"{file} has {len(mine)} labels: {listed([_relative(path, folder) for path in mine])}"
            faults.append(Fault("two-labels", file, what, "leave one of them"))
        elif not mine and not told & {image.stem + ending for ending in LABEL_ENDINGS}:
            place = _relative(root, folder)
            tried = ", ".join(f"{image.stem}{ending}.png" for ending in LABEL_ENDINGS)
            what = f"{file} has no label; looked for {tried} in {place}/"
            fix = "put the label there, take the image away, or name in train.txt and val.txt those that have one"
            faults.append(Fault(WITHOUT_LABEL, file, what, fix))
        elif mine:
            entries.append(Entry(name, image, mine[0]))
    return entries, sorted(alone)


def note_on_labels_alone(alone: Iterable[Path], folder: Path) -> list[str]:
    """A line on labels that belong to no image."""
    names = [shown(_relative(path, folder)) for path in alone]
    return [f"warning: labels that belong to no image: {listed(names)}"] if names else []


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
