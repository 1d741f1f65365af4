"""Load a trained VGG into the encoder of a network."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np

from segnet_jax.nn.network_interface import NetworkInterface, batch_norms, encoder_convolutions
from segnet_jax.system.errors import UserError, listed
from segnet_jax.weights.vgg import VGG, BatchNormWeights, ConvWeights

Tree = dict[str, dict]


def insert_encoder(params: Mapping, batch_stats: Mapping, vgg: VGG, model: NetworkInterface) -> tuple[Tree, Tree]:
    """Return a copy of the network's variables with trained weights in the encoder.

    A convolution's bias is copied or, if the network has no bias before BatchNorm, folded into the running mean:
    BatchNorm of conv(x) with mean m - b equals BatchNorm of conv(x) + b with mean m. For a VGG without BatchNorm, scale
    is 1, shift 0, mean 0 and variance 1, which is nearly the identity; recompute the statistics on images before use.
    If the VGG is deeper than the network, its first stages are used.

    Args:
      params: "conv1_1" -> {"kernel", maybe "bias"}, "conv1_1_bn" -> {"scale", "bias"}, and the decoder's layers.
      batch_stats: "conv1_1_bn" -> {"mean", "var"}, and the decoder's layers.
      vgg: the trained weights.
      model: the network; the convolutions of its encoder have the same names as the VGG's.

    Returns:
      The new params and batch_stats, in which trained values are float32 numpy arrays.

    Raises:
      UserError: If the network's width or encoder differs from the VGG's.
    """
    convs, folding = list(itertools.chain(*encoder_convolutions(model))), batch_norms(model)
    if missing := [conv for conv in convs if conv not in vgg.convs]:
        raise UserError(f"the weights of {vgg.encoder} have no {listed(missing)}: the network has a different encoder")
    vgg = adapt_channels(vgg, params[convs[0]]["kernel"].shape[2])
    shapes = {conv: (params[conv]["kernel"].shape, vgg.convs[conv].kernel.shape) for conv in convs}
    if wrong := [
        f"{conv} has {ours}, the weights have {theirs}" for conv, (ours, theirs) in shapes.items() if ours != theirs
    ]:
        raise UserError(
            f"pretrained weights need width 1: {len(wrong)} of {len(convs)} kernels have a different shape in the "
            f"network ({listed(wrong)}); use --width 1 or --init none"
        )
    params, batch_stats = dict(params), dict(batch_stats)
    for conv in convs:
        conv_bias, norm = "bias" in params[conv], folding[conv]
        weights = vgg.convs[conv]
        batch_norm = _batch_norm(weights, vgg.batch_norm_epsilon, model.batch_norm_epsilon)
        folded = 0 if conv_bias else weights.bias
        params[conv] = {"kernel": weights.kernel} | ({"bias": weights.bias} if conv_bias else {})
        params[norm] = {"scale": batch_norm.scale, "bias": batch_norm.bias}
        batch_stats[norm] = {"mean": batch_norm.mean - folded, "var": batch_norm.var}
    return params, batch_stats


def adapt_channels(vgg: VGG, channels: int) -> VGG:
    """Adapt a VGG to images with any number of channels; for three, return it unchanged.

    For one channel, the first kernel is summed over R, G and B, so that a gray image gives the same result as in RGB.
    For other numbers, the channels get the kernels of R, G and B in turn, times 3 / channels.

    Source: `adapt_input_conv` in timm, https://github.com/huggingface/pytorch-image-models.
    """
    if channels == 3:
        return vgg
    first = vgg.convs["conv1_1"]
    kernel = first.kernel.sum(axis=2, keepdims=True)
    if channels > 1:
        kernel = first.kernel[:, :, np.arange(channels) % 3] * np.float32(3 / channels)
    return dataclasses.replace(vgg, convs={**vgg.convs, "conv1_1": dataclasses.replace(first, kernel=kernel)})


def affine_maps(vgg: VGG) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the float32 affine map (factor, offset) between each convolution of a VGG and its ReLU.

    The layer computes relu(factor * conv(x) + offset), where conv has no bias.
    """

    def affine(weights: ConvWeights) -> tuple[np.ndarray, np.ndarray]:
        norm = weights.batch_norm
        if norm is None:
            return np.ones_like(weights.bias), weights.bias
        factor = norm.scale / np.sqrt(norm.var + np.float32(vgg.batch_norm_epsilon))
        return factor, norm.bias + (weights.bias - norm.mean) * factor

    return {conv: affine(weights) for conv, weights in vgg.convs.items()}


def _batch_norm(weights: ConvWeights, their_epsilon: float | None, our_epsilon: float) -> BatchNormWeights:
    """Return the BatchNorm after a convolution, with the scale corrected for the network's epsilon."""
    if weights.batch_norm is None:
        ones, zeros = np.ones_like(weights.bias), np.zeros_like(weights.bias)
        return BatchNormWeights(scale=ones, bias=zeros, mean=zeros, var=ones)
    theirs = weights.batch_norm
    correction = np.sqrt((theirs.var + np.float32(our_epsilon)) / (theirs.var + np.float32(their_epsilon)))
    return BatchNormWeights(theirs.scale * correction, theirs.bias, theirs.mean, theirs.var)
