"""GIF, WebP, TIFF and BMP, decoded by Pillow behind our own checks."""

import io
from typing import Any

from PIL import BmpImagePlugin, GifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin

from segnet_jax.system.errors import UserError

_TIFF = (b"II*\0", b"MM\0*")
_PLUGINS: dict[str, Any] = {
    "GIF": GifImagePlugin.GifImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
_KINDS = {
    **{"1": ("grey", 1), "L": ("grey", 8), "P": ("palette", 8), "RGB": ("RGB", 8), "RGBA": ("RGBA", 8)},
    **{"LA": ("grey+alpha", 8), "CMYK": ("CMYK", 8), "RGBX": ("RGB", 8)},
    **{mode: ("grey", 16) for mode in ("I;16", "I;16B", "I;16L")},
    **{"I": ("grey of 32 bits", 32), "F": ("grey of floating-point numbers", 32)},
}
"""Pillow's mode -> (kind, bits per channel) of a header."""


def other_format(data: bytes) -> str:
    """Return the format by a file's first bytes, or "" if it is not GIF, WebP, TIFF or BMP."""
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:4] in _TIFF:
        return "TIFF"
    return "BMP" if data[:2] == b"BM" and len(data) > 26 else ""


def is_lossy(image: Image.Image, data: bytes, kind: str) -> bool:
    """Return whether an opened image was stored with lossy compression."""
    if kind == "WEBP":
        return b"VP8 " in data[12:64]
    return kind == "TIFF" and "jpeg" in str(image.info.get("compression", ""))


def open_other(data: bytes, kind: str, name: str) -> Image.Image:
    """Open a file of one of these formats without decoding it.

    Raises:
      UserError: If it is damaged or contains several images.
    """
    try:
        image = _PLUGINS[kind](io.BytesIO(data))
        frames = getattr(image, "n_frames", 1)
    except MemoryError:
        raise
    except Exception as error:  # these decoders fail in many ways on damaged files
        raise _damaged(name, kind, error) from None
    if frames != 1:
        message = f"{name} contains {frames} images"
        raise UserError(message, kind="several-pictures", file=name, fix="save each image as a separate file")
    return image


def decode_other(image: Image.Image, kind: str, name: str) -> Image.Image:
    """Decode an image from `open_other`.

    Raises:
      UserError: If it is damaged.
    """
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(name, kind, error) from None
    return image


def kind_and_bits(image: Image.Image) -> tuple[str, int]:
    """Return `kind` and `bits` of a `Header` for a Pillow mode."""
    return _KINDS.get(image.mode, (f"of the mode {image.mode}", 8))


def _damaged(name: str, kind: str, error: Exception) -> UserError:
    state, fault = ("cut off", "cut-off") if "truncated" in str(error) else (f"a damaged {kind}", "broken-data")
    return UserError(f"{name} is {state}: {str(error)[:200]}", kind=fault, file=name, fix="fetch or export it again")
