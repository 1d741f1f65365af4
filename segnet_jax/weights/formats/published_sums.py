"""Recognize published weights in any file by a checksum of their numbers."""

import hashlib
from collections.abc import Mapping

import numpy as np

from segnet_jax.weights.vgg import VGG, ConvWeights

_IMAGENET = {"vgg16": "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"}
"""Encoder -> `checksum` of the VGG authors' ImageNet weights, which Keras distributes: computed from an independent
copy of the 26 tensors, which was compared with printed values of the authors' network."""


def checksum(convs: Mapping[str, ConvWeights]) -> str:
    """Return the SHA-256 of the kernel and bias of each convolution, in order, as float32.

    Kernels are hashed as HWIO, the first one for BGR input.
    """
    digest = hashlib.sha256()
    for conv, weights in convs.items():
        kernel = weights.kernel[:, :, ::-1] if conv == "conv1_1" else weights.kernel
        digest.update(np.ascontiguousarray(kernel, np.float32))
        digest.update(np.ascontiguousarray(weights.bias, np.float32))
    return digest.hexdigest()


def is_published(convs: Mapping[str, ConvWeights], encoder: str) -> bool:
    """Return whether the weights are bit-identical to the VGG authors' ImageNet weights."""
    plain = all(weights.batch_norm is None for weights in convs.values())
    return plain and encoder in _IMAGENET and checksum(convs) == _IMAGENET[encoder]


def describe(vgg: VGG) -> str:
    """Describe the weights, and the preprocessing that they expect, in a line for the log."""
    name = vgg.encoder.upper().replace("VGG", "VGG-") + (" with BatchNorm" if vgg.batch_norm_epsilon else "")
    known = f"ImageNet {name}, verified" if is_published(vgg.convs, vgg.encoder) else name
    mean, std = (" ".join(f"{value:g}" for value in values) for values in vars(vgg.preprocessing).values())
    return f"{known}; expects RGB images normalized by mean {mean} and standard deviation {std}"
