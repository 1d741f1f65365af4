"""Parse and check image headers before anything is decoded."""

import io
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from PIL import Image, JpegImagePlugin, PngImagePlugin

from segnet_jax.constants import RGB, Pixels
from segnet_jax.data.images import pixels as formats
from segnet_jax.data.images.picture_bytes import (
    MAX_SCANS,
    PNG_SIGNATURE,
    essential,
    jpeg_frame,
    jpeg_scans,
    orientation,
    png_chunks,
)
from segnet_jax.data.images.picture_formats import (
    MAX_PIXELS_WEBP,
    check_tags,
    is_lossy,
    kind_and_bits,
    open_other,
    other_format,
)
from segnet_jax.data.images.pixels import check_pixels, flags, stored_pixels
from segnet_jax.system import memory_budget
from segnet_jax.system.download import is_web_page
from segnet_jax.system.errors import UserError

MAX_PIXELS = 50_000_000
"""Checked before decoding: a small file can claim an image that fills the memory."""
BYTES_PER_PIXEL = 5
"""Limit for files, above the size of an uncompressed 8-bit image with four channels."""
MAX_BYTES = BYTES_PER_PIXEL * MAX_PIXELS
MAX_SIDE = 65_535
"""Limit per side, as in JPEG; displaying a longer one-row PNG would take gigabytes."""
_TILED_BYTES = 32
"""Memory per pixel of tiled prediction: the file, the image, the overlay, ids and confidence."""

AGAIN = "fetch or export it again"
EXPORT_IDS = "export class ids as an 8-bit gray or palette PNG"
_SAME_SHAPE = 0.03  # relative difference up to which two aspect ratios count as equal
_REPLACE = "put the file there, or leave it out"

_PNG, _JPEG = PNG_SIGNATURE, b"\xff\xd8\xff"
_PNG_KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey+alpha", 6: "RGBA"}
_JPEG_KINDS = {1: "grey", 3: "RGB", 4: "CMYK"}


class Header(NamedTuple):
    """Header of an image file."""

    format: str  # PNG, JPEG, GIF, WEBP, TIFF or BMP
    width: int
    height: int
    kind: str  # grey, grey+alpha, palette, RGB, RGBA, CMYK or a description
    bits: int  # per channel, or per palette index
    is_lossy: bool = False

    @property
    def stores(self) -> str:
        """Kind of a label file with this header: "grey", "palette" or "rgb"."""
        return {"palette": "palette", "RGB": "rgb", "RGBA": "rgb"}.get(self.kind, "grey")


def largest_image() -> int:
    """Return the number of pixels that fit into free memory in tiled prediction, at least MAX_PIXELS."""
    return max(MAX_PIXELS, memory_budget.free_memory() // _TILED_BYTES)


def read_bytes(path: Path, name: str, most: int = MAX_BYTES) -> bytes:
    """Read a regular file.

    Raises:
      UserError: If the file does not exist, cannot be read, is not a regular file, or has over `most` bytes.
    """
    try:
        if not path.is_file():
            if path.exists():
                raise UserError(f"{name} is not a file", kind="not-a-file", file=name, fix=_REPLACE)
            if path.is_symlink():
                raise UserError(f"{name} is a dead link", kind="dead-link", file=name, fix=_REPLACE)
            raise UserError(f"{name} does not exist", kind="missing-file", file=name, fix=_REPLACE)
        size = path.stat().st_size
        if size > most:
            message = f"{name} is {size / 1e6:.0f} MB, over the limit of {most / 1e6:.0f} MB for a file"
            raise UserError(message, kind="too-large", file=name, fix=AGAIN)
        memory_budget.pictures.announce(size)
        return path.read_bytes()
    except OSError as error:
        message = f"{name} cannot be read: {error.strerror}"
        raise UserError(message, kind="cannot-read", file=name, fix="check its permissions and the disk") from None


def check_inside(path: Path, folder: Path) -> None:
    """Check that no link leads a file out of the dataset folder.

    Raises:
      UserError: If a link leads outside it.
    """
    if path.exists() and not path.resolve().is_relative_to(folder.resolve()):
        name = path.relative_to(folder).as_posix()
        message = f"{name} is a link that leads outside the folder, to {path.resolve()}"
        raise UserError(
            message,
            kind="points-outside",
            file=name,
            fix="put the file itself there, or pass --follow-links if you trust the link",
        )


def inspect(data: bytes, name: str, max_pixels: int = MAX_PIXELS, as_stored: bool = False) -> Header:
    """Parse the header of an image file and, for PNG, verify all checksums; decode nothing.

    With `as_stored`, a TIFF's channels are reported as stored, not as converted by Pillow.

    Raises:
      UserError: If the file is empty, a web page, of unknown format, truncated, damaged, or too large.
    """
    if not data:
        raise UserError(f"{name} is an empty file", kind="empty-file", file=name, fix=AGAIN)
    if data.startswith(_PNG):
        header = _inspect_png(data, name)
    elif data.startswith(_JPEG):
        header = _inspect_jpeg(data, name)
    elif as_stored and (tiff := stored_tiff(data)):
        header = _tiff_header(*tiff)
    elif kind := other_format(data):
        try:
            image = open_other(data, kind, name)
        except UserError:
            if kind == "TIFF" and (tiff := stored_tiff(data)):
                return _tiff_header(*tiff)  # valid, but has channels that Pillow does not support
            raise
        if kind == "TIFF" and orientation(data) != 1:
            message = f"{name} is a TIFF with a rotation, which decoders treat differently"
            raise UserError(message, kind="exif-rotation", file=name, fix="save it upright")
        header = Header(kind, *image.size, *kind_and_bits(image), is_lossy(image, data, kind))
    elif is_web_page(data[:512]):
        message = f"{name} is a web page, not an image: its download failed"
        raise UserError(message, kind="web-page", file=name, fix="download it again")
    else:
        message = f"{name} is not a PNG, JPEG, GIF, WebP, TIFF or BMP: it begins with {data[:8]!r}"
        raise UserError(message, kind="unknown-format", file=name, fix="convert it to PNG")
    if max(header.width, header.height) > MAX_SIDE:
        message = f"{name} claims {header.width} x {header.height} pixels, over the limit of {MAX_SIDE:,} per side"
        raise UserError(f"{message}: not decoded", kind="too-many-pixels", file=name, fix="crop it, or leave it out")
    if header.format == "WEBP":
        max_pixels = min(max_pixels, MAX_PIXELS_WEBP)
    if header.width * header.height > max_pixels:
        message = (
            f"{name} claims {header.width} x {header.height} pixels = {header.width * header.height / 1e6:.0f} million "
            f"in a file of {len(data) / 1e3:.0f} kB, over the limit of {max_pixels / 1e6:.0f} million: not decoded"
        )
        fix = "save it smaller, leave it out, or predict with --tile 512 512, which is limited only by memory"
        if max_pixels != MAX_PIXELS:  # the limit of tiled prediction
            needed = header.width * header.height * _TILED_BYTES
            message += f", as it would need {needed / 1e9:.1f} GB of memory"
            fix = "free memory, or cut the image into parts"
        raise UserError(message, kind="too-many-pixels", file=name, fix=fix)
    return header


def claimed_pixels(path: Path) -> int:
    """Return the number of pixels stated in a file's header, or MAX_PIXELS if it cannot be read."""
    try:
        if not path.is_file():
            return 0
        with open(path, "rb") as file:
            head = file.read(2**18)
        if head.startswith(_PNG) and len(head) >= 24:
            width, height = struct.unpack(">II", head[16:24])
        else:
            width, height = jpeg_frame(head)[:2]
    except (OSError, ValueError, struct.error):
        return MAX_PIXELS
    return min(width * height, MAX_PIXELS)


def stored_tiff(data: bytes) -> tuple[int, int, Pixels] | None:
    """Return width, height and pixel format of an upright TIFF with one image, or None for other files."""
    if other_format(data) != "TIFF":
        return None
    try:
        check_tags(data)
        tags = formats.tiff_tags(data)
    except (ValueError, struct.error):
        return None
    found = formats.tiff_pixels(tags)
    if found is None or not formats.is_upright(tags) or formats.has_more_images(data):
        return None
    return *formats.size_of(tags), found


def _tiff_header(width: int, height: int, pixels: Pixels) -> Header:
    kind = "grey" if pixels.channels == 1 else f"of {pixels.channels} channels"
    return Header("TIFF", width, height, kind, pixels.bits)


def _inspect_png(data: bytes, name: str) -> Header:
    """Parse the header of a PNG and verify all checksums."""
    header, kinds = None, set()
    try:
        for kind, start, stop in png_chunks(data):
            if zlib.crc32(data[start + 4 : stop - 4]) != int.from_bytes(data[stop - 4 : stop]):
                message = f"{name} is damaged: a checksum of the PNG is wrong at byte {start}"
                raise UserError(message, kind="broken-data", file=name, fix=AGAIN)
            # With two headers, the decoder might use the other one.
            if (kind == b"IHDR") != (start == len(_PNG)) or (kind == b"IHDR" and stop - start != 12 + 13):
                message = f"{name} is damaged: the PNG has no header or several"
                raise UserError(message, kind="broken-data", file=name, fix=AGAIN)
            kinds.add(kind)
            if kind == b"IHDR":
                width, height, bits, color_type = struct.unpack(">IIBB", data[start + 8 : start + 18])
                header = Header("PNG", width, height, _PNG_KINDS.get(color_type, "unknown"), bits)
    except ValueError as error:
        raise UserError(f"{name} is cut off: {error}", kind="cut-off", file=name, fix=AGAIN) from None
    if header.kind == "palette" and b"PLTE" not in kinds:
        raise UserError(f"{name} is damaged: its palette is missing", kind="broken-data", file=name, fix=AGAIN)
    return header


def _inspect_jpeg(data: bytes, name: str) -> Header:
    try:
        width, height, channels, bits = jpeg_frame(data)
    except ValueError as error:
        raise UserError(f"{name} is a damaged JPEG: {error}", kind="broken-data", file=name, fix=AGAIN) from None
    if (scans := jpeg_scans(data)) > MAX_SCANS:
        message = f"{name} is a JPEG of {scans} scans, over the limit of {MAX_SCANS}: not decoded"
        raise UserError(message, kind="too-many-scans", file=name, fix="save it as a baseline JPEG")
    return Header("JPEG", width, height, _JPEG_KINDS.get(channels, f"of {channels} channels"), bits, True)


def open_picture(data: bytes, kind: str, name: str) -> Image.Image:
    """Open a PNG or JPEG that `inspect` accepts, without decoding it.

    Raises:
      UserError: If it is damaged.
    """
    # Not Image.open, which warns about files that are refused here, and opens some JPEGs as another format.
    plugin = {"PNG": PngImagePlugin.PngImageFile, "JPEG": JpegImagePlugin.JpegImageFile}[kind]
    try:
        return plugin(io.BytesIO(essential(data)))
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise UserError(f"{name} is a damaged {kind}: {error}", kind="broken-data", file=name, fix=AGAIN) from None


def check_image_header(header: Header, name: str, image_range: tuple[int, int] = (0, 0), pixels: Pixels = RGB) -> None:
    """Refuse CMYK, floating-point, and 16-bit images without a range, or, if `pixels` is not RGB, other formats.

    Raises:
      UserError: If the image is refused.
    """
    if pixels != RGB:
        check_pixels(header.kind, header.bits, pixels, name)
        return
    if header.kind not in ("grey", "grey+alpha", "palette", "RGB", "RGBA"):
        stored = stored_pixels(header.kind, header.bits)
        fix = "convert it to RGB" + (f", or read all images as stored: {flags(stored)}" if stored else "")
        raise UserError(f"image {name} is {header.kind}", kind="not-rgb", file=name, fix=fix)
    if header.bits != 16:
        return
    message = f"image {name} has 16 bits per channel"
    if image_range == (0, 0):
        fix = "state the black and white values of all images, such as --image-range 0 4095, or convert them to 8 bits"
        raise UserError(f"{message}, but no range is stated", kind="sixteen-bits", file=name, fix=fix)
    if header.kind != "grey" and image_range != (0, 65_535):  # Pillow returns only their high bytes
        message = f"{message} and is not gray, so only --image-range 0 65535 is supported"
        raise UserError(message, kind="sixteen-bits", file=name, fix="convert it to 8 bits")


def check_label_header(header: Header, name: str, colored: bool = False, threshold: bool = False) -> None:
    """Refuse labels that are lossy, would be corrupted by decoding, or store colors.

    With `colored`, colors are accepted; with `threshold`, colors and lossy files are.

    Raises:
      UserError: If the label is refused.
    """
    if header.is_lossy and not threshold:
        message = f"label {name} is {header.format}, which is lossy and corrupts class ids"
        raise UserError(message, kind="lossy-label", file=name, fix="export the labels as PNG from their source")
    if header.kind in ("RGB", "RGBA"):
        if header.bits != 8 or not (colored or threshold):
            message = f"label {name} is a {header.bits}-bit {header.kind} image: class ids are expected"
            raise UserError(message, kind="color-label", file=name, fix=EXPORT_IDS)
    elif header.kind not in ("grey", "grey+alpha", "palette"):
        message = f"label {name} is {header.kind}: class ids are expected"
        raise UserError(message, kind="color-label", file=name, fix=EXPORT_IDS)
    elif header.kind == "grey+alpha" and header.bits == 16:
        # Pillow returns only the high bytes, which are 0 for every id below 256.
        message = f"label {name} has 16 bits and an alpha channel: its class ids cannot be read"
        raise UserError(message, kind="sixteen-bits", file=name, fix="save it without an alpha channel")


def check_sizes(image: tuple[int, int], label: tuple[int, int], name: str, file: str) -> None:
    """Check that an image and a label have the same (width, height); `file` is the label's."""
    message = f"{name}: image is {image[0]}x{image[1]}, label is {label[0]}x{label[1]}"
    if image == label[::-1] != label:
        fix = "rotate it back and save it again"
        raise UserError(f"{message}: one of them is rotated", kind="label-rotated", file=file, fix=fix)
    if image != label:
        same_shape = abs(image[0] * label[1] - image[1] * label[0]) < _SAME_SHAPE * image[1] * label[0]
        fix = "--resize-labels nearest" if same_shape else "export the label at the image's size"
        raise UserError(message, kind="label-size-differs", file=file, fix=fix)
