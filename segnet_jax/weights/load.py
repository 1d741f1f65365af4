"""Read weight files: a VGG in any supported format, recognized by content, or a SegNet by Caffe or `export`."""

import contextlib
import dataclasses
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.system.download import is_web_page
from segnet_jax.system.errors import UserError
from segnet_jax.system.zips import check_zip
from segnet_jax.weights import segnet_safetensors
from segnet_jax.weights.containers.pickled import CodeInside
from segnet_jax.weights.formats import caffe, caffe_segnet, keras, npz, onnx, safetensors, torch
from segnet_jax.weights.formats.caffe_segnet import CaffeSegNet
from segnet_jax.weights.segnet_safetensors import Description, ExportedSegNet
from segnet_jax.weights.vgg import VGG

FORMATS = "torch .pth, .safetensors, Keras .h5 or .keras, ONNX, .npz, .caffemodel"
_MAX_BYTES = 2_000_000_000  # VGG-19 with its classifier takes 575 MB in float32, twice as much in float64
_MAX_MESSAGE = 2000  # characters; an error message may quote names from the file


def read_vgg(path: Path, encoder: str, preprocessing: Preprocessing | None = None) -> VGG:
    """Read and validate a trained VGG, without running any code in the file.

    `preprocessing` is the one used in training, unless it is the format's default; some ONNX files require it.

    Raises:
      UserError: If the file does not exist, has an unknown format, is damaged, or does not contain this encoder.
    """
    path = Path(path)
    with _naming(path):
        vgg = _format(path, preprocessing)(path, encoder)
    return dataclasses.replace(vgg, preprocessing=preprocessing) if preprocessing else vgg


def read_caffe_segnet(path: Path) -> CaffeSegNet:
    """Read and validate a SegNet trained with Caffe, without running any code in the file.

    Raises:
      UserError: If the file does not exist, is not a `.caffemodel`, is damaged, or contains anything but a SegNet.
    """
    path = Path(path)
    with _naming(path):
        if _format(path) is not caffe.read:
            raise ValueError("is not a .caffemodel")
        return caffe_segnet.read(path)


def read_exported_segnet(path: Path) -> ExportedSegNet:
    """Read and validate a SegNet written by `export --format safetensors`.

    Raises:
      UserError: If the file does not exist, was not written by `export`, is damaged, or does not describe its network.
    """
    path = Path(path)
    with _naming(path):
        return segnet_safetensors.read(path)


def describe_exported_segnet(path: Path) -> Description:
    """Read the network description in a file written by `export --format safetensors`.

    Raises:
      UserError: If the file does not exist, is damaged, or does not describe its network.
    """
    path = Path(path)
    with _naming(path):
        return segnet_safetensors.describe(path)


def kind_of_file(path: Path) -> Literal["segnet", "caffe-segnet", "vgg"]:
    """Return the kind of network in a weight file by its tensor names: our SegNet, Caffe's SegNet, or otherwise a VGG.

    Raises:
      UserError: If the file does not exist, has an unknown format, or is damaged.
    """
    path = Path(path)
    with _naming(path):
        reader = _format(path)
        if reader is safetensors.read and segnet_safetensors.head_tensors() & segnet_safetensors.names_in(path):
            return "segnet"
        if reader is caffe.read and caffe_segnet.LAST_LAYERS & {layer.name for layer in caffe.read_layers(path)}:
            return "caffe-segnet"
    return "vgg"


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Convert errors to one-line `UserError`s that begin with the file's name."""
    try:
        if path.is_file() and path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"is {path.stat().st_size} bytes, over the limit of {_MAX_BYTES} bytes for weight files")
        yield
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # zipfile raises RuntimeError for an encrypted member.
        text = " ".join(str(error).split()) or type(error).__name__
        text = f"{path}: {text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + ' ...'}"
        if isinstance(error, CodeInside):
            fix = "use a file that contains nothing but tensors, such as .safetensors"
            raise UserError(text, kind="no-code", file=str(path), fix=fix) from error
        raise UserError(text, kind="bad-weights", file=str(path)) from error


def _format(path: Path, preprocessing: Preprocessing | None = None) -> Callable[[Path, str], VGG]:
    """Return the reader for a file.

    Raises:
      ValueError: If the format is unknown.
    """
    if not path.is_file():
        raise ValueError("is not a file" if path.exists() else "no such file")
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError("is empty")
    if is_web_page(head):
        raise ValueError("is a web page, not a weight file (the download failed)")
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return keras.read
    # A safetensors file begins with the length of its header, whose bytes may look like another format.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return safetensors.read
    if head.startswith(torch.LEGACY_SIGNATURE):
        return torch.read
    if head.startswith(b"PK\x03\x04"):
        names = check_zip(path)
        if any(name.split("/")[-1] == "data.pkl" for name in names):
            return torch.read
        if keras.ARCHIVED in names:
            return keras.read_archive
        if any(name.endswith(".npy") for name in names):
            return npz.read
        raise ValueError("is a zip file, but was not written by torch, Keras or numpy")
    if head[:1] == b"\x80":
        raise CodeInside("contains code, which is not run: it is a bare pickle, not a file written by torch.save")
    if head.startswith((b"\n", b"\x12", b"\xa2\x06")):  # the tags of a NetParameter's name, `layers` and `layer`
        return caffe.read
    if head[:1] == b"\x08":  # the tag of a ModelProto's version
        return partial(onnx.read, preprocessing=preprocessing)
    raise ValueError(f"has an unknown format; supported are {FORMATS}")
