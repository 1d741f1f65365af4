"""Inference of the preprocessing that weights expect from an ONNX graph's operations before the first convolution."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from segnet_jax.nn.preprocessing import CAFFE, TORCH, Preprocessing
from segnet_jax.weights.containers.onnx_graph import Node, integers
from segnet_jax.weights.containers.stored_tensors import StoredTensor

ChannelOrder = Literal["RGB", "BGR"]
_MEAN_TOLERANCE, _STD_TOLERANCE = 2.0, 0.02  # absolute in 0..255, relative; some models round the means to integers
_UNDECIDED = (
    "does not say which preprocessing its weights expect; add --preprocessing caffe (BGR minus the mean, as in Keras "
    "and Caffe), torch (RGB with ImageNet's mean and standard deviation, as in torchvision) or raw (RGB 0..255)"
)


@dataclass
class InputScaling:
    """The graph's scaling of each channel: value * scale + shift.

    Attributes:
      channels_last: whether feature maps are [B,H,W,C] at this point of the graph.
      scale: float64 [3], in the channel order at this point.
      shift: float64 [3], likewise.
    """

    channels_last: bool
    scale: np.ndarray = field(default_factory=lambda: np.ones(3))
    shift: np.ndarray = field(default_factory=lambda: np.zeros(3))

    @property
    def axis(self) -> int:
        """The channel axis, counted from the end."""
        return -1 if self.channels_last else -3

    def apply(self, node: Node, operands: list[StoredTensor | None]) -> None:
        """Include the effect of a node; its operands are constants, and None for the images.

        Raises:
          ValueError: If the node does anything but scale, shift or reverse the channels.
        """
        axis, images_first = self.axis, bool(operands) and operands[0] is None
        match node.op:
            case "Add" | "Sub" | "Mul" | "Div" if len(operands) == 2 and (images_first or node.op in ("Add", "Mul")):
                values = per_channel(operands[images_first], axis, 3).astype(np.float64)
                self._combine(node.op, values)
            case "BatchNormalization" if images_first and len(operands) == 5 and axis == -3:
                gamma, beta, mean, var = (per_channel(each, -1, 3).astype(np.float64) for each in operands[1:])
                scale = gamma / np.sqrt(var + node.attributes.get("epsilon", 1e-5))
                self._combine("Mul", scale)
                self._combine("Add", beta - mean * scale)
            case "Gather" if images_first and _at(node.attributes.get("axis", 0), axis) and len(operands) == 2:
                if integers(operands[1]) != (2, 1, 0):
                    raise ValueError(f"{node} of channels {integers(operands[1])}")
                self._reverse()
            case "Slice" if images_first and _reverses(operands[1:], axis):
                self._reverse()
            case _:
                raise ValueError(str(node))

    def expected(self) -> tuple[Preprocessing, ChannelOrder]:
        """Return the preprocessing used in training, and the order of the first kernel's channels.

        Raises:
          ValueError: If the graph does not determine the preprocessing.
        """
        with np.errstate(all="ignore"):
            mean, std = -self.shift / self.scale, 1 / self.scale
        for factor in (1, 255):  # images of 0..255 or 0..1
            for known in (CAFFE, TORCH):
                for order, step in (("RGB", 1), ("BGR", -1)):
                    found = np.stack([mean, std])[:, ::step] * factor
                    if _is_near(found, known):
                        rounded = found.round(3).tolist()  # the graph's float32 constants have about six digits
                        return Preprocessing(*map(tuple, rounded)), order
        if (self.scale == 1).all() and (self.shift == 0).all():
            raise ValueError(_UNDECIDED)
        raise ValueError(
            f"normalizes images by mean {_numbers(mean)} and standard deviation {_numbers(std)}, and {_UNDECIDED}"
        )

    def _combine(self, op: str, values: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            match op:
                case "Add":
                    self.shift = self.shift + values
                case "Sub":
                    self.shift = self.shift - values
                case "Mul":
                    self.scale, self.shift = self.scale * values, self.shift * values
                case "Div":
                    self.scale, self.shift = self.scale / values, self.shift / values

    def _reverse(self) -> None:
        self.scale, self.shift = self.scale[::-1], self.shift[::-1]


def per_channel(tensor: StoredTensor, axis: int, num_channels: int) -> np.ndarray:
    """Broadcast a constant to one number per channel.

    Args:
      tensor: constant that broadcasts against the images.
      axis: the channel axis, counted from the end.
      num_channels: number of channels.

    Raises:
      ValueError: If the constant has any other shape.
    """
    shape = tensor.shape
    along = [size for index, size in enumerate(shape, start=-len(shape)) if index == axis]
    if any(size != 1 for index, size in enumerate(shape, start=-len(shape)) if index != axis) or len(shape) > 4:
        raise ValueError(f"a constant of shape {shape}, which is not one number per channel")
    if along not in ([], [1], [num_channels]):
        raise ValueError(f"a constant of shape {shape} for {num_channels} channels")
    return np.broadcast_to(tensor.read().reshape(-1), (num_channels,))


def _at(axis: int, channels: int) -> bool:
    return axis in (channels, channels + 4)


def _reverses(operands: list[StoredTensor | None], channels: int) -> bool:
    """Return whether a Slice with these starts, ends, axes and steps only reverses the channels."""
    if len(operands) != 4 or None in operands:
        return False
    start, end, axis, step = (integers(each) for each in operands)
    if len(start) != 1 or len(end) != 1 or len(axis) != 1 or step != (-1,):
        return False
    return (start[0] == -1 or start[0] >= 2) and end[0] <= -4 and _at(axis[0], channels)


def _is_near(found: np.ndarray, known: Preprocessing) -> bool:
    mean, std = np.array(known.mean), np.array(known.std)
    with np.errstate(all="ignore"):
        return bool((abs(found[0] - mean) < _MEAN_TOLERANCE).all() and (abs(found[1] / std - 1) < _STD_TOLERANCE).all())


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.4g}" for value in values)
