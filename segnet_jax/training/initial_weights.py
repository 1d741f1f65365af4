"""The first weights of a training: a random draw, and a pretrained encoder put among them."""

from collections.abc import Callable

from segnet_jax.config.fields import Config
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.distributed.data_parallel import Devices, prefetch, replicate
from segnet_jax.nn.preprocessing import PREPROCESSINGS, RAW, TORCH, Preprocessing
from segnet_jax.nn.segnet import SegNet
from segnet_jax.system.console import bar
from segnet_jax.system.download import cache_folder
from segnet_jax.training.batch_norm_statistics import calibrate
from segnet_jax.training.state import init_variables
from segnet_jax.weights.vgg import VGG

CALIBRATION_IMAGES = 64  # enough for the statistics of a pretrained encoder to settle


def read_first_weights(config: Config) -> VGG | None:
    """Reads the encoder that `--init` names, fetching it if need be; None for "none"."""
    if config.init == "none":
        return None
    from segnet_jax.weights.load import read_vgg
    from segnet_jax.weights.published import obtain

    return read_vgg(obtain(config.init, cache_folder()), config.encoder)


def choose_preprocessing(config: Config, vgg: VGG | None) -> Preprocessing:
    """What is done to pixels: as the config says, else as the weights were trained."""
    if config.preprocessing != "auto":
        return PREPROCESSINGS[config.preprocessing]
    if config.network == "segnet-basic":
        return RAW
    return vgg.preprocessing if vgg else TORCH


def first_variables(
    config: Config,
    model: SegNet,
    vgg: VGG | None,
    preprocessing: Preprocessing,
    batch_of: Callable[[int], tf_data.Batch],
    devices: Devices,
) -> dict:
    """Draws the first parameters and puts the trained encoder among them.

    BatchNorm's statistics, of which a plain VGG knows nothing, are then taken from some training images.
    """
    variables = init_variables(model, config.seed)
    if vgg is None:
        return variables
    from segnet_jax.weights.insert import insert_encoder

    params, batch_stats = insert_encoder(
        variables["params"],
        variables["batch_stats"],
        vgg,
        conv_bias=config.conv_bias,
        batch_norm_epsilon=config.batch_norm_epsilon,
    )
    variables = {"params": params, "batch_stats": batch_stats}
    at_once = devices.total * config.batch_size_per_device  # of what is accumulated only the first is looked at
    num_batches = -(-CALIBRATION_IMAGES // at_once)
    with bar("calibrating BatchNorm", num_batches) as advance:
        batches = prefetch(map(batch_of, range(num_batches)), devices)
        batch_stats = calibrate(model, replicate(variables, devices), batches, preprocessing, devices, advance)
    return {"params": params, "batch_stats": batch_stats}
