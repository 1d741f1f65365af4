"""Draft a class file from the content of label files."""

from collections.abc import Sequence

from segnet_jax.constants import VOID
from segnet_jax.data.label_files.decode_labels import MAX_MAPPED
from segnet_jax.data.label_files.interpretation.color_faults import palettes_disagree
from segnet_jax.data.label_files.scan import LabelScan, sum_counts
from segnet_jax.data.labels.classes import distinct_colors
from segnet_jax.data.labels.label_mapping import MAX_CLASSES


def draft_class_table(scans: Sequence[LabelScan], start: int) -> str:
    """Return a `classes.toml` for the content of label files, with generated names."""
    lines = ["# Change the names; `id` is the value, `color` the color (red, green, blue) in your label images."]
    colors = _colors_to_name(scans)
    if colors:
        entries = [f'name = "class {place}", color = {list(color)}' for place, color in enumerate(colors)]
    else:
        held = sum_counts(scan.values for scan in scans)
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
    lines.append("void = [255]  # values that are not classes; for colors: void_colors = [[0, 0, 0]]")
    return "\n".join(lines) + "\n"


def _colors_to_name(scans: Sequence[LabelScan]) -> list[tuple[int, int, int]]:
    """Return the colors that may be classes, most frequent first; empty for labels that store class ids."""
    by_color = [scan for scan in scans if scan.kind == "rgb" and not scan.values]
    by_color = [scan for scan in scans if scan.kind == "rgb"] if by_color else by_color
    if palettes_disagree(scans):
        by_color += [scan for scan in scans if scan.kind == "palette"]
    held = sum_counts(scan.colors for scan in by_color)
    solid = {each for scan in by_color for each in scan.solid if isinstance(each, tuple)}
    solid |= {scan.palette[value] for scan in by_color for value in scan.solid if value in scan.palette}
    solid |= {(value,) * 3 for scan in by_color if scan.kind == "rgb" and scan.values for value in scan.solid}
    ordered = sorted(held, key=lambda color: (-held[color], color))
    return [color for color in ordered if color in solid or len(ordered) <= MAX_MAPPED][:MAX_CLASSES]
