"""Checks of single config fields and of their combinations; some also set implied fields."""

import dataclasses
import re
import unicodedata
from typing import Any

from segnet_jax.system.bucket_address import check_address, is_address
from segnet_jax.system.errors import UserError
from segnet_jax.system.flag_names import option_of


def check_fields(config: Any, max_stages: int) -> None:
    """Check the fields of a `Config`, and set those that others imply.

    Args:
      config: the config.
      max_stages: maximum number of encoder stages.

    Raises:
      UserError: If a value is invalid, or two of them contradict each other; the message names the flag and the value.
    """
    _check_texts(config)
    _check_addresses(config)
    _check_label_map(config)
    if config.kernel_size % 2 == 0:
        raise UserError(f"--kernel-size must be odd, got {config.kernel_size}")
    if config.devices != "all" and not re.fullmatch("0*[1-9][0-9]{0,8}", config.devices):
        raise UserError(f'--devices must be a positive number or "all", got {config.devices!r}')
    if config.freeze not in ("none", "encoder") and not re.fullmatch("0*[1-9][0-9]{0,3}", config.freeze):
        raise UserError(f'--freeze must be "none", "encoder" or a number of stages, got {config.freeze!r}')
    if config.steps_per_dispatch > 1 and config.input == "host":
        raise UserError(
            f"--steps-per-dispatch {config.steps_per_dispatch} works with --input device only, got --input host"
        )
    if config.resume and not config.run:
        raise UserError("--resume needs the run to resume: add --run FOLDER")
    _check_folds(config)
    if config.image_range != (0, 0) and config.image_range[0] >= config.image_range[1]:
        low, high = config.image_range
        raise UserError(f"--image-range must be BLACK WHITE with BLACK < WHITE, got {low} {high}")
    if config.scale[0] > config.scale[1]:
        raise UserError(f"--scale must be the smallest and the largest factor, got {config.scale[0]} {config.scale[1]}")
    _check_multi_label(config)
    _check_crop(config)
    _check_stages(config, max_stages)
    _check_averaging(config)


def _check_texts(config: Any) -> None:
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if isinstance(value, str) and any(unicodedata.category(each) in ("Cc", "Cs") for each in value):
            raise UserError(f"{option_of(item.name)} must not contain control characters, got {value!r}")
    if isinstance(config.class_weights, tuple | list):  # as Python calls and TOML may give them
        object.__setattr__(config, "class_weights", " ".join(map(str, config.class_weights)))


def _check_addresses(config: Any) -> None:
    if is_address(config.run):
        raise UserError(
            "--run must be a local folder, not an address: name a folder, and add --upload s3://BUCKET/PREFIX"
        )
    if config.upload:
        check_address("--upload", config.upload)
    for flag, source in (("--data", config.data), ("--init", config.init)):
        if is_address(source) and not source.startswith("hf://"):
            check_address(flag, source)


def _check_label_map(config: Any) -> None:
    for change in config.map:
        if not re.fullmatch("[0-9]{1,5}=[0-9]{1,5}", change) or max(map(int, change.split("="))) >= 2**16:
            raise UserError(f"--map must be OLD=NEW, two label values from 0 to 65535, got {change!r}")
    object.__setattr__(config, "map", tuple(dict.fromkeys(config.map)))  # resuming may repeat the run's entries


def _check_folds(config: Any) -> None:
    """Check that no other flag splits the images that `--folds` splits."""
    if not config.folds:
        return
    for name, is_given in (
        ("split_rule", config.split_rule in ("trainval", "leave-out")),
        ("leave_out", config.leave_out),
        ("leave_out_train", config.leave_out_train),
        ("val_fraction", config.val_fraction),
    ):
        if is_given:
            given = f"{option_of(name)} {getattr(config, name)}"
            raise UserError(f"--folds {config.folds} and {given} both choose the validation images: use one of them")


def _check_multi_label(config: Any) -> None:
    """Check that no other flag needs one class per pixel."""
    if not config.multi_label:
        return
    for flag, is_given, instead in (
        (f"--output {config.output}", config.output != "softmax", "omit it, as each class has a sigmoid"),
        (f"--class-mix {config.class_mix:g}", config.class_mix > 0, "use --class-mix 0"),
    ):
        if is_given:
            raise UserError(f"{flag} is for one class per pixel and cannot be used with --multi-label: {instead}")


def _check_crop(config: Any) -> None:
    (height, width), (rows, columns) = config.image_size, config.crop
    if (rows == 0) != (columns == 0):
        raise UserError(f"--crop needs a height and a width above 0, or 0 0 for none, got {rows} {columns}")
    if rows > height or columns > width:
        raise UserError(
            f"--crop {rows} {columns} is larger than the images, which are resized to --image-size {height} {width}: "
            "use a smaller --crop or a larger --image-size"
        )


def _check_stages(config: Any, most: int) -> None:
    """Check that the two lists of encoder stages have the same length, and make them tuples."""
    for name in ("stage_convolutions", "stage_channels"):  # JSON gives lists
        object.__setattr__(config, name, tuple(getattr(config, name)))
    counts = {len(stages) for stages in (config.stage_convolutions, config.stage_channels) if stages}
    if len(counts) > 1:
        raise UserError(
            f"--stage-convolutions has {len(config.stage_convolutions)} stages and --stage-channels "
            f"{len(config.stage_channels)}: give one number per stage in both"
        )
    if counts and max(counts) > most:
        raise UserError(f"a network has at most {most} stages, got {max(counts)}: give fewer numbers")


def _check_averaging(config: Any) -> None:
    """Check stochastic weight averaging, and set what it implies: recomputed statistics, the last checkpoint scored."""
    if not config.swa_epochs:
        return
    given = f"--swa-epochs {config.swa_epochs}"
    if config.ema_decay:
        raise UserError(f"{given} and --ema-decay {config.ema_decay:g} both average the weights: use --ema-decay 0")
    if config.schedule == "plateau":
        raise UserError(f"{given} needs a constant learning rate, got --schedule plateau: use another --schedule")
    if config.patience:
        raise UserError(f"{given} averages the last epochs, got --patience {config.patience}: use --patience 0")
    object.__setattr__(config, "batch_norm", "recompute")
    object.__setattr__(config, "result_checkpoint", "last")
