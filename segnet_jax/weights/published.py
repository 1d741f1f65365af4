"""The published weights that are fetched by name, with where they lie, how long they are, and their sums.

VGGs for `--init NAME`: the md5 sums are those in `keras.applications.vgg16` and `vgg19`; the sha256 begins as
torchvision's file name says. SegNets for `convert NAME`, by SegNet-Tutorial's `segnet_model_zoo.md`: no sum of theirs
is published, and they come by an unprotected address; the first file's sum is kept and later ones are held to it.
"""

from collections.abc import Callable
from pathlib import Path

from segnet_jax.system.download import Resource, cache_folder, fetch
from segnet_jax.system.errors import UserError

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
        hint=f"{_HINT} (torchvision's vgg16-397923af.pth will do too), or train without: --init none",
    ),
    "vgg16_bn": Resource(
        filename="vgg16_bn-6c64b313.pth",
        urls=("https://download.pytorch.org/models/vgg16_bn-6c64b313.pth",),
        kind="torch",
        sha256="6c64b3138f2f4fcb3bcc4cafde11619c4f440eb1631787e93a682fd88305888a",
        num_bytes=553_507_836,
        hint=f"{_HINT}, or train without: --init none",
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
        hint=f"{_HINT} (torchvision's vgg19-dcbb9e9d.pth will do too), or train without: --init none",
    ),
}


_CAMBRIDGE = "http://mi.eng.cam.ac.uk/~agk34/resources/SegNet"
_SEGNET_BYTES = (117_700_000, 130_000_000)  # 29.45 million numbers of four bytes, and some for names and settings
_BASIC_BYTES = (5_660_000, 8_000_000)  # 1.42 million
SEGNET_LICENCE = "CC BY-NC 4.0: for personal and research use only (A. Kendall, V. Badrinarayanan, R. Cipolla)"


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
    """Returns the weight file that `--init` names: one that is there, or a published one, fetched if need be.

    Args:
      init: a key of `PUBLISHED`, or a path.
      folder: where fetched files are kept; None is `cache_folder()`.

    Raises:
      UserError: there is no such file, or it cannot be fetched.
    """
    if init in PUBLISHED:
        return fetch(PUBLISHED[init], cache_folder() if folder is None else folder)
    path = Path(init).expanduser()
    if not path.is_file():
        raise UserError(f"no weight file {init}; --init takes a file, {', '.join(PUBLISHED)} or none")
    return path


def obtain_segnet(name: str, say: Callable[[str], None], folder: Path | None = None) -> Path:
    """Returns the file of a SegNet that Caffe has trained: one that is there, or a published one, fetched if need be.

    Args:
      name: a key of `PUBLISHED_SEGNETS`, or a path.
      say: told the licence before anything is fetched.
      folder: where fetched files are kept; None is `cache_folder()`.

    Raises:
      UserError: there is no such file, or it cannot be fetched.
    """
    if name in PUBLISHED_SEGNETS:
        say(f"{name} is published under {SEGNET_LICENCE}")
        return fetch(PUBLISHED_SEGNETS[name], cache_folder() if folder is None else folder)
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"no weight file {name}; give a .caffemodel, or one of {', '.join(PUBLISHED_SEGNETS)}")
    return path
