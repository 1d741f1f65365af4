"""SegNet-Basic: four 7x7 convolutions in the encoder, four without ReLU in the decoder, and the paper's variants.

Source: Badrinarayanan, Kendall, Cipolla: SegNet (arXiv 1511.00561), Table 1; names, local response
normalization and the 1x1 classifier as in SegNet-Tutorial's `segnet_basic_train.prototxt`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from segnet_jax.nn.convolution import Convolution
from segnet_jax.nn.network_interface import LayerSpec, convolution_block
from segnet_jax.nn.segnet import SegNet, class_logits

Decoder = Literal["full", "single-channel"]

STAGES = 4
SIZE = 7
"""Height and width of all kernels."""
CHANNELS = 64
_WINDOW = 5  # channels in the window of local response normalization


class SegNetBasic(SegNet):
    """SegNet-Basic, which maps unnormalized images [B,H,W,3] in 0..255 to logits.

    The other attributes are as in `SegNet`; `encoder` and `final_batch_norm` are ignored, and `depth` is 1 to 4.

    Attributes:
      decoder: "full", or "single-channel": depthwise convolutions (the paper's SegNet-Basic-SingleChannelDecoder).
    """

    depth: int = STAGES
    decoder: Decoder = "full"

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """(channels, convolutions) of each encoder stage."""
        if not 1 <= self.depth <= STAGES:
            raise ValueError(f"depth must be 1 to {STAGES}, got {self.depth}")
        return ((max(1, round(CHANNELS * self.width)), 1),) * self.depth

    @property
    def head(self) -> str:
        """See `SegNet`."""
        return "conv_classifier"

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """See `SegNet`."""
        layers, stages = [], range(1, len(self.stages) + 1)
        for stage in stages:
            layers += convolution_block(f"conv{stage}", "encoder", stage)
        for stage in reversed(stages):
            layers += [*self.upsampling_layers(stage), *convolution_block(f"conv_decode{stage}", "decoder")]
        return (*layers, LayerSpec(self.head, "convolution", "head"))

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """See `SegNet`."""
        wide = image.astype(jnp.float32) if image.dtype.itemsize == 2 else image  # squares reach 65,025
        x = local_response_normalization(wide).astype(self.dtype)
        pooled = []
        stages = list(enumerate(self.stages, start=1))
        for stage, (channels, _) in stages:
            x = self.block(x, channels, f"conv{stage}", train and stage > self.frozen_stages, size=SIZE)
            x = self.pool(x, stage, pooled)
            x = self.drop(x, stage, keys, stage)
        for stage, (channels, _) in reversed(stages):
            maps = pooled[-1].maps
            x = self.up(x, pooled.pop(), f"upsample{stage}")
            by_channel = self.decoder == "single-channel"
            x = self.block(x, channels, f"conv_decode{stage}", train, relu=False, size=SIZE, by_channel=by_channel)
            if self.encoder_addition:
                x += maps
            x = self.drop(x, stage, keys, self.depth + stage)
        x = Convolution(self.head_channels, name=self.head, size=1)(x)
        return class_logits(x.astype(jnp.float32), self.output)


def local_response_normalization(image: jax.Array, alpha: float = 1e-4, beta: float = 0.75) -> jax.Array:
    """Divide each value by (1 + alpha / 5 * s) ** beta, with s the sum of squares of the five channels around it.

    Args:
      image: float [B,H,W,3]; with three channels, the zero-padded window of five always covers all of them.
      alpha: weight of the squares.
      beta: exponent.

    Source: Caffe's LRN layer with local_size 5, https://caffe.berkeleyvision.org/tutorial/layers/lrn.html.
    """
    squares = jnp.sum(image * image, axis=-1, keepdims=True)
    return image * (1 + alpha / _WINDOW * squares) ** -beta
