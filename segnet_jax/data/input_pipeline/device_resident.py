"""The device input path: the split is in device memory, and the step makes its own batches.

Batches equal those of the host path bit for bit, as both use the same sampler. The host sends only a few numbers per
step, and TensorFlow is not needed.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segnet_jax.constants import VOID
from segnet_jax.data.input_pipeline.augment import Backend, augment
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.data.input_pipeline.tf_data import BatchShard, evaluation_indices, num_evaluation_steps

Store = dict[str, jax.Array]
"""A split in device memory, or the device's shard of it: "images" uint8 or uint16 [N,H,W,C], "labels" uint8 [N,H,W]."""


def whole(samples: CachedSplit) -> dict[str, np.ndarray]:
    """Return the arrays of the whole split, to be copied to each device."""
    return {"images": samples.images, "labels": samples.labels}


def shards(samples: CachedSplit, shard: BatchShard) -> dict[str, np.ndarray]:
    """Return the shards of this process's devices, [L,n,...]; global device d gets samples d*n to d*n + n - 1."""
    size = -(-len(samples) // shard.num_devices)
    first = shard.first_device * size
    chosen = np.arange(first, first + shard.num_local_devices * size)
    chosen = chosen.clip(max=len(samples) - 1)  # padding with the last sample, which is never read
    shape = (shard.num_local_devices, size)
    return {name: array[chosen].reshape(*shape, *array.shape[1:]) for name, array in whole(samples).items()}


def training_draws(
    sampler: Sampler, shard: BatchShard, grad_accum_steps: int, calls: list[range]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the augmentation parameters of each dispatch for `training_batch`: int32 [L,K,A,B] or [L,K,A,B,N]."""
    places = shard.places(grad_accum_steps)
    for steps in calls:
        batches = [sampler.batch(step)[places].drawn() for step in steps]
        yield {name: np.stack([draws[name] for draws in batches], axis=1).astype(np.int32) for name in batches[0]}


def evaluation_draws(num_samples: int, shard: BatchShard) -> Iterator[dict[str, np.ndarray]]:
    """Yield the sample indices of each evaluation batch for `evaluation_batch`: int32 [L,B], -1 for padding."""
    for step in range(num_evaluation_steps(num_samples, shard)):
        yield {"index": evaluation_indices(num_samples, shard, step).astype(np.int32)}


def training_batch(
    draws: dict[str, jax.Array],
    store: Store,
    *,
    most: int,
    crop: tuple[int, int] = (0, 0),
    fill: tuple[int, ...] = (),
    axis: str | None = None,
) -> Store:
    """Make one device's augmented batch, inside the step.

    Args:
      draws: augmentation parameters, int32 [A,B] or [A,B,N]; augmentations without parameters are not compiled.
      store: the split.
      most: largest shift in pixels.
      crop: height and width of crops; (0, 0) without them.
      fill: value of each channel outside an image; empty for 0.
      axis: mapped axis over which the split is sharded, or None if each device has the whole split.

    Returns:
      "image" uint8 [A,B,H,W,3] and "label" uint8 [A,B,H,W], as in `tf_data.training_batch`.
    """
    backend = Backend(jnp, _flip, partial(_shift, most=most), _cut)
    images, labels = _gather(store, draws["index"], axis)
    others = _gather(store, draws["partner"], axis) if "partner" in draws else None
    augment_all = jax.vmap(
        jax.vmap(partial(augment, crop=crop, fill=fill, backend=backend))
    )  # over accumulated batches and images
    image, label = augment_all(images, labels, draws, other=others)
    return {"image": image, "label": label}


def evaluation_batch(draws: dict[str, jax.Array], store: Store, *, axis: str | None = None) -> Store:
    """Make one device's evaluation batch, inside the step: "image" [B,H,W,3] and "label" [B,H,W], uint8."""
    images, labels = _gather(store, draws["index"], axis)
    is_sample = draws["index"] >= 0
    return {
        "image": jnp.where(is_sample[:, None, None, None], images, 0),
        "label": jnp.where(is_sample[:, None, None], labels, VOID),
    }


def _gather(store: Store, index: jax.Array, axis: str | None) -> tuple[jax.Array, jax.Array]:
    """Return the samples at indices of any shape, fetching samples from other devices if the split is sharded."""
    if axis is None:
        return tuple(store[name].at[index].get(mode="clip") for name in ("images", "labels"))
    size = len(store["labels"])
    wanted = lax.all_gather(index, axis) - lax.axis_index(axis) * size  # per device, relative to our first sample
    is_here = (0 <= wanted) & (wanted < size)

    def exchange(samples):
        here = is_here.reshape(*is_here.shape, *(1,) * (samples.ndim - 1))
        found = jnp.where(here, samples.at[wanted].get(mode="clip"), 0)
        return lax.psum_scatter(found, axis)  # one device has the sample, and the others add zeros

    return exchange(store["images"]), exchange(store["labels"])


def _flip(array: jax.Array, flip: jax.Array) -> jax.Array:
    """Reflect [H,W,...] left/right where `flip` is not 0."""
    return jnp.where(flip != 0, array[:, ::-1], array)


def _shift(
    array: jax.Array, shift_y: jax.Array, shift_x: jax.Array, fill: int | tuple[int, ...], *, most: int
) -> jax.Array:
    """Shift [H,W,...] down and right; uncovered pixels are `fill`, a number or one for each channel."""
    margins = [min(most, size) for size in array.shape[:2]]  # larger shifts leave nothing of the image
    padding = [(margin, margin) for margin in margins] + [(0, 0)] * (array.ndim - 2)
    if isinstance(fill, tuple):
        channels = zip(jnp.split(array, len(fill), axis=-1), fill, strict=True)
        padded = jnp.concatenate([jnp.pad(each, padding, constant_values=value) for each, value in channels], axis=-1)
    else:
        padded = jnp.pad(array, padding, constant_values=fill)
    shifts = zip(margins, (shift_y, shift_x), strict=True)
    # Clipped, because dynamic_slice counts a negative start from the end.
    start = [margin - jnp.clip(shift, -margin, margin) for margin, shift in shifts]
    return lax.dynamic_slice(padded, [*start, *(0,) * (array.ndim - 2)], array.shape)


def _cut(array: jax.Array, top: jax.Array, left: jax.Array, height: int, width: int) -> jax.Array:
    """Crop [H,W,...]."""
    start, size = (top, left, *(0,) * (array.ndim - 2)), (height, width, *array.shape[2:])
    return lax.dynamic_slice(array, start, size)
