"""SegNet: VGG's convolutions down, the same ones mirrored up, and pooling codes between them.

Source: Badrinarayanan, Kendall, Cipolla: SegNet, PAMI 2017 (arXiv 1511.00561); names and widths as in SegNet-Tutorial's
`segnet_train.prototxt`; depth 4 and the switch for the last layer as in MATLAB's `segnetLayers`.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from segnet_jax.nn.batch_norm import BatchNormReLU
from segnet_jax.nn.convolution import Convolution
from segnet_jax.nn.pooling import Pooling, max_pool_with_code, unpool

Encoder = Literal["vgg16", "vgg19"]

ENCODERS: dict[Encoder, tuple[tuple[int, int], ...]] = {  # (channels, convolutions) of each stage
    "vgg16": ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    "vgg19": ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)),
}


class SegNet(nn.Module):
    """Labels every pixel: image [B,H,W,3], normalised, to logits float32 [B,H,W,num_classes], for any H and W.

    Attributes:
      num_classes: channels of the logits.
      encoder: "vgg16" or "vgg19".
      depth: stages, 1 to 5; 5 as published, 4 as the MATLAB example's "four encoder layers and four decoder layers".
      width: factor on every hidden layer's channels.
      pooling: "floor" drops odd rows and columns (PyTorch, MATLAB), "ceil" keeps them (Caffe).
      conv_bias: a bias before each BatchNorm, as published. It is inert there, hence off.
      final_batch_norm: BatchNorm and ReLU after the last convolution too, as MATLAB's layer count tells.
      batch_norm_momentum: share of the old running statistics that a step keeps.
      batch_norm_epsilon: added to the variance.
      folded: for inference alone, with variables from `fold_batch_norm`: each BatchNorm lies in its convolution.
      sync_axis: the mapped axis over which BatchNorm takes its statistics, or None for each device by itself.
      dtype: of activations; parameters and statistics are float32.
    """

    num_classes: int
    encoder: Encoder = "vgg16"
    depth: int = 5
    width: float = 1.0
    pooling: Pooling = "floor"
    conv_bias: bool = False
    final_batch_norm: bool = False
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5
    folded: bool = False
    sync_axis: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits; with `train`, BatchNorm uses the batch's statistics and updates `batch_stats`."""
        normalisation = partial(
            BatchNormReLU,
            momentum=self.batch_norm_momentum,
            epsilon=self.batch_norm_epsilon,
            axis_name=self.sync_axis if train else None,
        )

        def block(x: jax.Array, channels: int, name: str) -> jax.Array:
            x = Convolution(channels, use_bias=self.conv_bias or self.folded, name=name)(x)
            return nn.relu(x) if self.folded else normalisation(name=f"{name}_bn")(x, train=train)

        x = image.astype(self.dtype)
        stages = scaled_stages(self.encoder, self.depth, self.width)
        codes = []
        for stage, (channels, num_convolutions) in enumerate(stages, start=1):
            for i in range(1, num_convolutions + 1):
                x = block(x, channels, f"conv{stage}_{i}")
            size = x.shape[1:3]
            x, code = max_pool_with_code(x, self.pooling)
            codes.append((code, size))

        for stage, (channels, num_convolutions) in reversed(list(enumerate(stages, start=1))):
            code, (height, width) = codes.pop()
            x = unpool(x, code, height, width)
            for i in range(num_convolutions, 1, -1):
                x = block(x, channels, f"conv{stage}_{i}_D")
            if stage > 1:  # the stage's last convolution has the channels of the stage above
                x = block(x, stages[stage - 2][0], f"conv{stage}_1_D")

        if self.final_batch_norm:
            x = block(x, self.num_classes, "conv1_1_D")
        else:
            x = Convolution(self.num_classes, name="conv1_1_D")(x)
        return x.astype(jnp.float32)


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
