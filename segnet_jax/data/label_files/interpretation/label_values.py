"""Interpret label values without a class file."""

import dataclasses
from collections.abc import Mapping, Sequence

from segnet_jax.constants import VOID
from segnet_jax.data.images.picture_header import EXPORT_IDS
from segnet_jax.data.label_files.decode_labels import MAX_MAPPED
from segnet_jax.data.label_files.interpretation.evidence import LabelEvidence
from segnet_jax.data.label_files.scan import describe_files, describe_pixels, files_with, sum_counts
from segnet_jax.data.labels.classes import ClassTable, distinct_colors
from segnet_jax.data.labels.label_mapping import MAX_CLASSES, LabelMapping
from segnet_jax.data.labels.read_options import ReadOptions
from segnet_jax.system.errors import Fault, UserError, listed

_MAX_UNNAMED = 64  # values that may be classes without a class file
_COMMON = 0.4  # fraction of all pixels from which 255 may be the background of labels without 0
MAX_CHOICES = 4  # alternatives shown in a message


def values_without_table(evidence: LabelEvidence, faults: list[Fault], notes: list[str]) -> LabelMapping | None:
    """Make each label value a class: `class 0`, `class 1` and so on.

    Errors and possible interpretations are added to `faults`, and the class names to `notes`.

    Returns:
      The label mapping, or None if the labels contain no class ids.
    """
    read_options = evidence.read_options
    held = _mapped(sum_counts(scan.values for scan in evidence.scans), read_options)
    start = max(0, read_options.labels_start_at)
    ids = sorted(value for value in held if value != VOID and value >= start)
    fault = _settled(evidence, held, ids) or mixed_masks(evidence, None) or _levels(evidence, held, ids)
    fault = fault or _no_class_ids(evidence, held, ids)
    if fault:
        faults.extend([fault] if isinstance(fault, Fault) else fault)
        return None
    if not ids:
        return None
    label_mapping = mapping_of_values(ids, start)
    held_void = 100 * held.get(VOID, 0) / max(1, sum(held.values()))
    names = listed([f"{value} is `class {value - start}`" for value in ids])
    names += f", 255 is void ({held_void:.1f} % of the pixels)" if held_void else ""
    notes.append(f"note: no class file: {names}; to name them, run {evidence.class_file_command} and edit that file")
    return label_mapping


def mapping_of_values(ids: Sequence[int], start: int) -> LabelMapping:
    """Return a label mapping with generated names."""
    number = ids[-1] + 1 - start
    names = tuple(f"class {class_id}" for class_id in range(number))
    pairs = (*((class_id, class_id) for class_id in range(number)), (VOID, VOID))
    return LabelMapping("the values found", ClassTable(names, distinct_colors(number + 1)[1:]), pairs)


def _mapped(held: Mapping[int, int], read_options) -> dict[int, int]:
    """Return value -> pixels after `--map`."""
    meant, values = dict(read_options.map), {}
    for value, pixels in held.items():
        new = meant.get(value, value)
        values[new] = values.get(new, 0) + pixels
    return values


def _settled(evidence: LabelEvidence, held: Mapping[int, int], ids: Sequence[int]) -> list[Fault] | None:
    """Return faults for masks of 0 and 255: with 255 as void, a single class would remain."""
    if sorted(held) == [0, VOID] and VOID not in dict(evidence.read_options.map):
        return masks_of_two(evidence)
    return None


def masks_of_two(evidence: LabelEvidence) -> list[Fault]:
    """Return a fault for each label that contains 255, if all labels contain only 0 and 255."""
    found = []
    for scan in evidence.scans:
        if VOID in scan.values:
            message = (
                f"label {scan.name} contains {describe_pixels(scan.values)}, and all labels contain only 0 and 255: as "
                "255 means void, the foreground would be ignored"
            )
            found.append(Fault("mask-0-255", scan.name, message, "--map 255=1"))
    return found


def mixed_masks(evidence: LabelEvidence, label_mapping: LabelMapping | None) -> Fault | None:
    """Return a fault if some masks write the second class as 1 and others as 255."""
    if fault := _shifted(evidence):
        return fault
    if VOID in dict(evidence.read_options.map):
        return None
    scans = [scan for scan in evidence.scans if scan.values]
    if fault := _void_or_last(evidence, label_mapping):
        return fault
    high = [scan for scan in scans if VOID in scan.values and set(scan.values) <= {0, VOID}]
    low = [scan for scan in scans if VOID not in scan.values and set(scan.values) - {0}]
    if not high or not low or len(high) + len(low) + sum(set(scan.values) == {0} for scan in scans) < len(scans):
        return None  # in a file with 255 and a class, 255 is void
    highest = max(value for scan in low for value in scan.values)
    outcomes, choices = [], []
    most = min(highest if label_mapping is None else len(label_mapping.classes) - 1, MAX_CHOICES - 1)
    for new in [*range(1, max(1, most) + 1), VOID]:
        read_options = dataclasses.replace(evidence.read_options, map=(*evidence.read_options.map, (VOID, new)))
        start = max(0, read_options.labels_start_at)
        own = label_mapping or mapping_of_values([max(highest, 1)], start)
        choices.append(f"--map {VOID}={new}")
        outcomes.append(f"{choices[-1]}: {outcome(evidence, own, read_options)}")
    message = (
        f"{describe_files([scan.name for scan in high])} contain only 0 and 255, and "
        f"{describe_files([scan.name for scan in low])} contain values up to {highest} and no 255: "
        f"255 may be a class or void; {'; '.join(outcomes)}"
    )
    fix = "choose what 255 means, or save all masks with the same values"
    return Fault("mixed-masks", high[0].name, message, fix, tuple(choices))


def _shifted(evidence: LabelEvidence) -> Fault | None:
    """Return a fault if some files have exactly the values 0..n-1 and all others exactly 1..n."""
    if evidence.read_options.labels_start_at != -1 or evidence.read_options.map:
        return None
    held = [(scan.name, {*scan.values} - {VOID}) for scan in evidence.scans if scan.values]
    last = max((value for _, values in held for value in values), default=0)
    if not 2 <= last < VOID:
        return None
    low = [name for name, values in held if values == {*range(last)}]
    high = [name for name, values in held if values == {*range(1, last + 1)}]
    if len(low) < 2 or len(high) < 2 or len(low) + len(high) < len(held):
        return None
    message = (
        f"{describe_files(low)} contain the values 0 to {last - 1}, and {describe_files(high)} 1 to {last}: the same "
        "classes may be counted from 0 in some files and from 1 in others"
    )
    fix = "save all labels with the same first value, or pass --labels-start-at 0 if values mean the same in all files"
    return Fault("mixed-masks", high[0], message, fix, ("--labels-start-at 0",))


def _void_or_last(evidence: LabelEvidence, label_mapping: LabelMapping | None) -> Fault | None:
    """Return a fault if files with areas of 255 lack the last class, which all other files have."""
    scans = [scan for scan in evidence.scans if scan.values]
    last = max((value for scan in scans for value in scan.values if value != VOID), default=0)
    with_void = [scan for scan in scans if VOID in scan.values]
    others = [scan for scan in scans if VOID not in scan.values]
    split = all(last not in scan.values and len(scan.values) > 2 and VOID in scan.solid for scan in with_void)
    if (
        last < 2
        or len(with_void) < 2
        or len(others) < 2
        or not split
        or not all(last in scan.values for scan in others)
    ):
        return None
    own = label_mapping or mapping_of_values([last], max(0, evidence.read_options.labels_start_at))
    choices, outcomes = [], []
    for new in (last, VOID):
        read_options = dataclasses.replace(evidence.read_options, map=(*evidence.read_options.map, (VOID, new)))
        choices.append(f"--map {VOID}={new}")
        outcomes.append(f"{choices[-1]}: {outcome(evidence, own, read_options)}")
    message = (
        f"{describe_files([scan.name for scan in with_void])} contain 255 and no {last}, and "
        f"{describe_files([scan.name for scan in others])} contain {last} and no 255: 255 may be {last} or void; "
    )
    fix = "choose what 255 means, or save all masks with the same values"
    return Fault("mixed-masks", with_void[0].name, message + "; ".join(outcomes), fix, tuple(choices))


def are_classes(evidence: LabelEvidence, values: Sequence[int]) -> bool:
    """Return whether a few large values may be classes, not instances: each is in at least half of the files."""
    files = len(evidence.scans)
    return len(values) <= MAX_MAPPED and all(2 * len(files_with(evidence.scans, value)) >= files for value in values)


def _levels(evidence: LabelEvidence, held: Mapping[int, int], ids: Sequence[int]) -> Fault | None:
    """Return a fault for evenly spaced grays such as 0, 128 and 255, the last of which may be a class or void."""
    read_options = evidence.read_options
    values = sorted(held)
    if read_options.map or read_options.labels_start_at > 0 or len(values) < 3 or values[0] != 0 or values[-1] != VOID:
        return None
    steps = [value * (len(values) - 1) / VOID for value in values]
    if any(abs(step - place) > 0.03 for place, step in enumerate(steps)) or len(values) > MAX_MAPPED:
        return None
    outcomes, choices = [], []
    for changes in (
        [(value, place) for place, value in enumerate(values) if place],
        [(value, place) for place, value in enumerate(values) if 0 < place < len(values) - 1],
        *([[(values[1], VOID), (VOID, 1)]] if len(values) == 3 else []),
    ):
        other = dataclasses.replace(read_options, map=tuple(changes))
        label_mapping = mapping_of_values([max(new for _, new in changes if new != VOID)], 0)
        choices.append(" ".join(f"--map {old}={new}" for old, new in changes))
        outcomes.append(f"{choices[-1]}: {outcome(evidence, label_mapping, other)}")
    message = f"the labels contain evenly spaced grays, {describe_pixels(held)}; 255 may be a class or void: "
    message += "; ".join(outcomes)
    return Fault("ambiguous-labels", evidence.scans[0].name, message, "choose one of them", tuple(choices))


def outcome(evidence: LabelEvidence, label_mapping: LabelMapping, read_options: ReadOptions) -> str:
    """Return `LabelEvidence.outcome`, or the reason why labels cannot be read with these options."""
    try:
        return evidence.outcome(label_mapping, read_options)
    except UserError as error:
        return str(error)


def _no_class_ids(evidence: LabelEvidence, held: Mapping[int, int], ids: Sequence[int]) -> Fault | None:
    """Return a fault if the values are not class ids."""
    scans, read_options = evidence.scans, evidence.read_options
    if not held:
        return None

    def file(value: int) -> str:
        return (files_with(scans, value) or [scans[0].name])[0]

    values = listed([f"{value} ({held[value]} px)" for value in sorted(held)])
    if not ids:
        return Fault("no-usable-label", scans[0].name, f"the labels contain no class, only {values}", EXPORT_IDS)
    if soft := soft_edges(evidence):
        return soft
    solid = {value for scan in scans for value in scan.solid}
    scattered = len(ids) > _MAX_UNNAMED and len(solid & set(ids)) < 0.9 * len(ids)
    if (
        scattered
        or len(ids) > MAX_CLASSES
        or ids[-1] > MAX_CLASSES
        and not (len(ids) > 1 and are_classes(evidence, ids))
    ):
        kind = "instance-ids" if ids[-1] > VOID else "no-class-ids"
        source = "instance ids" if ids[-1] > VOID else "anti-aliased masks or photographs"
        message = f"label {file(ids[-1])} contains {ids[-1]}, and the labels have {len(ids)} values in all ({values}): "
        return Fault(kind, file(ids[-1]), f"{message}these look like {source}, not class ids", EXPORT_IDS)
    is_plain = read_options.labels_start_at == -1 and not read_options.map
    if is_plain and ids[0] >= 1 and VOID in solid and held.get(VOID, 0) > _COMMON * sum(held.values()):
        return _void_or_background(evidence, held, ids)
    if read_options.labels_start_at == -1 and ids[0] == 1 and len(ids) > 1:
        message = f"label {file(1)} and all others contain no 0: their values, {values}, start at 1"
        return Fault("labels-start-at-1", file(1), message, "--labels-start-at 1")
    if len(ids) == 1:
        message = f"label {file(ids[0])} and all others contain a single class ({values}), so there is nothing to learn"
        return Fault("one-class", file(ids[0]), message, "label a second class, such as the background")
    if ids[-1] > 2 * len(ids) + 8:
        message = (
            f"label {file(ids[-1])} contains {ids[-1]}, but the labels have only {len(ids)} values in all: {values}"
        )
        start = max(0, read_options.labels_start_at)
        changed = [(value, place) for place, value in enumerate(ids, start) if value != place]
        fix = " ".join(f"--map {old}={new}" for old, new in changed)
        return Fault(
            "sparse-values", file(ids[-1]), message, fix if len(ids) <= MAX_MAPPED else evidence.class_file_command
        )
    return None


def _void_or_background(evidence: LabelEvidence, held: Mapping[int, int], ids: Sequence[int]) -> Fault:
    """Return the fault of labels without 0 that have areas of 255."""
    outcomes, choices = [], []
    for flags, changes in (
        (f"--map {VOID}=0", {"map": ((VOID, 0),)}),
        (f"--labels-start-at {ids[0]}", {"labels_start_at": ids[0]}),
    ):
        own = mapping_of_values(ids, changes.get("labels_start_at", 0))
        choices.append(flags)
        outcomes.append(f"{flags}: {outcome(evidence, own, dataclasses.replace(evidence.read_options, **changes))}")
    message = (
        f"the labels contain {describe_pixels(held)} and no 0: 255 may be background or void; {'; '.join(outcomes)}"
    )
    return Fault("ambiguous-labels", evidence.scans[0].name, message, "choose one of them", tuple(choices))


def soft_edges(evidence: LabelEvidence) -> Fault | None:
    """Return a fault for black and white masks with smoothed edges."""
    scans = evidence.scans
    held = sum_counts(scan.values for scan in scans)
    between = [value for value in held if 0 < value < VOID]
    solid = {value for scan in scans for value in scan.solid}
    few = sum(held[value] for value in between) < 0.1 * sum(held.values())
    if len(between) < 6 or VOID not in solid or not few or not all(scan.is_bimodal for scan in scans):
        return None
    message = (
        f"the labels contain {len(held)} values, nearly all near 0 or 255: they look like masks of two classes with "
        "smoothed edges"
    )
    return Fault("soft-edges", files_with(scans, between[0])[0], message, "--threshold 128")
