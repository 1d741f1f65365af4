"""The classes of labels that nobody has named: one for each value found, if the values look like class ids."""

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.data.images.picture_header import EXPORT_IDS
from segnet_jax.data.label_files.decode_labels import MOST_MAPPED, read_values
from segnet_jax.data.labels.classes import ClassTable, Color, distinct_colors
from segnet_jax.data.labels.label_colors import count_colors
from segnet_jax.data.labels.label_mapping import MOST_CLASSES, Legend
from segnet_jax.data.labels.read_options import Reading
from segnet_jax.system import budget
from segnet_jax.system.errors import Fault, UserError, listed

_MOST_UNNAMED = 64  # values that may be classes without a name

Label = tuple[Path, str]
"""A label file and what messages call it."""


class Values(NamedTuple):
    """What stands in label files.

    Attributes:
      values: value -> (pixels, the first file that holds it).
      colors: RGB -> (pixels, the first file that holds it).
      faults: files that cannot be read.
    """

    values: dict[int, tuple[int, str]]
    colors: dict[Color, tuple[int, str]]
    faults: list[Fault]


def scan(labels: Sequence[Label], reading: Reading) -> Values:
    """Reads all labels and counts their values, changed as `--map` says, and colours."""
    found = Values({}, {}, [])

    def look(label: Label) -> tuple[str, Counter | None, Counter | None, tuple[Fault, ...]]:
        with budget.pictures.scope():
            return look_at(*label)

    def look_at(path: Path, name: str) -> tuple[str, Counter | None, Counter | None, tuple[Fault, ...]]:
        try:
            stored = read_values(path, name, colored=True, exif=reading.exif)
            if stored.ndim == 3:
                return name, None, count_colors(stored), ()
            numbers, counts = np.unique(stored, return_counts=True)
        except ValueError as error:
            fault = Fault("unknown-colour", name, f"label {name} holds {error}", EXPORT_IDS)
            return name, None, None, (fault,)
        except UserError as error:
            return name, None, None, error.faults
        meant = dict(reading.map)
        values: Counter[int] = Counter()
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            values[meant.get(number, number)] += count
        return name, values, None, ()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, values, colors, faults in pool.map(look, labels):
            found.faults.extend(faults)
            for held, total in ((values, found.values), (colors, found.colors)):
                for key, count in (held or {}).items():
                    pixels, first = total.get(key, (0, name))
                    total[key] = pixels + count, first
    return found


def legend_of_values(
    labels: Sequence[Label], folder: Path, reading: Reading, faults: list[Fault], notes: list[str]
) -> Legend | None:
    """Takes a class for each value of the labels: `class 0`, `class 1` and so on.

    Args:
      labels: all labels of the folder.
      folder: the data set's, for what is told.
      reading: its owner's wishes.
      faults: grows by what is wrong with the labels.
      notes: grows by what the classes are called and how to name them.

    Returns:
      The legend; None, with a fault, where the labels hold no class ids.
    """
    found = scan(labels, reading)
    faults.extend(found.faults)
    how_to_name = (
        f"python -m segnet_jax.doctor {shlex.quote(str(folder))} --classes {shlex.quote(str(folder / 'classes.toml'))}"
    )
    if found.colors:
        told = [f"{color} ({pixels} px)" for color, (pixels, _) in _by_pixels(found.colors)]
        first = next(iter(found.colors.values()))[1]
        what = f"label {first} and its like are pictures in colours that no class table names: {listed(told)}"
        faults.append(Fault("colours-without-table", first, what, how_to_name))
        return None
    start = reading.labels_start_at
    ids = sorted(value for value in found.values if value != VOID and value >= start)
    if fault := _no_class_ids(found, ids, reading, how_to_name):
        faults.append(fault)
        return None
    if not ids:
        return None
    number = ids[-1] + 1 - start
    names = tuple(f"class {class_id}" for class_id in range(number))
    told = [f"{value} is `class {value - start}`" for value in ids]
    notes.append(f"note: no class table: {listed(told)}; to name them: {how_to_name}, and edit that file")
    legend_ids = (*((class_id, class_id) for class_id in range(number)), (VOID, VOID))
    return Legend("the values found", ClassTable(names, distinct_colors(number + 1)[1:]), legend_ids)


def _no_class_ids(found: Values, ids: Sequence[int], reading: Reading, how_to_name: str) -> Fault | None:
    """Why the values of labels are no class ids, if so."""
    if not found.values:
        return None
    everything = sorted(found.values)
    told = listed([f"{value} ({found.values[value][0]} px)" for value in everything])
    if everything == [0, VOID]:
        file = found.values[VOID][1]
        what = f"label {file} and its like hold only 0 and 255: 255 means void here, so no foreground would be learned"
        return Fault("mask-0-255", file, what, "--map 255=1")
    if not ids:
        file = found.values[everything[0]][1]
        return Fault("no-usable-label", file, f"the labels hold no class at all, only {told}", EXPORT_IDS)
    if len(ids) > _MOST_UNNAMED or ids[-1] >= MOST_CLASSES:
        file = found.values[ids[-1]][1]
        kind = "instance-ids" if ids[-1] > VOID else "no-class-ids"
        what = f"label {file} holds {ids[-1]}, and the labels {len(ids)} different values in all ({told})"
        what += ": instance ids?" if ids[-1] > VOID else ": anti-aliased, or photographs?"
        return Fault(kind, file, what, EXPORT_IDS)
    if not reading.labels_start_at and ids[0] == 1 and len(ids) > 1:
        file = found.values[1][1]
        what = f"label {file} and all others hold no 0: their values, {told}, start at 1"
        return Fault("labels-start-at-1", file, what, "--labels-start-at 1")
    if len(ids) == 1:
        file = found.values[ids[0]][1]
        what = f"label {file} and all others hold one class alone ({told}): nothing to tell apart"
        return Fault("one-class", file, what, "label a second class, such as the background")
    if ids[-1] > 2 * len(ids) + 8:
        file = found.values[ids[-1]][1]
        what = f"label {file} holds {ids[-1]}, and the labels only {len(ids)} values in all: {told}"
        changed = [(value, place) for place, value in enumerate(ids, reading.labels_start_at) if value != place]
        fix = " ".join(f"--map {old}={new}" for old, new in changed) if len(ids) <= MOST_MAPPED else how_to_name
        return Fault("sparse-values", file, what, fix)
    return None


def table_to_edit(found: Values, start: int) -> str:
    """A `classes.toml` for what was found, with names to be changed by hand."""
    lines = ["# Change the names; `id` is the value, `color` the colour (red, green, blue) in your label pictures."]
    if found.colors:
        entries = [
            f'name = "class {place}", color = {list(color)}'
            for place, (color, _) in enumerate(_by_pixels(found.colors))
        ]
    else:
        ids = [value for value in sorted(found.values) if value != VOID and value >= start]
        colors = distinct_colors(len(ids) + 1)[1:]
        entries = [
            f'name = "class {value - start}", id = {value - start}, color = {list(color)}'
            for value, color in zip(ids, colors, strict=True)
        ]
    lines += ["classes = [", *(f"  {{ {entry} }}," for entry in entries), "]"]
    lines.append("void = [255]  # values that are no class; colours that are none: void_colors = [[0, 0, 0]]")
    return "\n".join(lines) + "\n"


def _by_pixels(colors: dict[Color, tuple[int, str]]) -> list[tuple[Color, tuple[int, str]]]:
    return sorted(colors.items(), key=lambda item: (-item[1][0], item[0]))[:MOST_CLASSES]
