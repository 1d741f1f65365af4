"""Pictures of batches and predictions, with labels, errors and color keys."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.metrics.confusion import count_confusion, scores
from segnet_jax.reporting import sheet
from segnet_jax.reporting.class_key import key_strip
from segnet_jax.reporting.colors import colorize, displayable, hatch, overlay
from segnet_jax.reporting.tables import SPLIT_WORDS, percent
from segnet_jax.system import untrusted_files
from segnet_jax.system.files import atomic_write_bytes, check_place

_MAX_IMAGES, _COLUMNS = 8, 4
_HATCH = 10  # pixels between the stripes of void
_CORRECT, _WRONG, _VOID = (236, 236, 236), (214, 39, 40), (150, 150, 150)


def batch_picture(
    images: np.ndarray,
    labels: np.ndarray,
    classes: ClassTable,
    path: str | os.PathLike,
    title: str,
    max_images: int = _MAX_IMAGES,
    asked_for: bool = False,
    names: Sequence[str] = (),
    inside: np.ndarray | None = None,
) -> None:
    """Draw the first images of a batch as the network gets them, each above its label overlay, with void hatched.

    Args:
      images: uint8 or uint16 [N,H,W,C].
      labels: uint8 [N,H,W] of class ids or VOID.
      classes: names and colors.
      path: the PNG to write.
      title: heading of the picture.
      max_images: number of images to draw.
      asked_for: whether a flag named the path.
      names: captions of the images, if any.
      inside: bool [N,H,W], the pixels that are not padding; None if there is none.
    """
    images, labels = displayable(images[:max_images]), labels[:max_images]
    height, width = images.shape[1:3]
    scale = sheet.panel_scale(height, width)
    if scale > 1:  # before hatching, so that the stripes stay fine
        images, labels = (each.repeat(scale, axis=1).repeat(scale, axis=2) for each in (images, labels))
        inside = None if inside is None else inside.repeat(scale, axis=1).repeat(scale, axis=2)
    overlays = hatch(overlay(images, labels, classes), labels == VOID, round(_HATCH / min(scale, 1)))
    if inside is not None:
        images, overlays = (np.where(inside[..., None], each, np.uint8(sheet.PAPER)) for each in (images, overlays))
    rows = []
    for start in range(0, len(images), _COLUMNS):
        row = slice(start, start + _COLUMNS)
        rows += [sheet.panel_strip(images[row]), sheet.panel_strip(overlays[row])]
        if names:
            captions = [*names[row], *[""] * (_COLUMNS - len(names[row]))][: len(images)]  # one font size in all rows
            rows += [sheet.text_strip(captions, rows[0].width, keep_end=True), sheet.space_strip(4)]
    width = max(rows[0].width, sheet.MIN_WIDTH)
    heading = sheet.text_strip([title], width, scale=1.3, bold=True)
    note = sheet.text_strip(["Each image above its label overlay; void is hatched."], width)
    key = key_strip([*zip(classes.names, classes.colors, strict=True), ("void, not used", None)], width)
    atomic_write_bytes(path, sheet.sheet_png([heading, note, *rows, sheet.space_strip(4), key], asked_for))


def prediction_pictures(
    images: np.ndarray | None,
    labels: np.ndarray,
    predictions: np.ndarray,
    names: Sequence[str],
    classes: ClassTable,
    folder: str | os.PathLike,
    step: int,
    split: str,
    asked_for: bool = False,
) -> pathlib.Path:
    """Draw one row per image: image, ground truth, prediction and errors, with the image's scores as a caption.

    Args:
      images: uint8 or uint16 [N,H,W,C]; None leaves them out, for photographs that must not be published.
      labels: uint8 [N,H,W] of class ids or VOID.
      predictions: uint8 [N,H,W] of class ids.
      names: image names.
      classes: names and colors.
      folder: where to write `step_0000123.png` and its copy `latest.png`; created if missing.
      step: finished steps.
      split: "train", "val" or "test".
      asked_for: whether a flag named the folder; then only pictures drawn for such a flag are replaced.

    Returns:
      The path of `step_0000123.png`.

    Raises:
      UserError: If `asked_for`, and a file of that name was not drawn for a flag.
    """
    rows = []
    for number, (label, prediction, name) in enumerate(zip(labels, predictions, names, strict=True)):
        panels = [colorize(label, classes), colorize(prediction, classes), error_map(label, prediction)]
        if images is not None:
            panels.insert(0, displayable(images[number]))
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
        key_strip([*zip(classes.names, classes.colors, strict=True), ("void", (0, 0, 0))], width),
        key_strip([("correct", _CORRECT), ("wrong", _WRONG), ("void, not scored", _VOID)], width),
    ]
    folder = pathlib.Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    untrusted_files.make_folder(folder.parent, folder.name)
    path = folder / picture_name(step)
    if asked_for:
        check_pictures(folder, step)
    picture = sheet.sheet_png(strips, asked_for)
    atomic_write_bytes(path, picture)
    atomic_write_bytes(folder / "latest.png", picture)
    return path


def picture_name(step: int) -> str:
    """Return the file name of a picture of predictions."""
    return f"step_{step:07}.png"


def check_pictures(folder: str | os.PathLike, step: int) -> None:
    """Check that `--pictures` would replace only pictures that were drawn for this flag.

    Raises:
      UserError: If it would replace another file in the folder.
    """
    for name in (picture_name(step), "latest.png"):
        check_place("pictures", os.path.join(folder, name), made=folder, is_ours=sheet.is_asked_for)


def error_map(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Paint correct pixels pale, wrong pixels red and VOID gray.

    Args:
      label: uint8 [...,H,W] of class ids or VOID.
      prediction: uint8 [...,H,W] of class ids.

    Returns:
      uint8 [...,H,W,3] RGB.
    """
    picture = np.where((label == prediction)[..., None], np.uint8(_CORRECT), np.uint8(_WRONG))
    return np.where((label == VOID)[..., None], np.uint8(_VOID), picture)


def _caption(label: np.ndarray, prediction: np.ndarray, classes: ClassTable) -> str:
    if (label == VOID).all():
        return "no labeled pixels"
    scored = scores(count_confusion(label, prediction, len(classes), classes.multi_label))
    lowest = int(np.nanargmin(scored.iou))
    return (
        f"mIoU {percent(scored.miou)} over {len(classes) - len(scored.absent)} classes, "
        f"accuracy {percent(scored.global_accuracy)}, lowest IoU {classes.names[lowest]} {percent(scored.iou[lowest])}"
    )


def draw_pictures(
    folder: str,
    pictures: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    classes: ClassTable,
    *,
    step: int,
    split: str,
    masks_only: bool,
) -> str:
    """Draw the figure of `evaluate --pictures` into a folder, which may be a link, and return its path.

    With `masks_only`, the photographs are left out.
    """
    names, images, labels, predictions = zip(*pictures, strict=True)
    drawn = prediction_pictures(
        None if masks_only else np.stack(images),
        np.stack(labels),
        np.stack(predictions),
        list(names),
        classes,
        os.path.realpath(folder),
        step,
        split,
        asked_for=True,
    )
    return os.path.join(folder, drawn.name)
