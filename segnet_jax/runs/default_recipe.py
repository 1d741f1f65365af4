"""Default recipe for training on the user's own images when neither a protocol nor a config file is given."""

import dataclasses
import logging
import os
import pathlib

from segnet_jax.config.fields import Config
from segnet_jax.config.files import CONFIG_FILE, read_protocol
from segnet_jax.system.bucket_address import check_named, is_address
from segnet_jax.system.buckets import local_copy
from segnet_jax.system.files import expanded
from segnet_jax.training.choose_devices import NVIDIA_DRIVER
from segnet_jax.training.network_source import is_exported, local_folder, read_network_config

logger = logging.getLogger(__name__)

OWN_RECIPES = ("finetune", "scratch")
"""Protocols for the user's own images; they do not reproduce a published experiment."""


def default_config(data: str, init: str | None) -> Config:
    """Return the default config of `train` for a dataset.

    For a folder of the user's own images it is a protocol: `finetune` if `init` names weights, or if VGG-16 is cached
    and there is a GPU or TPU, otherwise `scratch`. If `init` is a run or an exported network, its network is used.

    Args:
      data: value of `--data`.
      init: value of `--init`, or None.
    """
    if not is_own_folder(data):
        return Config()
    name, reason = choose_protocol(init)
    logger.info(f"recipe   {name}: {reason}; --protocol NAME chooses another")
    config = read_protocol(name, Config())
    folder = pathlib.Path(local_folder(init)).expanduser() if init else None
    if folder is not None and ((folder / CONFIG_FILE).is_file() or is_exported(folder)):
        from segnet_jax.training.initial_weights import FITTING

        source = read_network_config(folder)
        config = dataclasses.replace(config, **{field: getattr(source, field) for field in FITTING})
    return config


def choose_protocol(init: str | None) -> tuple[str, str]:
    """Choose "finetune" or "scratch" for the user's own images by the value of `--init`; return it with the reason."""
    if init == "none":
        return "scratch", "--init none starts from random weights"
    if init is not None:
        return "finetune", f"it starts from {init}"
    from segnet_jax.weights.published import is_cached

    if is_cached("vgg16"):
        if has_accelerator():
            return "finetune", "ImageNet's VGG-16 is in the cache"
        return "scratch", "without a GPU it trains in minutes; --protocol finetune --init vgg16 would take hours"
    return "scratch", "no pretrained weights are available (run `prepare vgg16`, or use --init RUN)"


def suggested_steps(num_images: int, batch_size: int) -> int:
    """Return the number of steps for training on the user's own images.

    Returns:
      The steps of ten epochs, but at least 1,000; without a GPU or TPU always 600, which take minutes.
    """
    return max(1000, 10 * num_images // batch_size) if has_accelerator() else 600


def is_own_folder(data: str) -> bool:
    """Return whether `--data` names a folder of the user's own images, not CamVid or rendered scenes.

    Return False for a folder that cannot be read; opening it later reports the cause.

    Raises:
      UserError: If it is an address of a bucket that this command does not name, or that cannot be copied.
    """
    if data in ("camvid", "synthetic"):
        return False
    if is_address(data):
        check_named("--data", data)
    from segnet_jax.data.camvid.prepared import find_prepared
    from segnet_jax.data.label_files.class_table_files import find_class_table
    from segnet_jax.data.open_dataset import layout_of, uses_pair_lists

    folder = local_copy("--data", data) if is_address(data) else expanded(data)
    try:
        if not folder.is_dir() or find_prepared(folder) is not None:
            return False
        return find_class_table(folder) is not None if uses_pair_lists(folder) else layout_of(folder) is not None
    except Exception:
        return False


def has_accelerator() -> bool:
    """Return whether this machine seems to have a GPU or TPU, without starting JAX."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms != "cpu"
    return os.path.exists(NVIDIA_DRIVER) or bool(os.environ.get("TPU_NAME")) or os.path.exists("/dev/accel0")
