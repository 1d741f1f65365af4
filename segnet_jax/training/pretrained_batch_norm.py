"""Initialize BatchNorm after pretrained convolutions so that the encoder computes the pretrained network's features.

A VGG has no BatchNorm. Inserting BatchNorm with scale 1 and shift 0 changes its features. If its scale is the standard
deviation of the convolution's output and its shift is the mean, BatchNorm is the identity. Means and variances are
measured in the pretrained network on some training images.

Under BatchNorm, a kernel's norm affects only its effective learning rate, which is inversely proportional to the norm's
square (van Laarhoven 2017, arXiv 1706.05350), and the next BatchNorm cancels the magnitude of a layer's output. But
training steps hardly change scales of several hundred, as in a VGG's features. `preserve_features` can therefore give
each kernel the norm of He initialization and each layer's output a magnitude of about 1.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from segnet_jax.distributed.data_parallel import AXIS, AheadOfTime, Devices, parallel_eval_step
from segnet_jax.nn.convolution import convolve_padded
from segnet_jax.nn.network_interface import NetworkInterface, encoder_convolutions
from segnet_jax.nn.pooling import max_pool_with_code
from segnet_jax.nn.preprocessing import Preprocessing, normalize

_PIXELS = (0, 1, 2)


class Affine(NamedTuple):
    """The affine map between a pretrained convolution and its ReLU: factor * conv(x) + offset, each float32 [C]."""

    factor: np.ndarray
    offset: np.ndarray


def measure_convolutions(
    model: NetworkInterface,
    kernels: Mapping[str, jax.Array],
    affine: Mapping[str, Affine],
    batches: Iterable[dict[str, jax.Array]],
    preprocessing: Preprocessing,
    devices: Devices,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, np.ndarray]]:
    """Return the mean and variance of each convolution's output, before the bias, in the pretrained network.

    Args:
      model: network whose encoder has the same convolutions; with `sync_axis`, statistics are taken over all devices.
      kernels: {"conv1_1": float32 [3,3,in,out], ...}.
      affine: affine map of each convolution.
      batches: one or more batches on the devices: "image" uint8 [L,A,B,H,W,3], of which only the first of A is used.
      preprocessing: preprocessing of the pretrained network's input.
      devices: devices to compute on.
      on_batch: called after each batch.

    Returns:
      {convolution: {"mean", "var"}}, float64 [out], averaged over the batches.
    """

    def statistics(weights, batch, _store):
        kernels, affine = weights
        x, moments = normalize(batch["image"][0], preprocessing), {}
        for stage in encoder_convolutions(model):
            for conv in stage:
                y = convolve_padded(x, kernels[conv])
                means = jnp.stack([jnp.mean(y, _PIXELS), jnp.mean(y * y, _PIXELS)])
                mean, mean_of_squares = means if model.sync_axis is None else lax.pmean(means, AXIS)
                moments[conv] = {"mean": mean, "var": jnp.maximum(mean_of_squares - mean * mean, 0)}
                factor, offset = (part[None, None, None] for part in affine[conv])
                x = nn.relu(y * factor + offset)
            x, _ = max_pool_with_code(x, model.pooling)
        return lax.pmean(moments, AXIS), ()

    step = AheadOfTime(parallel_eval_step(statistics, devices), "the encoder's statistics", devices)
    weights = jax.device_put((dict(kernels), dict(affine)), devices.replicated)
    moments = []
    for batch in batches:
        moments.append(jax.device_get(step(weights, batch)[0]))
        on_batch()
    return jax.tree.map(lambda *arrays: np.mean(arrays, axis=0, dtype=np.float64), *moments)


def preserve_features(
    variables: dict[str, Any],
    affine: Mapping[str, Affine],
    statistics: Mapping[str, Mapping[str, np.ndarray]],
    batch_norms: Mapping[str, str],
    epsilon: float,
    rescale: bool = False,
    normalize: bool = False,
) -> dict[str, Any]:
    """Return the network's variables with BatchNorm set so that the encoder computes the pretrained network's features.

    The features are exact with running statistics; with batch statistics, they are as close as the batch's statistics
    are to the measured ones.

    Args:
      variables: "params" and "batch_stats", with the pretrained kernels, and biases if the convolutions have them.
      affine: affine map of each pretrained convolution, in the order of the network.
      statistics: result of `measure_convolutions`.
      batch_norms: {convolution: BatchNorm after it}.
      epsilon: added to the variance in BatchNorm.
      rescale: whether to scale each kernel and its bias so that the kernel has the L2 norm of He initialization;
        BatchNorm compensates for the factor.
      normalize: whether to divide each layer's features by a scalar that makes the root mean square of BatchNorm's
        scales 1; the next BatchNorm compensates for it.
    """
    params, batch_stats, divisor = dict(variables["params"]), dict(variables["batch_stats"]), 1.0
    for conv, (factor, offset) in affine.items():
        layer, mean, var = params[conv], *(np.asarray(statistics[conv][part], np.float64) for part in ("mean", "var"))
        gain = he_norm(layer["kernel"].shape) / np.linalg.norm(np.float64(layer["kernel"])) if rescale else 1.0
        kernel, bias = gain * np.float64(layer["kernel"]), gain / divisor * np.float64(layer.get("bias", 0.0))
        params[conv] = _float32({"kernel": kernel} | ({"bias": bias} if "bias" in layer else {}))
        gain /= divisor  # output of this convolution relative to the pretrained network's
        scale, shift = factor * np.sqrt(gain**2 * var + epsilon) / gain, factor * mean + offset
        divisor = np.sqrt(np.mean(scale**2)) if normalize else 1.0
        params[batch_norms[conv]] = _float32({"scale": scale / divisor, "bias": shift / divisor})
        batch_stats[batch_norms[conv]] = _float32({"mean": gain * mean + bias, "var": gain**2 * var})
    return {"params": params, "batch_stats": batch_stats}


def he_norm(shape: tuple[int, ...]) -> float:
    """Return the expected L2 norm of a kernel [k,k,in,out] with He initialization (variance 2 / (k * k * in))."""
    return math.sqrt(2 * shape[-1])


def _float32(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}
