"""Reads a VGG from a file of any known format, told by the file's content; and a whole SegNet of Caffe's."""

import contextlib
import dataclasses
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.system.download import is_web_page
from segnet_jax.system.errors import UserError
from segnet_jax.system.zips import check_zip
from segnet_jax.weights.containers.pickled import CodeInside
from segnet_jax.weights.formats import caffe, caffe_segnet, keras, npz, safetensors, torch
from segnet_jax.weights.formats.caffe_segnet import CaffeSegNet
from segnet_jax.weights.vgg import VGG

FORMATS = "torch .pth, .safetensors, Keras .h5, .npz, .caffemodel"
_MOST_BYTES = 2_000_000_000  # a VGG-19 with its classifier takes 575 million, in float64 twice as many
_MOST_WORDS = 2000  # letters of a message, which may quote names from the file


def read_vgg(path: Path, encoder: str, preprocessing: Preprocessing | None = None) -> VGG:
    """Reads a trained VGG, whole and checked, without running anything that the file contains.

    Args:
      path: the file.
      encoder: "vgg16" or "vgg19", what the file must hold.
      preprocessing: what the weights were trained on, where it is not what files of that format are trained on.

    Raises:
      UserError: there is no such file, it is none of the formats, is damaged, or does not hold this encoder.
    """
    path = Path(path)
    with _telling_faults(path):
        vgg = _format(path)(path, encoder)
    return dataclasses.replace(vgg, preprocessing=preprocessing) if preprocessing else vgg


def read_caffe_segnet(path: Path) -> CaffeSegNet:
    """Reads a SegNet that Caffe has trained, whole and checked, without running anything that the file contains.

    Args:
      path: a `.caffemodel`.

    Raises:
      UserError: there is no such file, it is none, is damaged, or does not hold just a SegNet.
    """
    path = Path(path)
    with _telling_faults(path):
        if _format(path) is not caffe.read:
            raise ValueError("is not a .caffemodel")
        return caffe_segnet.read(path)


@contextlib.contextmanager
def _telling_faults(path: Path) -> Iterator[None]:
    """Tells what is wrong in a file in one line that begins with its name."""
    try:
        if path.is_file() and path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"has {path.stat().st_size} bytes, more than any VGG: at most {_MOST_BYTES}")
        yield
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # RuntimeError is zipfile's for an encrypted member.
        what = " ".join(str(error).split()) or type(error).__name__
        what = f"{path}: {what if len(what) <= _MOST_WORDS else what[:_MOST_WORDS] + ' ...'}"
        if isinstance(error, CodeInside):
            fix = "take a file that holds tensors alone, such as .safetensors"
            raise UserError(what, kind="no-code", file=str(path), fix=fix) from error
        raise UserError(what, kind="bad-weights", file=str(path)) from error


def _format(path: Path) -> Callable[[Path, str], VGG]:
    """The reader for a file.

    Raises:
      ValueError: with what the file is instead.
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
    # A safetensors file begins with its header's length, which may look like anything.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return safetensors.read
    if head.startswith(torch.LEGACY_SIGNATURE):
        return torch.read
    if head.startswith(b"PK\x03\x04"):
        names = check_zip(path)
        if any(name.split("/")[-1] == "data.pkl" for name in names):
            return torch.read
        if any(name.endswith(".npy") for name in names):
            return npz.read
        raise ValueError("is a zip, but neither torch's nor numpy's")
    if head[:1] == b"\x80":
        raise CodeInside("refuses to run code in it: it is a bare pickle, not what torch.save writes")
    if head.startswith((b"\n", b"\x12", b"\xa2\x06")):  # the tags of a NetParameter's name, `layers` and `layer`
        return caffe.read
    raise ValueError(f"is none of the weight files known here: {FORMATS}")
