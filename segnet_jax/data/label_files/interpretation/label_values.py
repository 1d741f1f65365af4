"""The values of labels that no class table names: which classes they are, or which readings of them fit."""

import dataclasses
from collections.abc import Mapping, Sequence

from segnet_jax.constants import VOID
from segnet_jax.data.images.picture_header import EXPORT_IDS
from segnet_jax.data.label_files.decode_labels import MOST_MAPPED
from segnet_jax.data.label_files.interpretation.evidence import Folder
from segnet_jax.data.label_files.scan import files_with, in_pixels, some, total
from segnet_jax.data.labels.classes import ClassTable, distinct_colors
from segnet_jax.data.labels.label_mapping import MOST_CLASSES, Legend
from segnet_jax.data.labels.read_options import Reading
from segnet_jax.system.errors import Fault, UserError, listed

_MOST_UNNAMED = 64  # values that may be classes without a name
MOST_CHOICES = 4  # readings that are shown


def values_without_table(folder: Folder, faults: list[Fault], notes: list[str]) -> Legend | None:
    """Take a class for each value of the labels: `class 0`, `class 1` and so on.

    Args:
      folder: what is known; no class file names its classes.
      faults: grows by what is wrong with the labels, and by readings of which one is to be chosen.
      notes: grows by what the classes are called and how to name them.

    Returns:
      The legend; None, with a fault, where the labels hold no class ids.
    """
    reading = folder.reading
    held = _mapped(total(scan.values for scan in folder.scans), reading)
    start = max(0, reading.labels_start_at)
    ids = sorted(value for value in held if value != VOID and value >= start)
    fault = _settled(folder, held, ids) or mixed_masks(folder, None) or _levels(folder, held, ids)
    fault = fault or _no_class_ids(folder, held, ids)
    if fault:
        faults.extend([fault] if isinstance(fault, Fault) else fault)
        return None
    if not ids:
        return None
    legend = legend_of(ids, start)
    told = [f"{value} is `class {value - start}`" for value in ids]
    notes.append(f"note: no class table: {listed(told)}; to name them: {folder.how_to_name}, and edit that file")
    return legend


def legend_of(ids: Sequence[int], start: int) -> Legend:
    """Classes without names for values."""
    number = ids[-1] + 1 - start
    names = tuple(f"class {class_id}" for class_id in range(number))
    legend_ids = (*((class_id, class_id) for class_id in range(number)), (VOID, VOID))
    return Legend("the values found", ClassTable(names, distinct_colors(number + 1)[1:]), legend_ids)


def _mapped(held: Mapping[int, int], reading) -> dict[int, int]:
    """Value -> pixels after `--map`."""
    meant, values = dict(reading.map), {}
    for value, pixels in held.items():
        new = meant.get(value, value)
        values[new] = values.get(new, 0) + pixels
    return values


def _settled(folder: Folder, held: Mapping[int, int], ids: Sequence[int]) -> list[Fault] | None:
    """Masks of 0 and 255: of two classes, for with 255 as void there would be one."""
    if sorted(held) == [0, VOID] and VOID not in dict(folder.reading.map):
        return masks_of_two(folder)
    return None


def masks_of_two(folder: Folder) -> list[Fault]:
    """The faults of masks of 0 and 255, a file each."""
    found = []
    for scan in folder.scans:
        if VOID in scan.values:
            what = (
                f"label {scan.name} holds {in_pixels(scan.values)}, and all labels only 0 and 255: a mask of two "
                "classes, but 255 means void here, so no foreground would be learned"
            )
            found.append(Fault("mask-0-255", scan.name, what, "--map 255=1"))
    return found


def mixed_masks(folder: Folder, legend: Legend | None) -> Fault | None:
    """Masks of which some write the second class as 1 and others as 255."""
    if VOID in dict(folder.reading.map):
        return None
    scans = [scan for scan in folder.scans if scan.values]
    high = [scan for scan in scans if VOID in scan.values and set(scan.values) <= {0, VOID}]
    low = [scan for scan in scans if VOID not in scan.values and set(scan.values) - {0}]
    if not high or not low or len(high) + len(low) + sum(set(scan.values) == {0} for scan in scans) < len(scans):
        return None  # a file that holds 255 beside a class says that it is void
    highest = max(value for scan in low for value in scan.values)
    told, choices = [], []
    most = min(highest if legend is None else len(legend.classes) - 1, MOST_CHOICES - 1)
    for new in [*range(1, max(1, most) + 1), VOID]:
        reading = dataclasses.replace(folder.reading, map=(*folder.reading.map, (VOID, new)))
        start = max(0, reading.labels_start_at)
        own = legend or legend_of([max(highest, 1)], start)
        choices.append(f"--map {VOID}={new}")
        told.append(f"{choices[-1]}: {consequence(folder, own, reading)}")
    what = (
        f"{some([scan.name for scan in high])} hold 255 and no other value but 0, and "
        f"{some([scan.name for scan in low])} hold values up to {highest} and no 255: masks of two kinds, or void; "
        + "; ".join(told)
    )
    return Fault("mixed-masks", high[0].name, what, "choose what 255 means, or save all masks alike", tuple(choices))


def _levels(folder: Folder, held: Mapping[int, int], ids: Sequence[int]) -> Fault | None:
    """Even steps of grey up to 255, such as 0, 128 and 255: the last is a class as well as void."""
    reading = folder.reading
    values = sorted(held)
    if reading.map or reading.labels_start_at > 0 or len(values) < 3 or values[0] != 0 or values[-1] != VOID:
        return None
    steps = [value * (len(values) - 1) / VOID for value in values]
    if any(abs(step - place) > 0.03 for place, step in enumerate(steps)) or len(values) > MOST_MAPPED:
        return None
    told, choices = [], []
    for changes in (
        [(value, place) for place, value in enumerate(values) if place],
        [(value, place) for place, value in enumerate(values) if 0 < place < len(values) - 1],
        *([[(values[1], VOID), (VOID, 1)]] if len(values) == 3 else []),
    ):
        other = dataclasses.replace(reading, map=tuple(changes))
        legend = legend_of([max(new for _, new in changes if new != VOID)], 0)
        choices.append(" ".join(f"--map {old}={new}" for old, new in changes))
        told.append(f"{choices[-1]}: {consequence(folder, legend, other)}")
    what = (
        f"the labels hold {in_pixels(held)}, even steps of grey, of which 255 may be a class or void: {'; '.join(told)}"
    )
    return Fault("ambiguous-labels", folder.scans[0].name, what, "choose one of them", tuple(choices))


def consequence(folder: Folder, legend: Legend, reading: Reading) -> str:
    """As `Folder.consequence`, or why labels cannot be read so."""
    try:
        return folder.consequence(legend, reading)
    except UserError as error:
        return str(error)


def _no_class_ids(folder: Folder, held: Mapping[int, int], ids: Sequence[int]) -> Fault | None:
    """Why the values of labels are no class ids, if so."""
    scans, reading = folder.scans, folder.reading
    if not held:
        return None

    def file(value: int) -> str:
        return (files_with(scans, value) or [scans[0].name])[0]

    told = listed([f"{value} ({held[value]} px)" for value in sorted(held)])
    if not ids:
        return Fault("no-usable-label", scans[0].name, f"the labels hold no class at all, only {told}", EXPORT_IDS)
    if soft := soft_edges(folder):
        return soft
    solid = {value for scan in scans for value in scan.solid}
    scattered = len(ids) > _MOST_UNNAMED and len(solid & set(ids)) < 0.9 * len(ids)
    if scattered or len(ids) > MOST_CLASSES or ids[-1] > MOST_CLASSES:
        kind = "instance-ids" if ids[-1] > VOID else "no-class-ids"
        what = f"label {file(ids[-1])} holds {ids[-1]}, and the labels {len(ids)} different values in all ({told})"
        what += ": instance ids?" if ids[-1] > VOID else ": anti-aliased, or photographs?"
        return Fault(kind, file(ids[-1]), what, EXPORT_IDS)
    if reading.labels_start_at == -1 and ids[0] == 1 and len(ids) > 1:
        what = f"label {file(1)} and all others hold no 0: their values, {told}, start at 1"
        return Fault("labels-start-at-1", file(1), what, "--labels-start-at 1")
    if len(ids) == 1:
        what = f"label {file(ids[0])} and all others hold one class alone ({told}): nothing to tell apart"
        return Fault("one-class", file(ids[0]), what, "label a second class, such as the background")
    if ids[-1] > 2 * len(ids) + 8:
        what = f"label {file(ids[-1])} holds {ids[-1]}, and the labels only {len(ids)} values in all: {told}"
        start = max(0, reading.labels_start_at)
        changed = [(value, place) for place, value in enumerate(ids, start) if value != place]
        fix = " ".join(f"--map {old}={new}" for old, new in changed)
        return Fault("sparse-values", file(ids[-1]), what, fix if len(ids) <= MOST_MAPPED else folder.how_to_name)
    return None


def soft_edges(folder: Folder) -> Fault | None:
    """Masks of black and white whose edges are smoothed."""
    scans = folder.scans
    held = total(scan.values for scan in scans)
    between = [value for value in held if 0 < value < VOID]
    solid = {value for scan in scans for value in scan.solid}
    few = sum(held[value] for value in between) < 0.1 * sum(held.values())
    if len(between) < 6 or VOID not in solid or not few or not all(scan.is_bimodal for scan in scans):
        return None
    what = (
        f"the labels hold {len(held)} values, nearly all pixels near 0 or near 255 and the rest on edges: masks of two "
        "classes with smoothed edges"
    )
    return Fault("soft-edges", files_with(scans, between[0])[0], what, "--threshold 128")
