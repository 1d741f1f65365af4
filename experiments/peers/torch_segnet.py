"""SegNet in PyTorch, layer by layer as SegNet-Tutorial's `segnet_train.prototxt` lists it.

It is the reference of the parity tests and of the measurements, and shares no code with `segnet_jax`.
Images are [B,3,H,W] and kernels OIHW, as usual in PyTorch.
"""

import re

import torch
from torch import nn
from torch.nn import functional

LAYERS = (  # (name, inputs, outputs) of a convolution with its BatchNorm and ReLU, or the name of what lies between
    ("conv1_1", 3, 64), ("conv1_2", 64, 64), "pool1",
    ("conv2_1", 64, 128), ("conv2_2", 128, 128), "pool2",
    ("conv3_1", 128, 256), ("conv3_2", 256, 256), ("conv3_3", 256, 256), "pool3",
    ("conv4_1", 256, 512), ("conv4_2", 512, 512), ("conv4_3", 512, 512), "pool4",
    ("conv5_1", 512, 512), ("conv5_2", 512, 512), ("conv5_3", 512, 512), "pool5",
    "upsample5", ("conv5_3_D", 512, 512), ("conv5_2_D", 512, 512), ("conv5_1_D", 512, 512),
    "upsample4", ("conv4_3_D", 512, 512), ("conv4_2_D", 512, 512), ("conv4_1_D", 512, 256),
    "upsample3", ("conv3_3_D", 256, 256), ("conv3_2_D", 256, 256), ("conv3_1_D", 256, 128),
    "upsample2", ("conv2_2_D", 128, 128), ("conv2_1_D", 128, 64),
    "upsample1", ("conv1_2_D", 64, 64),
)  # fmt: skip
LAST = "conv1_1_D"  # 64 to the classes; in the prototxt alone, without BatchNorm and ReLU


class TorchSegNet(nn.Module):
    """SegNet with a VGG-16 encoder: float images [B,3,H,W] to logits [B,num_classes,H,W].

    Args:
      num_classes: number of channels of the logits.
      width: factor on every hidden layer's channels.
      depth: number of stages: 5 as in the prototxt; fewer omit the inner ones.
      ceil_mode: whether to pool as Caffe does; False drops odd rows and columns, but never the only one.
      conv_bias: whether convolutions before BatchNorm have a bias, as in the prototxt.
      final_batch_norm: whether BatchNorm and ReLU follow the last convolution, which then has a bias only with
        `conv_bias`.
    """

    def __init__(self, num_classes, width=1.0, depth=5, ceil_mode=False, conv_bias=False, final_batch_norm=False):
        super().__init__()
        self.ceil_mode = ceil_mode
        self.layers = [layer for layer in LAYERS if int(re.search(r"\d", str(layer))[0]) <= depth]
        self.convolutions, self.normalizations = nn.ModuleDict(), nn.ModuleDict()
        for name, inputs, outputs in (layer for layer in self.layers if isinstance(layer, tuple)):
            inputs, outputs = (channels if channels == 3 else round(channels * width) for channels in (inputs, outputs))
            self.convolutions[name] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=conv_bias)
            self.normalizations[name] = nn.BatchNorm2d(outputs)  # eps 1e-5, momentum 0.1: keeps 0.9
        self.convolutions[LAST] = nn.Conv2d(outputs, num_classes, 3, padding=1, bias=conv_bias or not final_batch_norm)
        if final_batch_norm:
            self.normalizations[LAST] = nn.BatchNorm2d(num_classes)

    def forward(self, x):
        """Return the logits of images [B,3,H,W]."""
        masks, windows, sizes = [], [], []
        for layer in self.layers:
            if isinstance(layer, tuple):
                x = self._convolve(layer[0], x)
            elif layer.startswith("pool"):
                sizes.append(x.shape[2:])
                windows.append([min(2, size) for size in x.shape[2:]])
                x, mask = functional.max_pool2d(x, windows[-1], ceil_mode=self.ceil_mode, return_indices=True)
                masks.append(mask)
            else:
                x = functional.max_unpool2d(x, masks.pop(), windows.pop(), output_size=sizes.pop())
        return self._convolve(LAST, x)

    def _convolve(self, name, x):
        x = self.convolutions[name](x)
        return functional.relu(self.normalizations[name](x)) if name in self.normalizations else x


def load_flax(twin, variables):
    """Copy a Flax network's variables into the PyTorch model; the tensors must correspond one to one."""
    theirs = _by_flax_name(twin)
    ours = {
        (collection, module, name): torch.tensor(array)
        for collection, modules in variables.items()
        for module, arrays in modules.items()
        for name, array in arrays.items()
    }
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    for key, tensor in theirs.items():
        array = ours[key].permute(3, 2, 0, 1) if key[2] == "kernel" else ours[key]
        assert array.shape == tensor.shape, (key, array.shape, tensor.shape)
        tensor.data.copy_(array)


def to_flax(twin, what=lambda tensor: tensor):
    """Return (collection, module, name) -> numpy array of the model, or of the attribute `what`, in Flax's axis order.

    Tensors without that attribute, such as the gradient of a running mean, are omitted.
    """
    arrays = {key: what(tensor) for key, tensor in _by_flax_name(twin).items()}
    return {
        key: (array.permute(2, 3, 1, 0) if key[2] == "kernel" else array).detach().cpu().numpy().copy()
        for key, array in arrays.items()
        if array is not None
    }


def _by_flax_name(twin):
    """Map (collection, module, name) of a Flax variable to the tensor of the PyTorch model."""
    tensors = {}
    for name, convolution in twin.convolutions.items():
        tensors["params", name, "kernel"] = convolution.weight
        if convolution.bias is not None:
            tensors["params", name, "bias"] = convolution.bias
    for name, normalization in twin.normalizations.items():
        tensors["params", f"{name}_bn", "scale"] = normalization.weight
        tensors["params", f"{name}_bn", "bias"] = normalization.bias
        tensors["batch_stats", f"{name}_bn", "mean"] = normalization.running_mean
        tensors["batch_stats", f"{name}_bn", "var"] = normalization.running_var
    return tensors
