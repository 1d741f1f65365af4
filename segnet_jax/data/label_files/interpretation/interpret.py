"""Determine what label values and colors mean, or report a fault with all possible interpretations."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.data.label_files.interpretation.color_faults import choose_kinds, unknown_colors, with_void_index
from segnet_jax.data.label_files.interpretation.evidence import HALF, Interpretation, LabelEvidence, pixels_of
from segnet_jax.data.label_files.interpretation.label_values import mapping_of_values, values_without_table
from segnet_jax.data.label_files.interpretation.table_values import values_of_table
from segnet_jax.data.label_files.scan import describe_files, sum_counts
from segnet_jax.data.labels.classes import ClassTable, distinct_colors
from segnet_jax.data.labels.label_mapping import LabelMapping, LabelRule, make_label_rule
from segnet_jax.data.labels.void import OUTSIDE
from segnet_jax.system.errors import Fault, UserError


def interpret(
    evidence: LabelEvidence,
    default: LabelMapping | None,
    fits_default: Callable[[Mapping[int, int]], bool],
    faults: list[Fault],
    notes: list[str],
) -> Interpretation | None:
    """Interpret a folder's labels, if only one interpretation is possible.

    `default` and `fits_default` are those of `LayoutFiles`. Errors and possible interpretations are added to `faults`.

    Returns:
      The interpretation, or None if there are no scans or a fault was added.
    """
    scans, read_options = evidence.scans, evidence.read_options
    if not scans:
        return None
    if read_options.threshold:
        return _thresholded(evidence, faults)
    if any(scan.lossy for scan in scans):
        faults.extend(_lossy(evidence))
        return None
    if evidence.label_mapping is None and default is not None:
        held = sum_counts(scan.values for scan in scans)
        if fits_default(held):
            evidence = dataclasses.replace(evidence, label_mapping=default)
            notes.append(f"note: no class file: the classes are those of {default.source}")
        else:
            notes.append(
                f"note: the classes of {default.source} are not used, because the labels contain "
                f"{', '.join(map(str, sorted(held)[:12])) or 'colors'}"
            )
    evidence = with_void_index(evidence, notes)
    before = len(faults)
    by_color = choose_kinds(evidence, faults)
    if len(faults) > before:
        return None
    if evidence.label_mapping is None:
        label_mapping = values_without_table(evidence, faults, notes)
    else:
        label_mapping = evidence.label_mapping
        values_of_table(evidence, by_color, faults)
        unknown_colors(evidence, by_color, faults, notes)
    if label_mapping is None or len(faults) > before:
        return None
    try:
        rule = make_label_rule(label_mapping, read_options, by_color)
    except UserError as error:
        faults.extend(error.faults)
        return None
    if any(rule.table[value] == OUTSIDE for scan in scans if scan.kind not in by_color for value in scan.values):
        raise AssertionError("a label value has no class, but no fault was reported")
    return Interpretation(label_mapping, rule, tuple(_doubts(evidence, label_mapping, rule)))


def _thresholded(evidence: LabelEvidence, faults: list[Fault]) -> Interpretation | None:
    """Interpret labels as two classes by brightness."""
    read_options, label_mapping = evidence.read_options, evidence.label_mapping
    if label_mapping is not None and len(label_mapping.classes) != 2:
        number, source = len(label_mapping.classes), label_mapping.source
        message = f"--threshold {read_options.threshold} makes two classes, but {source} has {number}"
        faults.append(Fault("threshold", source, message, "omit --threshold, or list two classes"))
        return None
    if label_mapping is None:
        ids = ((0, 0), (1, 1), (VOID, VOID))
        label_mapping = LabelMapping("the threshold", ClassTable(("class 0", "class 1"), distinct_colors(3)[1:]), ids)
    dim = [scan for scan in evidence.scans if 0 < scan.brightest < read_options.threshold]
    if dim:
        highest = max(scan.brightest for scan in dim)
        message = (
            f"{describe_files([scan.name for scan in dim])} have values up to {highest}, all below --threshold "
            f"{read_options.threshold}: the second class would be lost"
        )
        faults.append(Fault("mixed-masks", dim[0].name, message, "save all masks with the same values"))
        return None
    rule = make_label_rule(label_mapping, dataclasses.replace(read_options, map=(), labels_start_at=-1))
    return Interpretation(label_mapping, rule, ())


def _lossy(evidence: LabelEvidence) -> list[Fault]:
    """Return the faults of lossy labels; labels of two classes can be read with a threshold."""
    scans = evidence.scans
    dark = [scan for scan in scans if scan.is_bimodal and (scan.brightest == 0 or scan.brightest > 191)]
    two_valued = len(dark) == len(scans) and any(scan.brightest for scan in scans)
    mended = two_valued and (evidence.label_mapping is None or len(evidence.label_mapping.classes) == 2)
    found = []
    for scan in scans:
        if scan.lossy:
            message = f"label {scan.name} is {scan.lossy}, which is lossy and corrupts class ids"
            message += "; it is black and white except at edges" if mended else ""
            fix = "--threshold 128" if mended else "export the labels as PNG from their source"
            found.append(Fault("lossy-label", scan.name, message, fix))
    return found


def _doubts(evidence: LabelEvidence, label_mapping: LabelMapping, rule: LabelRule) -> list[Fault]:
    """Return signs of a wrong interpretation: mostly void labels, or a class that the read options empty."""
    found, read_options = [], evidence.read_options
    pixels, void = pixels_of(rule, evidence.scans)
    whole = int(pixels.sum()) + void
    is_changed = bool(read_options.map) or read_options.labels_start_at > 0
    plain = make_label_rule(label_mapping, dataclasses.replace(read_options, map=(), labels_start_at=-1), rule.by_color)
    without, void_without = pixels_of(plain, evidence.scans)
    is_most = void > HALF * whole or is_changed and void - void_without > pixels.max()
    if pixels.any() and is_most and not read_options.mostly_void:
        outcome = evidence.outcome(label_mapping, read_options, rule.by_color)
        message = f"{100 * void / whole:.1f} % of all label pixels are void: {outcome}"
        fix = "add their class to the class file, omit --map and --labels-start-at, or add --mostly-void if correct"
        choices: tuple[str, ...] = ()
        held = sum_counts(scan.values for scan in evidence.scans if scan.kind not in rule.by_color)
        if not is_changed and evidence.label_mapping is None and held.get(VOID):
            new = len(label_mapping.classes)
            other = mapping_of_values([new], 0)
            choices = (f"--map {VOID}={new}", "--mostly-void")
            message += (
                f"; {choices[0]}: {evidence.outcome(other, dataclasses.replace(read_options, map=((VOID, new),)))}"
            )
            fix = f"choose {choices[0]} if 255 is a class, such as the background, or --mostly-void if it is void"
        found.append(Fault("mostly-void", "", message, fix, choices))
    if (read_options.map or read_options.labels_start_at > 0) and evidence.label_mapping is not None:
        emptied = [
            name for name, old, new in zip(label_mapping.classes.names, without, pixels, strict=True) if old and not new
        ]
        if emptied and np.count_nonzero(pixels) < np.count_nonzero(without):  # else the classes are only shifted
            flags = "--map and --labels-start-at" if read_options.map and read_options.labels_start_at > 0 else ""
            flags = flags or ("--map" if read_options.map else f"--labels-start-at {read_options.labels_start_at}")
            message = f"{', '.join(emptied)} has pixels without {flags}, but none with it"
            fix = f"omit {flags}, or remove the class from {label_mapping.source}"
            found.append(Fault("emptied-class", label_mapping.source, message, fix))
    return found
