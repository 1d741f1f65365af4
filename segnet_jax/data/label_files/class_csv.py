"""Parse class files in CSV: Kaggle's class_dict.csv, Roboflow's _classes.csv and others with a header."""

import csv
import re
from collections.abc import Sequence

from segnet_jax.data.label_files.class_formats import (
    BadTable,
    Parsed,
    Row,
    any_color,
    color_of,
    id_of,
    is_image_file,
    lines_of,
    name_of,
)
from segnet_jax.data.label_files.class_text import structured

_NAME_HEADS = ("name", "class", "classname", "label", "labelname", "category", "classes")
_COLUMNS = {
    "id": tuple(
        "pixelvalue id value index idx labelid classid pixel trainid code number no classindex labelindex classvalue "
        "labelvalue classnumber grayvalue greyvalue gray grey".split()
    ),
    "r": ("r", "red"),
    "g": ("g", "green"),
    "b": ("b", "blue"),
    "color": ("color", "colour", "rgb", "hex", "hexcolor", "colorhex", "rgbcolor", "colorrgb"),
}
"""Field of a class -> accepted column names, without spaces and punctuation."""
_IMAGE_HEADS = ("image", "images", "filename", "file", "imageid", "imagepath", "path", "img", "mask")


def table_csv(text: str) -> Parsed:
    """Parse a CSV file of classes, with a header that names the columns of names, ids and colors.

    Without a header, all lines must have the form of a line of plain text with an id or a color.

    Raises:
      BadTable: If it has neither, or lists images.
    """
    lines = lines_of(text)
    delimiter = max(",;\t", key=lines[0][1].count) if lines else ","
    rows = list(csv.reader([line for _, line in lines], delimiter=delimiter))
    heads = [re.sub(r"[^a-z]", "", head.lower()) for head in rows[0]] if rows else []
    if any(head in _IMAGE_HEADS for head in heads) or any(map(is_image_file, rows[0] if rows else ())):
        raise BadTable("lists images, not classes")
    places = {part: _place(heads, known) for part, known in _COLUMNS.items()}
    names = [place for head in _NAME_HEADS for place, each in enumerate(heads) if each == head]
    if not names:
        if (parsed := structured(lines)) is not None:
            return parsed
        raise BadTable(
            f"line 1: expected a header with a column `name` or `class`, got {[line for _, line in lines[:1]]!r:.80}"
        )
    for number, row in enumerate(rows[1:], start=2):
        if len(row) < len(heads):
            raise BadTable(f"line {number}: expected {len(heads)} columns, got {len(row)}")
    numeric = [place for place in names if len(rows) > 1 and all(row[place].strip().isdecimal() for row in rows[1:])]
    if places["id"] is None and numeric and len(numeric) < len(names):  # such as `label,name` with numbers as labels
        places["id"] = numeric[0]
    places["name"] = next((place for place in names if place not in numeric), names[0])
    return _rows(rows[1:], {part: place for part, place in places.items() if place is not None})


def _place(heads: Sequence[str], known: Sequence[str]) -> int | None:
    return next((place for place, head in enumerate(heads) if head in known), None)


def _rows(rows: Sequence[Sequence[str]], places: dict[str, int]) -> Parsed:
    found, has_id = [], "id" in places
    for number, row in enumerate(rows, start=2):
        cell = {part: row[place].strip() for part, place in places.items()}
        if is_image_file(cell["name"]):
            raise BadTable("lists images, not classes")
        if has_id and not cell["id"].isdecimal():
            raise BadTable(f"line {number}: expected a number as the id, got {cell['id'][:40]!r}")
        ids, colors = (id_of(int(cell["id"]), f"line {number}"),) if has_id else (number - 2,), ()
        if {"r", "g", "b"} <= cell.keys():
            colors = (color_of([cell["r"], cell["g"], cell["b"]], f"line {number}"),)
        elif cell.get("color"):
            colors = (any_color(cell["color"], f"line {number}"),)
        found.append(Row(name_of(cell["name"]), ids, colors))
    return Parsed(found, is_explicit=has_id)
