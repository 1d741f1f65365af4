"""Open the dataset of a config with its read options, and decode it into the cache."""

import dataclasses
import logging
import math

import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.constants import RGB
from segnet_jax.data.dataset import Dataset, Split
from segnet_jax.data.folds import take_fold
from segnet_jax.data.input_pipeline.cache import CachedSplit, open_cached
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.data.labels.label_mapping import LabelMapping, StoredLabels
from segnet_jax.data.labels.read_options import ReadOptions
from segnet_jax.distributed.data_parallel import Devices
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.system.console import bar
from segnet_jax.system.errors import UserError, listed
from segnet_jax.system.files import cache_folder

logger = logging.getLogger(__name__)


def decode(split: Split, config: Config, title: str) -> CachedSplit:
    """Open a split's samples at the config's image size, decoding those that are not cached."""
    with bar(title, len(split)) as advance:
        return open_cached(split, config.image_size, cache_folder(), advance, config.fit)


def channel_statistics(split: Split, config: Config) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each channel of a split's images, at the config's image size."""
    samples = decode(split, config, "reading training images")
    sums, squares = (np.zeros(config.channels, np.uint64) for _ in range(2))
    for index in range(len(samples)):
        image = samples.read(index)[0].reshape(-1, config.channels).astype(np.uint64)
        sums += image.sum(axis=0)
        squares += (image * image).sum(axis=0)
    count = len(samples) * math.prod(config.image_size)
    means = [int(each) / count for each in sums]  # exact integers: the same on every machine
    variances = [int(each) / count - mean**2 for each, mean in zip(squares, means, strict=True)]
    return means, [math.sqrt(max(each, 0.0)) for each in variances]


def open_data(config: Config, stored: StoredLabels | None = None, label_mapping: LabelMapping | None = None) -> Dataset:
    """Open the dataset; it must have training images, and validation or test images.

    Args:
      config: config with the data and read options.
      stored: label rule stored in a run, used instead of the folder's.
      label_mapping: classes to use if the folder has no class file.

    Raises:
      UserError: If the split flags are inconsistent, or the dataset has faults; the message lists all faults.
    """
    if config.leave_out and config.split_rule != "leave-out":
        raise UserError(f"--leave-out {config.leave_out} needs --split-rule leave-out")
    if config.leave_out_train and config.split_rule != "leave-out":
        raise UserError(f"--leave-out-train {config.leave_out_train} needs --split-rule leave-out --leave-out SEQUENCE")
    if config.fold > config.folds or config.folds == 1:
        raise UserError(
            f"--folds must be at least 2, and --fold at most --folds, got --folds {config.folds} --fold {config.fold}"
        )
    from segnet_jax.data.open_dataset import open_dataset  # imports the readers of all layouts

    dataset = open_dataset(
        config.data,
        split_rule=config.split_rule,
        image_size=config.image_size,
        seed=config.seed,
        num_train=config.scenes[0],
        num_val=config.scenes[1],
        read_options=read_options_of(config),
        leave_out=config.leave_out,
        leave_out_train=config.leave_out_train,
        stored=stored,
        label_mapping=label_mapping,
    )
    if config.folds:
        dataset = take_fold(dataset, config.folds, config.fold or 1)
    if not dataset.splits.get("train"):
        raise UserError(f"the training split of {config.data} is empty: nothing to train on", kind="empty-list")
    validation_split(dataset)
    return dataset


def read_options_of(config: Config) -> ReadOptions:
    """Return the read options of a config."""
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(ReadOptions)}
    return ReadOptions(**values | {"map": tuple(tuple(map(int, change.split("="))) for change in config.map)})


def size_warning(config: Config, dataset: Dataset) -> str:
    """Return a warning about images that `--fit stretch` distorts, or ""."""
    height, width = config.image_size
    others = [size for size in dataset.sizes if abs(size[0] * width / (size[1] * height) - 1) > 0.02]
    if not others or config.fit != "stretch":
        return ""
    sizes = listed([f"{h}x{w}" for h, w in others])
    return f"images of {sizes} are stretched to {height}x{width}: --fit letterbox or --fit crop keeps their shape"


def crop_warning(config: Config, dataset: Dataset) -> str:
    """Return a warning if every `--crop` covers the whole image, otherwise ""."""
    if config.crop != config.image_size or config.scale[1] > 1:
        return ""
    height, width = config.crop
    larger = [f"{h} {w}" for h, w in dataset.sizes if h > height and w > width]
    example = f", such as {larger[0]}, the size of the files" if larger else ""
    return f"--crop {height} {width} is the whole image: use a larger --image-size{example}"


def validation_split(dataset: Dataset) -> str:
    """Return the split that is evaluated during training: "val", or "test" if there is no validation split.

    Raises:
      UserError: If there are neither validation nor test images.
    """
    for name in ("val", "test"):
        if dataset.splits.get(name):
            return name
    message = f"{dataset.name} has neither validation nor test images: there is nothing to evaluate on"
    raise UserError(message, kind="nothing-to-score", fix="--val-fraction 0.2")


def outside(split: Split, preprocessing: Preprocessing) -> tuple[int, ...]:
    """Return the fill value of each channel outside augmented images; () for RGB images, which are filled with 0.

    Images read as stored are filled with their mean, because 0 may be far from all of their pixel values.
    """
    return () if split.pixels == RGB else tuple(round(mean) for mean in preprocessing.mean)


def build_sampler(config: Config, devices: Devices, num_images: int) -> Sampler:
    """Build the training sampler; if there are too few images, raise a UserError that suggests a batch size."""
    batches_per_step = devices.total * config.grad_accum_steps
    try:
        return Sampler.from_config(config, num_images, batches_per_step * config.batch_size_per_device)
    except UserError as error:
        largest = num_images // batches_per_step
        fix = f"--batch-size-per-device {largest}"
        if not largest:
            fix = "--devices 1 --grad-accum-steps 1 --batch-size-per-device 1"
        raise UserError(error.faults[0].what, kind=error.kind, fix=fix) from None
