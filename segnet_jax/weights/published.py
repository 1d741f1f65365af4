"""Published weights: their URLs, sizes and checksums.

VGGs for `--init NAME`: the md5 sums are those in `keras.applications.vgg16` and `vgg19`; the sha256 begins with
the digits in torchvision's file name. SegNets for `convert NAME`, from SegNet-Tutorial's `segnet_model_zoo.md`: no
checksums are published, and the server uses plain HTTP. The checksum of the first download is stored, and later
downloads must match it.
"""

import logging
from pathlib import Path

from segnet_jax.system.download import Resource, fetch
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import cache_folder, expanded

logger = logging.getLogger(__name__)

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_KERAS_FIRST = "https://github.com/fchollet/deep-learning-models/releases/download/v0.1"
_HINT = "download it on another machine and pass it: --init FILE"

PUBLISHED = {
    "vgg16": Resource(
        filename="vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        urls=(
            f"{_KERAS}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
            f"{_KERAS_FIRST}/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        ),
        kind="hdf5",
        md5="6d6bbae143d832006294945121d1f1fc",
        num_bytes=58_889_256,
        hint=f"{_HINT} (torchvision's vgg16-397923af.pth also works), or use --init none to train without",
    ),
    "vgg16_bn": Resource(
        filename="vgg16_bn-6c64b313.pth",
        urls=("https://download.pytorch.org/models/vgg16_bn-6c64b313.pth",),
        kind="torch",
        sha256="6c64b3138f2f4fcb3bcc4cafde11619c4f440eb1631787e93a682fd88305888a",
        num_bytes=553_507_836,
        hint=f"{_HINT}, or use --init none to train without",
    ),
    "vgg19": Resource(
        filename="vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        urls=(
            f"{_KERAS}/vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
            f"{_KERAS_FIRST}/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        ),
        kind="hdf5",
        md5="253f8cb515780f3b799900260a226db6",
        num_bytes=80_134_624,
        hint=f"{_HINT} (torchvision's vgg19-dcbb9e9d.pth also works), or use --init none to train without",
    ),
}
_CAMBRIDGE = "http://mi.eng.cam.ac.uk/~agk34/resources/SegNet"
_SEGNET_BYTES = (117_700_000, 130_000_000)  # 29.45 million numbers of four bytes, plus names and settings
_BASIC_BYTES = (5_660_000, 8_000_000)  # 1.42 million
SEGNET_LICENSE = "CC BY-NC 4.0: for personal and research use only (A. Kendall, V. Badrinarayanan, R. Cipolla)"


def _segnet(name: str, num_bytes: tuple[int, int]) -> Resource:
    return Resource(
        filename=f"{name}.caffemodel",
        urls=(f"{_CAMBRIDGE}/{name}.caffemodel",),
        kind="caffe",
        num_bytes=num_bytes,
        hint="download it on another machine and pass it: python -m segnet_jax.convert FILE",
    )


PUBLISHED_SEGNETS = {
    "segnet_basic_camvid": _segnet("segnet_basic_camvid", _BASIC_BYTES),
    "bayesian_segnet_camvid": _segnet("bayesian_segnet_camvid", _SEGNET_BYTES),
    "bayesian_segnet_basic_camvid": _segnet("bayesian_segnet_basic_camvid", _BASIC_BYTES),
    "segnet_weights_driving_webdemo": _segnet("segnet_weights_driving_webdemo", _SEGNET_BYTES),
}


def obtain(init: str, folder: Path | None = None) -> Path:
    """Return the weight file that `--init` names: an existing file, or a published one, downloaded unless cached.

    Args:
      init: a key of `PUBLISHED`, or a path.
      folder: download folder; `cache_folder()` if None.

    Raises:
      UserError: If the file does not exist or cannot be downloaded.
    """
    if init in PUBLISHED:
        return fetch(PUBLISHED[init], cache_folder() if folder is None else folder)
    path = expanded(init)
    if not path.is_file():
        names = ", ".join(PUBLISHED)
        raise UserError(f"weight file {init} does not exist; --init accepts a run, a file, {names} or none")
    return path


def is_cached(name: str) -> bool:
    """Return whether the published weights `name` are in the cache."""
    return (cache_folder() / PUBLISHED[name].filename).is_file()


def obtain_segnet(name: str, folder: Path | None = None) -> Path:
    """Return the file of a SegNet trained with Caffe: an existing file, or a published one, downloaded unless cached.

    Args:
      name: a key of `PUBLISHED_SEGNETS`, or a path.
      folder: download folder; `cache_folder()` if None.

    Raises:
      UserError: If the file does not exist or cannot be downloaded.
    """
    if name in PUBLISHED_SEGNETS:
        logger.info(f"{name} is published under {SEGNET_LICENSE}")
        return fetch(PUBLISHED_SEGNETS[name], cache_folder() if folder is None else folder)
    path = expanded(name)
    if not path.is_file():
        names = ", ".join(PUBLISHED_SEGNETS)
        raise UserError(f"weight file {name} does not exist; pass a .caffemodel or one of {names}")
    return path
