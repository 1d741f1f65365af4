"""Cut a large image into overlapping tiles, and blend the tiles' outputs without visible seams."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from segnet_jax.system.errors import UserError


@dataclass(frozen=True)
class AxisTiles:
    """Tiles of equal size along one axis of an image.

    Attributes:
      size: size of each tile, pixels.
      starts: first pixel of each tile, ascending; the last tile ends with the image.
      weights: weight of each tile pixel, float32 [tiles, size]; the weights of each image pixel sum to 1.
    """

    size: int
    starts: tuple[int, ...]
    weights: np.ndarray

    @property
    def ends(self) -> tuple[int, ...]:
        """For each tile, the pixel where the next one starts, or the image ends."""
        return (*self.starts[1:], self.starts[-1] + self.size)


class Block(NamedTuple):
    """A part of the blended output: its rows and columns in the image, and its values, float32 [h,w,C]."""

    rows: slice
    columns: slice
    values: np.ndarray


def check_tiles(tile: tuple[int, int], overlap: int, multiple: int) -> None:
    """Check the size and overlap of tiles.

    Raises:
      UserError: If tiles are too small, or the overlap is out of range.
    """
    if min(tile) < 2 * multiple:
        given = " ".join(map(str, tile))
        raise UserError(f"--tile must be at least {2 * multiple} {2 * multiple} for this network, got {given}")
    if not 0 <= overlap <= min(tile) - multiple:
        raise UserError(f"--overlap must be between 0 and {min(tile) - multiple} for this --tile, got {overlap}")


def cut(length: int, tile: int, overlap: int, multiple: int) -> AxisTiles:
    """Cut one axis into tiles.

    Tiles start at multiples of the downsampling factor and end with the image. So they pool the same windows as the
    whole image, and give the same outputs if the receptive field reaches no farther than a quarter of the overlap.

    Args:
      length: pixels of the image.
      tile: minimum size of a tile; an image that is not larger becomes one tile.
      overlap: minimum overlap of neighboring tiles, at most `tile - multiple`.
      multiple: downsampling factor of the network.
    """
    size = tile + (length - tile) % multiple
    if length <= size:
        return AxisTiles(length, (0,), np.ones((1, length), np.float32))
    last = (length - size) // multiple  # in units of `multiple`, like `max_stride`
    max_stride = (size - overlap) // multiple
    num_gaps = -(-last // max_stride)
    starts = tuple(multiple * (last * i // num_gaps) for i in range(num_gaps + 1))
    return AxisTiles(size, starts, _weights(length, size, starts, overlap))


def _weights(length: int, size: int, starts: Sequence[int], overlap: int) -> np.ndarray:
    """Return blending weights, float32 [tiles,size], that sum to 1 at each image pixel.

    Before normalization, at each tile edge inside the image, they are 0 in the outer quarter of the overlap, then rise
    linearly to 1 over the next half.
    """
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


def crops(image: np.ndarray, rows: AxisTiles, columns: AxisTiles) -> Iterator[np.ndarray]:
    """Yield the tiles of an image [H,W,...], row by row."""
    for y in rows.starts:
        for x in columns.starts:
            yield image[y : y + rows.size, x : x + columns.size]


def blend(tiles: Iterable[np.ndarray], rows: AxisTiles, columns: AxisTiles) -> Iterator[Block]:
    """Blend the outputs of tiles; only the image rows where two rows of tiles overlap are held in memory.

    Args:
      tiles: outputs, float32 [h,w,C], in the order of `crops`.
      rows: tiles along the height.
      columns: tiles along the width.

    Yields:
      Blocks that cover the whole output once.
    """
    tiles = iter(tiles)
    above = None  # the part of the previous row of tiles that overlaps this one, [h,W,C]
    for y, below_y, row_weight in zip(rows.starts, rows.ends, rows.weights, strict=True):
        below, left = None, None  # the parts that overlap the next row of tiles, and the next tile
        for x, right_x, column_weight in zip(columns.starts, columns.ends, columns.weights, strict=True):
            tile = next(tiles) * (row_weight[:, None, None] * column_weight[None, :, None])
            if left is not None:
                tile[:, : left.shape[1]] += left
            done, left = tile[:, : right_x - x], tile[:, right_x - x :]
            if above is not None:
                done[: len(above)] += above[:, x:right_x]
            if below is None:
                width = columns.starts[-1] + columns.size
                below = np.empty((rows.size - (below_y - y), width, tile.shape[-1]), np.float32)
            below[:, x:right_x] = done[below_y - y :]
            yield Block(slice(y, below_y), slice(x, right_x), done[: below_y - y])
        above = below
