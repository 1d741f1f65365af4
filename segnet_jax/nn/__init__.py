"""SegNet, U-Net, pooling and unpooling, and the preprocessing of images. Depends on jax and flax only."""

from typing import Any

from segnet_jax.nn.folding import fold_batch_norm
from segnet_jax.nn.pooling import max_pool_with_code, unpool
from segnet_jax.nn.preprocessing import Preprocessing, normalize
from segnet_jax.nn.segnet import SegNet
from segnet_jax.nn.segnet_basic import SegNetBasic
from segnet_jax.nn.unet import UNet

NETWORKS: dict[str, Any] = {"segnet": SegNet, "segnet-basic": SegNetBasic, "unet": UNet}
"""Name of each network in the config -> its class, which satisfies the contract in `nn.contract`."""

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
