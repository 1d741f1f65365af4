"""Random numbers that are the same on every machine and with every numpy."""

import hashlib

import numpy as np


class Dice:
    """Random draws that depend on `identity` alone.

    They are taken from Philox's raw 64-bit integers, which numpy promises to keep; the distributions of
    `numpy.random.Generator` may change from version to version.

    Args:
      *identity: strings and integers that name the stream, such as a seed, a split's name and an index.
    """

    def __init__(self, *identity: str | int):
        digest = hashlib.sha256(repr(identity).encode()).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
        self._unused: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draws a number from low (included) to high."""
        if not self._unused:  # a block at a time: one call to numpy costs as much as hundreds of draws
            self._unused = ((self._bits.random_raw(512) >> np.uint64(11)) * 2.0**-53).tolist()
        return low + (high - low) * self._unused.pop()

    def chance(self, probability: float) -> bool:
        """Says yes with the given probability."""
        return self.uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """Draws a whole number from low to high, both included."""
        return low + int(self.uniform() * (high - low + 1))

    def pick(self, options):
        """Picks one item of a sequence."""
        return options[self.integer(0, len(options) - 1)]

    def noise(self, *shape: int) -> np.ndarray:
        """Draws float32 numbers of the given shape from -1 to 1, each the mean of two bytes: near 0 is commoner."""
        count = 1
        for size in shape:
            count *= size
        raw = self._bits.random_raw(count // 4 + 1).astype("<u8").view(np.uint8)  # the same bytes on any machine
        pairs = raw[:count].astype(np.int16) + raw[count : 2 * count]
        return (pairs.astype(np.float32) / 255 - 1).reshape(shape)
