"""Determine the classes of masks of one class each, and what overlaps and pixels in no mask are."""

import dataclasses
import shlex
import unicodedata
from collections.abc import Mapping, Sequence

from segnet_jax.constants import VOID
from segnet_jax.data.label_files.class_masks import MaskScan
from segnet_jax.data.label_files.interpretation.evidence import HALF, Interpretation
from segnet_jax.data.label_files.interpretation.table_values import BACKGROUND_NAMES
from segnet_jax.data.label_files.scan import describe_files, sum_counts
from segnet_jax.data.labels.classes import ClassTable, distinct_colors
from segnet_jax.data.labels.label_mapping import MAX_CLASSES, LabelMapping, LabelRule
from segnet_jax.data.labels.read_options import DEFAULTS, ReadOptions
from segnet_jax.data.labels.void import VOID_NAMES
from segnet_jax.nn.label_bits import MAX_CLASSES as MAX_LABELS
from segnet_jax.system.did_you_mean import nearest_hint
from segnet_jax.system.errors import Fault, listed, shown
from segnet_jax.system.flag_names import option_of

BACKGROUND = "background"
_GAPS = 0.1
"""Fraction of pixels in no mask below which these may be gaps between masks rather than a background."""
_OF_VALUES = ("map", "labels_start_at", "labels_as", "unknown_color")
_MAX_FAULTS = 20
_MAX_LETTERS = 100  # of a class name


def interpret_masks(
    scans: Sequence[MaskScan],
    names: Sequence[str],
    table: LabelMapping | None,
    read_options: ReadOptions,
    faults: list[Fault],
    notes: list[str],
) -> Interpretation | None:
    """Find the only reading of masks of one class each.

    Args:
      scans: scans of all images.
      names: the classes named by files or folders.
      table: the classes of the class file; None without one.
      read_options: how the masks are read.
      faults: list to extend with errors and readings to choose from.
      notes: list to extend with lines for the log.

    Returns:
      The interpretation, or None with a fault if there is not exactly one.
    """
    before = len(faults)
    faults += _flag_faults(names, read_options)
    ids = _ids(names, table, faults)
    if len(faults) > before or not scans:
        return None
    multi_label = read_options.multi_label
    faults += [] if multi_label else _overlaps(scans, read_options)
    background = None if multi_label else _background(scans, names, table, read_options, faults)
    if len(faults) > before:
        return None
    label_mapping, masks, unmasked = _classes(ids, table, background, multi_label)
    if multi_label and len(label_mapping.classes) > MAX_LABELS:
        message = f"--multi-label takes at most {MAX_LABELS} classes, but there are {len(label_mapping.classes)}"
        faults.append(Fault("too-many-classes", "", message, "choose fewer by --label-files, or merge some of them"))
        return None
    if not table and len(label_mapping.classes) > MAX_CLASSES:
        message = f"the masks have {len(ids)} classes, over the limit of {MAX_CLASSES}"
        faults.append(Fault("no-class-ids", scans[0].name, message, "choose fewer by --label-files"))
        return None
    if len(label_mapping.classes) < 2 and not multi_label:
        message = f"all masks are of one class, {listed([*names])}, and there is no other, so there is nothing to learn"
        faults.append(Fault("one-class", scans[0].name, message, "label a second class, such as the background"))
        return None
    order = read_options.mask_order
    rule = LabelRule(
        len(label_mapping.classes),
        label_mapping.ids,
        threshold=read_options.threshold,
        masks=masks,
        mask_order=order,
        unmasked=unmasked,
        multi_label=multi_label,
    )
    if multi_label:
        rest = "have none of the classes; a pixel has all classes of its masks"
    else:
        rest = "are void" if unmasked == VOID else f"are {label_mapping.classes.names[unmasked]}"
    notes.append(f"note: masks of one class each: {listed([*names])}; {_uncovered(scans)} in no mask {rest}")
    doubts = _doubts(scans, ids, unmasked, read_options)
    return Interpretation(label_mapping, rule, tuple(doubts))


def _flag_faults(names: Sequence[str], read_options: ReadOptions) -> list[Fault]:
    """Return faults for flags that masks of one class each cannot have, and unknown names in `--mask-order`."""
    found = []
    for name in _OF_VALUES:
        if getattr(read_options, name) != getattr(DEFAULTS, name):
            message = f"{option_of(name)} is for labels of all classes, but the folder has masks of one class each"
            found.append(Fault("mask-per-class", "", message, f"omit {option_of(name)}"))
    if read_options.multi_label and (read_options.mask_order or read_options.unmasked != "auto"):
        message = "--multi-label keeps overlaps and pixels without a class, which --mask-order and --unmasked decide"
        found.append(Fault("mask-per-class", "", message, "omit --mask-order and --unmasked"))
    for name in read_options.mask_order:
        if name not in names:
            message = f"--mask-order has {name}, but there are no masks of it{nearest_hint(name, names)}"
            found.append(Fault("unknown-mask", "", message, f"use names of {listed([*names])}"))
    return found


def _plain(name: str) -> str:
    """Return a class name for comparison with the class file."""
    composed = unicodedata.normalize("NFC", name).casefold()
    return " ".join(composed.replace("_", " ").replace("-", " ").split())


def _ids(names: Sequence[str], table: LabelMapping | None, faults: list[Fault]) -> dict[str, int]:
    """Return the class id of each mask, or VOID; without a class file, those of the sorted names."""
    for name in names:
        if not name.isprintable() or len(name) > _MAX_LETTERS:
            message = (
                f"masks are called {shown(name[:40])}, which is not a name of 1 to {_MAX_LETTERS} printable characters"
            )
            faults.append(Fault("unknown-mask", "", message, "rename them"))
    plain: dict[str, list[str]] = {}
    for name in names:
        plain.setdefault(_plain(name), []).append(name)
    for alike in plain.values():
        if len(alike) > 1:
            message = f"the masks of {listed(alike)} have the same class name but for its spelling"
            faults.append(Fault("unknown-mask", "", message, "give them one name"))
    if table is None:
        classes = [name for name in names if name.lower() not in VOID_NAMES]
        return {name: classes.index(name) if name in classes else VOID for name in names}
    known = {_plain(name): class_id for class_id, name in enumerate(table.classes.names)}
    known |= {name: VOID for name in VOID_NAMES if name not in known}
    ids = {}
    for name in names:
        if _plain(name) in known:
            ids[name] = known[_plain(name)]
        elif name.lower() in VOID_NAMES:
            ids[name] = VOID
        else:
            message = (
                f"there are masks of {name}, which is not in {table.source}{nearest_hint(name, table.classes.names)}"
            )
            faults.append(
                Fault("unknown-mask", table.source, message, f"add it to {table.source}, or rename the masks")
            )
    return ids


def _overlaps(scans: Sequence[MaskScan], read_options: ReadOptions) -> list[Fault]:
    """Return a fault for each pair of classes whose masks overlap and have no order."""
    found = []
    totals = sum_counts(scan.overlaps for scan in scans)
    pixels, whole = sum_counts(scan.pixels for scan in scans), sum(scan.total for scan in scans)
    totals = {pair: count for pair, count in totals.items() if not {*pair} <= {*read_options.mask_order}}
    classes = sorted({name for pair in totals for name in pair})
    for (first, second), count in sorted(totals.items(), key=lambda item: -item[1])[:_MAX_FAULTS]:
        files = [scan.name for scan in scans if (first, second) in scan.overlaps]
        message = f"the masks of {first} and {second} overlap in {count} pixels of {describe_files(files)}"
        choices: tuple[str, ...] = ()
        fix = f"state an order of {listed(classes)}, from below to the top: --mask-order NAME NAME ..."
        if len(totals) == 1 and not read_options.mask_order:
            outcomes = []
            for below, top in ((first, second), (second, first)):
                choices += (f"--mask-order {shlex.quote(below)} {shlex.quote(top)}",)
                outcome = f"{below} {_percent(pixels[below] - count, whole)}, {top} {_percent(pixels[top], whole)}"
                outcomes.append(f"{choices[-1]}: {outcome}")
            message = f"{message}: {'; '.join(outcomes)}"
            fix = "choose which class covers the other, or --multi-label if such pixels have both, or correct the masks"
        found.append(Fault("overlapping-masks", files[0], message, fix, choices))
    return found


def _percent(pixels: int, whole: int) -> str:
    return f"{100 * pixels / max(1, whole):.1f} %"


def _uncovered(scans: Sequence[MaskScan]) -> str:
    uncovered, whole = sum(scan.uncovered for scan in scans), sum(scan.total for scan in scans)
    return f"{uncovered} pixels ({_percent(uncovered, whole)})"


def _background(
    scans: Sequence[MaskScan],
    names: Sequence[str],
    table: LabelMapping | None,
    read_options: ReadOptions,
    faults: list[Fault],
) -> str | None:
    """Return the class of pixels in no mask: an existing or a new one, or None for void; extend `faults` if unclear."""
    listed_names = [*names] if table is None else [*table.classes.names]
    present = {_plain(name) for name in names}
    rests = [name for name in listed_names if name.lower() in BACKGROUND_NAMES - VOID_NAMES]
    rest = next((name for name in rests if _plain(name) not in present), next(iter(rests), None))
    uncovered, whole = sum(scan.uncovered for scan in scans), sum(scan.total for scan in scans)
    if read_options.unmasked == "void" or read_options.unmasked == "auto" and not uncovered:
        return None
    if read_options.unmasked == "background":
        if rest is None and table is not None:
            message = f"--unmasked background needs a background class, which {table.source} does not have"
            faults.append(Fault("bad-class-table", table.source, message, f"add `background` to {table.source}"))
        return rest or BACKGROUND
    has_void = any(name.lower() in VOID_NAMES for name in names)
    is_one = len({name for name in names if name.lower() not in VOID_NAMES}) == 1
    if rest is not None and _plain(rest) in present:
        reason = f"there are masks of {rest}, but pixels in no mask too"
    elif rest is None and table is not None:
        reason = f"{table.source} has no background"
    elif rest is None and not has_void and not is_one and uncovered < _GAPS * whole:
        reason = "they may be a class of their own, or gaps between the masks"
    else:
        return rest or BACKGROUND
    pixels = sum_counts(scan.pixels for scan in scans)
    held = [f"{name} {_percent(pixels[name], whole)}" for name in names if name != rest and name in pixels][:6]
    as_class = uncovered + (pixels.get(rest, 0) if rest else 0)
    with_void = [f"{rest} {_percent(pixels[rest], whole)}"] if rest in pixels else []
    readings = {
        "--unmasked background": [*held, f"{rest or BACKGROUND} {_percent(as_class, whole)}"],
        "--unmasked void": [*held, *with_void, f"void {_percent(uncovered, whole)}"],
    }
    if table is not None and rest is None:
        readings = {"--unmasked void": readings["--unmasked void"]}
    message = f"{_uncovered(scans)} are in no mask, and what they are is ambiguous: {reason}; "
    message += "; ".join(f"{flags}: {', '.join(outcome)}" for flags, outcome in readings.items())
    fix = "choose one of the two"
    if table is not None and rest is None:
        outcome = f"{', '.join(held)}, background {_percent(uncovered, whole)}"
        message += f"; with `background` in {table.source}: {outcome}"
        fix = f"choose --unmasked void, or add `background` to {table.source}"
    faults.append(Fault("ambiguous-labels", scans[0].name, message, fix, tuple(readings)))
    return None


def _classes(
    ids: Mapping[str, int], table: LabelMapping | None, background: str | None, multi_label: bool
) -> tuple[LabelMapping, tuple[tuple[str, int], ...], int]:
    """Return the classes, the class id of each mask, and that of pixels in no mask.

    A new background is class 0, before the others in the order of their names.
    """
    if table is not None:
        classes, source = table.classes, table.source
        unmasked = VOID if background is None else classes.names.index(background)
        masks = tuple(ids.items())
    else:
        named = [name for name, class_id in ids.items() if class_id != VOID]
        if background is not None and background not in named:
            named = [background, *named]
        classes, source = ClassTable(tuple(named), distinct_colors(len(named) + 1)[1:]), "the names of the masks"
        masks = tuple((name, VOID if class_id == VOID else named.index(name)) for name, class_id in ids.items())
        unmasked = VOID if background is None else named.index(background)
    classes = dataclasses.replace(classes, multi_label=multi_label)
    pairs = (*((class_id, class_id) for class_id in range(len(classes))), (VOID, VOID))
    return LabelMapping(source, classes, pairs), masks, unmasked


def _doubts(scans: Sequence[MaskScan], ids: Mapping[str, int], unmasked: int, read_options: ReadOptions) -> list[Fault]:
    """Return a fault if most pixels are void."""
    pixels, whole = sum_counts(scan.pixels for scan in scans), sum(scan.total for scan in scans)
    void = sum(count for name, count in pixels.items() if ids[name] == VOID)
    void += sum(scan.uncovered for scan in scans) if unmasked == VOID and not read_options.multi_label else 0
    if void <= HALF * whole or read_options.mostly_void:
        return []
    if read_options.multi_label:  # pixels in no mask have no class, which is not void
        message = f"{_percent(void, whole)} of all label pixels are void: they are in a mask of a void class"
        return [Fault("mostly-void", "", message, "correct these masks, or add --mostly-void if they are right")]
    message = f"{_percent(void, whole)} of all label pixels are void: they are in no mask, or in one of a void class"
    return [Fault("mostly-void", "", message, "pass --unmasked background, or add --mostly-void if correct")]
