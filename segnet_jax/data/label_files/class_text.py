"""Parse class files in plain text: one class per line, with or without ids and colors."""

import re
from collections.abc import Sequence

from segnet_jax.data.label_files.class_formats import (
    BadTable,
    Parsed,
    Row,
    any_color,
    id_of,
    is_image_file,
    lines_of,
    name_of,
)

_MAX_LINE = 400  # characters of a line with a name, an id and a color
_IGNORE = "__ignore__"  # labelme's name for the id -1, which PNGs store as 255
_HEADS = frozenset(
    "name names class classes classname label labels labelname category categories id ids index idx value code r g b "
    "red green blue color colour rgb hex pixel".split()
)
"""Words of a header line."""

_NUMBER, _BETWEEN, _NAME = r"(?P<id>\d{1,5})", r"[\s,;:|]++", r"(?P<name>.+?)"
_COLOR = r"[\[(]?(?P<color>\d{1,3}[\s,;]++\d{1,3}[\s,;]++\d{1,3}|\#[0-9a-fA-F]{6})[\])]?"
_FORMS = tuple(
    re.compile(pattern)
    for pattern in (
        # Possessive separators bound the matching time by the square of the line's length.
        rf"{_NUMBER}{_BETWEEN}{_COLOR}{_BETWEEN}(?P<name>.+)",
        rf"{_COLOR}{_BETWEEN}(?P<name>.+)",
        rf"{_NUMBER}{_BETWEEN}{_NAME}{_BETWEEN}{_COLOR}",
        rf"{_NAME}{_BETWEEN}{_NUMBER}{_BETWEEN}{_COLOR}",
        rf"{_NAME}{_BETWEEN}{_COLOR}",
        rf"{_NUMBER}(?:\s*+[.)]\s++|\s*+-+>?\s++|[\s:,;=|]++)(?P<name>.+)",
        rf"{_NAME}(?:\s++-+>?\s++|[\s:,;=|]++){_NUMBER}",
    )
)


def names(text: str) -> Parsed:
    """Parse a plain text: one name per line, with or without its id or color, before or after the name.

    All lines have one form, such as `name`, `3: name`, `3. name`, `name 3`, `r g b name`, `name: r,g,b`,
    `name #rrggbb`, `3 name r g b`; or ADE20K's objectInfo, tab-separated with a header. A header, comments after #, and
    a single line with all names between commas are understood.

    Raises:
      BadTable: If most lines have an id or a color, but not all.
    """
    lines = _without_comments(lines_of(text))
    if any(is_image_file(line) for _, line in lines):
        raise BadTable("lists image files, not classes")
    if lines and re.match(r"idx\t", lines[0][1], re.IGNORECASE):
        return _object_info(lines[1:])
    if lines and lines[0][1] == _IGNORE:  # labelme's labels.txt: ids start at 0 in the next line
        rows = [Row(name_of(line), (place,), ()) for place, (_, line) in enumerate(lines[1:])]
        return Parsed(rows, (255,))
    for place, line in lines:
        if len(line) > _MAX_LINE and len(lines) > 1:
            raise BadTable(f"has {len(line)} characters in line {place}, too many for a class: {line[:40]!r}")
    lines = _one_per_line(lines)
    if _is_header(lines[:1]) and len(lines) > 2 and not any(_is_header([line]) for line in lines[1:]):
        lines = lines[1:]
    if (parsed := structured(lines)) is not None:
        return parsed
    return Parsed([Row(name_of(line), (place,), ()) for place, (_, line) in enumerate(lines)])


def _is_header(lines: Sequence[tuple[int, str]]) -> bool:
    """Return whether a line consists of column names, such as `id name`."""
    return any(set(re.findall(r"[a-z]+", line.lower())) <= _HEADS and not re.search(r"\d", line) for _, line in lines)


def structured(lines: Sequence[tuple[int, str]]) -> Parsed | None:
    """Parse numbered lines that all have an id or a color in the same form; None for plain names.

    Raises:
      BadTable: As for `names`.
    """
    for form in _FORMS:
        found = [form.fullmatch(line) if len(line) <= _MAX_LINE else None for _, line in lines]
        matches = [match for match in found if match and not match["name"].strip().isdecimal()]
        names = {match["name"] for match in matches}
        if "color" not in form.groupindex and len(names) < len(matches):
            continue  # names that end in a number, such as zone 1 and zone 2
        if 1 < len(matches) < len(lines) <= 2 * len(matches):
            number, line = next(each for each, match in zip(lines, found, strict=True) if match not in matches)
            raise BadTable(f"line {number} has another form than most others: {line[:60]!r}")
        is_unique = "id" not in form.groupindex or len({match["id"] for match in matches}) == len(matches)
        if lines and len(matches) == len(lines) and is_unique:
            return _of_matches(matches)
    return None


def _without_comments(lines: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Remove comments; a # with six hexadecimal digits is a color."""
    cut = [(number, re.sub(r"(^|\s)(#(?![0-9a-fA-F]{6}\b)|//\s).*", "", line).strip()) for number, line in lines]
    return [(number, line.rstrip(",;").rstrip()) for number, line in cut if line]


def _one_per_line(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Split a list in brackets, or a single line of names between commas, into names."""
    whole = " ".join(line for _, line in lines)
    if whole.startswith("[") and whole.endswith("]"):
        return [(1, match[2]) for match in re.finditer(r"""(["'])(.+?)\1""", whole)] or lines
    if len(lines) == 1 and "," in whole and not re.search(r"\d", whole):
        return [(1, name.strip()) for name in whole.split(",") if name.strip()]
    return lines


def _of_matches(found: Sequence[re.Match]) -> Parsed:
    rows, fields = [], found[0].re.groupindex
    for place, match in enumerate(found):
        ids = (id_of(int(match["id"]), f"class {place + 1}"),) if "id" in fields else (place,)
        colors = (any_color(match["color"], f"class {place + 1}"),) if "color" in fields else ()
        rows.append(Row(name_of(match["name"]), ids, colors))
    return Parsed(rows, is_explicit="id" in fields)


def _object_info(lines: Sequence[tuple[int, str]]) -> Parsed:
    """Parse ADE20K's objectInfo150.txt: the first column is the id, from 1, and the last the names of the class."""
    rows = []
    for number, line in lines:
        columns = line.split("\t")
        if not columns[0].isdecimal() or len(columns) < 2:
            raise BadTable(f"line {number}: expected an id and a name between tabs, got {line[:60]!r}")
        name = columns[-1].split(",")[0].split(";")[0]
        taken = {row.name for row in rows}
        rows.append(Row(name_of(name if name not in taken else f"{name} {columns[0]}"), (int(columns[0]),), ()))
    return Parsed(rows, (0,), is_explicit=True)
