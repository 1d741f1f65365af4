"""SegNet: VGG's convolutions down, the same ones mirrored up, and pooling codes between them.

Source: Badrinarayanan, Kendall, Cipolla: SegNet, PAMI 2017 (arXiv 1511.00561); names and widths as in SegNet-Tutorial's
`segnet_train.prototxt`; depth 4 and the switch for the last layer as in MATLAB's `segnetLayers`; dropout as in
`bayesian_segnet_train.prototxt` (Bayesian SegNet, arXiv 1511.02680).
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from segnet_jax.nn.batch_norm import BatchNormReLU
from segnet_jax.nn.convolution import Convolution
from segnet_jax.nn.dropout import drop, keys_at
from segnet_jax.nn.pooling import Pooling, max_pool_with_code, unpool
from segnet_jax.nn.upsampling import LearntUpsampling, Upsampling, bilinear_kernel, upsample

Encoder = Literal["vgg16", "vgg19"]

ENCODERS: dict[Encoder, tuple[tuple[int, int], ...]] = {  # (channels, convolutions) of each stage
    "vgg16": ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    "vgg19": ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)),
}
FIRST_TO_DROP = 3
"""The stage from which on maps are dropped, behind its pooling and behind its decoder."""


@dataclass(frozen=True)
class Pooled:
    """What a stage of the decoder is told of the encoder's.

    Attributes:
      maps: [B,H,W,C], before pooling.
      code: uint8 [B,h,w,C], of the pooling.
    """

    maps: jax.Array
    code: jax.Array


class SegNet(nn.Module):
    """Labels every pixel: image [B,H,W,3], normalised, to logits float32 [B,H,W,num_classes], for any H and W.

    Attributes:
      num_classes: channels of the logits.
      encoder: "vgg16" or "vgg19".
      depth: stages, 1 to 5; 5 as published, 4 as the MATLAB example's "four encoder layers and four decoder layers".
      width: factor on every hidden layer's channels.
      pooling: "floor" drops odd rows and columns (PyTorch, MATLAB), "ceil" keeps them (Caffe).
      upsampling: "indices", SegNet's own; "bilinear" or "learnt" in its place.
      encoder_addition: adds the encoder's maps to those of the decoder's first convolution of the stage.
      dropout: share of numbers set to zero at Bayesian SegNet's places, where keys are given.
      conv_bias: a bias before each BatchNorm, as published. It is inert there, hence off.
      final_batch_norm: BatchNorm and ReLU after the last convolution too, as MATLAB's layer count tells.
      batch_norm_momentum: share of the old running statistics that a step keeps.
      batch_norm_epsilon: added to the variance.
      batch_norm_bias: what BatchNorm's shift begins with.
      folded: for inference alone, with variables from `fold_batch_norm`: each BatchNorm lies in its convolution.
      sync_axis: the mapped axis over which BatchNorm takes its statistics, or None for each device by itself.
      dtype: of activations; parameters and statistics are float32.
    """

    num_classes: int
    encoder: Encoder = "vgg16"
    depth: int = 5
    width: float = 1.0
    pooling: Pooling = "floor"
    upsampling: Upsampling = "indices"
    encoder_addition: bool = False
    dropout: float = 0.0
    conv_bias: bool = False
    final_batch_norm: bool = False
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5
    batch_norm_bias: float = 0.0
    folded: bool = False
    sync_axis: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """Returns the logits.

        Args:
          image: float [B,H,W,3].
          train: BatchNorm uses the batch's statistics and updates `batch_stats`; else the running ones.
          keys: of dropout, one for each image, [B]; without them nothing is dropped.
        """
        x = image.astype(self.dtype)
        stages = scaled_stages(self.encoder, self.depth, self.width)
        pooled = []
        for stage, (channels, num_convolutions) in enumerate(stages, start=1):
            for i in range(1, num_convolutions + 1):
                x = self.block(x, channels, f"conv{stage}_{i}", train)
            x = self.down(x, pooled)
            x = self.drop(x, stage, keys, stage)

        for stage, (channels, num_convolutions) in reversed(list(enumerate(stages, start=1))):
            maps = pooled[stage - 1].maps
            x = self.up(x, pooled.pop(), f"upsample{stage}")
            for i in range(num_convolutions, 1, -1):
                x = self.block(x, channels, f"conv{stage}_{i}_D", train)
                if self.encoder_addition and i == num_convolutions:
                    x += maps
            if stage > 1:  # the stage's last convolution has the channels of the stage above
                x = self.block(x, stages[stage - 2][0], f"conv{stage}_1_D", train)
                x = self.drop(x, stage, keys, len(stages) + stage)

        if self.final_batch_norm:
            x = self.block(x, self.num_classes, "conv1_1_D", train)
        else:
            x = Convolution(self.num_classes, name="conv1_1_D")(x)
        return x.astype(jnp.float32)

    def block(self, x: jax.Array, channels: int, name: str, train: bool, relu: bool = True, **form) -> jax.Array:
        """A convolution with BatchNorm and ReLU; `form` says more of the convolution."""
        x = Convolution(channels, use_bias=self.conv_bias or self.folded, name=name, **form)(x)
        if self.folded:
            return nn.relu(x) if relu else x
        normalize = BatchNormReLU(
            momentum=self.batch_norm_momentum,
            epsilon=self.batch_norm_epsilon,
            axis_name=self.sync_axis if train else None,
            relu=relu,
            first_bias=self.batch_norm_bias,
            name=f"{name}_bn",
        )
        return normalize(x, train=train)

    def down(self, x: jax.Array, pooled: list[Pooled]) -> jax.Array:
        """Pools, and notes what the decoder needs."""
        maps = x
        x, code = max_pool_with_code(x, self.pooling)
        pooled.append(Pooled(maps, code))
        return x

    def up(self, x: jax.Array, pooled: Pooled, name: str) -> jax.Array:
        """Brings the maps back to the size that they had before pooling."""
        height, width = pooled.maps.shape[1:3]
        if self.upsampling == "indices":
            return unpool(x, pooled.code, height, width)
        if self.upsampling == "learnt":
            return LearntUpsampling(name=name)(x, height, width)
        return upsample(x, bilinear_kernel(x.shape[-1]).astype(x.dtype), height, width)

    def drop(self, x: jax.Array, stage: int, keys: jax.Array | None, place: int) -> jax.Array:
        """Drops numbers of a stage, if it is one of those and keys are given; `place` is another one each time."""
        if keys is None or not self.dropout or stage < FIRST_TO_DROP:
            return x
        return drop(x, keys_at(keys, place), self.dropout)


def scaled_stages(encoder: Encoder, depth: int, width: float) -> tuple[tuple[int, int], ...]:
    """(channels, convolutions) of each encoder stage.

    Raises:
      ValueError: for an unknown encoder, a depth outside 1..5, or a width that is not positive.
    """
    if encoder not in ENCODERS:
        raise ValueError(f"encoder must be one of {sorted(ENCODERS)}, got {encoder!r}")
    if not 1 <= depth <= len(ENCODERS[encoder]):
        raise ValueError(f"depth must be 1 to {len(ENCODERS[encoder])}, got {depth}")
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    return tuple((max(1, round(channels * width)), count) for channels, count in ENCODERS[encoder][:depth])
