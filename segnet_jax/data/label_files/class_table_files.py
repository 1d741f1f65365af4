"""Class files in a dataset's folder: ours, those of labelling tools, and plain lists of names."""

from collections.abc import Callable
from pathlib import Path

from segnet_jax.constants import VOID
from segnet_jax.data.images.picture_header import check_inside, read_bytes
from segnet_jax.data.label_files import class_formats
from segnet_jax.data.label_files.class_formats import BadTable, Parsed, Row
from segnet_jax.data.labels.classes import ClassTable, Color, distinct_colors
from segnet_jax.data.labels.label_mapping import MOST_CLASSES, Legend
from segnet_jax.system.errors import Fault, UserError
from segnet_jax.system.files import relative_path

VOID_NAMES = {
    *("void", "ignore", "ignored", "unlabelled", "unlabeled", "don't care", "dontcare", "__ignore__", "_ignore_"),
    *("_void_", "ignore_region", "ignore region"),
}
"""Names, in lower case, of what is no class."""

_MOST_BYTES = 100_000
_AS_SHOWN = "write it as data/README.md shows"

TABLES: dict[str, Callable[[str], Parsed]] = {
    "classes.toml": class_formats.toml,
    "labelmap.txt": class_formats.cvat,
    "label_colors.txt": class_formats.camvid,
    "codes.txt": class_formats.codes,
    "class_dict.csv": class_formats.table_csv,
    "_classes.csv": class_formats.table_csv,
    "classes.csv": class_formats.table_csv,
    "labels.csv": class_formats.table_csv,
    "obj_class_to_machine_color.json": class_formats.machine_colors,
    "class_names.txt": class_formats.names,
    "classes.txt": class_formats.names,
    "labels.txt": class_formats.names,
    "label_names.txt": class_formats.names,
    "objectInfo150.txt": class_formats.names,
    "meta.json": class_formats.supervisely_meta,
    "config_v2.0.json": class_formats.mapillary,
    "config_v1.2.json": class_formats.mapillary,
    "config.json": class_formats.mapillary,
}
"""Name of a class file -> its parser, the most telling first."""

_UNSURE = ("meta.json", "config.json", "classes.csv", "labels.csv", "labels.txt", "classes.txt")
"""Names that other things have too: what cannot be read as a class file is not one, and a note says so."""


def class_files(folder: Path) -> list[Path]:
    """The class files of a folder, in the order of `TABLES`; of its direct subfolders where it has none itself."""
    there = [folder / name for name in TABLES if (folder / name).exists()]
    if there:
        return there
    inner = sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))
    return [path / name for name in TABLES for path in inner if (path / name).is_file()]


def find_class_table(folder: Path) -> Path | None:
    """The class file of a folder that is used."""
    return next(iter(class_files(folder)), None)


def read_class_table(path: Path) -> Legend:
    """Read a class file by its name.

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
            raise BadTable(f"has {len(data)} bytes, more than a class table")
        return _legend(path.name, TABLES[path.name](data.decode("utf-8-sig")))
    except UnicodeDecodeError:
        what = f"{path.name} is not a text in UTF-8"
        raise UserError(what, kind="bad-class-table", file=path.name, fix="save it as UTF-8") from None
    except BadTable as fault:
        raise UserError(f"{path.name} {fault}", kind="bad-class-table", file=path.name, fix=_AS_SHOWN) from None


def _legend(source: str, parsed: Parsed) -> Legend:
    rows = parsed.rows
    classes = [row for row in rows if row.name.lower() not in VOID_NAMES]
    nothing = [row for row in rows if row not in classes]
    if not classes:
        raise BadTable("names no class")
    if len(classes) > MOST_CLASSES:
        raise BadTable(f"names {len(classes)} classes, more than {MOST_CLASSES}")
    ids: dict[int, int] = {}
    colors: dict[Color, int] = {}
    meant = [(class_id, row) for class_id, row in enumerate(classes)] + [(VOID, row) for row in nothing]
    meant.append((VOID, Row("void", tuple(parsed.void_ids), tuple(parsed.void_colors))))
    names: set[str] = set()
    for class_id, row in meant:
        if class_id != VOID and row.name in names:
            raise BadTable(f"names {row.name!r} twice")
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
    return Legend(source, table, tuple(ids.items()), own_colors, parsed.is_explicit)


def legend_of_folder(folder: Path, faults: list[Fault], notes: list[str] | None = None) -> tuple[Legend | None, bool]:
    """Read the class file of a folder.

    Args:
      folder: the dataset's.
      faults: grows by a class file at fault.
      notes: grows by class files that are not used.

    Returns:
      The legend, and whether there is a class file; class files of subfolders that say different things are a fault.
    """
    notes = [] if notes is None else notes
    paths = class_files(folder)
    while paths:
        try:
            legend = read_class_table(paths[0])
            break
        except UserError as error:
            if paths[0].name not in _UNSURE or error.kind != "bad-class-table":
                faults.extend(error.faults)
                return None, True
            notes.append(f"note: {relative_path(paths[0], folder)} is not read as a class file: {error.faults[0].what}")
            paths = paths[1:]
    else:
        return None, False
    others = [path for path in paths[1:] if path.name == paths[0].name]
    for path in others:
        try:
            differs = read_class_table(path) != legend
        except UserError as error:
            faults.extend(error.faults)
            return None, True
        if differs:
            what = f"{relative_path(path, folder)} says other than {relative_path(paths[0], folder)}"
            faults.append(
                Fault("bad-class-table", relative_path(path, folder), what, "put one class file into the folder")
            )
            return None, True
    if unused := [relative_path(path, folder) for path in paths[1:] if path not in others]:
        notes.append(f"note: classes of {relative_path(paths[0], folder)}; not used: {', '.join(unused)}")
    return legend, True
