"""CamVid's training batches in PyTorch, loaded as its users do: Pillow, numpy, DataLoader.

It imports neither our package nor JAX, because spawned workers import this module.
"""

import pathlib
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

VOID, VOID_IN_FILES = 255, 11

Draw = tuple[int, bool, int, int]
"""Image index, whether to flip it, and how far to shift it down and to the right."""


class CamVid(Dataset):
    """A dataset of pairs of image and label files, flipped and shifted.

    Args:
      folder: folder of train.txt and of the files, found by the last two parts of the listed paths.
      image_size: height and width to resize to.
    """

    def __init__(self, folder: pathlib.Path, image_size: tuple[int, int]):
        lines = (folder / "train.txt").read_text().splitlines()
        self.pairs = [[folder.joinpath(*pathlib.Path(path).parts[-2:]) for path in line.split()] for line in lines]
        self.size = image_size[::-1]  # as Pillow has it

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        index, flip, down, right = draw
        image, label = (Image.open(path) for path in self.pairs[index])
        if image.size != self.size:
            image, label = image.resize(self.size, Image.BILINEAR), label.resize(self.size, Image.NEAREST)
        image, label = np.asarray(image.convert("RGB")), np.asarray(label)
        label = np.where(label == VOID_IN_FILES, np.uint8(VOID), label)
        if flip:
            image, label = image[:, ::-1], label[:, ::-1]
        image, label = shift(image, down, right, fill=0), shift(label, down, right, fill=VOID)
        return torch.from_numpy(image), torch.from_numpy(label)


def shift(array: np.ndarray, down: int, right: int, fill: int) -> np.ndarray:
    """Shift [H,W,...] by this many pixels, padded with `fill`."""
    height, width = array.shape[:2]
    shifted = np.full_like(array, fill, order="C")
    kept = array[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    shifted[max(down, 0) : height - max(-down, 0), max(right, 0) : width - max(-right, 0)] = kept
    return shifted


def loader(dataset: CamVid, batches: Iterable[list[Draw]], workers: int) -> DataLoader:
    """Return a loader of batches, uint8 [B,H,W,3] and [B,H,W], with this many worker processes.

    Most users would also convert to float in the workers; this is omitted, because our pipeline converts on the device.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=False,
        persistent_workers=workers > 0,
        # Not forked: JAX's and TensorFlow's threads would not survive it. Once running, they are as fast.
        multiprocessing_context="spawn" if workers else None,
    )
