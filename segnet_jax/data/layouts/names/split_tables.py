"""Splits given by a table, a JSON file or the names of the images, where neither folders nor lists give one."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from segnet_jax.data.images.picture_header import check_inside
from segnet_jax.data.layouts.names.folder_roles import SPLIT_WORDS
from segnet_jax.data.layouts.names.name_lists import csv_rows, index_entries, listed_entry
from segnet_jax.data.layouts.names.name_pairs import nfc, words
from segnet_jax.data.layouts.names.split_lists import Entry, read_lines
from segnet_jax.system.errors import UserError, shown

_HEADS = ("split", "subset", "partition", "set", "phase", "fold")
_MAX_FILES = 20  # that are read


def split_table(folder: Path, entries: Sequence[Entry]) -> tuple[dict[str, list[Entry]], str]:
    """Split pairs by a CSV file with a column `split`, a JSON file of lists, or a split's word in every image name.

    Args:
      folder: the dataset folder.
      entries: all pairs.

    Returns:
      split -> its pairs, and a note that says where the split is from; both empty if there is none.
    """
    known = index_entries(entries, folder)
    paths = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in (".csv", ".tsv", ".json")]
    for path in paths[:_MAX_FILES]:
        try:
            check_inside(path, folder)
            lines = [line for _, line in read_lines(path)]
        except UserError:
            continue
        if path.suffix.lower() == ".json":
            found = _splits_of(_json_rows("\n".join(lines)), known)
        else:
            found = _of_one_column(path, list(_csv_rows(lines)), known)
        if "train" in found or "val" in found:
            return _complete(path, found, entries)
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        splits = {SPLIT_WORDS[word] for word in words(entry.name) if word in SPLIT_WORDS}
        by_name.setdefault(splits.pop() if len(splits) == 1 else "", []).append(entry)
    if "" not in by_name and "train" in by_name and len(by_name) > 1:
        return by_name, "note: split by the words train, val and test in the names of the images"
    return {}, ""


def _splits_of(rows: Iterable[tuple[str, Sequence[str]]], known: Mapping) -> dict[str, list[Entry]]:
    """Return split -> pairs, of rows with a split and cells, of which the first that names an image counts."""
    found: dict[str, dict[Path, Entry]] = {}
    for split, cells in rows:
        if entry := next((entry for cell in cells if cell and (entry := listed_entry(nfc(cell), known))), None):
            found.setdefault(split, {}).setdefault(entry.image, entry)
    return {split: list(each.values()) for split, each in found.items()}


def _of_one_column(path: Path, rows: Sequence[tuple[str, Sequence[str]]], known: Mapping) -> dict[str, list[Entry]]:
    """Return split -> pairs, by the column of a table that names most images, preferably as files.

    Raises:
      UserError: If two such columns give different splits.
    """
    by_column = {}
    for place in range(max((len(cells) for _, cells in rows), default=0)):
        column = [(split, cells[place : place + 1]) for split, cells in rows]
        found = _splits_of(column, known)
        are_files = sum(bool(Path(cell).suffix) for _, cells in column for cell in cells)
        by_column[place] = (sum(map(len, found.values())), are_files), found
    best = max((rank for rank, _ in by_column.values()), default=None)
    chosen = [found for rank, found in by_column.values() if rank == best]
    if best and best[0] and any(found != chosen[0] for found in chosen):
        message = f"two columns of {path.name} name images and give different splits"
        raise UserError(message, kind="split-contradiction", file=path.name, fix="remove one of the two columns")
    return chosen[0] if chosen else {}


def _complete(path: Path, found: Mapping[str, list[Entry]], entries: Sequence[Entry]):
    """Return the splits and a note. Without training images, those of no split are the training images.

    Raises:
      UserError: If over a tenth of the images would not be used.
    """
    named = {entry.image for of_split in found.values() for entry in of_split}
    rest = [entry for entry in entries if entry.image not in named]
    note = f"note: split by {shown(path.name)}"
    if "train" not in found:
        return {"train": rest, **found}, note
    if len(rest) > 0.1 * len(entries):
        message = f"{path.name} gives a split to {len(entries) - len(rest)} of {len(entries)} images only"
        fix = "list all images in it, or move it out of the folder to split the images at random"
        raise UserError(message, kind="split-contradiction", file=path.name, fix=fix)
    return dict(found), note + (f", which leaves out {len(rest)} of {len(entries)} images" if rest else "")


def _csv_rows(lines: Sequence[str]) -> Iterable[tuple[str, Sequence[str]]]:
    """Yield the split and the other cells of each row of a table with a column of splits."""
    if not lines:
        return
    rows = csv_rows(lines, sample=lines[0])
    column = next((place for place, head in enumerate(rows[0]) if head.strip().lower() in _HEADS), None)
    if column is None:
        return
    for row in rows[1:]:
        split = SPLIT_WORDS.get(row[column].strip().lower(), "") if len(row) > column else ""
        if split:
            yield split, [cell if place != column else "" for place, cell in enumerate(row)]


def _json_rows(text: str) -> Iterable[tuple[str, Sequence[str]]]:
    """Yield the split and the name of each image of a dictionary of lists."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return
    for key, names in table.items() if isinstance(table, dict) else ():
        split = SPLIT_WORDS.get(str(key).lower(), "")
        if split and isinstance(names, list):
            for name in names:
                cells = list(name.values()) if isinstance(name, dict) else [name]
                yield split, [cell for cell in cells if isinstance(cell, str)]
