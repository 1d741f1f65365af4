"""Keras' HDF5 files: `vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5` and what newer versions write.

Kernels are [3,3,in,out] as here. The weights are the VGG authors', trained on BGR images less their mean.
"""

from pathlib import Path

from segnet_jax.nn.preprocessing import CAFFE
from segnet_jax.weights.containers.hdf5 import read_arrays
from segnet_jax.weights.vgg import VGG, Table, assemble, conv_channels

_SPELLINGS = (  # of kernel and bias of a layer
    ("{0}/{0}_W_1:0", "{0}/{0}_b_1:0"),  # the published files, written by Keras 1
    ("{0}/{0}/kernel:0", "{0}/{0}/bias:0"),  # Keras 2, `save_weights`
    ("{0}/kernel:0", "{0}/bias:0"),
)
_CLASSIFIER = ("fc1", "fc2", "predictions")


def table(encoder: str, spelling: tuple[str, str]) -> Table:
    """Paths in the file -> places: Keras' block1_conv2 is conv1_2."""
    kernel, bias = spelling
    entries: Table = {}
    for conv in conv_channels(encoder):
        layer = conv.replace("conv", "block").replace("_", "_conv")
        entries[kernel.format(layer)] = (conv, "kernel")
        entries[bias.format(layer)] = (conv, "bias")
    return entries


def read(path: Path, encoder: str) -> VGG:
    """Reads a Keras file, with or without the classifier; links out of the file are not followed."""
    with open(path, "rb") as file:
        tensors = read_arrays(file)
        spelling = next((pair for pair in _SPELLINGS if pair[0].format("block1_conv1") in tensors), _SPELLINGS[0])
        convs = assemble(
            tensors,
            encoder,
            lambda name: table(name, spelling),
            unused={part.format(layer) for layer in _CLASSIFIER for part in spelling},
            layout="HWIO",
            channel_order="BGR",
        )
    return VGG(encoder, convs, CAFFE)
