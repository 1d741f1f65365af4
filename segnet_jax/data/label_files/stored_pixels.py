"""The stored pixels of a label file."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from segnet_jax.data.labels.classes import Color
from segnet_jax.data.labels.label_mapping import Kind


@dataclass(frozen=True)
class Stored:
    """The stored pixels of a label file, before any label mapping.

    Attributes:
      pixels: uint8 or uint16 [H,W], values or palette indices; or uint8 [H,W,3].
      kind: what the file stores.
      palette: index -> RGB, uint8 [N,3], for palette files.
      lossy: the file's format if it is lossy, otherwise "".
    """

    pixels: np.ndarray
    kind: Kind
    palette: np.ndarray | None = None
    lossy: str = ""

    def colors(self) -> np.ndarray:
        """Return RGB, uint8 [H,W,3]; gray values are repeated, and indices beyond the palette are black."""
        if self.pixels.ndim == 3:
            return self.pixels
        if self.palette is None:
            clipped = np.minimum(self.pixels, 255).astype(np.uint8)
            return np.repeat(clipped[..., None], 3, axis=-1)
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.palette)] = self.palette[:256]
        return table[self.pixels]

    def colors_of(self, indices: Sequence[int]) -> list[Color]:
        """Return the RGB of palette indices; black beyond the palette."""
        table = self.palette.tolist()
        return [tuple(table[index]) if index < len(table) else (0, 0, 0) for index in indices]

    def values(self) -> np.ndarray | None:
        """Return values or indices [H,W]; for RGB, one channel if all three are equal, or None."""
        if self.pixels.ndim == 2:
            return self.pixels
        red, green, blue = (self.pixels[..., channel] for channel in range(3))
        return red if (red == green).all() and (green == blue).all() else None

    def grey(self) -> np.ndarray:
        """Return brightness [H,W]: ITU-R 601 luma of RGB and palette files, else the values."""
        if self.kind == "grey":
            return self.pixels
        return np.asarray(Image.fromarray(self.colors()).convert("L"))


def dark_and_bright(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixels of brightness [H,W] are near black and which are near white; values above 255 are neither."""
    return grey < 64, (grey > 191) & (grey < 256)


def is_bimodal(grey: np.ndarray) -> bool:
    """Return whether nearly all pixels are near black or near white, as in a mask of two classes."""
    dark, bright = dark_and_bright(grey)
    return bool((dark | bright).mean() > 0.9)
