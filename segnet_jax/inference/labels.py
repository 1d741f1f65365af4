"""Find the labels of images and how to read them, for `predict --labels`."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence

from segnet_jax.constants import VOID
from segnet_jax.data.labels.classes import CAMVID, ClassTable
from segnet_jax.data.labels.label_mapping import TUTORIAL, LabelMapping, LabelRule, StoredLabels, make_label_rule
from segnet_jax.data.labels.read_options import ReadOptions
from segnet_jax.data.layouts.label_studio import masks_for_names
from segnet_jax.data.layouts.names.match_labels import labels_for_names
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.inference.sources import Source
from segnet_jax.system.errors import UserError, listed
from segnet_jax.system.files import expanded

logger = logging.getLogger(__name__)


def find_labels(
    sources: Sequence[Source], folder: str, suffix: str, classes: Sequence[str] = ()
) -> dict[Source, Entry]:
    """Find the labels of images in a folder, by the naming rules of dataset folders.

    Args:
      sources: inputs of `predict`.
      folder: folder with labels.
      suffix: suffix of label names after the image's name; empty to detect it.
      classes: the classes of the masks, if the run reads masks of one class each.

    Raises:
      UserError: If the folder does not exist, no image has a label, or one has two.
    """
    root = expanded(folder)
    if not root.is_dir():
        raise UserError(f"no folder {folder} for --labels", kind="no-folder", file=folder)
    images = [source for source in sources if source.kind == "image"]
    names = [source.path.stem for source in images]
    masks = masks_for_names(names, root, classes) if classes else {}
    paths = {} if classes else labels_for_names(names, root, suffix)
    found = {source: masks[source.path.stem] for source in images if source.path.stem in masks}
    for source in images:
        labels = paths.get(source.path.stem, ())
        if len(labels) > 1:
            what = f"{source.display_name} has {len(labels)} labels: {listed([str(path) for path in labels])}"
            raise UserError(what, kind="two-labels", file=source.display_name, fix="keep one of them in the folder")
        if labels:
            found[source] = Entry(source.path.stem, source.path, labels[0])
    if without := [source.display_name for source in images if source not in found]:
        what = f"{len(without)} of {len(images)} images have no label in {folder}: {listed(without)}"
        if not found:
            raise UserError(
                f"{what}; expected for example {pathlib.Path(without[0]).stem}.png", kind="missing-label", file=folder
            )
        logger.warning(what)
    return found


def rule_of(stored: StoredLabels | None, classes: ClassTable, reading: ReadOptions, void: int = -1) -> LabelRule:
    """Return how labels are read: by the rule that the run stores, or for older runs by its read options.

    Args:
      stored: what the run stores; None for older runs.
      classes: classes of the network.
      reading: read options of the run.
      void: value of void in the labels; -1: as the rule says.
    """
    if stored is not None:
        rule = stored.rule
    else:
        ids = ((class_id, class_id) for class_id in range(len(classes)))
        own = LabelMapping("the run", classes, (*ids, (VOID, VOID)))
        rule = make_label_rule(TUTORIAL if classes.names == CAMVID.names else own, reading)
    if void < 0:
        return rule
    if rule.masks:
        raise UserError(f"--void {void} cannot be used with masks of one class each, which have no value for void")
    kept = tuple(each for each in rule.ids if each[1] != VOID and each[0] != void)
    return dataclasses.replace(rule, ids=(*kept, (void, VOID)))
