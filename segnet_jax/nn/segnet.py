"""SegNet: a VGG encoder and a mirrored decoder that upsamples with the encoder's pooling codes.

Source: Badrinarayanan, Kendall, Cipolla: SegNet, PAMI 2017 (arXiv 1511.00561); names and widths as in SegNet-Tutorial's
`segnet_train.prototxt`; depth 4 and BatchNorm after the last layer as in MATLAB's `segnetLayers`; dropout as in
`bayesian_segnet_train.prototxt` (Bayesian SegNet, arXiv 1511.02680).
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from segnet_jax.nn.batch_norm import BatchNormReLU
from segnet_jax.nn.convolution import Convolution
from segnet_jax.nn.dropout import drop, fold_in_layer
from segnet_jax.nn.network_interface import LayerSpec, convolution_block, tap
from segnet_jax.nn.pooling import Pooling, max_pool_with_code, unpool
from segnet_jax.nn.upsampling import LearntUpsampling, Upsampling, bilinear_kernel, upsample

Encoder = Literal["vgg16", "vgg19"]
Output = Literal["softmax", "sigmoid"]

ENCODERS: dict[Encoder, tuple[tuple[int, int], ...]] = {  # (channels, convolutions) of each stage
    "vgg16": ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    "vgg19": ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)),
}
FIRST_DROPOUT_STAGE = 3
"""First stage with dropout, which follows the encoder's pooling and the decoder's convolutions."""


@dataclass(frozen=True)
class Pooled:
    """Features and pooling codes that an encoder stage passes to the mirrored decoder stage.

    Attributes:
      maps: features before pooling, [B,H,W,C].
      code: pooling code, uint8 [B,h,w,C].
    """

    maps: jax.Array
    code: jax.Array


class SegNet(nn.Module):
    """SegNet, which maps normalized images [B,H,W,channels] of any size to logits, float32 [B,H,W,num_classes].

    Attributes:
      num_classes: channels of the logits.
      encoder: "vgg16" or "vgg19".
      depth: number of stages, 1 to 5: 5 as published, 4 as in MATLAB's example.
      width: multiplier of the channels of all hidden layers.
      stage_convolutions: number of convolutions in each encoder stage; if empty, as in `encoder`.
      stage_channels: channels of each encoder stage before `width`; if empty, as in `encoder`.
      kernel_size: height and width of all kernels, odd.
      pooling: "floor" drops an odd last row or column (PyTorch, MATLAB), "ceil" keeps it (Caffe).
      upsampling: "indices" (SegNet's unpooling), "bilinear" or "learnt".
      encoder_addition: whether to add the encoder's features before pooling to the output of the decoder stage's first
        convolution.
      dropout: dropout rate, applied as in Bayesian SegNet if keys are passed.
      conv_bias: whether to use a bias before each BatchNorm, as published; off by default because it has no effect.
      final_batch_norm: whether BatchNorm and ReLU also follow the last convolution, as in MATLAB's `segnetLayers`.
      output: "softmax", one head channel per class, or "sigmoid", one channel for two classes (see `class_logits`).
      channels: number of image channels.
      batch_norm_momentum: decay rate of the running statistics.
      batch_norm_epsilon: added to the variance.
      batch_norm_bias: initial value of BatchNorm's shift.
      frozen_stages: number of leading encoder stages whose BatchNorm uses its running statistics in training too,
        without updating them. Their parameters get no gradient (`network_interface.frozen_layers`).
      folded: whether each BatchNorm is folded into its convolution; for inference, with variables from
        `fold_batch_norm`.
      sync_axis: mapped axis over which BatchNorm synchronizes its statistics; None for per-device statistics.
      dtype: dtype of activations; parameters and statistics are float32.
    """

    num_classes: int
    encoder: Encoder = "vgg16"
    depth: int = 5
    width: float = 1.0
    stage_convolutions: tuple[int, ...] = ()
    stage_channels: tuple[int, ...] = ()
    kernel_size: int = 3
    pooling: Pooling = "floor"
    upsampling: Upsampling = "indices"
    encoder_addition: bool = False
    dropout: float = 0.0
    conv_bias: bool = False
    final_batch_norm: bool = False
    output: Output = "softmax"
    channels: int = 3
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5
    batch_norm_bias: float = 0.0
    frozen_stages: int = 0
    folded: bool = False
    sync_axis: str | None = None
    dtype: jnp.dtype = jnp.float32

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """(channels, convolutions) of each encoder stage."""
        return scaled_stages(self.encoder, self.depth, self.width, self.stage_convolutions, self.stage_channels)

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """Return the logits.

        Args:
          image: float [B,H,W,channels].
          train: whether to use batch statistics and update `batch_stats`; otherwise, running statistics are used.
          keys: dropout keys, one per image, [B]; None for no dropout.
        """
        x, pooled = self.encode(image.astype(self.dtype), train, keys)
        stages = self.stages
        for stage, (channels, num_convolutions) in reversed(list(enumerate(stages, start=1))):
            maps = pooled[stage - 1].maps
            x = self.up(x, pooled.pop(), f"upsample{stage}")
            for i in range(num_convolutions, 1, -1):
                x = self.block(x, channels, f"conv{stage}_{i}_D", train)
                if self.encoder_addition and i == num_convolutions:
                    x += maps
            if stage > 1:  # the last convolution of a stage outputs the channels of the next stage
                x = self.block(x, stages[stage - 2][0], f"conv{stage}_1_D", train)
                x = self.drop(x, stage, keys, len(stages) + stage)

        if self.final_batch_norm:
            x = self.block(x, self.head_channels, self.head, train)
        else:
            x = Convolution(self.head_channels, size=self.kernel_size, name=self.head)(x)
        return class_logits(x.astype(jnp.float32), self.output)

    def encode(self, x: jax.Array, train: bool, keys: jax.Array | None) -> tuple[jax.Array, list[Pooled]]:
        """Apply the VGG encoder; return the last stage's pooled features, and each stage's `Pooled` for the decoder."""
        pooled: list[Pooled] = []
        for stage, (channels, num_convolutions) in enumerate(self.stages, start=1):
            for i in range(1, num_convolutions + 1):
                x = self.block(x, channels, f"conv{stage}_{i}", train and stage > self.frozen_stages)
            x = self.pool(x, stage, pooled)
            x = self.drop(x, stage, keys, stage)
        return x, pooled

    @property
    def head(self) -> str:
        """Name of the last convolution, whose output channels are the classes."""
        return "conv1_1_D"

    @property
    def head_channels(self) -> int:
        """Output channels of the last convolution."""
        return 1 if self.output == "sigmoid" else self.num_classes

    @property
    def encoder_layers(self) -> list[LayerSpec]:
        """Layers of the VGG encoder."""
        names = [
            (f"conv{stage}_{i}", stage)
            for stage, (_, num_convolutions) in enumerate(self.stages, start=1)
            for i in range(1, num_convolutions + 1)
        ]
        return [layer for name, stage in names for layer in convolution_block(name, "encoder", stage)]

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """Every layer with parameters (see `nn.network_interface`)."""
        layers, stages = self.encoder_layers, list(enumerate(self.stages, start=1))
        for stage, (_, num_convolutions) in reversed(stages):
            layers += self.upsampling_layers(stage)
            for i in range(num_convolutions, 1 if stage == 1 else 0, -1):
                layers += convolution_block(f"conv{stage}_{i}_D", "decoder")
        head = convolution_block(self.head, "head")
        return (*layers, *(head if self.final_batch_norm else head[:1]))

    @property
    def unpools(self) -> bool:
        """Whether the decoder upsamples by pooling codes."""
        return self.upsampling == "indices"

    def upsampling_layers(self, stage: int) -> list[LayerSpec]:
        """Return the upsampling layer of a decoder stage, if it has parameters."""
        return [LayerSpec(f"upsample{stage}", "upsampling", "decoder")] if self.upsampling == "learnt" else []

    def block(self, x: jax.Array, channels: int, name: str, train: bool, relu: bool = True, **conv: Any) -> jax.Array:
        """Apply a convolution, with the attributes `conv`, BatchNorm and ReLU."""
        conv.setdefault("size", self.kernel_size)
        x = Convolution(channels, use_bias=self.conv_bias or self.folded, name=name, **conv)(x)
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

    def pool(self, x: jax.Array, stage: int, pooled: list[Pooled]) -> jax.Array:
        """Pool x, and append its features and pooling codes to `pooled` for the decoder."""
        maps = x
        x, code = max_pool_with_code(x, self.pooling)
        tap(self, stage, maps, code)
        pooled.append(Pooled(maps, code))
        return x

    def up(self, x: jax.Array, pooled: Pooled, name: str) -> jax.Array:
        """Upsample x to the size before pooling."""
        height, width = pooled.maps.shape[1:3]
        if self.unpools:
            return unpool(x, pooled.code, height, width)
        if self.upsampling == "learnt":
            return LearntUpsampling(name=name)(x, height, width)
        return upsample(x, bilinear_kernel(x.shape[-1]).astype(x.dtype), height, width)

    def drop(self, x: jax.Array, stage: int, keys: jax.Array | None, index: int) -> jax.Array:
        """Apply dropout if the stage has it and keys are passed; `index` identifies the dropout layer."""
        if keys is None or not self.dropout or stage < FIRST_DROPOUT_STAGE:
            return x
        return drop(x, fold_in_layer(keys, index), self.dropout)


def class_logits(x: jax.Array, output: Output) -> jax.Array:
    """Return the class logits [B,H,W,C] from the head's output, float32 [B,H,W,channels].

    A sigmoid of one channel is a softmax of two logits whose first is always 0. With this channel of zeros, losses,
    metrics, prediction and export treat both outputs alike: the cross-entropy is the binary cross-entropy, and the
    second class is predicted where its probability exceeds 1/2.
    """
    return x if output == "softmax" else jnp.pad(x, [(0, 0)] * 3 + [(1, 0)])


def scaled_stages(
    encoder: Encoder,
    depth: int,
    width: float,
    convolutions: tuple[int, ...] = (),
    channels: tuple[int, ...] = (),
) -> tuple[tuple[int, int], ...]:
    """Return (channels, convolutions) of each encoder stage.

    Args:
      encoder: a key of `ENCODERS`, whose stages are the default if `convolutions` or `channels` is empty.
      depth: number of stages; fewer if `convolutions` or `channels` is shorter.
      width: factor on the channels.
      convolutions: number of convolutions of each stage, or empty.
      channels: number of channels of each stage, or empty.

    Raises:
      ValueError: If the encoder is unknown, the depth is outside 1..5, the width is not positive, or `convolutions` and
        `channels` differ in length or have more stages than the encoder.
    """
    if encoder not in ENCODERS:
        raise ValueError(f"encoder must be one of {sorted(ENCODERS)}, got {encoder!r}")
    if not 1 <= depth <= len(ENCODERS[encoder]):
        raise ValueError(f"depth must be 1 to {len(ENCODERS[encoder])}, got {depth}")
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    encoder_channels, encoder_convolutions = zip(*ENCODERS[encoder], strict=True)
    lengths = {len(given) for given in (convolutions, channels) if given} or {len(ENCODERS[encoder])}
    if len(lengths) > 1 or max(lengths) > len(ENCODERS[encoder]):
        raise ValueError(
            f"convolutions {convolutions} and channels {channels} must have the same length, at most "
            f"{len(ENCODERS[encoder])}"
        )
    num_stages = min(depth, *lengths)
    channels = (channels or encoder_channels)[:num_stages]
    convolutions = (convolutions or encoder_convolutions)[:num_stages]
    return tuple((max(1, round(each * width)), count) for each, count in zip(channels, convolutions, strict=True))
