"""Find and read the class file of a dataset folder."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from segnet_jax.constants import VOID
from segnet_jax.data.images.picture_header import check_inside, read_bytes
from segnet_jax.data.label_files import class_formats, class_text
from segnet_jax.data.label_files.class_csv import table_csv
from segnet_jax.data.label_files.class_formats import BadTable, Parsed, Row
from segnet_jax.data.labels.classes import ClassTable, Color, distinct_colors
from segnet_jax.data.labels.label_mapping import MAX_CLASSES, LabelMapping
from segnet_jax.data.labels.void import VOID_NAMES
from segnet_jax.system.errors import Fault, UserError
from segnet_jax.system.files import relative_path

_MAX_BYTES = 100_000
_AS_SHOWN = "data/README.md shows the format"

TABLES: dict[str, Callable[[str], Parsed]] = {
    "classes.toml": class_formats.toml,
    "labelmap.txt": class_formats.cvat,
    "label_colors.txt": class_formats.camvid,
    "codes.txt": class_text.names,
    "class_dict.csv": table_csv,
    "class_dict_seg.csv": table_csv,
    "label_class_dict.csv": table_csv,
    "class_mapping.csv": table_csv,
    "_classes.csv": table_csv,
    "classes.csv": table_csv,
    "labels.csv": table_csv,
    "obj_class_to_machine_color.json": class_formats.machine_colors,
    "class_names.txt": class_text.names,
    "classes.txt": class_text.names,
    "labels.txt": class_text.names,
    "label_names.txt": class_text.names,
    "objectInfo150.txt": class_text.names,
    "meta.json": class_formats.supervisely_meta,
    "config_v2.0.json": class_formats.mapillary,
    "config_v1.2.json": class_formats.mapillary,
    "config.json": class_formats.mapillary,
    "classes.json": class_formats.json_names,
    "class_names.json": class_formats.json_names,
    "id2label.json": class_formats.json_names,
    "label_map.json": class_formats.json_names,
    "dataset.json": class_formats.json_names,
}
"""Name of a class file -> its parser, the most informative first."""

_UNSURE = (
    *("meta.json", "config.json", "classes.csv", "labels.csv", "labels.txt", "classes.txt"),
    *("classes.json", "class_names.json", "label_map.json", "dataset.json"),
)
"""Names that other files also have: such a file is skipped with a note if it cannot be parsed."""


def class_files(folder: Path) -> list[Path]:
    """Return the class files of a folder in the order of `TABLES`, or those of its direct subfolders if it has none."""
    there = [folder / name for name in TABLES if (folder / name).exists()]
    if there:
        return there
    inner = sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))
    return [path / name for name in TABLES for path in inner if (path / name).is_file()]


def find_class_table(folder: Path) -> Path | None:
    """Return the class file of a folder, or None."""
    return next(iter(class_files(folder)), None)


def read_class_table(path: Path) -> LabelMapping:
    """Read a class file in the format that its name has in `TABLES`.

    Rows called void, ignore or unlabeled are read as void; the first other row is class 0.

    Raises:
      UserError: If the file is invalid; the message names the line.
    """
    try:
        check_inside(path, path.parent)
        data = read_bytes(path, path.name)
        if len(data) > _MAX_BYTES:
            raise BadTable(f"has {len(data)} bytes, too many for a class file")
        return _label_mapping(path.name, TABLES[path.name](_decoded(data)))
    except UnicodeDecodeError:
        message = f"{path.name} is not UTF-8 text"
        raise UserError(message, kind="bad-class-table", file=path.name, fix="save it as UTF-8") from None
    except BadTable as fault:
        raise UserError(f"{path.name} {fault}", kind="bad-class-table", file=path.name, fix=_AS_SHOWN) from None


def _decoded(data: bytes) -> str:
    """Decode a class file: UTF-16 by its byte order mark, UTF-8, or the Windows code page of Western Europe."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")


def _label_mapping(source: str, parsed: Parsed) -> LabelMapping:
    rows = parsed.rows
    classes = [row for row in rows if row.name.lower() not in VOID_NAMES]
    nothing = [row for row in rows if row not in classes]
    if not classes:
        raise BadTable("has no classes")
    if len(classes) > MAX_CLASSES:
        raise BadTable(f"has {len(classes)} classes, over the limit of {MAX_CLASSES}")
    ids: dict[int, int] = {}
    colors: dict[Color, int] = {}
    meant = [(class_id, row) for class_id, row in enumerate(classes)] + [(VOID, row) for row in nothing]
    meant.append((VOID, Row("void", tuple(parsed.void_ids), tuple(parsed.void_colors))))
    names: set[str] = set()
    for class_id, row in meant:
        if class_id != VOID and row.name in names:
            raise BadTable(f"has the class {row.name!r} twice")
        names.add(row.name)
        for kind, written, table in (("id", row.ids, ids), ("color", row.colors, colors)):
            for each in written:
                if table.setdefault(each, class_id) != class_id:
                    raise BadTable(f"gives the {kind} {each} to two classes, {row.name!r} and another")
    ids.setdefault(VOID, VOID)
    shown = {row.colors[0] for row in classes if row.colors}
    free = (color for color in distinct_colors(256)[1:] if color not in shown)
    table = ClassTable(
        tuple(row.name for row in classes), tuple(row.colors[0] if row.colors else next(free) for row in classes)
    )
    has_colors = any(row.colors for row in classes)
    own_colors = tuple(colors.items()) if has_colors else None
    return LabelMapping(source, table, tuple(ids.items()), own_colors, parsed.is_explicit)


def folder_label_mapping(
    folder: Path, faults: list[Fault], notes: list[str] | None = None
) -> tuple[LabelMapping | None, bool]:
    """Read the class file of a folder.

    An invalid class file, or different class files in subfolders, are added to `faults`; unused ones to `notes`.

    Returns:
      The label mapping (None if there is no valid one), and whether there is a class file.
    """
    notes = [] if notes is None else notes
    paths = class_files(folder)
    while paths:
        try:
            label_mapping = read_class_table(paths[0])
            break
        except UserError as error:
            if paths[0].name not in _UNSURE or error.kind != "bad-class-table":
                faults.extend(error.faults)
                return None, True
            notes.append(f"note: {relative_path(paths[0], folder)} is not used as a class file: {error.faults[0].what}")
            paths = paths[1:]
    else:
        return None, False
    others = [path for path in paths[1:] if path.name == paths[0].name]
    for path in others:
        try:
            differs = read_class_table(path) != label_mapping
        except UserError as error:
            faults.extend(error.faults)
            return None, True
        if differs:
            message = f"{relative_path(path, folder)} differs from {relative_path(paths[0], folder)}"
            faults.append(
                Fault(
                    "bad-class-table",
                    relative_path(path, folder),
                    message,
                    "put a single class file into the dataset folder, if all labels follow it",
                )
            )
            return None, True
    if unused := [path for path in paths[1:] if path not in others]:
        names = ", ".join(relative_path(path, folder) for path in unused)
        notes.append(f"note: classes from {relative_path(paths[0], folder)}; not used: {names}")
        label_mapping = dataclasses.replace(label_mapping, rival=_rival(label_mapping, unused))
    return label_mapping, True


def _rival(label_mapping: LabelMapping, unused: Sequence[Path]) -> LabelMapping | None:
    """Return the mapping of an unused class file that gives the same names other values; None if there is none."""
    for path in unused:
        try:
            other = read_class_table(path)
        except UserError:
            continue
        if other.is_explicit < label_mapping.is_explicit:
            continue  # the file that states the values decides
        mine, theirs = ({_key(each, value): value for value, _ in each.ids} for each in (label_mapping, other))
        if mine.keys() == theirs.keys() and mine != theirs:
            return other
    return None


def _key(label_mapping: LabelMapping, value: int) -> str:
    class_id = dict(label_mapping.ids)[value]
    return f"void {value}" if class_id == VOID else label_mapping.classes.names[class_id].lower()
