"""The class tables that may lie in a data set's folder: ours, CVAT's, CamVid's, and a plain list of names."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segnet_jax.constants import VOID
from segnet_jax.data.images.picture_header import check_inside, read_bytes
from segnet_jax.data.labels.classes import ClassTable, Color, distinct_colors
from segnet_jax.data.labels.label_mapping import MOST_CLASSES, Legend
from segnet_jax.system import bounded_toml
from segnet_jax.system.errors import Fault, UserError

VOID_NAMES = {"void", "ignore", "ignored", "unlabelled", "unlabeled", "don't care"}
"""Names, in any case, of what is no class."""

_MOST_BYTES = 100_000
_MOST_LETTERS = 100  # of a class's name
_AS_SHOWN = "write it as data/README.md shows"


class _Row(NamedTuple):
    """One class of a table."""

    name: str
    ids: tuple[int, ...]
    colors: tuple[Color, ...]


class _Fault(Exception):
    """What is wrong in a table."""


def find_class_table(folder: Path) -> Path | None:
    """The class table of a folder: the first of `TABLES` that is there."""
    return next((folder / name for name in TABLES if (folder / name).exists()), None)


def read_class_table(path: Path) -> Legend:
    """Reads a class table by its file's name.

    Classes called void, ignore or unlabelled are none: their pixels are void. Of the others the first gets the id 0.

    Args:
      path: named as in `TABLES`.

    Raises:
      UserError: for a file that cannot be read as such a table, naming the line.
    """
    try:
        check_inside(path, path.parent)
        data = read_bytes(path, path.name)
        if len(data) > _MOST_BYTES:
            raise _Fault(f"has {len(data)} bytes, more than a class table")
        rows, void_ids, void_colors = TABLES[path.name](data.decode("utf-8-sig"))
        return _legend(path.name, rows, void_ids, void_colors)
    except UnicodeDecodeError:
        what = f"{path.name} is not a text in UTF-8"
        raise UserError(what, kind="bad-class-table", file=path.name, fix="save it as UTF-8") from None
    except _Fault as fault:
        raise UserError(f"{path.name} {fault}", kind="bad-class-table", file=path.name, fix=_AS_SHOWN) from None


def _legend(
    source: str, rows: Sequence[_Row], void_ids: Sequence[int] = (), void_colors: Sequence[Color] = ()
) -> Legend:
    classes = [row for row in rows if row.name.lower() not in VOID_NAMES]
    nothing = [row for row in rows if row not in classes]
    if not classes:
        raise _Fault("names no class")
    if len(classes) > MOST_CLASSES:
        raise _Fault(f"names {len(classes)} classes, more than {MOST_CLASSES}")
    ids: dict[int, int] = {}
    colors: dict[Color, int] = {}
    meant = [(class_id, row) for class_id, row in enumerate(classes)] + [(VOID, row) for row in nothing]
    meant.append((VOID, _Row("void", tuple(void_ids), tuple(void_colors))))
    names: set[str] = set()
    for class_id, row in meant:
        if class_id != VOID and row.name in names:
            raise _Fault(f"names {row.name!r} twice")
        names.add(row.name)
        for kind, written, table in (("id", row.ids, ids), ("colour", row.colors, colors)):
            for each in written:
                if table.setdefault(each, class_id) != class_id:
                    raise _Fault(f"gives the {kind} {each} to two classes, {row.name!r} and another")
    ids.setdefault(VOID, VOID)
    shown = {row.colors[0] for row in classes if row.colors}
    free = (color for color in distinct_colors(256)[1:] if color not in shown)
    table = ClassTable(
        tuple(row.name for row in classes), tuple(row.colors[0] if row.colors else next(free) for row in classes)
    )
    has_colors = any(row.colors for row in classes)
    return Legend(source, table, tuple(ids.items()), tuple(colors.items()) if has_colors else None)


Parsed = tuple[list[_Row], Sequence[int], Sequence[Color]]


def _codes(text: str) -> Parsed:
    """One name a line; the value in label files is the line's number, from 0."""
    return [_Row(_name(line), (place,), ()) for place, (_, line) in enumerate(_lines(text))], (), ()


def _cvat(text: str) -> Parsed:
    """CVAT's `name:r,g,b:parts:actions`; the value in label files is the line's number, from 0."""
    rows = []
    for number, line in _lines(text):
        if line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        color = rest.split(":")[0].strip()
        colors = (_color(re.split(r"\s*,\s*", color), f"line {number}"),) if color else ()
        rows.append(_Row(_name(name), (len(rows),), colors))
    return rows, (), ()


def _camvid(text: str) -> Parsed:
    """CamVid's `r g b name`; the value in label files is the line's number, from 0."""
    rows = []
    for number, line in _lines(text):
        parts = line.split(maxsplit=3)
        if len(parts) != 4:
            raise _Fault(f"line {number}: expected `red green blue name`, got {line[:60]!r}")
        rows.append(_Row(_name(parts[3]), (len(rows),), (_color(parts[:3], f"line {number}"),)))
    return rows, (), ()


def _toml(text: str) -> Parsed:
    """Ours: `classes = [{ name, id, color }, ...]`, `void = [...]`, `void_colors = [...]`."""
    try:
        table = bounded_toml.loads(text)
    except ValueError as error:
        raise _Fault(f"is not valid TOML: {error}") from None
    _check_keys(table, ("classes", "void", "void_colors"), "")
    classes = table.get("classes")
    if not isinstance(classes, list) or not all(isinstance(each, dict) for each in classes):
        raise _Fault('has no list of classes: classes = [{ name = "road" }, { name = "tree" }]')
    rows = []
    for place, each in enumerate(classes):
        where = f"class {place + 1}"
        _check_keys(each, ("name", "id", "color"), f" of {where}")
        if not isinstance(each.get("name"), str):
            raise _Fault(f"has no name for {where}")
        ids, color = each.get("id", place), each.get("color", [])
        ids = tuple(_id(value, where) for value in (ids if isinstance(ids, list) else [ids]))
        colors = color if color and isinstance(color, list) and isinstance(color[0], list) else [color] if color else []
        rows.append(_Row(_name(each["name"]), ids, tuple(_color(values, where) for values in colors)))
    void, void_colors = table.get("void", []), table.get("void_colors", [])
    void = void if isinstance(void, list) else [void]
    void_colors = void_colors if isinstance(void_colors, list) else [void_colors]
    return rows, [_id(value, "void") for value in void], [_color(values, "void_colors") for values in void_colors]


TABLES: dict[str, Callable[[str], Parsed]] = {
    "classes.toml": _toml,
    "labelmap.txt": _cvat,
    "label_colors.txt": _camvid,
    "codes.txt": _codes,
}
"""Name of a class table -> its reader, the most telling first."""


def _lines(text: str) -> list[tuple[int, str]]:
    lines = (line.strip() for line in re.split(r"\r\n|\n|\r", text))
    return [(number, line) for number, line in enumerate(lines, start=1) if line]


def _check_keys(table: dict[str, Any], known: Iterable[str], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise _Fault(f"has an unknown key {key[:40]!r}{where}" + (f"; nearest: {near[0]}" if near else ""))


def _name(text: str) -> str:
    name = text.strip()
    if not name or len(name) > _MOST_LETTERS or not name.isprintable():
        raise _Fault(f"has a class without a printable name of up to {_MOST_LETTERS} letters: {name[:40]!r}")
    return name


def _id(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value < 2**16:
        raise _Fault(f"has the id {value!r:.40} for {where}: ids are whole numbers, 0 to 65535")
    return value


def _color(parts: Any, where: str) -> Color:
    if isinstance(parts, list) and len(parts) == 3:
        numbers = [int(part) if isinstance(part, str) and re.fullmatch(r"[0-9]{1,3}", part) else part for part in parts]
        if all(type(number) is int and 0 <= number <= 255 for number in numbers):
            return tuple(numbers)
    raise _Fault(f"has the colour {parts!r:.60} for {where}: red, green and blue are three whole numbers, 0 to 255")


def legend_of_folder(folder: Path, faults: list[Fault]) -> tuple[Legend | None, bool]:
    """The legend of a folder's own table, and whether there is a table; a table at fault adds to `faults`."""
    path = find_class_table(folder)
    if path is None:
        return None, False
    try:
        return read_class_table(path), True
    except UserError as error:
        faults.extend(error.faults)
        return None, True
