"""Parsers for the class files of labeling tools, one per format; text and CSV are in modules of their own."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from segnet_jax.data.labels.classes import Color
from segnet_jax.system import bounded_toml
from segnet_jax.system.did_you_mean import nearest_hint

_MAX_LETTERS = 100  # characters of a class name


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


def is_image_file(text: str) -> bool:
    """Return whether a text ends like the name of an image file, which no class is called."""
    return bool(re.search(r"\.(png|jpe?g|tiff?|bmp|gif|webp)$", text.strip(), re.IGNORECASE))


def cvat(text: str) -> Parsed:
    """Parse CVAT's `name:r,g,b:parts:actions`; the value in label files is the line's index."""
    rows: list[Row] = []
    for number, line in lines_of(text):
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        color = rest.split(":")[0].strip()
        colors = (color_of(re.split(r"\s*,\s*", color), f"line {number}"),) if color else ()
        rows.append(Row(name_of(name), (len(rows),), colors))
    return Parsed(rows)


def camvid(text: str) -> Parsed:
    """Parse CamVid's `r g b name`; the value in label files is the line's index."""
    rows: list[Row] = []
    for number, line in lines_of(text):
        parts = line.split(maxsplit=3)
        if len(parts) != 4:
            raise BadTable(f"line {number}: expected `red green blue name`, got {line[:60]!r}")
        rows.append(Row(name_of(parts[3]), (len(rows),), (color_of(parts[:3], f"line {number}"),)))
    return Parsed(rows)


def machine_colors(text: str) -> Parsed:
    """Parse Supervisely's obj_class_to_machine_color.json: name -> gray color in its masks; 0 is background."""
    table = _json(text)
    if not isinstance(table, dict) or not table:
        raise BadTable("is not a dictionary of class names")
    rows = []
    for name, color in table.items():
        values = color_of(color, name[:40])
        if len(set(values)) != 1:
            raise BadTable(f"has the color {values} for {name[:40]!r}: the three channels must be equal")
        rows.append(Row(name_of(name), (values[0],), (values,)))
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
        color = str(each.get("color", ""))
        colors = (any_color(color, "a class"),) if re.fullmatch("#[0-9a-fA-F]{6}", color) else ()
        rows.append(Row(name_of(str(each["title"])), (place,), colors))
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
        name = name_of(str(each.get("readable") or each.get("name") or ""))
        colors = (color_of(each["color"], name),) if each.get("color") else ()
        rows.append(Row(name, (place,), colors))
    return Parsed(rows, is_explicit=True)


def json_names(text: str) -> Parsed:
    """Parse a JSON of class names: a list, a dictionary from or to ids, or either below a usual key.

    Entries of a list may be dictionaries with a name, and possibly an id and a color in hexadecimal or as a list.
    """
    table = _json(text)
    for key in ("id2label", "label2id", "classes", "names", "labels", "categories"):
        if isinstance(table, dict) and isinstance(table.get(key), dict | list):
            table = table[key]
            break
    if isinstance(table, dict) and table:
        pairs = [(value, key) if isinstance(value, int) else (key, value) for key, value in table.items()]
        if not all(str(number).isdecimal() and isinstance(name, str) for number, name in pairs):
            raise BadTable("is not a dictionary of class names and ids")
        return Parsed([Row(name_of(name), (id_of(int(key), name),), ()) for key, name in pairs], is_explicit=True)
    if not isinstance(table, list) or not table:
        raise BadTable("has no list or dictionary of class names")
    rows, has_ids = [], all(isinstance(each, dict) and type(each.get("id")) is int for each in table)
    for place, each in enumerate(table):
        entry = each if isinstance(each, dict) else {"name": each}
        name = next((entry[key] for key in ("name", "title", "label") if isinstance(entry.get(key), str)), "")
        color = entry.get("color")
        colors = (any_color(color, name),) if isinstance(color, str | list) and color else ()
        rows.append(Row(name_of(name), (id_of(entry["id"], name) if has_ids else place,), colors))
    return Parsed(rows, is_explicit=has_ids)


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
        ids = tuple(id_of(value, where) for value in (ids if isinstance(ids, list) else [ids]))
        colors = color if color and isinstance(color, list) and isinstance(color[0], list) else [color] if color else []
        rows.append(Row(name_of(each["name"]), ids, tuple(color_of(values, where) for values in colors)))
    void, void_colors = table.get("void", []), table.get("void_colors", [])
    void = void if isinstance(void, list) else [void]
    void_colors = void_colors if isinstance(void_colors, list) else [void_colors]
    void_ids = [id_of(value, "void") for value in void]
    return Parsed(rows, void_ids, [color_of(values, "void_colors") for values in void_colors], is_explicit=True)


def lines_of(text: str) -> list[tuple[int, str]]:
    """Return the nonblank lines of a text with their numbers."""
    lines = (line.strip() for line in re.split(r"\r\n|\n|\r", text))
    return [(number, line) for number, line in enumerate(lines, start=1) if line]


def _check_keys(table: dict[str, Any], known: Iterable[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise BadTable(f"has an unknown key {key[:40]!r}{where}{nearest_hint(key, known)}")


def name_of(text: str) -> str:
    """Return a class name without quotes; BadTable if it is empty, too long or not printable."""
    name = text.strip()
    if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'":
        name = name[1:-1].strip()
    if not name or len(name) > _MAX_LETTERS or not name.isprintable():
        raise BadTable(f"has a class whose name is not 1 to {_MAX_LETTERS} printable characters: {name[:40]!r}")
    return name


def id_of(value: Any, where: str) -> int:
    """Return a value in label files; BadTable if it is not an integer of 0 to 65535."""
    if type(value) is not int or not 0 <= value < 2**16:
        raise BadTable(f"has the id {value!r:.40} for {where}: ids must be integers, 0 to 65535")
    return value


def color_of(parts: Any, where: str) -> Color:
    """Return a color from three numbers or digits; BadTable if they are not 0 to 255."""
    if isinstance(parts, list | tuple) and len(parts) == 3:
        numbers = [int(part) if isinstance(part, str) and re.fullmatch(r"[0-9]{1,3}", part) else part for part in parts]
        if all(type(number) is int and 0 <= number <= 255 for number in numbers):
            return tuple(numbers)
    raise BadTable(f"has the color {parts!r:.60} for {where}: red, green and blue must be integers, 0 to 255")


def any_color(written: Any, where: str) -> Color:
    """Return a color written as #RRGGBB, as three numbers in a list, or as three numbers in a text."""
    if isinstance(written, str):
        if digits := re.fullmatch(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", written.strip()):
            return tuple(int(part, 16) for part in digits.groups())
        written = re.findall(r"[\d.]+", written[:100])
    return color_of(written, where)
