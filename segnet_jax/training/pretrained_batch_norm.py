"""BatchNorm behind pretrained convolutions, set so that the encoder computes what the pretrained network computes.

A VGG has no BatchNorm. Put behind its convolutions with scale 1 and shift 0, BatchNorm makes other features of them.
With the deviation of a convolution's output as scale and its mean as shift, it passes the output on unchanged. The
means and variances are those that each convolution has in the pretrained network itself, on some training images.

Under BatchNorm a kernel's norm changes nothing but the effective learning rate, which falls as its square grows (van
Laarhoven 2017, arXiv 1706.05350), and so does the size of a layer's output, which the next BatchNorm takes out again:
but where scales are of several hundred, as of a VGG's features, no step moves them. `preserve_features` can give each
kernel the norm that He initialization would, and each layer's output a size of about 1.
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
from segnet_jax.nn.contract import NetworkContract, encoder_convolutions
from segnet_jax.nn.convolution import convolve_padded
from segnet_jax.nn.pooling import max_pool_with_code
from segnet_jax.nn.preprocessing import Preprocessing, normalize

_PIXELS = (0, 1, 2)


class Affine(NamedTuple):
    """What follows a pretrained convolution before its ReLU: factor * conv(x) + offset, each float32 [C]."""

    factor: np.ndarray
    offset: np.ndarray


def measure_convolutions(
    model: NetworkContract,
    kernels: Mapping[str, jax.Array],
    affine: Mapping[str, Affine],
    batches: Iterable[dict[str, jax.Array]],
    preprocessing: Preprocessing,
    devices: Devices,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, np.ndarray]]:
    """Return the mean and variance of each convolution's output, without a bias, in the pretrained network.

    Args:
      model: the network whose encoder has the same convolutions; its `sync_axis` says whether statistics are taken
        over all devices.
      kernels: "conv1_1" -> float32 [3,3,in,out] and so on.
      affine: of each convolution.
      batches: at least one, on the devices: "image" uint8 [L,A,B,H,W,3], of which the first of A is used.
      preprocessing: what the pretrained network expects of an image.
      devices: to compute on.
      on_batch: called after each batch.

    Returns:
      Convolution -> {"mean", "var"}, float64 [out]: means over the batches of the batches' means and variances.
    """

    def statistics(weights, batch, _store):
        kernels, affine = weights
        x, found = normalize(batch["image"][0], preprocessing), {}
        for stage in encoder_convolutions(model):
            for conv in stage:
                y = convolve_padded(x, kernels[conv])
                means = jnp.stack([jnp.mean(y, _PIXELS), jnp.mean(y * y, _PIXELS)])
                mean, mean_of_squares = means if model.sync_axis is None else lax.pmean(means, AXIS)
                found[conv] = {"mean": mean, "var": jnp.maximum(mean_of_squares - mean * mean, 0)}
                factor, offset = (part[None, None, None] for part in affine[conv])
                x = nn.relu(y * factor + offset)
            x, _ = max_pool_with_code(x, model.pooling)
        return lax.pmean(found, AXIS), ()

    step = AheadOfTime(parallel_eval_step(statistics, devices), "the measurement of the encoder", devices)
    weights = jax.device_put((dict(kernels), dict(affine)), devices.replicated)
    found = []
    for batch in batches:
        found.append(jax.device_get(step(weights, batch)[0]))
        on_batch()
    return jax.tree.map(lambda *arrays: np.mean(arrays, axis=0, dtype=np.float64), *found)


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

    By its running statistics it computes them on every image; by a batch's, as far as the batch is like the images that
    were measured.

    Args:
      variables: "params" and "batch_stats", with the pretrained kernels, and biases where convolutions have one.
      affine: of each pretrained convolution, in the order of the network.
      statistics: from `measure_convolutions`.
      batch_norms: the name of the BatchNorm behind each convolution.
      epsilon: what BatchNorm adds to the variance.
      rescale: multiply each kernel, and the bias of its convolution, by a number that gives the kernel the L2 norm
        that He initialization would; BatchNorm takes the number out again.
      normalize: divide each layer's features by one number, which makes the root mean square of BatchNorm's scales 1;
        the next BatchNorm takes the number out again.
    """
    params, batch_stats, divisor = dict(variables["params"]), dict(variables["batch_stats"]), 1.0
    for conv, (factor, offset) in affine.items():
        layer, mean, var = params[conv], *(np.asarray(statistics[conv][part], np.float64) for part in ("mean", "var"))
        gain = he_norm(layer["kernel"].shape) / np.linalg.norm(np.float64(layer["kernel"])) if rescale else 1.0
        kernel, bias = gain * np.float64(layer["kernel"]), gain / divisor * np.float64(layer.get("bias", 0.0))
        params[conv] = _float32({"kernel": kernel} | ({"bias": bias} if "bias" in layer else {}))
        gain /= divisor  # of what is convolved here over what the pretrained network convolves
        scale, shift = factor * np.sqrt(gain**2 * var + epsilon) / gain, factor * mean + offset
        divisor = np.sqrt(np.mean(scale**2)) if normalize else 1.0
        params[batch_norms[conv]] = _float32({"scale": scale / divisor, "bias": shift / divisor})
        batch_stats[batch_norms[conv]] = _float32({"mean": gain * mean + bias, "var": gain**2 * var})
    return {"params": params, "batch_stats": batch_stats}


def he_norm(shape: tuple[int, ...]) -> float:
    """The expected L2 norm of a kernel [k,k,in,out] of independent normal numbers of variance 2 / (k * k * in)."""
    return math.sqrt(2 * shape[-1])


def _float32(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}
