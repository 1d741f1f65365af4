"""The pictures that a run leaves: its first batch, its fixed validation images, and the curve of its training."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.metrics.confusion import count_confusion, scores
from segnet_jax.reporting import sheet
from segnet_jax.reporting.colors import colorize, overlay
from segnet_jax.reporting.overlay import rgb_png
from segnet_jax.reporting.tables import SPLIT_WORDS, percent
from segnet_jax.system.files import atomic_write_bytes

_MAX_IMAGES, _COLUMNS = 8, 4  # of a batch
_RIGHT, _WRONG, _UNKNOWN = (236, 236, 236), (214, 39, 40), (150, 150, 150)


def batch_picture(
    images: np.ndarray,
    labels: np.ndarray,
    classes: ClassTable,
    path: str | os.PathLike,
    title: str,
    most: int = _MAX_IMAGES,
) -> None:
    """Draws the first images of a batch as the network gets them, each over itself with its label laid over it.

    Args:
      images: uint8 [N,H,W,3] RGB.
      labels: uint8 [N,H,W] of class ids or VOID.
      classes: names and colours.
      path: the PNG to write.
      title: the sheet's heading.
      most: images to draw.
    """
    images, labels = images[:most], labels[:most]
    rows = []
    for start in range(0, len(images), _COLUMNS):
        some = slice(start, start + _COLUMNS)
        rows += [sheet.panel_strip(images[some]), sheet.panel_strip(overlay(images[some], labels[some], classes))]
    width = max(rows[0].width, sheet.MIN_WIDTH)
    heading = sheet.text_strip([title], width, scale=1.3, bold=True)
    note = sheet.text_strip(["Each image, and beneath it its label; void is not coloured."], width)
    key = sheet.key_strip(list(zip(classes.names, classes.colors, strict=True)), width)
    atomic_write_bytes(path, sheet.sheet_png([heading, note, *rows, sheet.space_strip(4), key]))


def stacked(pictures: Sequence[np.ndarray]) -> bytes:
    """Put pictures, uint8 [H,W,3], one below the other on white, as a PNG."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(each, ((0, 0), (0, width - each.shape[1]), (0, 0)), constant_values=255) for each in pictures]
    return rgb_png(np.concatenate(padded))


def prediction_pictures(
    images: np.ndarray | None,
    labels: np.ndarray,
    predictions: np.ndarray,
    names: Sequence[str],
    classes: ClassTable,
    folder: str | os.PathLike,
    step: int,
    split: str,
) -> pathlib.Path:
    """Draws a row for each image: image, ground truth, prediction, errors, and its own scores above.

    Args:
      images: uint8 [N,H,W,3] RGB; None leaves them out, where photographs must not be passed on.
      labels: uint8 [N,H,W] of class ids or VOID.
      predictions: uint8 [N,H,W] of class ids.
      names: of the images.
      classes: names and colours.
      folder: gets `step_0000123.png` and the same picture as `latest.png`; made where it is missing.
      step: finished steps.
      split: that they are of.

    Returns:
      The path of the picture.
    """
    rows = []
    for number, (label, prediction, name) in enumerate(zip(labels, predictions, names, strict=True)):
        panels = [colorize(label, classes), colorize(prediction, classes), error_map(label, prediction)]
        if images is not None:
            panels.insert(0, images[number])
        short = name if len(name) <= 40 else f"{name[:39]}…"
        rows.append((sheet.panel_strip(panels), f"{short}:  {_caption(label, prediction, classes)}"))
    width = rows[0][0].width
    strips = [
        sheet.text_strip([f"{SPLIT_WORDS[split]} images after step {step:,}"], width, scale=1.3, bold=True),
        sheet.text_strip(["image"] * (images is not None) + ["ground truth", "prediction", "errors"], width, bold=True),
    ]
    for panels, caption in rows:
        strips += [panels, sheet.text_strip([caption], width), sheet.space_strip(6)]
    strips += [
        sheet.key_strip([*zip(classes.names, classes.colors, strict=True), ("void", (0, 0, 0))], width),
        sheet.key_strip([("right", _RIGHT), ("wrong", _WRONG), ("void, not scored", _UNKNOWN)], width),
    ]
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:07}.png"
    picture = sheet.sheet_png(strips)
    atomic_write_bytes(path, picture)
    atomic_write_bytes(folder / "latest.png", picture)
    return path


def error_map(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Paints right pixels pale, wrong ones red and VOID ones grey.

    Args:
      label: uint8 [...,H,W] of class ids or VOID.
      prediction: uint8 [...,H,W] of class ids.

    Returns:
      uint8 [...,H,W,3] RGB.
    """
    picture = np.where((label == prediction)[..., None], np.uint8(_RIGHT), np.uint8(_WRONG))
    return np.where((label == VOID)[..., None], np.uint8(_UNKNOWN), picture)


def _caption(label: np.ndarray, prediction: np.ndarray, classes: ClassTable) -> str:
    if (label == VOID).all():
        return "no labelled pixel"
    found = scores(count_confusion(label, prediction, len(classes)))
    lowest = int(np.nanargmin(found.iou))
    return (
        f"mIoU {percent(found.miou)} over {len(classes) - len(found.absent)} classes, "
        f"accuracy {percent(found.global_accuracy)}, lowest IoU {classes.names[lowest]} {percent(found.iou[lowest])}"
    )
