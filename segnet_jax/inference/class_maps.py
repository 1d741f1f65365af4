"""From logits to class ids and confidence: bilinear enlargement to an image's size, strip by strip, and comparison."""

import jax.numpy as jnp
import numpy as np
from jax import lax

_STRIP = 32  # rows that are looked at together, so that logits at the size of a photograph never lie in memory
_STRIP_PIXELS = _STRIP * 8192


def bilinear_taps(length: int, part: slice, rounded: int) -> tuple[np.ndarray, np.ndarray]:
    """Which two samples each of `length` pixels lies between, as PyTorch's bilinear `interpolate` has it.

    Args:
      length: pixels of the image.
      part: the samples that are of the image; those around it, of bars, are never taken.
      rounded: pixels wished; beyond `length` the last is repeated.

    Returns:
      int32 [2,rounded], the samples, and float32 [rounded], the share of the second.
    """
    size = part.stop - part.start
    place = np.clip((np.minimum(np.arange(rounded), length - 1) + 0.5) * size / length - 0.5, 0, size - 1)
    low = np.floor(place).astype(np.int32)
    return part.start + np.stack([low, np.minimum(low + 1, size - 1)]), (place - low).astype(np.float32)


def compare_enlarged(_variables, inputs, _store, *, num_classes):
    """Brings logits to each image's size and compares the classes there, strip by strip.

    Maps of values from 0 to 1 that stand behind the logits are brought there too.
    """

    def one(inputs):
        logits, rows, row_shares, columns, column_shares = inputs

        def strip(inputs):
            (above, below), share = inputs
            lines = _mixed(logits[above], logits[below], share[:, None, None])
            pixels = _mixed(lines[:, columns[0]], lines[:, columns[1]], column_shares[None, :, None])
            pixels, measured = pixels[..., :num_classes], pixels[..., num_classes:]
            most = pixels.max(axis=-1, keepdims=True)
            confidence = 1 / jnp.exp(pixels - most).sum(axis=-1)
            shares = (confidence, *jnp.moveaxis(measured, -1, 0))
            return pixels.argmax(axis=-1).astype(jnp.uint8), *(
                jnp.round(255 * each).astype(jnp.uint8) for each in shares
            )

        height = _STRIP  # of a strip; less for a picture so wide that one of it would take hundreds of megabytes
        while height > 1 and height * columns.shape[1] > _STRIP_PIXELS:
            height //= 2
        strips = rows.reshape(2, -1, height).swapaxes(0, 1), row_shares.reshape(-1, height)
        return tuple(each.reshape(-1, each.shape[-1]) for each in lax.map(strip, strips))

    return (), lax.map(one, inputs)


def compare(_variables, logits, _store, *, num_classes):
    """The class of each pixel that the network saw."""
    return (), jnp.argmax(logits[..., :num_classes], axis=-1).astype(jnp.uint8)


def _mixed(first, second, share):
    return first * (1 - share) + second * share


def compare_on_host(maps: np.ndarray, num_classes: int) -> tuple[np.ndarray, ...]:
    """The class of each pixel, its confidence and what stands behind the logits, all uint8 [H,W], from [H,W,C...]."""
    logits, measured = maps[..., :num_classes], maps[..., num_classes:]
    confidence = 1 / np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)
    shares = (confidence, *np.moveaxis(measured, -1, 0))
    return logits.argmax(axis=-1).astype(np.uint8), *(np.rint(255 * each).astype(np.uint8) for each in shares)
