"""Parsers for the class files of labeling tools, one per format."""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from segnet_jax.data.labels.classes import Color
from segnet_jax.system import bounded_toml
from segnet_jax.system.nearest import nearest_hint

_MAX_LETTERS = 100  # characters of a class name
_MAX_LINE = 400  # characters of a line with a name, an id and a color
_IGNORE = "__ignore__"  # labelme's name for the id -1, which PNGs store as 255


class Row(NamedTuple):
    """One class of a class file."""

    name: str
    ids: tuple[int, ...]
    colors: tuple[Color, ...]


class Parsed(NamedTuple):
    """Content of a class file.

    Attributes:
      rows: one per class.
      void_ids: values that mean void.
      void_colors: colors that mean void.
      is_explicit: whether the file states the values; otherwise, rows are counted from 0.
    """

    rows: list[Row]
    void_ids: Sequence[int] = ()
    void_colors: Sequence[Color] = ()
    is_explicit: bool = False


class BadTable(Exception):
    """Raised for an invalid class file."""


def codes(text: str) -> Parsed:
    """Parse one name per line; the value in label files is the line's index."""
    return Parsed([Row(_name(line), (place,), ()) for place, (_, line) in enumerate(_lines(text))])


def names(text: str) -> Parsed:
    """Parse plain text with one class name per line, optionally with its id or color.

    All lines must have the same format: `name`; `3: name`, `3 name`, `3,name`; `r g b name`, `name r g b`,
    `name: r,g,b`; or ADE20K's objectInfo, tab-separated with a header.
    """
    lines = [(number, line) for number, line in _lines(text) if not line.startswith("#")]
    if any(re.search(r"\.(png|jpe?g|tiff?|bmp|gif|webp)$", line, re.IGNORECASE) for _, line in lines):
        raise BadTable("lists image files, not classes")
    if lines and re.match(r"idx\t", lines[0][1], re.IGNORECASE):
        return _object_info(lines[1:])
    if lines and lines[0][1] == _IGNORE:  # labelme's labels.txt: ids start at 0 in the next line
        rows = [Row(_name(line), (place,), ()) for place, (_, line) in enumerate(lines[1:])]
        return Parsed(rows, (255,))
    for place, line in lines:
        if len(line) > _MAX_LINE:
            raise BadTable(f"has {len(line)} characters in line {place}, too many for a class: {line[:40]!r}")
    # Possessive separators bound the matching time by the square of the line's length.
    number, between = r"(\d{1,5})", r"[\s,;:]++"
    color = r"(\d{1,3})[\s,;]++(\d{1,3})[\s,;]++(\d{1,3})"
    for pattern, order in (
        (rf"{color}{between}(?P<name>.+)", "cn"),
        (rf"{number}{between}(?P<name>.+?){between}{color}", "inc"),
        (rf"(?P<name>.+?){between}[\[(]?{color}[\])]?", "nc"),
        (rf"{number}[\s:,;=]++(?P<name>.+)", "in"),
    ):
        found = [re.fullmatch(pattern, line) for _, line in lines]
        if lines and all(match and not match["name"].strip().isdecimal() for match in found):
            return _of_matches([match.groups() for match in found], order)
    return Parsed([Row(_name(line), (place,), ()) for place, (_, line) in enumerate(lines)])


def _of_matches(found: Sequence[tuple[str, ...]], order: str) -> Parsed:
    rows = []
    for place, groups in enumerate(found):
        parts = list(groups)
        ids, name, colors = (place,), "", ()
        for each in order:
            if each == "c":
                colors, parts = (_color(parts[:3], f"class {place + 1}"),), parts[3:]
            elif each == "i":
                ids, parts = (_id(int(parts[0]), f"class {place + 1}"),), parts[1:]
            else:
                name, parts = _name(parts[0]), parts[1:]
        rows.append(Row(name, ids, colors))
    return Parsed(rows, is_explicit="i" in order)


def _object_info(lines: Sequence[tuple[int, str]]) -> Parsed:
    """Parse ADE20K's objectInfo150.txt: the first column is the id, from 1, and the last the names of the class."""
    rows = []
    for number, line in lines:
        columns = line.split("\t")
        if not columns[0].isdecimal() or len(columns) < 2:
            raise BadTable(f"line {number}: expected an id and a name between tabs, got {line[:60]!r}")
        name = columns[-1].split(",")[0].split(";")[0]
        taken = {row.name for row in rows}
        rows.append(Row(_name(name if name not in taken else f"{name} {columns[0]}"), (int(columns[0]),), ()))
    return Parsed(rows, (0,), is_explicit=True)


def cvat(text: str) -> Parsed:
    """Parse CVAT's `name:r,g,b:parts:actions`; the value in label files is the line's index."""
    rows: list[Row] = []
    for number, line in _lines(text):
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        color = rest.split(":")[0].strip()
        colors = (_color(re.split(r"\s*,\s*", color), f"line {number}"),) if color else ()
        rows.append(Row(_name(name), (len(rows),), colors))
    return Parsed(rows)


def camvid(text: str) -> Parsed:
    """Parse CamVid's `r g b name`; the value in label files is the line's index."""
    rows: list[Row] = []
    for number, line in _lines(text):
        parts = line.split(maxsplit=3)
        if len(parts) != 4:
            raise BadTable(f"line {number}: expected `red green blue name`, got {line[:60]!r}")
        rows.append(Row(_name(parts[3]), (len(rows),), (_color(parts[:3], f"line {number}"),)))
    return Parsed(rows)


_COLUMNS = {
    "name": ("name", "class", "classname", "label", "labelname", "category"),
    "id": ("pixelvalue", "id", "value", "index", "idx", "labelid", "classid", "pixel", "trainid"),
    "r": ("r", "red"),
    "g": ("g", "green"),
    "b": ("b", "blue"),
}
"""Field of a class -> accepted CSV column names, without spaces and punctuation."""


def table_csv(text: str) -> Parsed:
    """Parse a CSV file with a header: Kaggle's class_dict.csv (name, r, g, b) or Roboflow's _classes.csv."""
    lines = [line for _, line in _lines(text)]
    rows = list(csv.reader(lines, delimiter=max(",;\t", key=lines[0].count) if lines else ","))
    heads = [re.sub(r"[^a-z]", "", head.lower()) for head in rows[0]] if rows else []
    places = {
        part: next((place for place, head in enumerate(heads) if head in known), None)
        for part, known in _COLUMNS.items()
    }
    if places["name"] is None:
        raise BadTable(f"line 1: expected a header with a column `name` or `class`, got {lines[:1]!r:.80}")
    has_id, has_color = places["id"] is not None, None not in (places["r"], places["g"], places["b"])
    found = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) < len(heads):
            raise BadTable(f"line {number}: expected {len(heads)} columns, got {len(row)}")
        cell = {part: row[place].strip() for part, place in places.items() if place is not None}
        if has_id and not cell["id"].isdecimal():
            raise BadTable(f"line {number}: expected a number as the id, got {cell['id'][:40]!r}")
        ids = (_id(int(cell["id"]), f"line {number}"),) if has_id else (number - 2,)
        colors = (_color([cell["r"], cell["g"], cell["b"]], f"line {number}"),) if has_color else ()
        found.append(Row(_name(cell["name"]), ids, colors))
    return Parsed(found, is_explicit=has_id)


def machine_colors(text: str) -> Parsed:
    """Parse Supervisely's obj_class_to_machine_color.json: name -> gray color in its masks; 0 is background."""
    table = _json(text)
    if not isinstance(table, dict) or not table:
        raise BadTable("is not a dictionary of class names")
    rows = []
    for name, color in table.items():
        values = _color(color, name[:40])
        if len(set(values)) != 1:
            raise BadTable(f"has the color {values} for {name[:40]!r}: the three channels must be equal")
        rows.append(Row(_name(name), (values[0],), (values,)))
    if any(0 in row.ids for row in rows):
        return Parsed(rows, is_explicit=True)
    return Parsed([Row("background", (0,), ((0, 0, 0),)), *rows], is_explicit=True)


def supervisely_meta(text: str) -> Parsed:
    """Parse Supervisely's meta.json: classes with a title and the hexadecimal color of its human-readable masks."""
    table = _json(text)
    classes = table.get("classes") if isinstance(table, dict) else None
    if not isinstance(classes, list) or not all(isinstance(each, dict) and "title" in each for each in classes):
        raise BadTable("has no list of classes with titles")
    rows = [Row("background", (0,), ((0, 0, 0),))]
    for place, each in enumerate(classes, start=1):
        color = re.fullmatch(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", str(each.get("color", "")))
        colors = (tuple(int(part, 16) for part in color.groups()),) if color else ()
        rows.append(Row(_name(str(each["title"])), (place,), colors))
    if any(row.name.lower() in ("background", "bg") for row in rows[1:]):
        rows = rows[1:]
    return Parsed(rows)


def mapillary(text: str) -> Parsed:
    """Parse Mapillary Vistas' config.json: the index in `labels` is the value."""
    table = _json(text)
    labels = table.get("labels") if isinstance(table, dict) else None
    if not isinstance(labels, list) or not all(isinstance(each, dict) for each in labels):
        raise BadTable("has no list of labels")
    rows = []
    for place, each in enumerate(labels):
        name = _name(str(each.get("readable") or each.get("name") or ""))
        colors = (_color(each["color"], name),) if each.get("color") else ()
        rows.append(Row(name, (place,), colors))
    return Parsed(rows, is_explicit=True)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadTable(f"is not valid JSON: {error}") from None


def toml(text: str) -> Parsed:
    """Parse this project's format: `classes = [{ name, id, color }, ...]`, `void = [...]`, `void_colors = [...]`."""
    try:
        table = bounded_toml.loads(text)
    except ValueError as error:
        raise BadTable(f"is not valid TOML: {error}") from None
    _check_keys(table, ("classes", "void", "void_colors"), "")
    classes = table.get("classes")
    if not isinstance(classes, list) or not all(isinstance(each, dict) for each in classes):
        raise BadTable('has no list of classes: classes = [{ name = "road" }, { name = "tree" }]')
    rows = []
    for place, each in enumerate(classes):
        where = f"class {place + 1}"
        _check_keys(each, ("name", "id", "color"), f" of {where}")
        if not isinstance(each.get("name"), str):
            raise BadTable(f"has no name for {where}")
        ids, color = each.get("id", place), each.get("color", [])
        ids = tuple(_id(value, where) for value in (ids if isinstance(ids, list) else [ids]))
        colors = color if color and isinstance(color, list) and isinstance(color[0], list) else [color] if color else []
        rows.append(Row(_name(each["name"]), ids, tuple(_color(values, where) for values in colors)))
    void, void_colors = table.get("void", []), table.get("void_colors", [])
    void = void if isinstance(void, list) else [void]
    void_colors = void_colors if isinstance(void_colors, list) else [void_colors]
    void_ids = [_id(value, "void") for value in void]
    return Parsed(rows, void_ids, [_color(values, "void_colors") for values in void_colors], is_explicit=True)


def _lines(text: str) -> list[tuple[int, str]]:
    lines = (line.strip() for line in re.split(r"\r\n|\n|\r", text))
    return [(number, line) for number, line in enumerate(lines, start=1) if line]


def _check_keys(table: dict[str, Any], known: Iterable[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise BadTable(f"has an unknown key {key[:40]!r}{where}{nearest_hint(key, known)}")


def _name(text: str) -> str:
    name = text.strip()
    if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'":
        name = name[1:-1].strip()
    if not name or len(name) > _MAX_LETTERS or not name.isprintable():
        raise BadTable(f"has a class whose name is not 1 to {_MAX_LETTERS} printable characters: {name[:40]!r}")
    return name


def _id(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value < 2**16:
        raise BadTable(f"has the id {value!r:.40} for {where}: ids must be integers, 0 to 65535")
    return value


def _color(parts: Any, where: str) -> Color:
    if isinstance(parts, list | tuple) and len(parts) == 3:
        numbers = [int(part) if isinstance(part, str) and re.fullmatch(r"[0-9]{1,3}", part) else part for part in parts]
        if all(type(number) is int and 0 <= number <= 255 for number in numbers):
            return tuple(numbers)
    raise BadTable(f"has the color {parts!r:.60} for {where}: red, green and blue must be integers, 0 to 255")
