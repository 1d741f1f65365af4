"""Values of labels held against a class table: which reading fits, or which readings do."""

import dataclasses
from collections.abc import Mapping, Sequence

from segnet_jax.constants import VOID
from segnet_jax.data.images.picture_header import EXPORT_IDS
from segnet_jax.data.label_files.decode_labels import MOST_MAPPED
from segnet_jax.data.label_files.interpretation.evidence import Folder
from segnet_jax.data.label_files.interpretation.label_values import (
    MOST_CHOICES,
    consequence,
    masks_of_two,
    mixed_masks,
    soft_edges,
)
from segnet_jax.data.label_files.scan import files_with, in_pixels, some, total
from segnet_jax.data.labels.label_mapping import OUTSIDE, Kind, rule_of
from segnet_jax.system.errors import Fault, UserError, listed

BACKGROUND_NAMES = frozenset(
    "background _background_ bg back ground none nothing other others unlabeled unlabelled unknown void ignore rest "
    "empty negative clutter hintergrund fond fondo sfondo".split()
)
"""Names, in lower case, of what is not one of the things that were labelled."""

_STRAY = 1e-3  # fraction of all pixels up to which a value may be a slip of the pen
_COMMON = 0.4  # fraction of all pixels from which on the value 0 may be the rest, where no name says so


def values_of_table(folder: Folder, by_color: Sequence[Kind], faults: list[Fault]) -> None:
    """Hold the values of labels against a class table.

    Args:
      folder: what is known, with a class table.
      by_color: kinds of files of which the values do not count.
      faults: grows by values that mean no class, and by readings of which one is to be chosen.
    """
    scans = [scan for scan in folder.scans if scan.kind not in by_color]
    if not scans:
        return
    legend, reading = folder.legend, folder.reading
    folder = dataclasses.replace(folder, scans=scans)
    held = total(scan.values for scan in scans)
    try:
        rule = rule_of(legend, reading, tuple(by_color))
    except UserError as error:
        faults.extend(error.faults)
        return
    is_plain = not reading.map and reading.labels_start_at == -1
    if VOID not in dict(reading.map) and sorted(held) == [0, VOID]:
        faults.extend(_two_values(folder))
        return
    if fault := mixed_masks(folder, legend):
        faults.append(fault)
        return
    outside = {value: pixels for value, pixels in held.items() if rule.table[value] == OUTSIDE}
    if outside:
        faults.extend(_outside(folder, held, outside, is_plain))
    elif is_plain and not legend.is_explicit and (fault := _two_readings(folder, held)):
        faults.append(fault)


def _two_values(folder: Folder) -> list[Fault]:
    """Masks of 0 and 255 beside a class table."""
    legend = folder.legend
    number = len(legend.classes)
    if number == 2 and dict(legend.ids).get(1) == 1:
        return masks_of_two(folder)
    if number < 2:
        what = f"the labels hold 0 and 255, and {legend.source} names one class, {legend.classes.names[0]}"
        return [Fault("mask-0-255", folder.scans[0].name, what, f"name the background too, first, in {legend.source}")]
    told, choices = [], []
    values = [value for value, class_id in legend.ids if class_id not in (0, VOID)][:MOST_CHOICES]
    for new in [*values, VOID]:
        reading = dataclasses.replace(folder.reading, map=(*folder.reading.map, (VOID, new)))
        choices.append(f"--map {VOID}={new}")
        told.append(f"{choices[-1]}: {consequence(folder, legend, reading)}")
    what = f"the labels hold only 0 and 255, of which {legend.source} does not say what 255 is: {'; '.join(told)}"
    return [Fault("mask-0-255", folder.scans[0].name, what, "choose one of them", tuple(choices))]


def _outside(folder: Folder, held: Mapping[int, int], outside: Mapping[int, int], is_plain: bool) -> list[Fault]:
    """Values that mean no class: ids from 1, a class that the table lacks, a slip, or no class ids at all."""
    scans, legend, reading = folder.scans, folder.legend, folder.reading
    rule = rule_of(legend, reading)
    last = max(value for value, _ in legend.ids if value != VOID)
    found = []
    if max(outside) > VOID:
        file = files_with(scans, max(outside))[0]
        what = f"label {file} has 16 bits and values up to {max(outside)}: instance ids, not classes?"
        return [Fault("instance-ids", file, what, EXPORT_IDS)]
    if len(legend.classes) == 2 and (soft := soft_edges(folder)):
        return [soft]
    starts_at_1 = is_plain and sorted(outside) == [last + 1]
    if starts_at_1 and 0 not in held:
        for scan in scans:
            if last + 1 in scan.values:
                what = f"label {scan.name} holds {last + 1}, and no label a 0: its ids start at 1"
                found.append(Fault("labels-start-at-1", scan.name, what, "--labels-start-at 1"))
        return found
    whole, solid = sum(held.values()), {value for scan in scans for value in scan.solid}
    stray = all(value not in solid and outside[value] <= 10 * _STRAY * whole for value in outside)
    for scan in scans:
        if mine := {value: pixels for value, pixels in scan.values.items() if value in outside}:
            told = listed([f"{value} ({pixels} px)" for value, pixels in sorted(mine.items())])
            what = f"label {scan.name} holds {told}: outside {rule.told}"
            fix = " ".join(f"--map {value}={VOID}" for value in sorted(mine))
            if len(outside) > MOST_MAPPED:
                fix = EXPORT_IDS
            elif not stray:
                fix = f"if it is a class, add it to {legend.source}"
            found.append(Fault("label-out-of-range", scan.name, what, fix))
    if stray or len(outside) > MOST_MAPPED:
        return found
    told = _with_choices(folder, outside, starts_at_1 and not legend.is_explicit, found)
    first = dataclasses.replace(found[0], what=f"{found[0].what}; {told.pop('what')}")
    return [dataclasses.replace(fault, **told) for fault in (first, *found[1:])]


def _with_choices(folder: Folder, outside: Mapping[int, int], starts_at_1: bool, found: Sequence[Fault]) -> dict:
    """What the values may be, for the faults of all files."""
    legend, reading = folder.legend, folder.reading
    as_void = tuple((value, VOID) for value in sorted(outside))
    readings = [
        (
            " ".join(f"--map {old}={new}" for old, new in as_void),
            dataclasses.replace(reading, map=(*reading.map, *as_void)),
        )
    ]
    if starts_at_1:
        readings.insert(0, ("--labels-start-at 1", dataclasses.replace(reading, labels_start_at=1)))
    told = [f"{flags}: {consequence(folder, legend, other)}" for flags, other in readings]
    files = some([fault.file for fault in found])
    what = f"{in_pixels(outside)} in {files}; {'; '.join(told)}"
    fix = f"choose one of them, or name the missing class in {legend.source}"
    fix += ", such as a background before all others" if starts_at_1 else ""
    return {"what": what, "fix": fix, "choices": tuple(flags for flags, _ in readings)}


def _two_readings(folder: Folder, held: Mapping[int, int]) -> Fault | None:
    """Values that all mean a class, where another reading fits as well."""
    legend, number = folder.legend, len(folder.legend.classes)
    classes = sorted(value for value in held if value != VOID)
    names = {name.lower() for name in legend.classes.names}
    names_void = any(class_id == VOID and value != VOID for value, class_id in legend.ids)
    has_rest = names_void or bool(names & BACKGROUND_NAMES)
    whole = sum(held.values())
    if not classes:
        return None
    void_is_solid = any(VOID in scan.solid for scan in folder.scans)
    if classes == list(range(number - 1)) and VOID in held and void_is_solid and number > 1 and classes[-1:] != [0]:
        changes = [(VOID, VOID), (VOID, number - 1)]
        readings = [(f"--map {old}={new}", {"map": ((old, new),)}) for old, new in changes]
        return _choose(folder, held, readings, f"255 may be void or {legend.classes.names[-1]}, which no pixel has")
    if VOID in held or names_void:
        return None  # what is not labelled is written so
    both = [("--labels-start-at 0", {"labels_start_at": 0}), ("--labels-start-at 1", {"labels_start_at": 1})]
    if 0 not in held and classes == list(range(1, number)):
        return _choose(folder, held, both, f"no label holds a 0, {legend.classes.names[0]}")
    if not has_rest and number > 1 and held.get(0, 0) > _COMMON * whole:
        share = 100 * held[0] / whole
        why = f"{share:.1f} % of the pixels hold 0: {legend.classes.names[0]}, or what is not labelled"
        return _choose(folder, held, both, why)
    return None


def _choose(folder: Folder, held: Mapping[int, int], readings: Sequence[tuple[str, dict]], why: str) -> Fault:
    told = []
    for flags, changes in readings:
        other = dataclasses.replace(folder.reading, **changes)
        told.append(f"{flags}: {consequence(folder, folder.legend, other)}")
    source = folder.legend.source
    what = f"the labels hold {in_pixels(held)}, and {source} does not say what they mean: {why}; {'; '.join(told)}"
    fix = f"choose one of them, or write {source} so that it says which"
    return Fault("ambiguous-labels", folder.scans[0].name, what, fix, tuple(flags for flags, _ in readings))
