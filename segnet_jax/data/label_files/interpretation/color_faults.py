"""Decide which label files are read by color, and find faults in label colors."""

import dataclasses
from collections.abc import Mapping, Sequence

from segnet_jax.constants import VOID
from segnet_jax.data.images.picture_header import EXPORT_IDS
from segnet_jax.data.label_files.interpretation.evidence import LabelEvidence
from segnet_jax.data.label_files.scan import LabelScan, describe_files, describe_pixels, files_with, sum_counts
from segnet_jax.data.labels.classes import Color
from segnet_jax.data.labels.label_colors import is_mixture
from segnet_jax.data.labels.label_mapping import Kind, LabelMapping, make_label_rule
from segnet_jax.data.labels.void import OUTSIDE
from segnet_jax.system.errors import Fault, UserError, listed

_STRAY = 1e-3
"""Fraction of all pixels up to which a color in a single file may be an annotation error."""
_MAX_FAULTS = 20
_NEAR = 8  # difference per channel up to which two colors are meant to be the same


def choose_kinds(evidence: LabelEvidence, faults: list[Fault]) -> tuple[Kind, ...]:
    """Choose which kinds of label files are read by color: those whose colors are in the class file.

    Undecidable files, and palettes that contradict the class file or each other, are added to `faults`.
    """
    colors = dict(evidence.label_mapping.colors) if evidence.label_mapping and evidence.label_mapping.colors else None
    kinds: dict[Kind, list[LabelScan]] = {"grey": [], "palette": [], "rgb": []}
    for scan in evidence.scans:
        kinds[scan.kind].append(scan)
    chosen: list[Kind] = []
    if kinds["rgb"] and _rgb_by_color(kinds["rgb"], evidence, colors, faults):
        chosen.append("rgb")
    if kinds["palette"] and _palette_by_color(kinds["palette"], evidence, colors, faults):
        chosen.append("palette")
    if kinds["grey"] and _grey_by_color(kinds["grey"], evidence, colors, faults):
        chosen.append("grey")
    return tuple(chosen)


def _rgb_by_color(
    scans: Sequence[LabelScan], evidence: LabelEvidence, colors: dict | None, faults: list[Fault]
) -> bool:
    colored = [scan for scan in scans if not scan.values]
    if colored and colors is None:
        faults.extend(_without_colors(colored, evidence))
        return True
    if colored or colors is None:
        return bool(colored)
    if evidence.read_options.labels_as != "auto":
        return evidence.read_options.labels_as == "colors"
    held = sum_counts(scan.colors for scan in scans)
    if all(color in colors for color in held):
        return True
    # Three equal channels are class ids, unless the class file has some of these grays; then, a color is missing.
    return any(color in colors for color in held if color != (0, 0, 0))


def _without_colors(colored: Sequence[LabelScan], evidence: LabelEvidence) -> list[Fault]:
    if evidence.label_mapping is not None:
        source = evidence.label_mapping.source
        message = f"label {{}} is an 8-bit RGB image, but {source} has no colors, so class ids are expected"
        fix = f"add the colors to {source}, or {EXPORT_IDS}"
        return [Fault("color-label", scan.name, message.format(scan.name), fix) for scan in colored]
    held = describe_pixels(sum_counts(scan.colors for scan in colored))
    files = describe_files([scan.name for scan in colored])
    message = f"labels store colors, but there is no class file with colors: {held} in {files}"
    if len(colored) < len(evidence.scans):
        message += "; the other labels store values"
    return [Fault("colors-without-table", colored[0].name, message, evidence.class_file_command)]


def _grey_by_color(
    scans: Sequence[LabelScan], evidence: LabelEvidence, colors: dict | None, faults: list[Fault]
) -> bool:
    if colors is None:
        return False
    if evidence.read_options.labels_as != "auto":
        return evidence.read_options.labels_as == "colors"
    held = sum_counts(scan.values for scan in scans)
    if not all((value,) * 3 in colors for value in held):
        return False
    by_value = _means(evidence, held)
    by_color = {value: colors[(value,) * 3] for value in held}
    if by_value is not None and by_value != by_color and evidence.label_mapping.is_explicit:
        faults.append(_both(evidence, scans, "gray labels contain values that are both ids and gray colors in"))
    return True


def _means(evidence: LabelEvidence, values: Mapping[int, int]) -> dict[int, int] | None:
    """Return value -> class id from the class file, or None if a value is unknown."""
    try:
        table = make_label_rule(evidence.label_mapping, evidence.read_options).table
    except UserError:
        return None
    meant = {value: int(table[value]) for value in values}
    return None if OUTSIDE in meant.values() else meant


def _palette_by_color(
    scans: Sequence[LabelScan], evidence: LabelEvidence, colors: dict | None, faults: list[Fault]
) -> bool:
    labels_as = evidence.read_options.labels_as
    if colors is None and labels_as == "colors":
        held = sum_counts(scan.colors for scan in scans)
        message = f"--labels-as colors needs a class file with colors; the label palettes have {describe_pixels(held)}"
        faults.append(Fault("colors-without-table", scans[0].name, message, evidence.class_file_command))
        return True
    if labels_as != "auto":
        return labels_as == "colors"
    informative = [scan for scan in scans if not _is_ramp(scan.palette)]
    if not informative:
        return False
    if colors is None:
        if contradiction := _contradiction(informative):
            message = f"the palettes of the labels contradict each other: {contradiction}"
            fix = f"make a class file with colors: {evidence.class_file_command}"
            if evidence.label_mapping is not None:
                source = evidence.label_mapping.source
                fix = f"add the colors to {source}, or pass --labels-as values if only the indices count"
            faults.append(Fault("palettes-differ", informative[0].name, message, fix))
        return False
    used = {color for scan in informative for color in scan.colors}
    if used <= colors.keys():
        return True
    held = sum_counts(scan.values for scan in scans)
    if not {color for color in used if color in colors and color != (0, 0, 0)} and _means(evidence, held) is not None:
        faults.append(_both(evidence, informative, "the colors in the label palettes differ from those in"))
    return True


def _both(evidence: LabelEvidence, scans: Sequence[LabelScan], reason: str) -> Fault:
    """Return the fault that shows both interpretations, by value and by color."""
    outcomes = []
    for labels_as, kinds in (("values", ()), ("colors", ("grey", "palette", "rgb"))):
        read_options = dataclasses.replace(evidence.read_options, labels_as=labels_as)
        outcomes.append(f"--labels-as {labels_as}: {evidence.outcome(evidence.label_mapping, read_options, kinds)}")
    used, source = describe_pixels(sum_counts(scan.colors for scan in scans)), evidence.label_mapping.source
    files = describe_files([scan.name for scan in scans])
    message = f"{reason} {source} ({used} in {files}): {'; '.join(outcomes)}"
    fix = f"choose one of the two, or correct the colors in {source}"
    choices = ("--labels-as values", "--labels-as colors")
    return Fault("ambiguous-labels", scans[0].name, message, fix, choices)


def _is_ramp(palette: Mapping[int, Color]) -> bool:
    """Return whether a palette carries no information: gray values equal to the index, or a single color."""
    return all(color == (index,) * 3 for index, color in palette.items()) or (
        len(palette) > 1 and len(set(palette.values())) == 1
    )


def palettes_disagree(scans: Sequence[LabelScan]) -> bool:
    """Return whether an index has two colors, or a color two indices, in different palette files."""
    return bool(_contradiction([scan for scan in scans if scan.palette and not _is_ramp(scan.palette)]))


def _contradiction(scans: Sequence[LabelScan]) -> str:
    """Describe how palettes disagree; empty if they agree."""
    indices: dict[int, dict[Color, list[str]]] = {}
    colors: dict[Color, dict[int, list[str]]] = {}
    for scan in scans:
        for index, color in scan.palette.items():
            indices.setdefault(index, {}).setdefault(color, []).append(scan.name)
            colors.setdefault(color, {}).setdefault(index, []).append(scan.name)
    for kind, table in (("index", indices), ("color", colors)):
        for key, meanings in table.items():
            files = {name for names in meanings.values() for name in names}
            if len(meanings) > 1 and len(files) > max(map(len, meanings.values())):
                parts = [f"{meaning} in {describe_files(names)}" for meaning, names in list(meanings.items())[:3]]
                return f"{kind} {key} is {' and '.join(parts)}"
    return ""


# --- colors that are not in the class file ---


def with_void_index(evidence: LabelEvidence, notes: list[str]) -> LabelEvidence:
    """Read the color of palette index 255, as on Pascal VOC's borders, as void if the class file does not have it."""
    if evidence.label_mapping is None or not evidence.label_mapping.colors:
        return evidence
    known = dict(evidence.label_mapping.colors)
    palettes = [scan.palette for scan in evidence.scans if scan.kind == "palette"]
    elsewhere = {color for palette in palettes for index, color in palette.items() if index != VOID}
    border = {palette[VOID] for palette in palettes if VOID in palette} - elsewhere - known.keys()
    if not border:
        return evidence
    notes.append(f"note: index 255 of the labels, {listed([str(color) for color in sorted(border)])}, is read as void")
    colors = (*evidence.label_mapping.colors, *((color, VOID) for color in sorted(border)))
    return dataclasses.replace(evidence, label_mapping=dataclasses.replace(evidence.label_mapping, colors=colors))


def unknown_colors(evidence: LabelEvidence, by_color: Sequence[Kind], faults: list[Fault], notes: list[str]) -> None:
    """Find colors that are not in the class file: missing classes or anti-aliased edges.

    They are added to `faults`, or to `notes` if the read options ignore unknown colors.
    """
    scans = [scan for scan in evidence.scans if scan.kind in by_color]
    if not scans:
        return
    source = evidence.label_mapping.source
    known, held = dict(evidence.label_mapping.colors or ()), sum_counts(scan.colors for scan in scans)
    unknown = {color: pixels for color, pixels in held.items() if color not in known}
    if not unknown:
        return
    whole = sum(held.values())
    if evidence.read_options.unknown_color == "ignore":
        percent = 100 * sum(unknown.values()) / whole
        colors = describe_pixels(unknown)
        notes.append(f"note: --unknown-color ignore makes {percent:.2f} % of the pixels void: {colors}")
        return
    solid = {color for scan in scans for color in scan.solid if color in unknown} | {
        scan.palette[value] for scan in scans for value in scan.solid if value in scan.palette
    }
    solid |= {(value,) * 3 for scan in scans if scan.kind == "grey" for value in scan.solid}
    missing, doubtful, near = [], [], {}
    for color in sorted(unknown, key=lambda each: -unknown[each]):
        files = files_with(scans, color)
        is_between = is_mixture(color, known)
        if close := [each for each in known if max(abs(a - b) for a, b in zip(each, color, strict=True)) <= _NEAR]:
            near[color] = close[0]
        elif color not in solid and len(unknown) <= 2 and len(files) >= 3:
            doubtful.append(color)
        elif color in solid or not (is_between or len(files) == 1 and unknown[color] <= _STRAY * whole):
            missing.append(color)
    if any(color in solid for color in near) and (len(near) > 2 or not missing):
        color, close = max(near.items(), key=lambda item: unknown[item[0]])
        file = files_with(scans, color)[0]
        message = (
            f"{len(near)} colors are nearly those of {source}: {describe_pixels({color: unknown[color]})} in {file} is "
            f"nearly {close}"
        )
        fix = f"save the labels as PNG from their source, as JPEG changes colors, or correct the colors in {source}"
        faults.append(Fault("unknown-color", file, message, fix))
        return
    swapped = bool(missing) and all(color[::-1] in known for color in missing)
    for color in [*missing, *doubtful][:_MAX_FAULTS]:
        files = files_with(scans, color)
        line = f"`{line_for(evidence.label_mapping, color)}` in {source}"
        message = f"color {color} is not in {source}: {unknown[color]} px in {describe_files(files)}"
        if color in missing:
            fix = f"a class is missing: add {line}"
            if swapped:
                fix = f"{source} has it as blue, green, red: reorder the channels of its colors"
            choices: tuple[str, ...] = ()
            if color == (0, 0, 0):
                percent = 100 * unknown[color] / whole
                message += f"; it may be a class, such as the background, or void ({percent:.1f} % of the pixels)"
                fix, choices = f"choose one: add {line}, or --unknown-color ignore", ("--unknown-color ignore",)
            faults.append(Fault("unknown-color", files[0], message, fix, choices))
        else:
            percent = 100 * unknown[color] / whole
            message += f"; it is a class (add {line}) or an edge (--unknown-color ignore: {percent:.2f} % void)"
            faults.append(Fault("unknown-color", files[0], message, "choose one", ("--unknown-color ignore",)))
    if not missing and not doubtful:
        for scan in scans:
            mine = {color: pixels for color, pixels in scan.colors.items() if color in unknown}
            if mine:
                message = f"label {scan.name} contains mixtures of the colors in {source}, as on smoothed edges: "
                message += describe_pixels(mine)
                faults.append(Fault("unknown-color", scan.name, message, "--unknown-color ignore"))


def line_for(label_mapping: LabelMapping, color: Color) -> str:
    """Return the line that adds a color to a class file, with a placeholder for the name."""
    red, green, blue = color
    if label_mapping.source.endswith(".csv"):
        return f"NAME,{red},{green},{blue}"
    if label_mapping.source == "labelmap.txt":
        return f"NAME:{red},{green},{blue}::"
    if label_mapping.source == "classes.toml":
        return f'{{ name = "NAME", color = [{red}, {green}, {blue}] }}'
    if label_mapping.source.endswith(".json"):
        return f'"NAME": [{red}, {green}, {blue}]'
    return f"{red} {green} {blue} NAME"
