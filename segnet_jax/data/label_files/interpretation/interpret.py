"""What the values and colors in label files mean: the one reading that fits, or a fault that shows all that do."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

from segnet_jax.constants import VOID
from segnet_jax.data.label_files.interpretation.color_faults import choose_kinds, unknown_colors
from segnet_jax.data.label_files.interpretation.evidence import Folder, pixels_of
from segnet_jax.data.label_files.interpretation.label_values import values_without_table
from segnet_jax.data.label_files.interpretation.table_values import values_of_table
from segnet_jax.data.label_files.scan import some, total
from segnet_jax.data.labels.classes import ClassTable, distinct_colors
from segnet_jax.data.labels.label_mapping import OUTSIDE, LabelRule, Legend, rule_of
from segnet_jax.system.errors import Fault, UserError

HALF = 0.5
"""Fraction of void pixels above which labels are doubted."""


class Interpretation(NamedTuple):
    """How the label files of a folder are read.

    Attributes:
      legend: the classes.
      rule: of reading.
      doubts: what speaks against it.
    """

    legend: Legend
    rule: LabelRule
    doubts: tuple[Fault, ...]


def interpret(
    folder: Folder,
    default: Legend | None,
    fits_default: Callable[[Mapping[int, int]], bool],
    faults: list[Fault],
    notes: list[str],
) -> Interpretation | None:
    """Find the only reading of a folder's labels.

    Args:
      folder: what is known.
      default: the classes that the layout's own dataset has.
      fits_default: value -> pixels to whether the labels may be that dataset's.
      faults: grows by what is wrong, or by readings of which its owner must choose one.
      notes: grows by what its owner should know.

    Returns:
      The reading; None where there is none or several, with a fault.
    """
    scans, reading = folder.scans, folder.reading
    if not scans:
        return None
    if reading.threshold:
        return _thresholded(folder, faults)
    if any(scan.lossy for scan in scans):
        faults.extend(_lossy(folder))
        return None
    if folder.legend is None and default is not None:
        held = total(scan.values for scan in scans)
        if fits_default(held):
            folder = dataclasses.replace(folder, legend=default)
            notes.append(f"note: no class file: the classes are those of {default.source}")
        else:
            notes.append(
                f"note: the labels are not those of {default.source}, whose classes are not assumed: they hold "
                f"{', '.join(map(str, sorted(held)[:12])) or 'colors'}"
            )
    before = len(faults)
    by_color = choose_kinds(folder, faults)
    if len(faults) > before:
        return None
    if folder.legend is None:
        legend = values_without_table(folder, faults, notes)
    else:
        legend = folder.legend
        values_of_table(folder, by_color, faults)
        unknown_colors(folder, by_color, faults, notes)
    if legend is None or len(faults) > before:
        return None
    try:
        rule = rule_of(legend, reading, by_color)
    except UserError as error:
        faults.extend(error.faults)
        return None
    if any(rule.table[value] == OUTSIDE for scan in scans if scan.kind not in by_color for value in scan.values):
        raise AssertionError("a value that no fault speaks of means no class")
    return Interpretation(legend, rule, tuple(_doubts(folder, legend, rule)))


def _thresholded(folder: Folder, faults: list[Fault]) -> Interpretation | None:
    """Two classes by brightness."""
    reading, legend = folder.reading, folder.legend
    if legend is not None and len(legend.classes) != 2:
        what = f"--threshold {reading.threshold} makes two classes, and {legend.source} names {len(legend.classes)}"
        faults.append(Fault("threshold", legend.source, what, "leave --threshold out, or name two classes"))
        return None
    if legend is None:
        ids = ((0, 0), (1, 1), (VOID, VOID))
        legend = Legend("the threshold", ClassTable(("class 0", "class 1"), distinct_colors(3)[1:]), ids)
    dim = [scan for scan in folder.scans if 0 < scan.brightest < reading.threshold]
    if dim:
        highest = max(scan.brightest for scan in dim)
        what = (
            f"{some([scan.name for scan in dim])} have values up to {highest}, all below --threshold "
            f"{reading.threshold}: their second class would vanish"
        )
        faults.append(Fault("mixed-masks", dim[0].name, what, "save all masks alike"))
        return None
    rule = rule_of(legend, dataclasses.replace(reading, map=(), labels_start_at=-1))
    return Interpretation(legend, rule, ())


def _lossy(folder: Folder) -> list[Fault]:
    """JPEG labels: a threshold mends those of two classes."""
    scans = folder.scans
    dark = [scan for scan in scans if scan.is_bimodal and (scan.brightest == 0 or scan.brightest > 191)]
    two_valued = len(dark) == len(scans) and any(scan.brightest for scan in scans)
    mended = two_valued and (folder.legend is None or len(folder.legend.classes) == 2)
    found = []
    for scan in scans:
        if scan.lossy:
            what = f"label {scan.name} is {scan.lossy}, which is lossy: its class ids are ruined"
            what += "; it is black and white but for its edges" if mended else ""
            fix = "--threshold 128" if mended else "export PNG from the labels' source"
            found.append(Fault("lossy-label", scan.name, what, fix))
    return found


def _doubts(folder: Folder, legend: Legend, rule: LabelRule) -> list[Fault]:
    """What speaks against a reading: more void than not, or a class that the read options have emptied."""
    found, reading = [], folder.reading
    pixels, void = pixels_of(rule, folder.scans)
    whole = int(pixels.sum()) + void
    if pixels.any() and void > HALF * whole and not reading.mostly_void:
        told = folder.consequence(legend, reading, rule.by_color)
        what = f"{100 * void / whole:.1f} % of all label pixels are void: {told}"
        fix = (
            "name the class that they are, take --map and --labels-start-at back, or add --mostly-void if they are void"
        )
        found.append(Fault("mostly-void", "", what, fix))
    if (reading.map or reading.labels_start_at > 0) and folder.legend is not None:
        plain = rule_of(legend, dataclasses.replace(reading, map=(), labels_start_at=-1), rule.by_color)
        without, _ = pixels_of(plain, folder.scans)
        emptied = [
            name for name, old, new in zip(legend.classes.names, without, pixels, strict=True) if old and not new
        ]
        if emptied:
            flags = "--map and --labels-start-at" if reading.map and reading.labels_start_at > 0 else ""
            flags = flags or ("--map" if reading.map else f"--labels-start-at {reading.labels_start_at}")
            what = f"{', '.join(emptied)} has pixels without {flags}, and none with it"
            fix = f"take {flags} back, or leave the class out of {legend.source}"
            found.append(Fault("emptied-class", legend.source, what, fix))
    return found
