"""Splits given by a table, a JSON file or the names of the images, where neither folders nor lists give one."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from segnet_jax.data.images.picture_header import check_inside
from segnet_jax.data.layouts.names.folder_roles import SPLIT_WORDS
from segnet_jax.data.layouts.names.name_lists import index_entries, listed_entry
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
        rows = _json_rows("\n".join(lines)) if path.suffix.lower() == ".json" else _csv_rows(lines)
        found: dict[str, dict[Path, Entry]] = {}
        for split, cells in rows:
            if entry := next((entry for cell in cells if (entry := listed_entry(nfc(cell), known))), None):
                found.setdefault(split, {}).setdefault(entry.image, entry)
        if "train" in found or "val" in found:
            return _complete({split: list(each.values()) for split, each in found.items()}, entries), (
                f"note: split by {shown(path.name)}"
            )
    by_name: dict[str, list[Entry]] = {}
    for entry in entries:
        splits = {SPLIT_WORDS[word] for word in words(entry.name) if word in SPLIT_WORDS}
        by_name.setdefault(splits.pop() if len(splits) == 1 else "", []).append(entry)
    if "" not in by_name and "train" in by_name and len(by_name) > 1:
        return by_name, "note: split by the words train, val and test in the names of the images"
    return {}, ""


def _complete(found: Mapping[str, list[Entry]], entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Without training images, make those of no split the training images."""
    named = {entry.image for of_split in found.values() for entry in of_split}
    rest = [entry for entry in entries if entry.image not in named]
    return dict(found) if "train" in found else {"train": rest, **found}


def _csv_rows(lines: Sequence[str]) -> Iterable[tuple[str, Sequence[str]]]:
    """Yield the split and the other cells of each row of a table with a column of splits."""
    if not lines:
        return
    rows = list(csv.reader(lines, delimiter=max("\t,;", key=lines[0].count)))
    column = next((place for place, head in enumerate(rows[0]) if head.strip().lower() in _HEADS), None)
    if column is None:
        return
    for row in rows[1:]:
        split = SPLIT_WORDS.get(row[column].strip().lower(), "") if len(row) > column else ""
        if split:
            yield split, [cell for place, cell in enumerate(row) if place != column and cell]


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
