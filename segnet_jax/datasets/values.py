"""Labels that hold values: which classes they mean, where only one reading fits, and else which readings do."""

import dataclasses
from collections.abc import Mapping, Sequence

from segnet_jax.constants import VOID
from segnet_jax.datasets.color_faults import palettes_disagree
from segnet_jax.datasets.decode import MOST_MAPPED
from segnet_jax.datasets.evidence import Folder
from segnet_jax.datasets.headers import EXPORT_IDS
from segnet_jax.datasets.labels import ClassTable, distinct_colors
from segnet_jax.datasets.legend import MOST_CLASSES, OUTSIDE, Kind, Legend, rule_of
from segnet_jax.datasets.scan import LabelScan, files_with, in_pixels, some, total
from segnet_jax.errors import Fault, UserError, listed

BACKGROUND_NAMES = frozenset(
    "background _background_ bg back ground none nothing other others unlabeled unlabelled unknown void ignore rest "
    "empty negative clutter hintergrund fond fondo sfondo".split()
)
"""Names, in lower case, of what is not one of the things that were labelled."""

_MOST_UNNAMED = 64  # values that may be classes without a name
_MOST_CHOICES = 4
_STRAY = 1e-3  # fraction of all pixels up to which a value may be a slip of the pen
_COMMON = 0.4  # fraction of all pixels from which on the value 0 may be the rest, where no name says so


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
    most = min(highest if legend is None else len(legend.classes) - 1, _MOST_CHOICES - 1)
    for new in [*range(1, max(1, most) + 1), VOID]:
        reading = dataclasses.replace(folder.reading, map=(*folder.reading.map, (VOID, new)))
        start = max(0, reading.labels_start_at)
        own = legend or legend_of([max(highest, 1)], start)
        choices.append(f"--map {VOID}={new}")
        told.append(f"{choices[-1]}: {_consequence(folder, own, reading)}")
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
        told.append(f"{choices[-1]}: {_consequence(folder, legend, other)}")
    what = (
        f"the labels hold {in_pixels(held)}, even steps of grey, of which 255 may be a class or void: {'; '.join(told)}"
    )
    return Fault("ambiguous-labels", folder.scans[0].name, what, "choose one of them", tuple(choices))


def _consequence(folder: Folder, legend: Legend, reading) -> str:
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


# --- with a class table ---


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
    values = [value for value, class_id in legend.ids if class_id not in (0, VOID)][:_MOST_CHOICES]
    for new in [*values, VOID]:
        reading = dataclasses.replace(folder.reading, map=(*folder.reading.map, (VOID, new)))
        choices.append(f"--map {VOID}={new}")
        told.append(f"{choices[-1]}: {_consequence(folder, legend, reading)}")
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
    told = [f"{flags}: {_consequence(folder, legend, other)}" for flags, other in readings]
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
        told.append(f"{flags}: {_consequence(folder, folder.legend, other)}")
    source = folder.legend.source
    what = f"the labels hold {in_pixels(held)}, and {source} does not say what they mean: {why}; {'; '.join(told)}"
    fix = f"choose one of them, or write {source} so that it says which"
    return Fault("ambiguous-labels", folder.scans[0].name, what, fix, tuple(flags for flags, _ in readings))


def table_to_edit(scans: Sequence[LabelScan], start: int) -> str:
    """A `classes.toml` for what label files hold, with names to be changed by hand."""
    lines = ["# Change the names; `id` is the value, `color` the color (red, green, blue) in your label pictures."]
    colors = _colors_to_name(scans)
    if colors:
        entries = [f'name = "class {place}", color = {list(color)}' for place, color in enumerate(colors)]
    else:
        held = total(scan.values for scan in scans)
        ids = [value for value in sorted(held) if value != VOID and value >= start]
        palette = {index: color for scan in scans for index, color in scan.palette.items()}
        shown = distinct_colors(len(ids) + 1)[1:]
        has_palette = len({palette.get(value) for value in ids} - {None}) == len(ids)
        colors = [palette[value] for value in ids] if has_palette else shown
        entries = [
            f'name = "class {value - start}", id = {value - start}, color = {list(color)}'
            for value, color in zip(ids, colors, strict=True)
        ]
    lines += ["classes = [", *(f"  {{ {entry} }}," for entry in entries), "]"]
    lines.append("void = [255]  # values that are no class; colors that are none: void_colors = [[0, 0, 0]]")
    return "\n".join(lines) + "\n"


def _colors_to_name(scans: Sequence[LabelScan]) -> list[tuple[int, int, int]]:
    """The colors that may be classes, the commonest first; none where values are."""
    by_color = [scan for scan in scans if scan.kind == "rgb" and not scan.values]
    by_color = [scan for scan in scans if scan.kind == "rgb"] if by_color else by_color
    if palettes_disagree(scans):
        by_color += [scan for scan in scans if scan.kind == "palette"]
    held = total(scan.colors for scan in by_color)
    solid = {each for scan in by_color for each in scan.solid if isinstance(each, tuple)}
    solid |= {scan.palette[value] for scan in by_color for value in scan.solid if value in scan.palette}
    solid |= {(value,) * 3 for scan in by_color if scan.kind == "rgb" and scan.values for value in scan.solid}
    ordered = sorted(held, key=lambda color: (-held[color], color))
    return [color for color in ordered if color in solid or len(ordered) <= MOST_MAPPED][:MOST_CLASSES]
