"""Weight files of Keras: `.h5` of Keras 1, 2 and 3, `.weights.h5` and `.keras` of Keras 3.

Kernels are [3,3,in,out] as here. The weights are assumed to be the VGG authors', or fine-tuned from those with Keras'
`vgg16.preprocess_input`: for BGR images minus their mean.
"""

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from segnet_jax.nn.preprocessing import CAFFE
from segnet_jax.weights.containers.hdf5 import read_arrays
from segnet_jax.weights.containers.stored_tensors import StoredTensor
from segnet_jax.weights.vgg import VGG, Table, assemble, conv_channels

ARCHIVED = "model.weights.h5"
"""Member of a `.keras` archive that contains the weights."""

_SPELLINGS = (  # paths of a layer's kernel and bias
    ("{0}/{0}_W_1:0", "{0}/{0}_b_1:0"),  # the published files, written by Keras 1
    ("{0}/{0}/kernel:0", "{0}/{0}/bias:0"),  # Keras 2, `save_weights`
    ("{0}/kernel:0", "{0}/bias:0"),
    ("{0}/{0}/kernel", "{0}/{0}/bias"),  # Keras 3, `save("NAME.h5")`
)
_WHOLE_MODEL = "model_weights/"  # prefix of the names in a file written by `save("NAME.h5")`
_CLASSIFIER = ("fc1", "fc2", "predictions")
_KERAS3_FIRST = re.compile(r"(?P<model>(?:.*/)?)conv2d/vars/0")


def table(encoder: str, spelling: tuple[str, str]) -> Table:
    """Map the paths in an `.h5` file of Keras 1, 2 or 3 to parts of the network: block1_conv2 becomes conv1_2."""
    kernel, bias = spelling
    entries: Table = {}
    for conv in conv_channels(encoder):
        layer = conv.replace("conv", "block").replace("_", "_conv")
        entries[kernel.format(layer)] = (conv, "kernel")
        entries[bias.format(layer)] = (conv, "bias")
    return entries


def table3(encoder: str, model: str) -> Table:
    """Map the paths in a Keras 3 file to parts of the network; convolutions are numbered conv2d, conv2d_1, ...

    Args:
      encoder: "vgg16" or "vgg19".
      model: path of the group that contains the layers, such as "layers/functional/layers/".
    """
    entries: Table = {}
    for index, conv in enumerate(conv_channels(encoder)):
        variables = f"{model}conv2d{f'_{index}' if index else ''}/vars"
        entries[f"{variables}/0"] = (conv, "kernel")
        entries[f"{variables}/1"] = (conv, "bias")
    return entries


def read(path: Path, encoder: str) -> VGG:
    """Read an HDF5 file of any Keras version, with or without the classifier."""
    with open(path, "rb") as file:
        return _read(file, encoder)


def read_archive(path: Path, encoder: str) -> VGG:
    """Read a `.keras` archive; its model configuration is ignored, and none of its code is run."""
    with zipfile.ZipFile(path) as archive:
        if archive.getinfo(ARCHIVED).compress_type != zipfile.ZIP_STORED:  # a stored member is no larger than the file
            raise ValueError(f"{ARCHIVED} is compressed, which Keras does not do; save the model again")
        return _read(io.BytesIO(archive.read(ARCHIVED)), encoder)


def _read(file: BinaryIO, encoder: str) -> VGG:
    tensors = read_arrays(file)
    if models := _keras3_models(tensors):
        if len(models) > 1:
            raise ValueError(f"must contain one network with image input, got {len(models)}: {', '.join(models[:5])}")
        unused = tensors.keys() - table3(encoder, models[0]).keys()
        entries = (encoder, lambda name: table3(name, models[0]))
    else:
        if any(name.startswith(_WHOLE_MODEL) for name in tensors):  # the rest belongs to the optimizer
            model = (name for name in tensors if name.startswith(_WHOLE_MODEL))
            tensors = {name.removeprefix(_WHOLE_MODEL): tensors[name] for name in model}
        spelling = next((pair for pair in _SPELLINGS if pair[0].format("block1_conv1") in tensors), _SPELLINGS[0])
        unused = {part.format(layer) for layer in _CLASSIFIER for part in spelling}
        entries = (encoder, lambda name: table(name, spelling))
    convs = assemble(tensors, *entries, unused=unused, layout="HWIO", channel_order="BGR")
    return VGG(encoder, convs, CAFFE)


def _keras3_models(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Return the groups of a Keras 3 file whose first convolution has three input channels."""
    found = ((match["model"], tensors[name]) for name in tensors if (match := _KERAS3_FIRST.fullmatch(name)))
    return [model for model, kernel in found if kernel.shape[2:3] == (3,)]
