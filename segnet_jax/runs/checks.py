"""Checks of a config that need no data: settings of the network, and the protocol's batch."""

import math

import jax

from segnet_jax.config.fields import Config
from segnet_jax.config.files import protocol_batch, recipe_differences
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.distributed.data_parallel import Devices
from segnet_jax.nn.segnet_basic import STAGES
from segnet_jax.system.errors import UserError


def another_batch(config: Config, devices: Devices, sampler: Sampler) -> str:
    """What to say where steps are of another batch than the named protocol's: it is another recipe; else nothing."""
    name, protocol, _ = recipe_differences(config)
    batch = protocol_batch(protocol, devices.total)
    if name == "custom" or batch == sampler.global_batch_size or batch > sampler.num_samples:
        return ""
    theirs, ours = (
        each.epochs * (sampler.num_samples // size)
        for each, size in ((protocol, batch), (config, sampler.global_batch_size))
    )
    rate = "the same learning rate"
    if config.learning_rate != protocol.learning_rate:
        rate = f"a learning rate of {config.learning_rate:g}, not {protocol.learning_rate:g}"
    told = (
        f"{name} takes {theirs:,} steps of {batch} images; this takes {ours:,} of {sampler.global_batch_size} at {rate}"
    )
    count = math.gcd(batch, devices.total)
    if count == devices.total or jax.process_count() == 1:  # several processes take all their devices
        at_once = " --grad-accum-steps 1" * (config.grad_accum_steps > 1)
        told += f"; --devices {count} --batch-size-per-device {batch // count}{at_once} keeps to it"
    return told


def check_network(config: Config) -> None:
    """Refuses, before anything is read or compiled, settings of the network that do not go together.

    Raises:
      UserError: for an image too small for the poolings, first weights that cannot fit, or what the network has not.
    """
    if config.network == "segnet-basic":
        _check_basic(config)
    elif config.decoder != "full":
        raise UserError(f"--decoder {config.decoder} is for --network segnet-basic, got --network {config.network}")
    smallest = 2**config.depth
    if min(config.image_size) < smallest:
        height, width = config.image_size
        raise UserError(
            f"--image-size {height} {width} is smaller than the {config.depth} poolings need ({smallest}): take a "
            "larger one, or a smaller --depth",
            kind="image-too-small",
            fix=f"--image-size {max(height, smallest)} {max(width, smallest)}",
        )
    if config.init != "none" and config.width != 1:
        raise UserError(f"--init {config.init} needs --width 1, got {config.width:g}: add --init none to start afresh")
    if config.init in ("vgg16", "vgg16_bn", "vgg19") and not config.init.startswith(config.encoder):
        raise UserError(f"--init {config.init} does not fit --encoder {config.encoder}")


def _check_basic(config: Config) -> None:
    """Refuses what SegNet-Basic has not.

    Raises:
      UserError: naming the flag to change.
    """
    if config.depth > STAGES:
        raise UserError(f"--network segnet-basic has {STAGES} stages, got --depth {config.depth}: add --depth {STAGES}")
    if config.init != "none":
        raise UserError(f"--init {config.init} is for --network segnet: add --init none to start afresh")
    if config.final_batch_norm:
        raise UserError("--final-batch-norm is for --network segnet: add --no-final-batch-norm")
    if config.preprocessing not in ("auto", "raw"):
        raise UserError(
            f"--network segnet-basic normalises pixels of 0..255 itself, got --preprocessing {config.preprocessing}: "
            "add --preprocessing raw"
        )
