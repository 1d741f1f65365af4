"""SegNet's training step and inference in tuned PyTorch."""

import copy

import numpy as np
import torch
from machine import Machine, Run
from problem import LOSS_SCALE, NUM_CLASSES, Parameters, Problem
from torch import nn
from torch.nn import functional
from torch_segnet import TorchSegNet, load_flax, to_flax

VOID = 255
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # torchvision's, of 0..255


class TorchTraining:
    """The training step on a batch in device memory: channels-last, autocast, fused SGD, compiled if configured."""

    def __init__(self, problem: Problem, machine: Machine):
        config, device = problem.config, machine.torch_device
        self._machine = machine
        network = TorchSegNet(NUM_CLASSES, width=config.width)
        load_flax(network, problem.variables)
        self._network = network.to(device, memory_format=torch.channels_last)
        kernels = [parameter for parameter in self._network.parameters() if parameter.ndim == 4]
        others = [parameter for parameter in self._network.parameters() if parameter.ndim != 4]
        groups = [{"params": kernels, "weight_decay": config.weight_decay}, {"params": others}]
        self._optimizer = torch.optim.SGD(groups, config.learning_rate, config.momentum, fused=True)
        self._scaler = torch.amp.GradScaler(device, LOSS_SCALE, enabled=machine.precision == "float16")
        self._class_weights = torch.tensor(problem.class_weights, device=device)
        self._mean, self._std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
        self._image = torch.tensor(problem.image, device=device).permute(0, 3, 1, 2)  # channels-last as it is
        self._label = torch.tensor(problem.label, device=device).long()  # PyTorch's cross-entropy requires int64
        self._loss_of = machine.compile(self._loss_of)

    def step(self) -> torch.Tensor:
        """Take an optimizer step; return the loss, on the device."""
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = self._loss_of(self._image, self._label)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach()

    def run(self, steps: int) -> None:
        """Take this many steps without waiting between them, then wait."""
        for _ in range(steps):
            self.step()
        self._machine.synchronize()

    def parameters(self) -> Parameters:
        """Return the current parameters as numpy arrays in Flax's form."""
        return {key[1:]: array for key, array in to_flax(self._network).items() if key[0] == "params"}

    def inference(self, fused: bool) -> tuple[Run, np.ndarray]:
        """Return a function that runs inference with the current state, and its logits for the batch's images.

        Args:
          fused: whether each BatchNorm is folded into its convolution.
        """
        network = copy.deepcopy(self._network).eval()
        network = self._machine.compile(fuse(network) if fused else network)

        def infer() -> torch.Tensor:
            with torch.inference_mode(), self._autocast():
                return network(self._normalize(self._image))

        return self._machine.theirs(infer), infer().permute(0, 2, 3, 1).float().cpu().numpy()

    def _autocast(self) -> torch.autocast:
        dtype = self._machine.dtype
        return torch.autocast(self._machine.torch_device, dtype, enabled=dtype != torch.float32)

    def _normalize(self, image: torch.Tensor) -> torch.Tensor:
        return (image - self._mean) / self._std

    def _loss_of(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        logits = self._network(self._normalize(image))
        total = functional.cross_entropy(logits, label, self._class_weights, ignore_index=VOID, reduction="sum")
        return total / (label != VOID).sum()  # by labeled pixels, not by their weights, as Caffe and ours do


def fuse(network: TorchSegNet) -> TorchSegNet:
    """Fold each BatchNorm of a network in evaluation mode into its convolution."""
    for name in network.normalizations:
        pair = network.convolutions[name], network.normalizations[name]
        network.convolutions[name] = nn.utils.fuse_conv_bn_eval(*pair)
        network.normalizations[name] = nn.Identity()
    return network
