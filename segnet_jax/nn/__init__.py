"""SegNet, SegNet-Basic and U-Net, with pooling, unpooling and image preprocessing. Depends only on JAX and Flax."""

from typing import Any

from segnet_jax.nn.folding import fold_batch_norm
from segnet_jax.nn.pooling import max_pool_with_code, unpool
from segnet_jax.nn.preprocessing import Preprocessing, normalize
from segnet_jax.nn.segnet import SegNet
from segnet_jax.nn.segnet_basic import SegNetBasic
from segnet_jax.nn.unet import UNet

NETWORKS: dict[str, Any] = {"segnet": SegNet, "segnet-basic": SegNetBasic, "unet": UNet}
"""Config value of `network` -> class, which implements the interface in `nn.network_interface`."""

__all__ = [
    "NETWORKS",
    "Preprocessing",
    "SegNet",
    "SegNetBasic",
    "UNet",
    "fold_batch_norm",
    "max_pool_with_code",
    "normalize",
    "unpool",
]
