"""Labels in colors: which kinds of files are read by their colors, and what speaks against it."""

import dataclasses
from collections.abc import Mapping, Sequence

from segnet_jax.data.images.picture_header import EXPORT_IDS
from segnet_jax.data.label_files.interpretation.evidence import Folder
from segnet_jax.data.label_files.scan import LabelScan, files_with, in_pixels, some, total
from segnet_jax.data.labels.classes import Color
from segnet_jax.data.labels.label_colors import is_mixture
from segnet_jax.data.labels.label_mapping import OUTSIDE, Kind, Legend, rule_of
from segnet_jax.system.errors import Fault, UserError

_STRAY = 1e-3
"""Fraction of all pixels up to which a color in a single file may be a slip of the pen."""
_MOST_FAULTS = 20


def choose_kinds(folder: Folder, faults: list[Fault]) -> tuple[Kind, ...]:
    """Choose which kinds of label files are read by their colors.

    Colors count where a class table has colors and the files' colors are among them; of a palette file its own palette.

    Args:
      folder: what is known.
      faults: grows by files of which it cannot be said, and palettes that contradict the table or each other.
    """
    colors = dict(folder.legend.colors) if folder.legend and folder.legend.colors else None
    kinds: dict[Kind, list[LabelScan]] = {"grey": [], "palette": [], "rgb": []}
    for scan in folder.scans:
        kinds[scan.kind].append(scan)
    chosen: list[Kind] = []
    if kinds["rgb"] and _rgb_by_color(kinds["rgb"], folder, colors, faults):
        chosen.append("rgb")
    if kinds["palette"] and _palette_by_color(kinds["palette"], folder, colors, faults):
        chosen.append("palette")
    if kinds["grey"] and _grey_by_color(kinds["grey"], folder, colors, faults):
        chosen.append("grey")
    return tuple(chosen)


def _rgb_by_color(scans: Sequence[LabelScan], folder: Folder, colors: dict | None, faults: list[Fault]) -> bool:
    colored = [scan for scan in scans if not scan.values]
    if colored and colors is None:
        faults.extend(_without_colors(colored, folder))
        return True
    if colored or colors is None:
        return bool(colored)
    if folder.reading.labels_as != "auto":
        return folder.reading.labels_as == "colors"
    held = total(scan.colors for scan in scans)
    if all(color in colors for color in held):
        return True
    # Class ids written as three equal channels, unless the table has greys of them: then a color is missing.
    return any(color in colors for color in held if color != (0, 0, 0))


def _without_colors(colored: Sequence[LabelScan], folder: Folder) -> list[Fault]:
    if folder.legend is not None:
        what = "label {} is an 8-bit RGB picture, and {} names no colors: class ids are expected"
        fix = f"add the colors to {folder.legend.source}, or {EXPORT_IDS}"
        return [Fault("color-label", scan.name, what.format(scan.name, folder.legend.source), fix) for scan in colored]
    held = total(scan.colors for scan in colored)
    what = f"label {colored[0].name} and its like are pictures in colors that no class table names: {in_pixels(held)}"
    if len(colored) < len(folder.scans):
        what += f"; these are {some([scan.name for scan in colored])}, and the other labels hold values"
    return [Fault("colors-without-table", colored[0].name, what, folder.how_to_name)]


def _grey_by_color(scans: Sequence[LabelScan], folder: Folder, colors: dict | None, faults: list[Fault]) -> bool:
    if colors is None:
        return False
    if folder.reading.labels_as != "auto":
        return folder.reading.labels_as == "colors"
    held = total(scan.values for scan in scans)
    if not all((value,) * 3 in colors for value in held):
        return False
    by_value = _means(folder, held)
    by_color = {value: colors[(value,) * 3] for value in held}
    if by_value is not None and by_value != by_color and folder.legend.is_explicit:
        faults.append(_both(folder, scans, "grey labels hold values that are ids and greys of"))
    return True


def _means(folder: Folder, values: Mapping[int, int]) -> dict[int, int] | None:
    """What values mean by the ids of the table; None where some mean nothing."""
    try:
        table = rule_of(folder.legend, folder.reading).table
    except UserError:
        return None
    meant = {value: int(table[value]) for value in values}
    return None if OUTSIDE in meant.values() else meant


def _palette_by_color(scans: Sequence[LabelScan], folder: Folder, colors: dict | None, faults: list[Fault]) -> bool:
    labels_as = folder.reading.labels_as
    if colors is None and labels_as == "colors":
        held = total(scan.colors for scan in scans)
        what = f"--labels-as colors needs a class table with colors; the palettes of the labels hold {in_pixels(held)}"
        faults.append(Fault("colors-without-table", scans[0].name, what, folder.how_to_name))
        return True
    if labels_as != "auto":
        return labels_as == "colors"
    telling = [scan for scan in scans if not _is_ramp(scan.palette)]
    if not telling:
        return False
    if colors is None:
        if contradiction := _contradiction(telling):
            what = f"the palettes of the labels contradict each other: {contradiction}"
            fix = f"read them by color, which takes a class table: {folder.how_to_name}"
            if folder.legend is not None:
                fix = f"add the colors to {folder.legend.source}, or --labels-as values if only the indices count"
            faults.append(Fault("palettes-differ", telling[0].name, what, fix))
        return False
    used = {color for scan in telling for color in scan.colors}
    if used <= colors.keys():
        return True
    held = total(scan.values for scan in scans)
    if not {color for color in used if color in colors and color != (0, 0, 0)} and _means(folder, held) is not None:
        faults.append(_both(folder, telling, "the palettes of labels hold other colors than"))
    return True


def _both(folder: Folder, scans: Sequence[LabelScan], why: str) -> Fault:
    """The fault that shows both readings of label files, by values and by colors."""
    told = []
    for labels_as, kinds in (("values", ()), ("colors", ("grey", "palette", "rgb"))):
        reading = dataclasses.replace(folder.reading, labels_as=labels_as)
        told.append(f"--labels-as {labels_as}: {folder.consequence(folder.legend, reading, kinds)}")
    used = total(scan.colors for scan in scans)
    what = (
        f"{why} {folder.legend.source} ({in_pixels(used)} in {some([scan.name for scan in scans])}): {'; '.join(told)}"
    )
    fix = f"choose one of the two, or correct the colors in {folder.legend.source}"
    choices = ("--labels-as values", "--labels-as colors")
    return Fault("ambiguous-labels", scans[0].name, what, fix, choices)


def _is_ramp(palette: Mapping[int, Color]) -> bool:
    """Whether a palette says nothing: its colors are the grey of the index, or all alike."""
    return all(color == (index,) * 3 for index, color in palette.items()) or (
        len(palette) > 1 and len(set(palette.values())) == 1
    )


def palettes_disagree(scans: Sequence[LabelScan]) -> bool:
    """Whether the same index has another color in another palette file, or the same color another index."""
    return bool(_contradiction([scan for scan in scans if scan.palette and not _is_ramp(scan.palette)]))


def _contradiction(scans: Sequence[LabelScan]) -> str:
    """How palettes disagree, in words; empty where they agree."""
    indices: dict[int, dict[Color, list[str]]] = {}
    colors: dict[Color, dict[int, list[str]]] = {}
    for scan in scans:
        for index, color in scan.palette.items():
            indices.setdefault(index, {}).setdefault(color, []).append(scan.name)
            colors.setdefault(color, {}).setdefault(index, []).append(scan.name)
    for what, found in (("index", indices), ("color", colors)):
        for each, meanings in found.items():
            files = {name for names in meanings.values() for name in names}
            if len(meanings) > 1 and len(files) > max(map(len, meanings.values())):
                told = [f"{meaning} in {some(names)}" for meaning, names in list(meanings.items())[:3]]
                return f"{what} {each} is {' and '.join(told)}"
    return ""


# --- colors that are in no line of the table ---


def unknown_colors(folder: Folder, by_color: Sequence[Kind], faults: list[Fault], notes: list[str]) -> None:
    """Look for colors that the table does not name: classes that it lacks, or smoothed edges.

    Args:
      folder: what is known; its class table has colors, or no kind is read by them.
      by_color: kinds of files that are read by their colors.
      faults: grows, unless unknown colors are void by the read options.
      notes: grows by what becomes void.
    """
    scans = [scan for scan in folder.scans if scan.kind in by_color]
    if not scans:
        return
    known, held = dict(folder.legend.colors or ()), total(scan.colors for scan in scans)
    unknown = {color: pixels for color, pixels in held.items() if color not in known}
    if not unknown:
        return
    whole = sum(held.values())
    if folder.reading.unknown_color == "ignore":
        share = 100 * sum(unknown.values()) / whole
        notes.append(f"note: --unknown-color ignore makes {share:.2f} % of the pixels void: {in_pixels(unknown)}")
        return
    solid = {color for scan in scans for color in scan.solid if color in unknown} | {
        scan.palette[value] for scan in scans for value in scan.solid if value in scan.palette
    }
    solid |= {(value,) * 3 for scan in scans if scan.kind == "grey" for value in scan.solid}
    missing, doubtful = [], []
    for color in sorted(unknown, key=lambda each: -unknown[each]):
        files = files_with(scans, color)
        is_between = is_mixture(color, known)
        if color in solid or not (is_between or len(files) == 1 and unknown[color] <= _STRAY * whole):
            missing.append(color)
        elif len(unknown) <= 2 and len(files) >= 3:
            doubtful.append(color)
    for color in [*missing, *doubtful][:_MOST_FAULTS]:
        files = files_with(scans, color)
        line = f"`{line_for(folder.legend, color)}` in {folder.legend.source}"
        what = f"{color} is in no line of {folder.legend.source}: {unknown[color]} px in {some(files)}"
        if color in missing:
            fix = f"a class is missing: add {line}"
            faults.append(Fault("unknown-color", files[0], what, fix))
        else:
            share = 100 * unknown[color] / whole
            what += f"; a class (add {line}), or smoothed edges (--unknown-color ignore: {share:.2f} % become void)"
            faults.append(Fault("unknown-color", files[0], what, "choose one", ("--unknown-color ignore",)))
    if not missing and not doubtful:
        for scan in scans:
            mine = {color: pixels for color, pixels in scan.colors.items() if color in unknown}
            if mine:
                what = f"label {scan.name} holds colors between those of {folder.legend.source}, as smoothed edges do: "
                faults.append(Fault("unknown-color", scan.name, what + in_pixels(mine), "--unknown-color ignore"))


def line_for(legend: Legend, color: Color) -> str:
    """The line that names a color in a class file, with a name to be changed."""
    red, green, blue = color
    if legend.source.endswith(".csv"):
        return f"NAME,{red},{green},{blue}"
    if legend.source == "labelmap.txt":
        return f"NAME:{red},{green},{blue}::"
    if legend.source == "classes.toml":
        return f'{{ name = "NAME", color = [{red}, {green}, {blue}] }}'
    if legend.source.endswith(".json"):
        return f'"NAME": [{red}, {green}, {blue}]'
    return f"{red} {green} {blue} NAME"
