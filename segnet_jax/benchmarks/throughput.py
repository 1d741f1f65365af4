"""What `benchmark` measures: training, an epoch, inference, input, pooling, scaling, on whatever devices there are."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segnet_jax.benchmarks.roofline import shares, work_of
from segnet_jax.benchmarks.timing import Timing, timed, timed_in_turns
from segnet_jax.config.fields import Config
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.data.input_pipeline.cache import CachedSplit, from_arrays
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.distributed.data_parallel import (
    AheadOfTime,
    Devices,
    choose_devices,
    parallel_eval_step,
    peak_memory_of,
    prefetch,
    replicate,
)
from segnet_jax.nn.folding import fold_batch_norm
from segnet_jax.nn.pooling import max_pool_with_code, unpool
from segnet_jax.nn.preprocessing import TORCH, normalize
from segnet_jax.nn.segnet import SegNet
from segnet_jax.runs.dataset import decode, open_data, validation_split
from segnet_jax.system.errors import is_out_of_memory
from segnet_jax.training import build, build_steps
from segnet_jax.training.devices import device_shard, steps_per_dispatch
from segnet_jax.training.inputs import Input, calls_of, choose_placement, evaluation_input, training_input
from segnet_jax.training.state import create_state, init_variables

logger = logging.getLogger(__name__)

NUM_CLASSES = 11
WARM_UP = 3  # calls before the first that counts


@dataclass(frozen=True)
class Measured:
    """What is measured, on what, and how often.

    Attributes:
      config: the training that is measured.
      devices: to measure on.
      precision: of activations, never "auto".
      steps: of a round, chained without a wait.
      rounds: of which the median is given.
    """

    config: Config
    devices: Devices
    precision: str
    steps: int
    rounds: int

    @property
    def images_per_step(self) -> int:
        """Over all devices."""
        return self.config.batch_size_per_device * self.devices.total

    @property
    def model(self) -> SegNet:
        """The network, for training."""
        return build.build_model(self.config, NUM_CLASSES, self.precision)

    def timed(self, run: Callable[[int], object], steps_per_dispatch: int = 1) -> Timing:
        """Times a step by the rules of `timing`; `run` makes so many calls of so many steps."""
        calls = timed(run, steps=self.steps, rounds=self.rounds, warm_up=WARM_UP)
        return Timing(tuple(seconds / steps_per_dispatch for seconds in calls.rounds))


def train(measured: Measured) -> dict[str, Any]:
    """The training step with its batch on the devices, and with its input path."""
    config, devices = measured.config, measured.devices
    shard = device_shard(devices, config.batch_size_per_device)
    samples = random_records(max(32, measured.images_per_step), config.image_size)
    sampler = Sampler(len(samples), measured.images_per_step, seed=0, flip=True, shift=10)
    per_call = steps_per_dispatch(config, devices)
    place = choose_placement("device" if per_call > 1 else config.input, devices, samples)
    source = training_input(place, samples, sampler, shard, 1, devices)
    trainer = Trainer(measured, source)

    resident = next(prefetch(source.inputs([range(per_call)]), devices))
    step = measured.timed(lambda calls: trainer.take(resident for _ in range(calls)), per_call)
    num_calls = WARM_UP + measured.steps * measured.rounds
    inputs = prefetch(source.inputs([range(i * per_call, (i + 1) * per_call) for i in range(num_calls)]), devices)
    with_input = measured.timed(lambda calls: trainer.take(next(inputs) for _ in range(calls)), per_call)
    work = work_of(measured.model, *config.image_size)
    found = step.summary(measured.images_per_step)
    return found | {
        "input": place,
        "images_per_second_with_input": measured.images_per_step / with_input.median,
        "input_bound": with_input.median > 1.1 * step.median,
        **shares(
            found["images_per_second"] / devices.total,
            work.train_flop,
            work.train_bytes,
            devices.local[0].device_kind,
            measured.precision,
        ),
        "gflop_per_image": work.train_flop / 1e9,
        **trainer.memory(resident),
    }


class Trainer:
    """The training step as `train` compiles it, and the state that it goes on from."""

    def __init__(self, measured: Measured, source: Input):
        config = measured.config
        model, devices = measured.model, measured.devices
        variables = init_variables(model, seed=0)
        self.source = source
        self.step_settings = build.step_settings(config, model, jnp.ones(NUM_CLASSES), TORCH)
        self._device = devices.local[0]
        self.state = replicate(create_state(variables, self.step_settings.optimizer, measured.precision), devices)
        self.step = build_steps.build_train_step(source, devices, self.step_settings)

    def take(self, inputs) -> tuple:
        """Takes a step for each of the inputs; returns the last state and measures."""
        for one in inputs:
            self.state, measures = self.step(self.state, one)
        return self.state, measures

    def memory(self, inputs) -> dict[str, float | None]:
        """MB at the most in use so far, as the device says, and what the program asks for, as the compiler says."""
        used = peak_memory_of(self._device)
        asked = self.step.program(self.state, inputs).memory_analysis()
        return {
            "peak_memory_mb": used and used / 1e6,
            "program_memory_mb": asked and asked.temp_size_in_bytes / 1e6,
            "compile_seconds": self.step.seconds,
        }


def epoch(measured: Measured) -> dict[str, Any]:
    """A whole epoch over a data set as `train` takes it, the evaluation at its end included."""
    config, devices = measured.config, measured.devices
    dataset = open_data(config)
    scored = validation_split(dataset)
    splits = [dataset.splits[name] for name in ("train", scored)]
    samples, eval_samples = (decode(split, config, "reading images") for split in splits)
    sampler = Sampler(len(samples), measured.images_per_step, seed=0, flip=True, shift=10)
    shard = device_shard(devices, config.batch_size_per_device)
    place = choose_placement(config.input, devices, samples, eval_samples)
    trainer = Trainer(measured, training_input(place, samples, sampler, shard, 1, devices))
    evaluate = build_steps.build_evaluator(
        evaluation_input(place, eval_samples, shard, devices),
        len(eval_samples),
        shard,
        devices,
        trainer.step_settings,
    )
    per_call = 1 if place == "host" else steps_per_dispatch(config, devices)

    def run(epochs):
        for number in range(epochs):
            steps = range(number * sampler.steps_per_epoch, (number + 1) * sampler.steps_per_epoch)
            calls = calls_of(steps, per_call, sampler.steps_per_epoch)
            state, _ = trainer.take(prefetch(trainer.source.inputs(calls), devices))
            evaluate(state.variables)

    timing = timed(run, steps=1, rounds=measured.rounds, warm_up=1)
    return {
        "seconds": timing.median,
        "images_per_second": sampler.steps_per_epoch * measured.images_per_step / timing.median,
        "num_images": len(samples),
        "num_scored": len(eval_samples),
        "input": place,
    }


def infer(measured: Measured) -> dict[str, Any]:
    """From uint8 images to uint8 predictions, BatchNorm folded, images on the devices; in turns with it unfolded."""
    model = measured.model
    variables = init_variables(model, seed=0)
    folded = fold_batch_norm(variables, model)
    runs = [_inference(measured, model.clone(folded=True), folded), _inference(measured, model, variables)]
    timing, unfolded = timed_in_turns(runs, steps=measured.steps, rounds=measured.rounds, warm_up=WARM_UP)
    found = timing.summary(measured.images_per_step)
    found |= {"unfolded_ms_per_step": 1e3 * unfolded.median, "folded_over_unfolded": timing.median / unfolded.median}
    work = work_of(model, *measured.config.image_size)
    kind = measured.devices.local[0].device_kind
    rate = found["images_per_second"] / measured.devices.total
    return found | shares(rate, work.infer_flop, work.infer_bytes, kind, measured.precision)


def _inference(measured: Measured, model: SegNet, variables: dict[str, Any]) -> Callable[[int], object]:
    """Labels one batch so many times."""
    config, devices = measured.config, measured.devices

    def predict(variables, image, _store):
        logits = model.apply(variables, normalize(image, TORCH, model.dtype), train=False)
        return (), jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    step = AheadOfTime(parallel_eval_step(predict, devices), "inference", devices)
    shape = (len(devices.local), config.batch_size_per_device, *config.image_size, 3)
    image = jax.device_put(np.random.default_rng(0).integers(0, 256, shape, np.uint8), devices.split)
    variables = replicate(variables, devices)
    return lambda steps: [step(variables, image) for _ in range(steps)][-1]


def input_(measured: Measured) -> dict[str, Any]:
    """The host's batches, flipped and shifted, with nothing that takes them."""
    config = measured.config
    split = open_data(config).splits["train"]
    samples = decode(split, config, "reading images")
    shard = device_shard(measured.devices, config.batch_size_per_device)
    sampler = Sampler(len(samples), measured.images_per_step, seed=0, flip=True, shift=10)
    batches = tf_data.training_batches(samples, sampler, shard, 1, range(10**9))

    def run(steps):
        for _ in range(steps):
            next(batches)

    found = measured.timed(run).summary(measured.images_per_step)
    return found | {"num_records": len(samples), "kept_decoded": samples.images is not None}


def pooling(measured: Measured) -> dict[str, Any]:
    """Pool, unpool, and their gradients, on one device at the size of the first stage."""
    config = measured.config
    shape = (config.batch_size_per_device, *config.image_size, max(1, round(64 * config.width)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), measured.model.dtype)

    @jax.jit
    def run_once(x):
        def through(x):
            maxima, code = max_pool_with_code(x)
            return unpool(maxima, code, *config.image_size)

        y, pull_back = jax.vjp(through, x)
        return pull_back(y)[0]

    def run(steps):
        y = x
        for _ in range(steps):
            y = run_once(y)
        return y

    return measured.timed(run).summary(config.batch_size_per_device)


def scaling(measured: Measured, strong: bool = False) -> Iterator[dict[str, Any]]:
    """The training step on 1, 2, 4, ... devices, as many images on each, with and without synchronised BatchNorm.

    Args:
      measured: with the most devices.
      strong: take the step with as many images over all devices too, those that all devices together take otherwise.

    Yields:
      A row of each, with its efficiency beside the fewest devices; in place of measurements "left_out" says why there
      are none, where all those images are too many for fewer devices.
    """
    most = 2 ** (measured.devices.total.bit_length() - 1)
    for kind in ("weak", "strong") if strong else ("weak",):
        for sync in (True, False):
            alone = None  # images a second on each of the fewest devices
            for count in (2**power for power in range(most.bit_length())):
                batch = measured.config.batch_size_per_device * (most // count if kind == "strong" else 1)
                row = {"devices": count, "scaling": kind, "batch_size_per_device": batch, "sync_batch_norm": sync}
                found = _train_on(count, batch, sync, measured, may_not_fit=kind == "strong")
                if found is None:
                    logger.info(f"left out: strong scaling on {count}, {batch} images a device do not fit into memory")
                    yield row | {"left_out": "out of memory"}
                    continue
                rate = found["images_per_second"]
                alone = alone or rate / count
                speed = {"images_per_second": rate, "ms_per_step": found["ms_per_step"]}
                yield row | speed | {"efficiency": rate / (count * alone)}


def _train_on(count: int, batch: int, sync: bool, measured: Measured, may_not_fit: bool) -> dict[str, Any] | None:
    """`train` on so many devices; None where it does not fit into their memory and need not."""
    change = {"devices": str(count), "sync_batch_norm": sync, "batch_size_per_device": batch}
    config = dataclasses.replace(measured.config, **change)
    devices = choose_devices(str(count), config.deterministic, config.mapping)
    try:
        return train(dataclasses.replace(measured, config=config, devices=devices))
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not (may_not_fit and is_out_of_memory(error)):
            raise
        return None


def random_records(count: int, image_size: tuple[int, int]) -> CachedSplit:
    """Noise to train on: speed does not depend on what is in a picture."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *image_size, 3), np.uint8)
    return from_arrays(images, rng.integers(0, NUM_CLASSES, (count, *image_size), np.uint8))
