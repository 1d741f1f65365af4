"""Find the masks of one class each in a folder of labels, for `predict --labels`."""

from collections.abc import Sequence
from pathlib import Path

from segnet_jax.data.layouts.label_studio import match_tasks, region_of
from segnet_jax.data.layouts.names.mask_names import match_class_masks
from segnet_jax.data.layouts.names.match_names import pictures_below
from segnet_jax.data.layouts.names.name_pairs import nfc
from segnet_jax.data.layouts.names.split_lists import Entry
from segnet_jax.system.errors import Fault, UserErrors


def masks_for_names(names: Sequence[str], folder: Path, classes: Sequence[str]) -> dict[str, Entry]:
    """Return the masks in a folder for these image names; names without a mask are absent.

    Args:
      names: image names, without extension.
      folder: folder with masks.
      classes: the classes of the masks.

    Raises:
      UserError: If the masks of an image are of several annotations, or a link leaves the folder.
    """
    faults: list[Fault] = []
    images = {nfc(name): Path(f"{name}.png") for name in names}
    paths = pictures_below(folder, folder, faults)
    regions = [path for path in paths if region_of(path)]
    if regions:
        found = match_tasks(images, regions, folder, faults)
    else:
        found = match_class_masks(images, paths, folder, classes, holds_labels=True)
    if faults:
        raise UserErrors(folder, faults)
    masks = found.masks if found else {}
    return {
        name: Entry(name, images[nfc(name)], masks[nfc(name)][0][1], tuple(masks[nfc(name)]))
        for name in names
        if nfc(name) in masks
    }
