"""From a config to the objects of a run: devices, network, optimiser, class weights, first weights, evaluation.

What `train`, `evaluate` and their like share. Each function unpacks the config; nothing below it knows one.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import optax

from segnet_jax.config import Config
from segnet_jax.datasets.choose import open_full_size_counts
from segnet_jax.datasets.labels import ClassTable
from segnet_jax.datasets.records import DataSet, Split
from segnet_jax.download import cache_folder
from segnet_jax.errors import UserError
from segnet_jax.examination import look_at_counts
from segnet_jax.inputs import Input
from segnet_jax.nn.preprocessing import PREPROCESSINGS, RAW, TORCH, Preprocessing
from segnet_jax.nn.segnet import SegNet
from segnet_jax.nn.segnet_basic import SegNetBasic
from segnet_jax.pipeline import host
from segnet_jax.pipeline.counts import LabelCounts, count_labels, count_split
from segnet_jax.pipeline.decoded import Records, decoded
from segnet_jax.reporting.bar import bar
from segnet_jax.training import class_weights as rules
from segnet_jax.training.calibration import calibrate
from segnet_jax.training.evaluation import Evaluation, evaluate
from segnet_jax.training.optimizer import learning_rate_schedule, sgd
from segnet_jax.training.parallel import (
    AXIS,
    AheadOfTime,
    Devices,
    parallel_eval_step,
    parallel_train_step,
    prefetch,
    replicate,
)
from segnet_jax.training.precision import DTYPES
from segnet_jax.training.state import TrainState, create_state, init_variables, variable_shapes
from segnet_jax.training.steps import eval_step, train_steps
from segnet_jax.weights.vgg import VGG

NUM_PICTURES = 6
CALIBRATION_IMAGES = 64  # enough for the statistics of a pretrained encoder to settle


def build_model(config: Config, num_classes: int, precision: str) -> SegNet:
    """The network that a config describes."""
    settings = {
        "num_classes": num_classes,
        "depth": config.depth,
        "width": config.width,
        "pooling": config.pooling,
        "upsampling": config.upsampling,
        "encoder_addition": config.encoder_addition,
        "dropout": config.dropout,
        "conv_bias": config.conv_bias,
        "batch_norm_momentum": config.batch_norm_momentum,
        "batch_norm_epsilon": config.batch_norm_epsilon,
        "batch_norm_bias": config.batch_norm_bias,
        "sync_axis": AXIS if config.sync_batch_norm else None,
        "dtype": DTYPES[precision],
    }
    if config.network == "segnet-basic":
        return SegNetBasic(decoder=config.decoder, **settings)
    return SegNet(encoder=config.encoder, final_batch_norm=config.final_batch_norm, **settings)


def build_optimizer(config: Config, steps_per_epoch: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and the course of its learning rate."""
    schedule = learning_rate_schedule(
        config.schedule,
        peak=config.learning_rate,
        total_steps=config.epochs * steps_per_epoch,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        drop_every=config.step_epochs * steps_per_epoch,
        drop_factor=config.step_factor,
        power=config.poly_power,
    )
    factors = {"decay_scale": config.decay_scale, "bias_rate": config.bias_rate}
    return sgd(schedule, config.momentum, config.weight_decay, **factors), schedule


def load_class_weights(config: Config, data_set: DataSet, say: Callable[[str], None]) -> np.ndarray:
    """The weight of each class in the loss, float32 [C], by the config's rule; counts labels where that needs it."""
    num_classes = len(data_set.classes)
    if config.class_weights == "none":
        return np.ones(num_classes, np.float32)
    if config.class_weights == "caffe":
        if num_classes != len(rules.CAFFE_CAMVID):
            raise UserError(f"--class-weights caffe is for CamVid's 11 classes, {config.data} has {num_classes}")
        say(
            "warning: --class-weights caffe: the published SignSymbol weight, 9.6446, does not follow from the labels, "
            "which give 3.85"
        )
        return np.array(rules.CAFFE_CAMVID, np.float32)
    if config.class_weights == "matlab":
        counts = _count_everything(config, data_set, say)
    else:
        counts = _count(data_set.splits["train"], num_classes)
    if config.class_weights == "auto-global":
        return rules.global_frequency_weights(counts.pixels, counts.total)
    return rules.present_frequency_weights(counts.pixels, counts.image_pixels)


def _count(split: Split, num_classes: int) -> LabelCounts:
    with bar("counting labels", len(split)) as advance:
        return count_split(split, num_classes, cache_folder(), advance)


def _count_everything(config: Config, data_set: DataSet, say: Callable[[str], None]) -> LabelCounts:
    """Counts all splits, at full size where the data set still knows it: what MATLAB's example does, test included."""
    num_classes = len(data_set.classes)
    full_size = open_full_size_counts(config.data)
    if full_size is None:
        say(f"class weights are counted on {', '.join(data_set.splits)} at the size on disk")
        return sum(
            (_count(split, num_classes) for split in data_set.splits.values()),
            start=LabelCounts.zero(num_classes),
        )
    pixels = np.stack(list(full_size.values()))  # [frames, classes and void]
    sizes = pixels.sum(axis=1, keepdims=True)
    present = pixels[:, :num_classes] > 0
    known = pixels[:, :num_classes]
    return LabelCounts(
        known.sum(axis=0), (present * sizes).sum(axis=0), int(sizes.sum()), int((known.sum(axis=1) == 0).sum())
    )


def read_first_weights(config: Config) -> VGG | None:
    """Reads the encoder that `--init` names, fetching it if need be; None for "none"."""
    if config.init == "none":
        return None
    from segnet_jax.weights.load import read_vgg
    from segnet_jax.weights.published import obtain

    preprocessing = PREPROCESSINGS.get(config.preprocessing)  # None for "auto"
    return read_vgg(obtain(config.init, cache_folder()), config.encoder, preprocessing)


def choose_preprocessing(config: Config, vgg: VGG | None) -> Preprocessing:
    """What is done to pixels: as the config says, else as the weights were trained."""
    if config.preprocessing != "auto":
        return PREPROCESSINGS[config.preprocessing]
    if config.network == "segnet-basic":
        return RAW
    return vgg.preprocessing if vgg else TORCH


def state_shapes(
    model: SegNet, optimizer: optax.GradientTransformation, precision: str, has_average: bool
) -> TrainState:
    """What a training state looks like, for restoring one: shapes and dtypes, nothing computed."""
    create = partial(create_state, optimizer=optimizer, precision=precision, has_average=has_average)
    return jax.eval_shape(create, variable_shapes(model))


def first_variables(
    config: Config,
    model: SegNet,
    vgg: VGG | None,
    preprocessing: Preprocessing,
    batch_of: Callable[[int], host.Batch],
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


def device_share(devices: Devices, batch_size_per_device: int) -> host.Share:
    """This process's part of each global batch."""
    return host.Share(devices.total, devices.first, len(devices.local), batch_size_per_device)


def decode(split: Split, config: Config, doing: str, say: Callable[[str], None]) -> Records:
    """Opens a split's records at the config's image size, decoding them where the cache lacks them."""
    with bar(doing, len(split)) as advance:
        return decoded(split, config.image_size, cache_folder(), advance, say, config.fit)


def warn_of_labels(classes: ClassTable, say: Callable[[str], None], **splits: Records) -> None:
    """Says which classes the labels, as the network gets them, lack, and how many labels hold nothing but void.

    Args:
      classes: the data set's.
      say: prints a line.
      **splits: by name; the first is what is trained on.

    Raises:
      UserError: if a split has no labelled pixel at all.
    """
    counts = {
        split: count_labels(lambda index, records=records: records.read(index)[1], len(records), len(classes))
        for split, records in splits.items()
    }
    faults, warnings = look_at_counts(classes, counts, {split: len(records) for split, records in splits.items()})
    if faults:
        raise UserError(faults[0].what, kind=faults[0].kind, file=faults[0].file, fix=faults[0].fix)
    for warning in warnings:
        say(f"warning: {warning}")


def picture_indices(num_samples: int) -> list[int]:
    """The records that are drawn at each evaluation: six, evenly spread."""
    return sorted({round(place) for place in np.linspace(0, num_samples - 1, NUM_PICTURES)})


def build_train_step(source: Input, devices: Devices, say: Callable[[str], None], **settings) -> AheadOfTime:
    """Returns a function (state, inputs) -> (state, measures) that takes one call's steps on all devices.

    Args:
      source: of the training split's batches.
      devices: to train on.
      say: told when the step is compiled.
      **settings: what `train_step` wants to know.
    """
    step = partial(train_steps, make_batch=source.make_batch, **settings)
    mapped = parallel_train_step(step, devices, source.store_axis)
    return AheadOfTime(mapped, "the training step", devices, say, source.store)


def build_evaluator(
    source: Input, num_samples: int, share: host.Share, devices: Devices, say: Callable[[str], None], **step_settings
) -> Callable[..., Evaluation | None]:
    """Returns a function (variables, should_stop, on_prediction) -> Evaluation of a whole split, compiled once.

    Args:
      source: of the split's batches.
      num_samples: how many records the split has.
      share: this process's part of each batch; the scores do not depend on it.
      devices: to compute on.
      say: told when the step is compiled.
      **step_settings: what `eval_step` wants to know: model, class_weights, preprocessing.
    """
    step = partial(eval_step, make_batch=source.make_batch, **step_settings)
    mapped = parallel_eval_step(step, devices, source.store_axis)
    score = AheadOfTime(mapped, "the evaluation step", devices, say, source.store)

    def run(
        variables: dict,
        should_stop: Callable[[], bool] = lambda: False,
        on_prediction: Callable[[int, np.ndarray], None] | None = None,
    ) -> Evaluation | None:
        num_steps = host.num_evaluation_steps(num_samples, share)
        everyone = dataclasses.replace(share, first_device=0, num_local_devices=share.num_devices)
        start, compiling = time.monotonic(), score.seconds
        found = evaluate(
            score,
            variables,
            prefetch(source.inputs(), devices),
            [host.evaluation_indices(num_samples, everyone, number) for number in range(num_steps)],
            first_device=share.first_device,
            wanted=picture_indices(num_samples),
            num_worst=NUM_PICTURES,
            on_prediction=on_prediction,
            should_stop=should_stop,
        )
        seconds = time.monotonic() - start - (score.seconds - compiling)
        return found and dataclasses.replace(found, seconds=seconds)

    return run
