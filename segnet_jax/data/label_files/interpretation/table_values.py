"""Compare label values with a class file."""

import dataclasses
from collections.abc import Mapping, Sequence

from segnet_jax.constants import VOID
from segnet_jax.data.images.picture_header import EXPORT_IDS
from segnet_jax.data.label_files.decode_labels import MAX_MAPPED
from segnet_jax.data.label_files.interpretation.evidence import LabelEvidence
from segnet_jax.data.label_files.interpretation.label_values import (
    MAX_CHOICES,
    are_classes,
    masks_of_two,
    mixed_masks,
    outcome,
    soft_edges,
)
from segnet_jax.data.label_files.scan import describe_files, describe_pixels, files_with, sum_counts
from segnet_jax.data.labels.label_mapping import Kind, make_label_rule
from segnet_jax.data.labels.void import OUTSIDE
from segnet_jax.system.errors import Fault, UserError, listed

BACKGROUND_NAMES = frozenset(
    "background _background_ bg back ground none nothing other others unlabeled unlabelled unknown void ignore rest "
    "empty negative clutter hintergrund fond fondo sfondo".split()
)
"""Names, in lower case, of background and unlabeled pixels."""

_STRAY = 1e-3  # fraction of all pixels up to which a value may be an annotation error
_COMMON = 0.4  # fraction of all pixels from which the value 0 may be background, even if no class has such a name


def values_of_table(evidence: LabelEvidence, by_color: Sequence[Kind], faults: list[Fault]) -> None:
    """Compare label values with a class file, except in kinds of files that are read by color.

    Unknown values and possible interpretations are added to `faults`.
    """
    scans = [scan for scan in evidence.scans if scan.kind not in by_color]
    if not scans:
        return
    label_mapping, read_options = evidence.label_mapping, evidence.read_options
    evidence = dataclasses.replace(evidence, scans=scans)
    held = sum_counts(scan.values for scan in scans)
    try:
        rule = make_label_rule(label_mapping, read_options, tuple(by_color))
    except UserError as error:
        faults.extend(error.faults)
        return
    is_plain = not read_options.map and read_options.labels_start_at == -1
    if VOID not in dict(read_options.map) and sorted(held) == [0, VOID]:
        faults.extend(_two_values(evidence))
        return
    if fault := (mixed_masks(evidence, label_mapping) or _rival_files(evidence)):
        faults.append(fault)
        return
    outside = {value: pixels for value, pixels in held.items() if rule.table[value] == OUTSIDE}
    if outside:
        faults.extend(_outside(evidence, held, outside, is_plain))
    elif is_plain and not label_mapping.is_explicit and (fault := _two_readings(evidence, held)):
        faults.append(fault)


def _rival_files(evidence: LabelEvidence) -> Fault | None:
    """Return a fault if two class files give the same names different values."""
    label_mapping, rival = evidence.label_mapping, evidence.label_mapping.rival
    if rival is None:
        return None
    both = [f"{each.source}: {outcome(evidence, each, evidence.read_options)}" for each in (label_mapping, rival)]
    message = f"{label_mapping.source} and {rival.source} list the same classes in different orders; {'; '.join(both)}"
    fix = "delete the wrong one, or state the ids in classes.toml"
    return Fault("ambiguous-labels", evidence.scans[0].name, message, fix)


def _two_values(evidence: LabelEvidence) -> list[Fault]:
    """Return faults for masks of 0 and 255."""
    label_mapping = evidence.label_mapping
    number, source, first_file = len(label_mapping.classes), label_mapping.source, evidence.scans[0].name
    if number == 2 and dict(label_mapping.ids).get(1) == 1:
        return masks_of_two(evidence)
    if number < 2:
        message = f"the labels contain 0 and 255, but {source} has a single class, {label_mapping.classes.names[0]}"
        return [Fault("mask-0-255", first_file, message, f"add the background as the first class in {source}")]
    outcomes, choices = [], []
    values = [value for value, class_id in label_mapping.ids if class_id not in (0, VOID)][:MAX_CHOICES]
    for new in [*values, VOID]:
        read_options = dataclasses.replace(evidence.read_options, map=(*evidence.read_options.map, (VOID, new)))
        choices.append(f"--map {VOID}={new}")
        outcomes.append(f"{choices[-1]}: {outcome(evidence, label_mapping, read_options)}")
    message = f"the labels contain only 0 and 255, and {source} does not define 255: {'; '.join(outcomes)}"
    return [Fault("mask-0-255", first_file, message, "choose one of them", tuple(choices))]


def _outside(
    evidence: LabelEvidence, held: Mapping[int, int], outside: Mapping[int, int], is_plain: bool
) -> list[Fault]:
    """Return faults for unknown values: ids from 1, a missing class, a stray value, or no class ids at all."""
    scans, label_mapping, read_options = evidence.scans, evidence.label_mapping, evidence.read_options
    rule = make_label_rule(label_mapping, read_options)
    last = max(value for value, _ in label_mapping.ids if value != VOID)
    found = []
    if max(outside) > VOID and not (are_classes(evidence, list(outside)) and _by_rank(evidence, held)):
        file = files_with(scans, max(outside))[0]
        message = f"label {file} has 16 bits and values up to {max(outside)}, like instance ids"
        return [Fault("instance-ids", file, message, EXPORT_IDS)]
    if len(label_mapping.classes) == 2 and (soft := soft_edges(evidence)):
        return [soft]
    starts_at_1 = is_plain and sorted(outside) == [last + 1]
    if starts_at_1 and 0 not in held:
        for scan in scans:
            if last + 1 in scan.values:
                message = f"label {scan.name} contains {last + 1}, and no label contains 0: the class ids start at 1"
                found.append(Fault("labels-start-at-1", scan.name, message, "--labels-start-at 1"))
        return found
    whole, solid = sum(held.values()), {value for scan in scans for value in scan.solid}
    stray = all(value not in solid and outside[value] <= 10 * _STRAY * whole for value in outside)
    for scan in scans:
        if mine := {value: pixels for value, pixels in scan.values.items() if value in outside}:
            values = listed([f"{value} ({pixels} px)" for value, pixels in sorted(mine.items())])
            message = f"label {scan.name} contains {values}, outside {rule.description}"
            fix = " ".join(f"--map {value}={VOID}" for value in sorted(mine))
            if len(outside) > MAX_MAPPED:
                fix = EXPORT_IDS
            elif not stray:
                fix = f"if it is a class, add it to {label_mapping.source}"
            found.append(Fault("label-out-of-range", scan.name, message, fix))
    if stray or len(outside) > MAX_MAPPED:
        return found
    changes = _with_choices(evidence, held, outside, starts_at_1 and not label_mapping.is_explicit, found)
    first = dataclasses.replace(found[0], what=f"{found[0].what}; {changes.pop('what')}")
    return [dataclasses.replace(fault, **changes) for fault in (first, *found[1:])]


def _with_choices(
    evidence: LabelEvidence,
    held: Mapping[int, int],
    outside: Mapping[int, int],
    starts_at_1: bool,
    found: Sequence[Fault],
) -> dict:
    """Return the changes to a fault that add the possible meanings of unknown values."""
    label_mapping, read_options = evidence.label_mapping, evidence.read_options
    as_void = tuple((value, VOID) for value in sorted(outside))
    readings = [
        (
            " ".join(f"--map {old}={new}" for old, new in as_void),
            dataclasses.replace(read_options, map=(*read_options.map, *as_void)),
        )
    ]
    if starts_at_1:
        readings.insert(0, ("--labels-start-at 1", dataclasses.replace(read_options, labels_start_at=1)))
    if is_plain := not read_options.map and read_options.labels_start_at == -1:
        by_rank = _by_rank(evidence, held)
    if is_plain and by_rank:
        flags = " ".join(f"--map {old}={new}" for old, new in by_rank)
        readings.insert(0, (flags, dataclasses.replace(read_options, map=by_rank)))
    outcomes = [f"{flags}: {outcome(evidence, label_mapping, other)}" for flags, other in readings]
    files = describe_files([fault.file for fault in found])
    message = f"{describe_pixels(outside)} in {files}; {'; '.join(outcomes)}"
    fix = f"choose one of them, or add the missing class to {label_mapping.source}"
    fix += ", such as a background before all others" if starts_at_1 else ""
    return {"what": message, "fix": fix, "choices": tuple(flags for flags, _ in readings)}


def _by_rank(evidence: LabelEvidence, held: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    """Return the changes that read the values found as the classes in order, if there are as many; else nothing."""
    known = sorted(value for value, class_id in evidence.label_mapping.ids if class_id != VOID)
    found = sorted(value for value in held if value != VOID)
    same_number = len(found) == len(known) and len(found) <= MAX_MAPPED
    return tuple((old, new) for old, new in zip(found, known, strict=True) if old != new) if same_number else ()


def _two_readings(evidence: LabelEvidence, held: Mapping[int, int]) -> Fault | None:
    """Return a fault if all values are known, but a second interpretation fits as well."""
    label_mapping, number = evidence.label_mapping, len(evidence.label_mapping.classes)
    classes = sorted(value for value in held if value != VOID)
    names = {name.lower() for name in label_mapping.classes.names}
    names_void = any(class_id == VOID and value != VOID for value, class_id in label_mapping.ids)
    has_rest = names_void or bool(names & BACKGROUND_NAMES)
    whole = sum(held.values())
    if not classes:
        return None
    void_is_solid = any(VOID in scan.solid for scan in evidence.scans)
    if classes == list(range(number - 1)) and VOID in held and void_is_solid and number > 1 and classes[-1:] != [0]:
        changes = [(VOID, VOID), (VOID, number - 1)]
        readings = [(f"--map {old}={new}", {"map": ((old, new),)}) for old, new in changes]
        reason = f"255 may be void or {label_mapping.classes.names[-1]}, which no pixel has"
        return _choose(evidence, held, readings, reason)
    if VOID in held and 0 not in held and void_is_solid and not names_void and classes[-1] < number:
        readings = [(f"--map {VOID}={new}", {"map": ((VOID, new),)}) for new in (0, VOID)]
        return _choose(
            evidence, held, readings, f"255 may be {label_mapping.classes.names[0]}, which has no 0, or void"
        )
    if VOID in held or names_void:
        return None  # unlabeled pixels have a separate value
    both = [("--labels-start-at 0", {"labels_start_at": 0}), ("--labels-start-at 1", {"labels_start_at": 1})]
    if 0 not in held and classes == list(range(1, number)):
        return _choose(evidence, held, both, f"no label contains 0 ({label_mapping.classes.names[0]})")
    if not has_rest and number > 1 and held.get(0, 0) > _COMMON * whole:
        percent = 100 * held[0] / whole
        reason = f"0, in {percent:.1f} % of the pixels, may be {label_mapping.classes.names[0]} or unlabeled"
        return _choose(evidence, held, both, reason)
    return None


def _choose(
    evidence: LabelEvidence, held: Mapping[int, int], readings: Sequence[tuple[str, dict]], reason: str
) -> Fault:
    outcomes = []
    for flags, changes in readings:
        other = dataclasses.replace(evidence.read_options, **changes)
        outcomes.append(f"{flags}: {outcome(evidence, evidence.label_mapping, other)}")
    source = evidence.label_mapping.source
    message = f"the labels contain {describe_pixels(held)}, and {source} is ambiguous: {reason}; {'; '.join(outcomes)}"
    fix = f"choose one of them, or state the ids in {source}"
    return Fault("ambiguous-labels", evidence.scans[0].name, message, fix, tuple(flags for flags, _ in readings))
