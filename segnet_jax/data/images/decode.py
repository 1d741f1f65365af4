"""Strict decoding of image files: what is not exactly right is refused with a reason.

A file's header is read first, and decides what may be done with the pixels. Also resizing of images and labels.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from segnet_jax.constants import Exif
from segnet_jax.data.images.picture_bytes import orientation
from segnet_jax.data.images.picture_header import (
    AGAIN,
    Header,
    check_image_header,
    inspect,
    open_picture,
    read_bytes,
)
from segnet_jax.system.errors import UserError


def decode_picture(data: bytes, header: Header, name: str, exif: Exif) -> tuple[Image.Image, int]:
    """The picture, and the EXIF orientation by which its pixels are still to be turned: 1 for not at all."""
    image = open_picture(data, header.format, name)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        what, kind = ("cut off", "cut-off") if "truncated" in str(error) else ("damaged", "broken-data")
        raise UserError(f"{name} is {what}: {error}", kind=kind, file=name, fix=AGAIN) from None
    turned = 1 if exif == "ignore" else orientation(data)
    if turned != 1 and exif == "refuse":
        # No flag to paste: which of the two it is, only the other file of the pair can tell.
        fix = "give --exif apply, or --exif ignore if the label lies as the stored pixels do"
        raise turned_picture(name, turned, fix)
    return image, turned


def turned_picture(name: str, turned: int, fix: str) -> UserError:
    """What to say of a picture that carries a rotation."""
    what = f"{name} carries an EXIF rotation (orientation {turned}): image and label would disagree"
    return UserError(what, kind="exif-rotation", file=name, fix=fix)


def upright(picture: np.ndarray, turned: int) -> np.ndarray:
    """Turns pixels [H,W,...] the way up that an EXIF orientation, 1 to 8, says."""
    if turned in (5, 6, 7, 8):
        picture = picture.swapaxes(0, 1)
    rows, columns = (slice(None, None, -1 if turned in flipped else 1) for flipped in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return picture[rows, columns]


def read_image(source: Path | bytes, name: str, exif: Exif = "refuse") -> np.ndarray:
    """Decodes an image from PNG or JPEG; grey is repeated, a palette's colours are taken.

    Args:
      source: the file's path, or its bytes.
      name: what messages call it.
      exif: what becomes of an image that carries a rotation.

    Returns:
      uint8 [H,W,3], RGB.

    Raises:
      UserError: as `inspect`, and for CMYK, 16 bits, transparency, an EXIF rotation unless `turn`.
    """
    data = source if isinstance(source, bytes) else read_bytes(source, name)
    header = inspect(data, name)
    check_image_header(header, name)
    image, turned = decode_picture(data, header, name, exif)
    if header.kind in ("RGBA", "grey+alpha"):
        refuse_transparency(np.asarray(image)[..., -1], "image", name)
    return upright(np.asarray(image.convert("RGB")), turned)


def refuse_transparency(alpha: np.ndarray, which: str, name: str) -> None:
    """Refuse a picture with transparent pixels.

    Raises:
      UserError: some alpha is below 255.
    """
    if (alpha < 255).any():
        what = f"{which} {name} has {int((alpha < 255).sum())} transparent pixels"
        raise UserError(what, kind="transparent", file=name, fix="save it without alpha channel")
