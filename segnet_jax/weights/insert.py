"""Puts a trained VGG into the encoder of a network."""

import re
from collections.abc import Mapping

import numpy as np

from segnet_jax.system.errors import UserError, listed
from segnet_jax.weights.vgg import VGG, BatchNormWeights, ConvWeights

Tree = dict[str, dict]
_ENCODER_CONV = re.compile(r"conv\d_\d")  # the decoder's have _D behind


def insert_encoder(
    params: Mapping, batch_stats: Mapping, vgg: VGG, *, conv_bias: bool, batch_norm_epsilon: float
) -> tuple[Tree, Tree]:
    """Returns the network's variables with the encoder's replaced by trained ones; the arguments are left as they are.

    A convolution's bias goes into its bias or, where the network has none before BatchNorm, into the running mean: with
    mean m - b BatchNorm makes of conv what it makes of conv + b with mean m. A VGG without BatchNorm gets scale 1,
    shift 0, mean 0 and variance 1, which is nearly the identity; the statistics want calibrating on images before use.
    Of a VGG deeper than the network the first stages are taken.

    Args:
      params: "conv1_1" -> {"kernel", maybe "bias"}, "conv1_1_bn" -> {"scale", "bias"}, and the decoder's.
      batch_stats: "conv1_1_bn" -> {"mean", "var"}, and the decoder's.
      vgg: the trained weights.
      conv_bias: whether the network's convolutions have a bias.
      batch_norm_epsilon: what the network's BatchNorm adds to the variance.

    Returns:
      params and batch_stats; what was replaced is float32 numpy.

    Raises:
      UserError: the network is of another width or encoder than the weights.
    """
    convs = sorted(filter(_ENCODER_CONV.fullmatch, params))
    if missing := [conv for conv in convs if conv not in vgg.convs]:
        raise UserError(f"the weights of {vgg.encoder} have no {listed(missing)}: the network is another encoder's")
    shapes = {conv: (params[conv]["kernel"].shape, vgg.convs[conv].kernel.shape) for conv in convs}
    if wrong := [f"{conv} {ours} for {theirs}" for conv, (ours, theirs) in shapes.items() if ours != theirs]:
        raise UserError(
            f"pretrained weights need width 1: {len(wrong)} of {len(convs)} kernels have another shape in the "
            f"network ({listed(wrong)}); take width 1, or init none"
        )
    params, batch_stats = dict(params), dict(batch_stats)
    for conv in convs:
        assert conv_bias == ("bias" in params[conv]), f"{conv} and conv_bias={conv_bias} do not agree"
        weights = vgg.convs[conv]
        batch_norm = _batch_norm(weights, vgg.batch_norm_epsilon, batch_norm_epsilon)
        folded = 0 if conv_bias else weights.bias
        params[conv] = {"kernel": weights.kernel} | ({"bias": weights.bias} if conv_bias else {})
        params[f"{conv}_bn"] = {"scale": batch_norm.scale, "bias": batch_norm.bias}
        batch_stats[f"{conv}_bn"] = {"mean": batch_norm.mean - folded, "var": batch_norm.var}
    return params, batch_stats


def _batch_norm(weights: ConvWeights, their_epsilon: float | None, our_epsilon: float) -> BatchNormWeights:
    """The BatchNorm after a convolution, its scale corrected where the network's epsilon is not the file's."""
    if weights.batch_norm is None:
        ones, zeros = np.ones_like(weights.bias), np.zeros_like(weights.bias)
        return BatchNormWeights(scale=ones, bias=zeros, mean=zeros, var=ones)
    theirs = weights.batch_norm
    correction = np.sqrt((theirs.var + np.float32(our_epsilon)) / (theirs.var + np.float32(their_epsilon)))
    return BatchNormWeights(theirs.scale * correction, theirs.bias, theirs.mean, theirs.var)
