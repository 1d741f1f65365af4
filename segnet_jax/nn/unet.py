"""U-Net: SegNet's VGG encoder, and a decoder that upsamples and concatenates the encoder's features.

Source: Ronneberger, Fischer, Brox: U-Net (arXiv 1505.04597), here with padded convolutions and BatchNorm. The VGG
encoder also pools after its last stage, as in Iglovikov, Shvets: TernausNet (arXiv 1801.05746).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from segnet_jax.nn.convolution import Convolution
from segnet_jax.nn.network_interface import LayerSpec, convolution_block
from segnet_jax.nn.segnet import SegNet, class_logits

_BLOCK = (1, 2)  # numbers of the convolutions in the middle block and in each decoder stage


class UNet(SegNet):
    """U-Net with a VGG encoder: maps normalized images [B,H,W,channels] to logits, float32 [B,H,W,num_classes].

    The other attributes are as in `SegNet`; `encoder_addition` and `final_batch_norm` are ignored.

    Attributes:
      upsampling: "learnt" for a depthwise transposed convolution, initialized as bilinear; otherwise bilinear.
    """

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """See `SegNet`."""
        x, pooled = self.encode(image.astype(self.dtype), train, keys)
        channels = [each for each, _ in self.stages]
        for i in _BLOCK:
            x = self.block(x, channels[-1], f"middle_{i}", train)
        for stage in range(len(channels), 0, -1):
            skip = pooled.pop()
            x = jnp.concatenate([skip.maps, self.up(x, skip, f"upsample{stage}")], axis=-1)
            for i, outputs in zip(_BLOCK, (channels[stage - 1], channels[max(stage - 2, 0)]), strict=True):
                x = self.block(x, outputs, f"up{stage}_{i}", train)
            if stage > 1:
                x = self.drop(x, stage, keys, len(channels) + stage)
        x = Convolution(self.head_channels, size=1, name=self.head)(x)
        return class_logits(x.astype(jnp.float32), self.output)

    @property
    def unpools(self) -> bool:
        """See `SegNet`."""
        return False

    @property
    def head(self) -> str:
        """See `SegNet`."""
        return "head"

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """See `SegNet`."""
        layers = [*self.encoder_layers, *self.decoder_block("middle")]
        for stage in range(len(self.stages), 0, -1):
            layers += [*self.upsampling_layers(stage), *self.decoder_block(f"up{stage}")]
        return (*layers, LayerSpec(self.head, "convolution", "head"))

    def decoder_block(self, name: str) -> list[LayerSpec]:
        """Return the layers of the middle block or of a decoder stage."""
        return [layer for i in _BLOCK for layer in convolution_block(f"{name}_{i}", "decoder")]
