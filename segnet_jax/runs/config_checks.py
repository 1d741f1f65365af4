"""Checks of a config that read no images: network, loss, class weights, and the protocol's batch."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from segnet_jax.config.class_weights_flag import weights_of_classes
from segnet_jax.config.differences import recipe_differences
from segnet_jax.config.fields import Config
from segnet_jax.config.files import protocol_batch
from segnet_jax.data.dataset import Dataset
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.distributed.data_parallel import Devices
from segnet_jax.nn.segnet import scaled_stages
from segnet_jax.nn.segnet_basic import STAGES
from segnet_jax.system.errors import UserError
from segnet_jax.training.custom_network import network_of, settings_of
from segnet_jax.training.losses import parse_loss
from segnet_jax.training.network_source import is_exported
from segnet_jax.weights.vgg import check_stages


def batch_warning(config: Config, devices: Devices, sampler: Sampler) -> str:
    """Return a warning if the global batch size differs from the protocol's, otherwise ""."""
    name, protocol, _ = recipe_differences(config)
    batch = protocol_batch(protocol, devices.total)
    if name == "custom" or batch == sampler.global_batch_size or batch > sampler.num_samples:
        return ""
    theirs, ours = (
        each.total_steps(sampler.num_samples // size)
        for each, size in ((protocol, batch), (config, sampler.global_batch_size))
    )
    rate = "the same learning rate"
    if config.learning_rate != protocol.learning_rate:
        rate = f"a learning rate of {config.learning_rate:g}, not {protocol.learning_rate:g}"
    warning = (
        f"{name} takes {theirs:,} steps of {batch} images; this run takes {ours:,} of {sampler.global_batch_size} "
        f"at {rate}"
    )
    count = math.gcd(batch, devices.total)
    if count == devices.total or jax.process_count() == 1:  # several processes use all their devices
        accumulation = " --grad-accum-steps 1" * (config.grad_accum_steps > 1)
        warning += f"; use --devices {count} --batch-size-per-device {batch // count}{accumulation} for the same batch"
    return warning


def check_selection(config: Config) -> None:
    """Check that test images neither select a checkpoint nor stop the training.

    Raises:
      UserError: If `--split-rule trainval`, which has no validation images, is used with the best checkpoint or with
        early stopping.
    """
    if config.split_rule == "trainval" and config.result_checkpoint != "last":
        raise UserError(
            "--split-rule trainval has no validation images to select the best checkpoint by, got --result-checkpoint "
            f"{config.result_checkpoint}: use --result-checkpoint last"
        )
    if config.split_rule == "trainval" and config.patience:
        raise UserError(
            "--split-rule trainval has no validation images for early stopping, got --patience "
            f"{config.patience}: use --patience 0"
        )


def check_loss_and_output(config: Config, dataset: Dataset) -> None:
    """Check that the loss is valid, and that the head and the class weights fit the dataset's classes.

    Raises:
      UserError: If one of them is invalid or does not fit.
    """
    parse_loss(config.loss, config.multi_label)
    weights_of_classes(config.class_weights, dataset.classes.names, config.data)
    if config.output == "softmax":
        return
    if len(dataset.classes) != 2:
        raise UserError(
            f"--output sigmoid is for two classes, but {config.data} has {len(dataset.classes)}: use --output softmax"
        )
    if config.final_batch_norm:
        raise UserError("--output sigmoid needs a head without ReLU: use --no-final-batch-norm")
    if not _has_field(config, "output"):
        raise UserError(f"--output sigmoid is not supported by --network {config.network}: use --output softmax")


def check_averaged_steps(config: Config, steps_per_epoch: int) -> None:
    """Check that the run is at least as long as the epochs that `--swa-epochs` averages.

    Raises:
      UserError: If the run is shorter.
    """
    total = config.total_steps(steps_per_epoch)
    if config.swa_epochs * steps_per_epoch > total:
        raise UserError(
            f"--swa-epochs {config.swa_epochs} averages {config.swa_epochs * steps_per_epoch} steps, but the run has "
            f"only {total}: use at most {total // steps_per_epoch}"
        )


def epochs_between_evaluations(config: Config, steps_per_epoch: int) -> int:
    """Return the number of epochs between two evaluations; `--evaluate-every 0` means about a twentieth of the run.

    With `--split-rule trainval` it is the whole run: the test images are scored only after the last step, so that they
    select no checkpoint.
    """
    num_epochs = math.ceil(config.total_steps(steps_per_epoch) / steps_per_epoch)
    if config.split_rule == "trainval":
        return num_epochs
    return config.evaluate_every or max(1, num_epochs // 20)


def check_network(config: Config) -> None:
    """Check the network's settings, before anything is read or compiled.

    Raises:
      UserError: If the image is too small for the poolings, the initial weights cannot fit, or a setting does not apply
        to the network.
    """
    network_of(config.network)
    _check_pixels(config)
    if config.network == "segnet-basic":
        _check_basic(config)
    elif config.decoder != "full":
        raise UserError(f"--decoder {config.decoder} is for --network segnet-basic, got --network {config.network}")
    if config.network == "unet" and (config.encoder_addition or config.final_batch_norm):
        name = "encoder-addition" if config.encoder_addition else "final-batch-norm"
        raise UserError(f"--{name} does not apply to --network unet, which concatenates features: use --no-{name}")
    smallest = 2**config.num_stages
    if min(config.train_size) < smallest:
        height, width = config.train_size
        option = "--image-size" if config.train_size == config.image_size else "--crop"
        raise UserError(
            f"{option} {height} {width} is too small for {config.num_stages} poolings, which need {smallest}: use "
            "a larger size, or a smaller --depth",
            kind="image-too-small",
            fix=f"{option} {max(height, smallest)} {max(width, smallest)}",
        )
    if config.frozen_stages > config.num_stages:
        raise UserError(
            f"--freeze {config.freeze} exceeds the network's {config.num_stages} encoder stages: use a number up to "
            f"{config.num_stages}, or --freeze encoder"
        )
    if config.encoder_addition and 1 in config.stage_convolutions:
        raise UserError(
            "--encoder-addition needs at least 2 convolutions in every stage, got --stage-convolutions "
            f"{' '.join(map(str, config.stage_convolutions))}: use at least 2, or omit --encoder-addition"
        )
    if config.init in ("vgg16", "vgg16_bn", "vgg19"):  # files and runs are checked when they are read
        check_takes_vgg(config)
        if not config.init.startswith(config.encoder):
            raise UserError(f"--init {config.init} does not fit --encoder {config.encoder}")


def check_takes_vgg(config: Config) -> None:
    """Check that VGG weights can fit the network's encoder.

    Raises:
      UserError: If the weights cannot fit; the message names the flag to change.
    """
    if config.network == "segnet-basic":
        raise UserError(f"--init {config.init} does not fit --network segnet-basic: use --init none for random weights")
    if config.width != 1:
        raise UserError(
            f"--init {config.init} needs --width 1, got {config.width:g}: use --init none for random weights"
        )
    stages = scaled_stages(config.encoder, config.depth, 1, config.stage_convolutions, config.stage_channels)
    check_stages(config.init, config.encoder, stages, config.kernel_size)


def _check_pixels(config: Config) -> None:
    """Check the settings of images that are read as stored instead of as 8-bit RGB.

    Raises:
      UserError: If a setting does not apply to such images, or the network takes only RGB images.
    """
    if (config.channels, config.image_bits) == (3, "8"):
        return
    given = f"--channels {config.channels} --image-bits {config.image_bits}"
    if config.network == "segnet-basic" or not _has_field(config, "channels"):
        raise UserError(f"--network {config.network} is for 8-bit RGB images, got {given}: use --network segnet")
    if config.image_range != (0, 0):
        raise UserError(
            f"--image-range converts 16-bit images to 8-bit RGB, but {given} reads images as stored: omit one of them"
        )
    if config.color:
        raise UserError(f"--color is for 8-bit RGB images, got {given}: use --color 0")
    if config.preprocessing in ("torch", "caffe"):
        raise UserError(
            f"--preprocessing {config.preprocessing} is for 8-bit RGB images, got {given}: use --preprocessing auto, "
            "which normalizes by the training images' mean and standard deviation, or raw"
        )


def _has_field(config: Config, name: str) -> bool:
    """Return whether the config's network has a setting."""
    return name in settings_of(network_of(config.network), (name,))


def _check_basic(config: Config) -> None:
    """Check that all settings apply to SegNet-Basic.

    Raises:
      UserError: If a setting does not apply; the message names the flag to change.
    """
    if config.depth > STAGES:
        raise UserError(f"--network segnet-basic has {STAGES} stages, got --depth {config.depth}: use --depth {STAGES}")
    if config.stage_convolutions or config.stage_channels or config.kernel_size != 3:
        raise UserError("--stage-convolutions, --stage-channels and --kernel-size are for --network segnet: omit them")
    if config.final_batch_norm:
        raise UserError("--final-batch-norm is for --network segnet: use --no-final-batch-norm")
    if config.preprocessing not in ("auto", "raw"):
        raise UserError(
            f"--network segnet-basic normalizes pixels of 0..255 itself, got --preprocessing {config.preprocessing}: "
            "use --preprocessing raw"
        )


def check_has_dataset(network: str, data: str) -> None:
    """Check that `--data` is given for an exported network, which does not name its dataset.

    Raises:
      UserError: If it is missing.
    """
    if is_exported(network) and not data:
        raise UserError(f"{network} is an exported network, which does not name a dataset: add --data FOLDER")


def check_recomputable(meta: Mapping[str, Any], network: str) -> None:
    """Check that a checkpoint's BatchNorm statistics can be recomputed over its training images.

    Raises:
      UserError: If the network was converted or exported.
    """
    reason = "it was exported, without its training images" if "data" not in meta else ""
    if "converted_from" in meta:
        reason = "it was converted from Caffe, which merges the BatchNorm statistics into scale and shift"
    if reason:
        raise UserError(f"--batch-norm recompute is not available for {network}: {reason}; use --batch-norm running")
