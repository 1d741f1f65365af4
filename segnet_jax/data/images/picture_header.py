"""What a picture file says of itself before it is decoded: read by ourselves, with every reason to refuse it."""

import io
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from PIL import Image, JpegImagePlugin, PngImagePlugin

from segnet_jax.data.images.picture_bytes import (
    MOST_SCANS,
    PNG_SIGNATURE,
    essential,
    jpeg_frame,
    jpeg_scans,
    png_chunks,
)
from segnet_jax.system import budget
from segnet_jax.system.download import is_web_page
from segnet_jax.system.errors import UserError

MAX_PIXELS = 50_000_000
"""More is refused before decoding: a small file can claim a picture that fills the memory."""
MAX_BYTES = 5 * MAX_PIXELS
MAX_SIDE = 65_535
"""Of a picture, which is as far as a JPEG can go; a longer PNG of one row would take gigabytes wherever it is drawn."""

# What to do about a file that is not what it should be.
AGAIN = "fetch or export it again"
EXPORT_IDS = "export class ids as a grey or palette PNG of 8 bits"
_SAME_SHAPE = 0.03  # by which two ratios of width and height may differ
_REPLACE = "put the file there, or leave it out"

_PNG, _JPEG = PNG_SIGNATURE, b"\xff\xd8\xff"
_PNG_KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey+alpha", 6: "RGBA"}
_JPEG_KINDS = {1: "grey", 3: "RGB", 4: "CMYK"}


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
            if path.exists():
                raise UserError(f"{name} is not a file", kind="not-a-file", file=name, fix=_REPLACE)
            if path.is_symlink():
                raise UserError(f"{name} is a dead link", kind="dead-link", file=name, fix=_REPLACE)
            raise UserError(f"{name} does not exist", kind="missing-file", file=name, fix=_REPLACE)
        size = path.stat().st_size
        if size > MAX_BYTES:
            what = f"{name} has {size / 1e6:.0f} MB: no picture of up to 50 million pixels has"
            raise UserError(what, kind="too-large", file=name, fix=AGAIN)
        budget.pictures.announce(size)
        return path.read_bytes()
    except OSError as error:
        what = f"{name} cannot be read: {error.strerror}"
        raise UserError(what, kind="cannot-read", file=name, fix="see to its permissions and to the disk") from None


def check_inside(path: Path, folder: Path) -> None:
    """Refuses a file that a link, its own or one on the way to it, leads out of the data set's folder.

    Raises:
      UserError: if so.
    """
    if path.exists() and not path.resolve().is_relative_to(folder.resolve()):
        name = path.relative_to(folder).as_posix()
        what = f"{name} is a link that leads outside the folder, to {path.resolve()}"
        raise UserError(what, kind="points-outside", file=name, fix="put the file itself into the folder")


def inspect(data: bytes, name: str) -> Header:
    """Reads the header of a picture and, for PNG, verifies the checksums of the whole file; decodes nothing.

    Raises:
      UserError: if it is empty, a web page, neither PNG nor JPEG, cut off, damaged, or has over 50 million pixels.
    """
    if not data:
        raise UserError(f"{name} is an empty file", kind="empty-file", file=name, fix=AGAIN)
    if data.startswith(_PNG):
        header = _inspect_png(data, name)
    elif data.startswith(_JPEG):
        header = _inspect_jpeg(data, name)
    elif is_web_page(data[:512]):
        what = f"{name} is a web page, not a picture: its download failed"
        raise UserError(what, kind="web-page", file=name, fix="fetch it again")
    else:
        what = f"{name} is neither PNG nor JPEG: it begins with {data[:8]!r}"
        raise UserError(what, kind="unknown-format", file=name, fix="convert it to PNG")
    if max(header.width, header.height) > MAX_SIDE:
        what = f"{name} claims {header.width} x {header.height} pixels, over the limit of {MAX_SIDE:,} a side"
        raise UserError(f"{what}: not decoded", kind="too-many-pixels", file=name, fix="cut it, or leave it out")
    if header.width * header.height > MAX_PIXELS:
        what = (
            f"{name} claims {header.width} x {header.height} pixels = {header.width * header.height / 1e6:.0f} million "
            f"in a file of {len(data) / 1e3:.0f} kB, over the limit of {MAX_PIXELS / 1e6:.0f} million: not decoded"
        )
        raise UserError(what, kind="too-many-pixels", file=name, fix="save it smaller, or leave it out")
    return header


def claimed_pixels(path: Path) -> int:
    """How many pixels a picture has by the start of its file; as many as any may have where that does not tell."""
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


def _inspect_png(data: bytes, name: str) -> Header:
    """Walks over the chunks, comparing each with its checksum."""
    header, kinds = None, set()
    try:
        for kind, start, stop in png_chunks(data):
            if zlib.crc32(data[start + 4 : stop - 4]) != int.from_bytes(data[stop - 4 : stop]):
                what = f"{name} is damaged: a checksum of the PNG is wrong at byte {start}"
                raise UserError(what, kind="broken-data", file=name, fix=AGAIN)
            # Of two headers the decoder might believe the other one.
            if (kind == b"IHDR") != (start == len(_PNG)) or (kind == b"IHDR" and stop - start != 12 + 13):
                what = f"{name} is damaged: a PNG without a header, or with two"
                raise UserError(what, kind="broken-data", file=name, fix=AGAIN)
            kinds.add(kind)
            if kind == b"IHDR":
                width, height, bits, color_type = struct.unpack(">IIBB", data[start + 8 : start + 18])
                header = Header("PNG", width, height, _PNG_KINDS.get(color_type, "unknown"), bits)
    except ValueError as error:
        raise UserError(f"{name} is cut off: {error}", kind="cut-off", file=name, fix=AGAIN) from None
    if header.kind == "palette" and b"PLTE" not in kinds:
        raise UserError(f"{name} is damaged: it lacks its palette", kind="broken-data", file=name, fix=AGAIN)
    return header


def _inspect_jpeg(data: bytes, name: str) -> Header:
    try:
        width, height, channels, bits = jpeg_frame(data)
    except ValueError as error:
        raise UserError(f"{name} is a damaged JPEG: {error}", kind="broken-data", file=name, fix=AGAIN) from None
    if (scans := jpeg_scans(data)) > MOST_SCANS:
        what = f"{name} is a JPEG of {scans} scans, over the limit of {MOST_SCANS}: not decoded"
        raise UserError(what, kind="too-many-scans", file=name, fix="save it again, not progressive")
    return Header("JPEG", width, height, _JPEG_KINDS.get(channels, f"of {channels} channels"), bits)


def open_picture(data: bytes, kind: str, name: str) -> Image.Image:
    """Opens a picture that `inspect` has passed, still undecoded.

    Raises:
      UserError: if Pillow finds it damaged.
    """
    # Not Image.open, which warns of what we refuse ourselves, and takes some JPEGs for another format.
    plugin = {"PNG": PngImagePlugin.PngImageFile, "JPEG": JpegImagePlugin.JpegImageFile}[kind]
    try:
        return plugin(io.BytesIO(essential(data)))
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise UserError(f"{name} is a damaged {kind}: {error}", kind="broken-data", file=name, fix=AGAIN) from None


def check_image_header(header: Header, name: str) -> None:
    """Refuses images of a kind that would have to be guessed at: CMYK, or 16 bits per channel."""
    if header.kind not in ("grey", "grey+alpha", "palette", "RGB", "RGBA"):
        raise UserError(f"image {name} is {header.kind}", kind="not-rgb", file=name, fix="convert it to RGB")
    if header.bits == 16:
        what = f"image {name} has 16 bits per channel"
        raise UserError(what, kind="sixteen-bits", file=name, fix="convert it to 8")


def check_label_header(header: Header, name: str, colored: bool = False) -> None:
    """Refuses labels whose values are ruined (JPEG), would be while decoding, or are colours (unless `colored`)."""
    if header.format == "JPEG":
        what = f"label {name} is JPEG, which is lossy: its class ids are ruined"
        raise UserError(what, kind="lossy-label", file=name, fix="export PNG from the labels' source")
    if header.kind in ("RGB", "RGBA"):
        if header.bits != 8 or not colored:
            what = f"label {name} is a {header.bits}-bit {header.kind} picture: class ids are expected"
            raise UserError(what, kind="colour-label", file=name, fix=EXPORT_IDS)
    elif header.kind not in ("grey", "grey+alpha", "palette"):
        what = f"label {name} is {header.kind}: class ids are expected"
        raise UserError(what, kind="colour-label", file=name, fix=EXPORT_IDS)
    elif header.kind == "grey+alpha" and header.bits == 16:
        # Pillow gives the high bytes alone, which are 0 for every id below 256.
        what = f"label {name} has 16 bits and an alpha channel: its class ids cannot be read"
        raise UserError(what, kind="sixteen-bits", file=name, fix="save it without alpha channel")


def check_sizes(image: tuple[int, int], label: tuple[int, int], name: str, file: str) -> None:
    """Refuses an image and a label, both (width, height), of unlike size; `file` is the label's."""
    what = f"{name}: image is {image[0]}x{image[1]}, label is {label[0]}x{label[1]}"
    if image == label[::-1] != label:
        fix = "rotate the one that is turned and save it again"
        raise UserError(f"{what}: one of them is rotated", kind="label-rotated", file=file, fix=fix)
    if image != label:
        same_shape = abs(image[0] * label[1] - image[1] * label[0]) < _SAME_SHAPE * image[1] * label[0]
        fix = "--resize-labels nearest" if same_shape else "export the label at the image's size"
        raise UserError(what, kind="label-size-differs", file=file, fix=fix)
