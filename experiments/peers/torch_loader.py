"""CamVid's training batches in PyTorch, as its users write them: Pillow, numpy, DataLoader.

It imports nothing of ours, nor JAX: its workers are started afresh and import it.
"""

import pathlib
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

VOID, VOID_IN_FILES = 255, 11

Draw = tuple[int, bool, int, int]
"""Which image, whether to flip it, how far to shift it down and to the right."""


class CamVid(Dataset):
    """Pairs of image and label files, flipped and shifted.

    Args:
      folder: holds train.txt, and the files by the last two parts of the paths that it lists.
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
    """Batches of uint8 [B,H,W,3] and [B,H,W], made by this many processes.

    Most users would let the workers turn them into floats too; that is left out, for ours does so on the device.
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
