"""Compute class ids and confidence from logits, resized bilinearly to an image's size in strips."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from segnet_jax.nn.label_bits import classes_above_half

_STRIP = 32  # rows per strip, so that logits are never stored at the size of a whole photograph
_STRIP_PIXELS = _STRIP * 8192


def bilinear_taps(length: int, part: slice, rounded: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the source indices and weights of bilinear interpolation along one axis, as in PyTorch's `interpolate`.

    Args:
      length: pixels of the image along the axis.
      part: range of source indices that belong to the image, without letterbox padding.
      rounded: number of pixels to compute; those beyond `length` repeat the last one.

    Returns:
      int32 [2,rounded], the two neighboring source indices, and float32 [rounded], the weight of the second.
    """
    size = part.stop - part.start
    position = np.clip((np.minimum(np.arange(rounded), length - 1) + 0.5) * size / length - 0.5, 0, size - 1)
    low = np.floor(position).astype(np.int32)
    return part.start + np.stack([low, np.minimum(low + 1, size - 1)]), (position - low).astype(np.float32)


def classify_resized(_variables, inputs, _store, *, num_classes, temperature=1.0, multi_label=False):
    """Resize logits to each image's size strip by strip, and return class ids and confidence.

    Channels after the logits are uncertainty maps (0 to 1), which are also resized and returned. The temperature
    divides the logits for the confidence only; it does not change the class ids. See
    `classify_on_host` for several classes per pixel.
    """

    def one(inputs):
        logits, rows, row_weights, columns, column_weights = inputs

        def strip(inputs):
            (above, below), weight = inputs
            lines = _lerp(logits[above], logits[below], weight[:, None, None])
            pixels = _lerp(lines[:, columns[0]], lines[:, columns[1]], column_weights[None, :, None])
            pixels, uncertainty = pixels[..., :num_classes], pixels[..., num_classes:]
            if multi_label:
                ids, confidence = classes_above_half(pixels), 1 / (1 + jnp.exp(-jnp.abs(pixels).min(axis=-1)))
            else:
                largest = pixels.max(axis=-1, keepdims=True)
                confidence = 1 / jnp.exp((pixels - largest) / temperature).sum(axis=-1)
                ids = pixels.argmax(axis=-1).astype(jnp.uint8)
            maps = (confidence, *jnp.moveaxis(uncertainty, -1, 0))
            return ids, *(jnp.round(255 * each).astype(jnp.uint8) for each in maps)

        height = _STRIP  # lower for very wide images, whose strips would need hundreds of megabytes
        while height > 1 and height * columns.shape[1] > _STRIP_PIXELS:
            height //= 2
        strips = rows.reshape(2, -1, height).swapaxes(0, 1), row_weights.reshape(-1, height)
        return tuple(each.reshape(-1, each.shape[-1]) for each in lax.map(strip, strips))

    return (), lax.map(one, inputs)


def classify(_variables, logits, _store, *, num_classes, multi_label=False):
    """Return the class of each pixel at the network's input size."""
    if multi_label:
        return (), classes_above_half(logits)
    return (), jnp.argmax(logits[..., :num_classes], axis=-1).astype(jnp.uint8)


def _lerp(first, second, weight):
    return first * (1 - weight) + second * weight


def classify_on_host(
    maps: np.ndarray, num_classes: int, temperature: float = 1.0, multi_label: bool = False
) -> tuple[np.ndarray, ...]:
    """Return class ids, confidence and uncertainty maps, each uint8 [H,W], from logits and uncertainty [H,W,C+...].

    If a pixel may have several classes, the ids are bits (`nn.label_bits`), of the classes whose sigmoid is above 0.5,
    and the confidence is the probability of the least certain one of these decisions.
    """
    if multi_label:
        confidence = 1 / (1 + np.exp(-np.abs(maps).min(axis=-1)))
        return classes_above_half(maps), np.rint(255 * confidence).astype(np.uint8)
    logits, uncertainty = maps[..., :num_classes], maps[..., num_classes:]
    confidence = 1 / np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature).sum(axis=-1)
    channels = (confidence, *np.moveaxis(uncertainty, -1, 0))
    return logits.argmax(axis=-1).astype(np.uint8), *(np.rint(255 * each).astype(np.uint8) for each in channels)
