"""Strict decoding of image files, after their headers are checked."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from segnet_jax.constants import RGB, Exif, Pixels
from segnet_jax.data.images.exif_rotation import rotation_error
from segnet_jax.data.images.picture_bytes import orientation, png_transparency
from segnet_jax.data.images.picture_formats import decode_other, open_other
from segnet_jax.data.images.picture_header import (
    AGAIN,
    BYTES_PER_PIXEL,
    MAX_PIXELS,
    Header,
    check_image_header,
    inspect,
    open_picture,
    read_bytes,
    stored_tiff,
)
from segnet_jax.data.images.pixels import decode_png16, read_tiff
from segnet_jax.system import memory_budget
from segnet_jax.system.errors import UserError

_DECODING_BYTES = 10  # per pixel: Pillow's image and the array made from it
_DECODING_BYTES_WEBP = 18  # and two canvases of the decoder


def decode_picture(data: bytes, header: Header, name: str, exif: Exif) -> tuple[Image.Image, int]:
    """Decode a file; return the image and the EXIF orientation still to be applied (1 if none)."""
    each = _DECODING_BYTES_WEBP if header.format == "WEBP" else _DECODING_BYTES
    memory_budget.pictures.announce(each * header.width * header.height)
    if header.format not in ("PNG", "JPEG"):
        return decode_other(open_other(data, header.format, name), header.format, name), 1
    image = open_picture(data, header.format, name)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        state, kind = ("cut off", "cut-off") if "truncated" in str(error) else ("damaged", "broken-data")
        raise UserError(f"{name} is {state}: {error}", kind=kind, file=name, fix=AGAIN) from None
    turned = 1 if exif == "ignore" else orientation(data)
    if turned != 1 and exif in ("refuse", "by-label"):
        # Not a bare flag, because the choice depends on the other file of the pair.
        fix = "pass --exif apply, or --exif ignore if the label matches the stored pixels"
        raise rotation_error(name, turned, fix)
    return image, turned


def upright(picture: np.ndarray, turned: int) -> np.ndarray:
    """Apply an EXIF orientation, 1 to 8, to pixels [H,W,...]."""
    if turned in (5, 6, 7, 8):
        picture = picture.swapaxes(0, 1)
    rows, columns = (slice(None, None, -1 if turned in flipped else 1) for flipped in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return picture[rows, columns]


def read_image(
    source: Path | bytes,
    name: str,
    exif: Exif = "refuse",
    image_range: tuple[int, int] = (0, 0),
    max_pixels: int = MAX_PIXELS,
    pixels: Pixels = RGB,
) -> np.ndarray:
    """Decode an image to RGB, or to its stored values if `pixels` is another format.

    Args:
      source: path or bytes of the file.
      name: display name for error messages.
      exif: how an EXIF rotation is treated.
      image_range: values of black and white in 16-bit images; not taken from the image, so that equal values have equal
        brightness in all images.
      max_pixels: size limit.
      pixels: format of the result; except for RGB, the file must have this format.

    Returns:
      uint8 [H,W,3], RGB; or [H,W,channels] in the dtype of `pixels`.

    Raises:
      UserError: If `inspect` raises it, or the image is CMYK, 16-bit without a range, or transparent, has a refused
        EXIF rotation, or has another pixel format.
    """
    limit = max(BYTES_PER_PIXEL, 2 * pixels.num_bytes) * max_pixels
    data = source if isinstance(source, bytes) else read_bytes(source, name, limit)
    header = inspect(data, name, max_pixels, as_stored=pixels != RGB)
    check_image_header(header, name, image_range, pixels)
    if pixels != RGB:
        return _as_stored(data, header, name, exif, pixels)
    image, turned = decode_picture(data, header, name, exif)
    if header.kind in ("RGBA", "grey+alpha"):
        refuse_transparency(np.asarray(image.getchannel("A")), "image", name)
    elif header.format == "PNG" and (transparency := png_transparency(data)):
        refuse_transparency(png_alpha(np.asarray(image), header, transparency), "image", name)
    if header.bits == 16 and header.kind == "grey":
        return upright(np.repeat(_ranged(np.asarray(image), image_range)[..., None], 3, axis=-1), turned)
    return upright(np.asarray(image if image.mode == "RGB" else image.convert("RGB")), turned)


def _as_stored(data: bytes, header: Header, name: str, exif: Exif, pixels: Pixels) -> np.ndarray:
    """Decode an image that `check_image_header` accepts to its stored values, [H,W,C]."""
    if stored_tiff(data):
        memory_budget.pictures.announce(2 * pixels.num_bytes * header.width * header.height)
        try:
            return read_tiff(data, pixels)
        except (ValueError, zlib.error) as error:
            if pixels.channels == 1:  # Pillow supports more compressions, but not more channels
                return np.asarray(decode_picture(data, header, name, exif)[0])[..., None].astype(pixels.dtype)
            message = f"{name} cannot be read as {pixels}: {error}"
            raise UserError(message, kind="broken-data", file=name, fix="save it as an uncompressed TIFF") from None
    image, turned = decode_picture(data, header, name, exif)
    if header.format == "PNG" and pixels.bits == 16 and pixels.channels > 1:
        image.close()  # frees its pixels
        opened = (open_picture(data, header.format, name) for _ in range(2))
        values = decode_png16(*opened, header.kind)
    else:
        values = np.asarray(image)
    return upright(values.reshape(header.height, header.width, -1).astype(pixels.dtype, copy=False), turned)


def png_alpha(pixels: np.ndarray, header: Header, transparency: bytes) -> np.ndarray:
    """Return alpha, uint8 [H,W], from a PNG's tRNS chunk: the palette's alpha or one transparent color."""
    if header.kind == "palette":
        table = np.full(256, 255, np.uint8)
        table[: min(len(transparency), 256)] = np.frombuffer(transparency[:256], np.uint8)
        return table[pixels]
    color = np.frombuffer(transparency[: len(transparency) // 2 * 2], ">u2")
    if header.bits < 8:  # Pillow stretches values to 0..255
        color = color * (255 // (2**header.bits - 1))
    elif header.bits == 16 and header.kind == "RGB":  # Pillow returns the high bytes
        color = color >> 8
    same = pixels.reshape(*pixels.shape[:2], -1).astype(np.uint16) == color[: 3 if header.kind == "RGB" else 1]
    return np.where(same.all(axis=-1), np.uint8(0), np.uint8(255))


def _ranged(values: np.ndarray, image_range: tuple[int, int]) -> np.ndarray:
    """Map 16-bit values linearly from the range to uint8, with clipping."""
    low, high = image_range
    scaled = (np.arange(2**16, dtype=np.float64) - low) * 255 / (high - low)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)[values]


def refuse_transparency(alpha: np.ndarray, which: str, name: str) -> None:
    """Check that an image is opaque.

    Raises:
      UserError: If any alpha is below 255.
    """
    if (alpha < 255).any():
        message = f"{which} {name} has {int((alpha < 255).sum())} transparent pixels"
        raise UserError(message, kind="transparent", file=name, fix="save it without an alpha channel")
