"""BatchNorm's statistics taken afresh from data, as the authors of SegNet did before testing.

Source: SegNet-Tutorial's `compute_bn_statistics.py`: the means over batches of the batches' means and variances.
"""

from collections.abc import Callable, Iterable

import jax
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
    forgetful = model.clone(batch_norm_momentum=0.0)  # whose new running statistics are the batch's own

    def statistics(variables, batch, _store):
        image = normalise(batch["image"][0], preprocessing, model.dtype)
        _, updated = forgetful.apply(variables, image, train=True, mutable=["batch_stats"])
        found = updated["batch_stats"]
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
