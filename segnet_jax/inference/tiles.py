"""A large image cut into overlapping tiles, and what was found in them blended so that no seam is seen."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from segnet_jax.system.errors import UserError


@dataclass(frozen=True)
class Cut:
    """One axis of an image, cut into tiles of one size.

    Attributes:
      size: of each tile, in pixels.
      starts: the first pixel of each, ascending; the last tile ends with the image.
      weights: float32 [tiles, size], what each pixel of a tile counts; over all tiles, a pixel of the image counts 1.
    """

    size: int
    starts: tuple[int, ...]
    weights: np.ndarray


def check_tiles(tile: tuple[int, int], overlap: int, multiple: int) -> None:
    """Refuses tiles that could not be laid.

    Raises:
      UserError: if they are too small, or overlap too far.
    """
    if min(tile) < 2 * multiple:
        given = " ".join(map(str, tile))
        raise UserError(f"--tile must be at least {2 * multiple} {2 * multiple} for this network, got {given}")
    if not 0 <= overlap <= min(tile) - multiple:
        raise UserError(f"--overlap must be between 0 and {min(tile) - multiple} for this --tile, got {overlap}")


def cut(length: int, tile: int, overlap: int, multiple: int) -> Cut:
    """Lays tiles over one axis.

    They start on multiples of what the poolings shrink by, and end with the image: then a tile pools the very windows
    that the whole image would, and a network that sees no farther than a quarter of the overlap finds the same.

    Args:
      length: pixels of the image.
      tile: least size of a tile; an image that is not larger is one tile.
      overlap: least overlap of two neighbours, less than the tile by `multiple` or more.
      multiple: that tiles start on.
    """
    size = tile + (length - tile) % multiple
    if length <= size:
        return Cut(length, (0,), np.ones((1, length), np.float32))
    last = (length - size) // multiple  # in steps of `multiple`, as `most`
    most = (size - overlap) // multiple
    num_gaps = -(-last // most)
    starts = tuple(multiple * (last * i // num_gaps) for i in range(num_gaps + 1))
    return Cut(size, starts, _weights(length, size, starts, overlap))


def _weights(length: int, size: int, starts: Sequence[int], overlap: int) -> np.ndarray:
    """Nothing in the outer quarter of the overlap, where the network has seen a border that is none; then it rises."""
    inside = np.arange(size, dtype=np.float32) + 0.5
    rise = [np.clip((edge - overlap / 4) / max(overlap / 2, 1e-6), 0, 1) for edge in (inside, inside[::-1])]
    total, weights = np.zeros(length, np.float32), np.ones((len(starts), size), np.float32)
    for i, start in enumerate(starts):
        if start > 0:
            weights[i] = np.minimum(weights[i], rise[0])
        if start + size < length:
            weights[i] = np.minimum(weights[i], rise[1])
        total[start : start + size] += weights[i]
    return np.stack([weight / total[start : start + size] for weight, start in zip(weights, starts, strict=True)])


def crops(image: np.ndarray, rows: Cut, columns: Cut) -> Iterator[np.ndarray]:
    """The tiles of an image [H,W,...], row by row."""
    for y in rows.starts:
        for x in columns.starts:
            yield image[y : y + rows.size, x : x + columns.size]


def blend(tiles: Iterable[np.ndarray], rows: Cut, columns: Cut) -> Iterator[np.ndarray]:
    """Blends what was computed on tiles; at any time no more of it is held than a row of tiles.

    Args:
      tiles: float32 [h,w,C], in the order of `crops`.
      rows: how the height was cut.
      columns: how the width was cut.

    Yields:
      float32 [h,W,C], bands that make up the whole from the top down.
    """
    tiles = iter(tiles)
    width = columns.starts[-1] + columns.size
    kept = None  # the part of the bands before that the next one overlaps
    for start, end, weight in zip(
        rows.starts, (*rows.starts[1:], rows.starts[-1] + rows.size), rows.weights, strict=True
    ):
        band = None
        for x, share in zip(columns.starts, columns.weights, strict=True):
            tile = next(tiles)
            if band is None:
                band = np.zeros((rows.size, width, tile.shape[-1]), np.float32)
            band[:, x : x + columns.size] += tile * (weight[:, None, None] * share[None, :, None])
        if kept is not None:
            band[: len(kept)] += kept
        yield band[: end - start]
        kept = band[end - start :]
