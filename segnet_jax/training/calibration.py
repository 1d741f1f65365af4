"""BatchNorm's statistics taken afresh from data, as the authors of SegNet did before testing.

Source: SegNet-Tutorial's `compute_bn_statistics.py`: the means over batches of the batches' means and variances. The
older text of MathWorks' page on batch normalization has the mean and variance over the whole training set instead:
`population_statistics`.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax import lax

from segnet_jax.nn.preprocessing import Preprocessing, normalise
from segnet_jax.training.parallel import AXIS, AheadOfTime, Devices, parallel_eval_step
from segnet_jax.training.state import split_layers


def calibrate(
    model: nn.Module,
    variables: dict,
    batches: Iterable[dict[str, jax.Array]],
    preprocessing: Preprocessing,
    devices: Devices,
    on_batch: Callable[[], None] = lambda: None,
) -> dict:
    """Returns the running statistics that the given batches have under the given parameters.

    Args:
      model: the network. Where its BatchNorm is not synchronised, the batches are those of single devices.
      variables: the network's, replicated; of its running statistics only those of frozen layers matter, and stay.
      batches: at least one, on the devices: "image" uint8 [L,A,B,H,W,3], of which the first of A is used.
      preprocessing: what the network expects of an image.
      devices: to compute on.
      on_batch: called after each batch.
    """
    of_batch = _batch_statistics(model, preprocessing)

    def statistics(variables, batch, _store):
        found = of_batch(variables, batch)
        return (found if model.sync_axis else lax.pmean(found, AXIS)), ()

    step = AheadOfTime(parallel_eval_step(statistics, devices), "the calibration", devices)
    total, count = None, 0
    for batch in batches:
        found = jax.device_get(step(variables, batch)[0])
        total = found if total is None else jax.tree.map(lambda a, b: a + b, total, found)
        count += 1
        on_batch()
    mean = jax.tree.map(lambda sum_: (sum_ / count).astype(sum_.dtype), total)
    return mean | split_layers(jax.device_get(variables["batch_stats"]), model.is_frozen)[0]


class CountedBatch(NamedTuple):
    """A batch whose statistics are to be pooled with those of others.

    Attributes:
      batch: on the devices, as `calibrate` takes them.
      num_images: that the statistics of one normalization are taken over.
      is_repeated: each device has the same images, which count once.
    """

    batch: dict[str, jax.Array]
    num_images: int
    is_repeated: bool = False


def population_statistics(
    model: nn.Module,
    variables: dict,
    batches: Iterable[CountedBatch],
    preprocessing: Preprocessing,
    devices: Devices,
    on_batch: Callable[[int], None] = lambda num_images: None,
) -> dict:
    """Return the mean and variance of each BatchNorm's input over all pixels of all batches.

    Each batch passes through the network as in training, normalized by its own statistics; these are then pooled. With
    n images in a batch, N in all, and the batch's mean m and variance v:
    mean M = sum(n m) / N, variance = sum(n v) / N + sum(n (m - M)^2) / N: the mean of the variances plus the variance
    of the means.

    Args:
      model: the network.
      variables: the network's, replicated; its running statistics do not matter.
      batches: at least one.
      preprocessing: what the network expects of an image.
      devices: to compute on.
      on_batch: called with the number of images after each batch.

    Returns:
      "batch_stats", float32 on the host.
    """
    of_batch = _batch_statistics(model, preprocessing)

    def statistics(variables, batch, _store):
        return lax.all_gather(of_batch(variables, batch), AXIS), ()  # leaves [devices, channels]

    step = AheadOfTime(parallel_eval_step(statistics, devices), "the calibration", devices)
    found, counts = [], []
    for batch, num_images, is_repeated in batches:
        by_device = jax.device_get(step(variables, batch)[0])
        # Synchronized statistics are the same on each device: one of them stands for the whole batch.
        num_groups = 1 if model.sync_axis or is_repeated else devices.total
        for group in range(num_groups):
            found.append(jax.tree.map(lambda leaf, group=group: leaf[group], by_device))
            counts.append(num_images)
        on_batch(num_images * num_groups)
    pooled = {layer: pool_moments(counts, [each[layer] for each in found]) for layer in found[0]}
    return pooled | split_layers(jax.device_get(variables["batch_stats"]), model.is_frozen)[0]


def pool_moments(counts: list[int], moments: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the mean and variance of a set from those of its parts (law of total variance), in float64 inside.

    Args:
      counts: size of each part.
      moments: {"mean": [C], "var": [C]} of each part, the variance biased.

    Returns:
      {"mean": float32 [C], "var": float32 [C]}, the variance biased.
    """
    weights = np.asarray(counts, np.float64) / np.sum(counts)
    means, variances = (np.stack([each[name] for each in moments]).astype(np.float64) for name in ("mean", "var"))
    mean = weights @ means
    return {"mean": mean.astype(np.float32), "var": (weights @ (variances + (means - mean) ** 2)).astype(np.float32)}


def _batch_statistics(model: nn.Module, preprocessing: Preprocessing) -> Callable[[dict, dict], dict]:
    """Return a function (variables, a device's batch) -> the statistics that the batch has in training."""
    forgetful = model.clone(batch_norm_momentum=0.0)  # whose new running statistics are the batch's own

    def of_batch(variables, batch):
        image = normalise(batch["image"][0], preprocessing, model.dtype)
        _, updated = forgetful.apply(variables, image, train=True, mutable=["batch_stats"])
        return updated["batch_stats"]

    return of_batch
