"""U-Net with a VGG-16 encoder in PyTorch, layer by layer; it shares no code with `segnet_jax`.

Images are [B,3,H,W] and kernels OIHW. Its variables are loaded by `torch_segnet.load_flax`.
"""

import torch
from torch import nn
from torch.nn import functional

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions


class TorchUNet(nn.Module):
    """Float images [B,3,H,W] to logits [B,num_classes,H,W].

    Args:
      num_classes: number of channels of the logits.
      width: factor on every hidden layer's channels.
      depth: number of stages.
      ceil_mode: whether to pool as Caffe does.
      conv_bias: whether convolutions before BatchNorm have a bias.
      upsampling: "learnt" for a transposed convolution of each channel, otherwise bilinear.
    """

    def __init__(self, num_classes, width=1.0, depth=5, ceil_mode=False, conv_bias=False, upsampling="bilinear"):
        super().__init__()
        self.ceil_mode, self.upsampling = ceil_mode, upsampling
        self.stages = [(round(channels * width), count) for channels, count in STAGES[:depth]]
        self.convolutions, self.normalizations = nn.ModuleDict(), nn.ModuleDict()

        def add(name, inputs, outputs):
            self.convolutions[name] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=conv_bias)
            self.normalizations[name] = nn.BatchNorm2d(outputs)
            return outputs

        inputs = 3
        for stage, (channels, count) in enumerate(self.stages, start=1):
            for i in range(1, count + 1):
                inputs = add(f"conv{stage}_{i}", inputs, channels)
        add("middle_1", inputs, inputs)
        add("middle_2", inputs, inputs)
        for stage in range(depth, 0, -1):
            channels, below = self.stages[stage - 1][0], self.stages[max(stage - 2, 0)][0]
            if upsampling == "learnt":
                transposed = nn.ConvTranspose2d(inputs, inputs, 4, 2, padding=3, groups=inputs, bias=False)
                self.convolutions[f"upsample{stage}"] = transposed
            inputs = add(f"up{stage}_2", add(f"up{stage}_1", channels + inputs, channels), below)
        self.convolutions["head"] = nn.Conv2d(inputs, num_classes, 1)

    def forward(self, x):
        """Return the logits of images [B,3,H,W]."""
        skips = []
        for stage, (_, count) in enumerate(self.stages, start=1):
            for i in range(1, count + 1):
                x = self._convolve(f"conv{stage}_{i}", x)
            skips.append(x)
            x = functional.max_pool2d(x, [min(2, size) for size in x.shape[2:]], ceil_mode=self.ceil_mode)
        x = self._convolve("middle_2", self._convolve("middle_1", x))
        for stage in range(len(self.stages), 0, -1):
            skip = skips.pop()
            x = torch.cat([skip, self._upsample(x, stage, *skip.shape[2:])], dim=1)
            x = self._convolve(f"up{stage}_2", self._convolve(f"up{stage}_1", x))
        return self.convolutions["head"](x)

    def _convolve(self, name, x):
        return functional.relu(self.normalizations[name](self.convolutions[name](x)))

    def _upsample(self, x, stage, height, width):
        if self.upsampling == "learnt":
            x = self.convolutions[f"upsample{stage}"](functional.pad(x, [1, 1, 1, 1], mode="replicate"))
        else:
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        missing = max(height - x.shape[2], 0), max(width - x.shape[3], 0)
        return functional.pad(x, [0, missing[1], 0, missing[0]], mode="replicate")[:, :, :height, :width]
