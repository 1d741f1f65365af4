"""Strict readers of image and label files: what is not exactly right is refused with a reason, never guessed.

Common readers ruin labels in silence (a palette becomes grey, 16 bits become 0, four bits are stretched to 0..255).
Here a file's header is read first, by ourselves, and decides what may be done with the pixels.
"""

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from segnet_jax.constants import VOID
from segnet_jax.datasets.colors import color_ids, describe_unknown
from segnet_jax.datasets.labels import Color
from segnet_jax.download import is_web_page
from segnet_jax.errors import UserError, listed

MAX_PIXELS = 50_000_000
"""More is refused before decoding: a small file can claim a picture that fills the memory."""
MAX_BYTES = 8 * MAX_PIXELS

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PNG_KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey+alpha", 6: "RGBA"}
_JPEG_KINDS = {"L": "grey", "RGB": "RGB", "CMYK": "CMYK"}
_ORIENTATION = 0x0112  # the EXIF tag
_OUTSIDE = 254  # marks label values that mean no class


class Header(NamedTuple):
    """What a picture file says about itself before it is decoded."""

    format: str  # PNG or JPEG
    width: int
    height: int
    kind: str  # grey, grey+alpha, palette, RGB, RGBA, CMYK
    bits: int  # per channel, or per palette index


def read_bytes(path: Path, name: str) -> bytes:
    """Reads a regular file whole.

    Raises:
      UserError: if it does not exist, cannot be read, is no regular file, or is larger than any picture we accept.
    """
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "is a dead link" if path.is_symlink() else "does not exist"
            raise UserError(f"{name} {what}")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{name} has {path.stat().st_size / 1e6:.0f} MB: no picture of up to 50 million pixels has")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None


def inspect(data: bytes, name: str) -> Header:
    """Reads the header of a picture and, for PNG, verifies the checksums of the whole file; decodes nothing.

    Raises:
      UserError: if it is empty, a web page, neither PNG nor JPEG, cut off, damaged, or has over 50 million pixels.
    """
    if not data:
        raise UserError(f"{name} is an empty file")
    if data.startswith(_PNG):
        header = _inspect_png(data, name)
    elif data.startswith(_JPEG):
        header = _inspect_jpeg(data, name)
    elif is_web_page(data[:512]):
        raise UserError(f"{name} is a web page, not a picture: its download failed; fetch it again")
    else:
        raise UserError(f"{name} is neither PNG nor JPEG: it begins with {data[:8]!r}; convert it to PNG")
    if header.width * header.height > MAX_PIXELS:
        raise UserError(
            f"{name} claims {header.width} x {header.height} pixels = {header.width * header.height / 1e6:.0f} million "
            f"in a file of {len(data) / 1e3:.0f} kB, over the limit of {MAX_PIXELS / 1e6:.0f} million: not decoded"
        )
    return header


def _inspect_png(data: bytes, name: str) -> Header:
    """Walks over the chunks, comparing each with its checksum."""
    header, place = None, len(_PNG)
    while True:
        length, kind = struct.unpack(">I4s", data[place : place + 8].ljust(8, b"\0"))
        end = place + 12 + length
        if end > len(data):
            raise UserError(f"{name} is cut off: the file ends within the PNG, after {len(data)} bytes")
        if zlib.crc32(data[place + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise UserError(f"{name} is damaged: a checksum of the PNG is wrong at byte {place}; fetch it again")
        if kind == b"IHDR" and length == 13:
            width, height, bits, color_type = struct.unpack(">IIBB", data[place + 8 : place + 18])
            header = Header("PNG", width, height, _PNG_KINDS.get(color_type, "unknown"), bits)
        if kind == b"IEND":
            break
        place = end
    if header is None:
        raise UserError(f"{name} is damaged: a PNG without a header")
    return header


def _inspect_jpeg(data: bytes, name: str) -> Header:
    image = _open(data, "JPEG", name)
    return Header("JPEG", *image.size, _JPEG_KINDS.get(image.mode, image.mode), 8)


def _open(data: bytes, kind: str, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=[kind])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name} has too many pixels, not decoded: {error}") from None
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise UserError(f"{name} is a damaged {kind}: {error}") from None


def _decode(data: bytes, header: Header, name: str) -> Image.Image:
    image = _open(data, header.format, name)
    try:
        image.load()
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        what = "cut off" if "truncated" in str(error) else "damaged"
        raise UserError(f"{name} is {what}: {error}") from None
    if orientation not in (0, 1):
        raise UserError(
            f"{name} carries an EXIF rotation (orientation {orientation}): image and label would disagree; "
            "rotate the pixels and save without the tag, e.g. by ImageMagick's -auto-orient"
        )
    return image


def check_image_header(header: Header, name: str) -> None:
    """Refuses images of a kind that would have to be guessed at: CMYK, or 16 bits per channel."""
    if header.kind not in ("grey", "grey+alpha", "palette", "RGB", "RGBA"):
        raise UserError(f"image {name} is {header.kind}: convert it to RGB")
    if header.bits == 16:
        raise UserError(f"image {name} has 16 bits per channel: convert it to 8")


def check_label_header(header: Header, name: str, colored: bool = False) -> None:
    """Refuses labels whose values are ruined (JPEG) or no class ids (colour pictures, unless `colored`)."""
    if header.format == "JPEG":
        raise UserError(f"label {name} is JPEG, which is lossy: its class ids are ruined; export PNG")
    if header.kind in ("RGB", "RGBA"):
        if header.bits != 8 or not colored:
            raise UserError(
                f"label {name} is a {header.bits}-bit {header.kind} picture: class ids are expected, "
                "as a grey or palette PNG of 8 bits"
            )
    elif header.kind not in ("grey", "grey+alpha", "palette"):
        raise UserError(f"label {name} is {header.kind}: class ids are expected, as a grey or palette PNG of 8 bits")


def check_sizes(image: tuple[int, int], label: tuple[int, int], name: str) -> None:
    """Refuses an image and a label, both (width, height), of unlike size."""
    if image != label:
        cure = "one of them is rotated" if image == label[::-1] else "export the label at the image's size"
        raise UserError(f"{name}: image is {image[0]}x{image[1]}, label is {label[0]}x{label[1]}: {cure}")


def read_image(source: Path | bytes, name: str) -> np.ndarray:
    """Decodes an image from PNG or JPEG; grey is repeated, a palette's colours are taken.

    Args:
      source: the file's path, or its bytes.
      name: what messages call it.

    Returns:
      uint8 [H,W,3], RGB.

    Raises:
      UserError: as `inspect`, and for CMYK, 16 bits, transparency, an EXIF rotation.
    """
    data = source if isinstance(source, bytes) else read_bytes(source, name)
    header = inspect(data, name)
    check_image_header(header, name)
    image = _decode(data, header, name)
    if header.kind in ("RGBA", "grey+alpha"):
        _refuse_transparency(np.asarray(image)[..., -1], f"image {name}")
    return np.asarray(image.convert("RGB"))


def read_label(
    source: Path | bytes,
    name: str,
    num_classes: int,
    *,
    void: int = VOID,
    colors: Mapping[Color, int] | None = None,
) -> np.ndarray:
    """Decodes a label from PNG; of a palette the indices are taken, never the colours.

    Args:
      source: the file's path, or its bytes.
      name: what messages call it.
      num_classes: C; the ids 0..C-1 are classes.
      void: the id that stands for void in the file.
      colors: RGB -> class id or VOID, for labels stored as colour pictures; without it they are refused.

    Returns:
      uint8 [H,W], 0..C-1 or VOID.

    Raises:
      UserError: as `inspect`, and for JPEG, transparency, an EXIF rotation, values or colours that mean no class.
    """
    values = _read_values(source, name, colored=colors is not None)
    if values.ndim == 3:
        label, unknown = color_ids(values, colors)
        if unknown:
            raise UserError(f"label {name} holds {describe_unknown([unknown], colors)}")
        return label
    if values.dtype != np.uint8:
        if values.max() > 255:
            raise UserError(f"label {name} has 16 bits and values up to {values.max()}: instance ids, not classes?")
        values = values.astype(np.uint8)
    table = np.full(256, _OUTSIDE, np.uint8)
    table[:num_classes] = np.arange(num_classes)
    table[void] = VOID
    label = table[values]
    if (label == _OUTSIDE).any():
        strange, counts = np.unique(values[label == _OUTSIDE], return_counts=True)
        held = [f"{value} ({count} px)" for value, count in zip(strange, counts, strict=True)]
        raise UserError(
            f"label {name} holds {listed(held)}: outside the {num_classes} classes 0..{num_classes - 1} "
            f"and void {void}; write its ids anew or use {void} where there is no class"
        )
    return label


def read_color_label(source: Path | bytes, name: str, colors: Mapping[Color, int]):
    """Decodes a colour label without refusing unknown colours: they become VOID and are counted.

    Returns:
      label uint8 [H,W], and unknown colours {RGB: pixels}.

    Raises:
      UserError: as `read_label`, and if the label is no RGB picture.
    """
    values = _read_values(source, name, colored=True)
    if values.ndim != 3:
        raise UserError(f"label {name} is not an RGB picture, which the official colour labels are")
    return color_ids(values, colors)


def _read_values(source: Path | bytes, name: str, colored: bool) -> np.ndarray:
    """The stored values of a label: uint8 or uint16 [H,W], or uint8 [H,W,3] where colours are stored."""
    data = source if isinstance(source, bytes) else read_bytes(source, name)
    header = inspect(data, name)
    check_label_header(header, name, colored)
    values = np.asarray(_decode(data, header, name))
    if header.kind in ("RGBA", "grey+alpha"):
        _refuse_transparency(values[..., -1], f"label {name}")
        values = values[..., :3] if header.kind == "RGBA" else values[..., 0]
    if values.dtype == bool:
        return values.astype(np.uint8)
    if header.kind == "grey" and header.bits in (2, 4):
        return values // (255 // (2**header.bits - 1))  # Pillow stretches them to 0..255
    return values


def _refuse_transparency(alpha: np.ndarray, name: str) -> None:
    if (alpha < 255).any():
        raise UserError(f"{name} has {int((alpha < 255).sum())} transparent pixels: save it without alpha channel")


def resize(image: np.ndarray, label: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Resizes a record: the image antialiased bilinear, the label to the pixel nearest to each new centre.

    Args:
      image: uint8 [H,W,3].
      label: uint8 [H,W].
      height: new height in pixels.
      width: new width in pixels.

    Returns:
      image uint8 [height,width,3] and label uint8 [height,width]; the arrays given if they have that size.
    """
    old_height, old_width = label.shape
    if (old_height, old_width) == (height, width):
        return image, label
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    rows = (2 * np.arange(height) + 1) * old_height // (2 * height)
    columns = (2 * np.arange(width) + 1) * old_width // (2 * width)
    return np.asarray(resized), label[rows[:, None], columns]
