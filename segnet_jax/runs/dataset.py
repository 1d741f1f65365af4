"""The data set that a config names: opened with its read options, and decoded into the cache."""

import dataclasses
import logging

from segnet_jax.config.fields import Config
from segnet_jax.data.dataset import Dataset, Split
from segnet_jax.data.input_pipeline.cache import CachedSplit, open_cached
from segnet_jax.data.labels.label_mapping import LabelMapping, StoredLabels
from segnet_jax.data.labels.read_options import ReadOptions
from segnet_jax.system.console import bar
from segnet_jax.system.errors import UserError, listed
from segnet_jax.system.files import cache_folder

logger = logging.getLogger(__name__)


def decode(split: Split, config: Config, doing: str) -> CachedSplit:
    """Opens a split's records at the config's image size, decoding them where the cache lacks them."""
    with bar(doing, len(split)) as advance:
        return open_cached(split, config.image_size, cache_folder(), advance, config.fit)


def open_data(config: Config, stored: StoredLabels | None = None, label_mapping: LabelMapping | None = None) -> Dataset:
    """Open the dataset, which must have something to train on and something to score.

    Args:
      config: its data and read options.
      stored: what a run stores of its labels, by which they are read instead of by what the folder says.
      label_mapping: the classes, where the folder names none.

    Raises:
      UserError: for every fault found.
    """
    if config.leave_out and config.split_rule != "leave-out":
        raise UserError(f"--leave-out {config.leave_out} needs --split-rule leave-out")
    if config.leave_out_train and config.split_rule != "leave-out":
        raise UserError(f"--leave-out-train {config.leave_out_train} needs --split-rule leave-out --leave-out SEQUENCE")
    from segnet_jax.data.open_dataset import open_dataset  # with the readers of all layouts, needed only here

    dataset = open_dataset(
        config.data,
        split_rule=config.split_rule,
        image_size=config.image_size,
        seed=config.seed,
        num_train=config.scenes[0],
        num_val=config.scenes[1],
        read_options=reading_of(config),
        leave_out=config.leave_out,
        leave_out_train=config.leave_out_train,
        stored=stored,
        label_mapping=label_mapping,
    )
    if not dataset.splits.get("train"):
        raise UserError(f"the training list of {config.data} is empty: nothing to train on", kind="empty-list")
    validation_split(dataset)
    return dataset


def reading_of(config: Config) -> ReadOptions:
    """The read options of a config."""
    wishes = {item.name: getattr(config, item.name) for item in dataclasses.fields(ReadOptions)}
    return ReadOptions(**wishes | {"map": tuple(tuple(map(int, change.split("="))) for change in config.map)})


def size_warning(config: Config, dataset: Dataset) -> str:
    """Return a warning about images that `--fit stretch` distorts; "" if there are none."""
    height, width = config.image_size
    others = [size for size in dataset.sizes if abs(size[0] * width / (size[1] * height) - 1) > 0.02]
    if not others or config.fit != "stretch":
        return ""
    sizes = listed([f"{h}x{w}" for h, w in others])
    return f"images of {sizes} are stretched to {height}x{width}: --fit letterbox or crop keeps their shape"


def validation_split(dataset: Dataset) -> str:
    """Which split is scored during training: "val", or "test" where a protocol has no validation split."""
    for name in ("val", "test"):
        if dataset.splits.get(name):
            return name
    what = f"{dataset.name} has neither validation nor test images: nothing could be scored"
    raise UserError(what, kind="nothing-to-score", fix="--val-fraction 0.2")
