"""The measurements of `benchmark`: training step, epoch, inference, input pipeline, pooling and scaling."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segnet_jax.benchmarks.roofline import utilization, work_of
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
from segnet_jax.runs.load_dataset import decode, open_data, validation_split
from segnet_jax.system.errors import is_out_of_memory
from segnet_jax.training import build_model, build_steps
from segnet_jax.training.choose_devices import device_shard, steps_per_dispatch
from segnet_jax.training.state import create_state, init_variables
from segnet_jax.training.step_inputs import (
    Input,
    choose_placement,
    evaluation_input,
    split_into_dispatches,
    training_input,
)

logger = logging.getLogger(__name__)

NUM_CLASSES = 11
WARM_UP = 3  # calls before the first timed one


@dataclass(frozen=True)
class BenchmarkSetup:
    """Config and devices to measure, and the number of repetitions.

    Attributes:
      config: config of the training run.
      devices: devices to measure on.
      precision: dtype of activations, not "auto".
      steps: steps per round, dispatched without waiting.
      rounds: number of rounds, whose median is reported.
    """

    config: Config
    devices: Devices
    precision: str
    steps: int
    rounds: int

    @property
    def images_per_step(self) -> int:
        """Images per step over all devices."""
        return self.config.batch_size_per_device * self.devices.total

    @property
    def model(self) -> SegNet:
        """The network to measure."""
        return build_model.build_model(self.config, NUM_CLASSES, self.precision)

    def timed(self, run: Callable[[int], object], steps_per_dispatch: int = 1) -> Timing:
        """Time a step; `run(n)` makes n calls of `steps_per_dispatch` steps each."""
        calls = timed(run, steps=self.steps, rounds=self.rounds, warm_up=WARM_UP)
        return Timing(tuple(seconds / steps_per_dispatch for seconds in calls.rounds))


def train(setup: BenchmarkSetup) -> dict[str, Any]:
    """Measure the training step on a device-resident batch, and with its input pipeline."""
    config, devices = setup.config, setup.devices
    shard = device_shard(devices, config.batch_size_per_device)
    samples = random_samples(max(32, setup.images_per_step), config.image_size)
    sampler = Sampler(len(samples), setup.images_per_step, seed=0, flip=True, shift=10)
    per_call = steps_per_dispatch(config, devices)
    placement = choose_placement("device" if per_call > 1 else config.input, devices, samples)
    source = training_input(placement, samples, sampler, shard, 1, devices)
    trainer = TimedTrainer(setup, source)

    resident = next(prefetch(source.inputs([range(per_call)]), devices))
    step = setup.timed(lambda calls: trainer.take(resident for _ in range(calls)), per_call)
    num_calls = WARM_UP + setup.steps * setup.rounds
    inputs = prefetch(source.inputs([range(i * per_call, (i + 1) * per_call) for i in range(num_calls)]), devices)
    with_input = setup.timed(lambda calls: trainer.take(next(inputs) for _ in range(calls)), per_call)
    work = work_of(setup.model, *config.image_size)
    found = step.summary(setup.images_per_step)
    return found | {
        "input": placement,
        "images_per_second_with_input": setup.images_per_step / with_input.median,
        "input_bound": with_input.median > 1.1 * step.median,
        **utilization(
            found["images_per_second"] / devices.total,
            work.train_flop,
            work.train_bytes,
            devices.local[0].device_kind,
            setup.precision,
        ),
        "gflop_per_image": work.train_flop / 1e9,
        **trainer.memory(resident),
    }


class TimedTrainer:
    """The training step as `train` compiles it, with its state."""

    def __init__(self, setup: BenchmarkSetup, source: Input):
        config = setup.config
        model, devices = setup.model, setup.devices
        variables = init_variables(model, seed=0)
        self.source = source
        self.step_settings = build_model.step_settings(config, model, jnp.ones(NUM_CLASSES), TORCH)
        self._device = devices.local[0]
        self.state = replicate(create_state(variables, self.step_settings.optimizer, setup.precision), devices)
        self.step = build_steps.build_train_step(source, devices, self.step_settings)

    def take(self, inputs) -> tuple:
        """Call the step on each input; return the last state and metrics."""
        for one in inputs:
            self.state, metrics = self.step(self.state, one)
        return self.state, metrics

    def memory(self, inputs) -> dict[str, float | None]:
        """Return the device's peak memory, the program's memory reported by the compiler, and the compile time."""
        peak = peak_memory_of(self._device)
        program = self.step.program(self.state, inputs).memory_analysis()
        return {
            "peak_memory_mb": peak and peak / 1e6,
            "program_memory_mb": program and program.temp_size_in_bytes / 1e6,
            "compile_seconds": self.step.seconds,
        }


def epoch(setup: BenchmarkSetup) -> dict[str, Any]:
    """Measure an epoch of training over a dataset, including its evaluation."""
    config, devices = setup.config, setup.devices
    dataset = open_data(config)
    scored = validation_split(dataset)
    splits = [dataset.splits[name] for name in ("train", scored)]
    samples, eval_samples = (decode(split, config, "reading images") for split in splits)
    sampler = Sampler(len(samples), setup.images_per_step, seed=0, flip=True, shift=10)
    shard = device_shard(devices, config.batch_size_per_device)
    placement = choose_placement(config.input, devices, samples, eval_samples)
    trainer = TimedTrainer(setup, training_input(placement, samples, sampler, shard, 1, devices))
    evaluate = build_steps.build_evaluator(
        evaluation_input(placement, eval_samples, shard, devices),
        len(eval_samples),
        shard,
        devices,
        trainer.step_settings,
    )
    per_call = 1 if placement == "host" else steps_per_dispatch(config, devices)

    def run(epochs):
        for number in range(epochs):
            steps = range(number * sampler.steps_per_epoch, (number + 1) * sampler.steps_per_epoch)
            calls = split_into_dispatches(steps, per_call, sampler.steps_per_epoch)
            state, _ = trainer.take(prefetch(trainer.source.inputs(calls), devices))
            evaluate(state.variables)

    timing = timed(run, steps=1, rounds=setup.rounds, warm_up=1)
    return {
        "seconds": timing.median,
        "images_per_second": sampler.steps_per_epoch * setup.images_per_step / timing.median,
        "num_images": len(samples),
        "num_scored": len(eval_samples),
        "input": placement,
    }


def infer(setup: BenchmarkSetup) -> dict[str, Any]:
    """Measure inference from device-resident uint8 images to uint8 predictions, with and without folded BatchNorm."""
    model = setup.model
    variables = init_variables(model, seed=0)
    folded = fold_batch_norm(variables, model)
    runs = [_inference(setup, model.clone(folded=True), folded), _inference(setup, model, variables)]
    timing, unfolded = timed_in_turns(runs, steps=setup.steps, rounds=setup.rounds, warm_up=WARM_UP)
    found = timing.summary(setup.images_per_step)
    found |= {"unfolded_ms_per_step": 1e3 * unfolded.median, "folded_over_unfolded": timing.median / unfolded.median}
    work = work_of(model, *setup.config.image_size)
    kind = setup.devices.local[0].device_kind
    rate = found["images_per_second"] / setup.devices.total
    return found | utilization(rate, work.infer_flop, work.infer_bytes, kind, setup.precision)


def _inference(setup: BenchmarkSetup, model: SegNet, variables: dict[str, Any]) -> Callable[[int], object]:
    """Return a function that segments one batch n times, given n."""
    config, devices = setup.config, setup.devices

    def predict(variables, image, _store):
        logits = model.apply(variables, normalize(image, TORCH, model.dtype), train=False)
        return (), jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    step = AheadOfTime(parallel_eval_step(predict, devices), "inference", devices)
    shape = (len(devices.local), config.batch_size_per_device, *config.image_size, 3)
    image = jax.device_put(np.random.default_rng(0).integers(0, 256, shape, np.uint8), devices.split)
    variables = replicate(variables, devices)
    return lambda steps: [step(variables, image) for _ in range(steps)][-1]


def input_(setup: BenchmarkSetup) -> dict[str, Any]:
    """Measure the host's input pipeline with flips and shifts, without training."""
    config = setup.config
    split = open_data(config).splits["train"]
    samples = decode(split, config, "reading images")
    shard = device_shard(setup.devices, config.batch_size_per_device)
    sampler = Sampler(len(samples), setup.images_per_step, seed=0, flip=True, shift=10)
    batches = tf_data.training_batches(samples, sampler, shard, 1, range(10**9))

    def run(steps):
        for _ in range(steps):
            next(batches)

    found = setup.timed(run).summary(setup.images_per_step)
    return found | {"num_samples": len(samples), "cached": samples.images is not None}


def pooling(setup: BenchmarkSetup) -> dict[str, Any]:
    """Measure pooling, unpooling and their gradients on one device, for feature maps of the first stage."""
    config = setup.config
    shape = (config.batch_size_per_device, *config.image_size, max(1, round(64 * config.width)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), setup.model.dtype)

    @jax.jit
    def run_once(x):
        def pool_and_unpool(x):
            maxima, code = max_pool_with_code(x)
            return unpool(maxima, code, *config.image_size)

        y, vjp = jax.vjp(pool_and_unpool, x)
        return vjp(y)[0]

    def run(steps):
        y = x
        for _ in range(steps):
            y = run_once(y)
        return y

    return setup.timed(run).summary(config.batch_size_per_device)


def scaling(setup: BenchmarkSetup, strong: bool = False) -> Iterator[dict[str, Any]]:
    """Measure the training step on 1, 2, 4, ... devices, with synchronized and with local BatchNorm.

    Args:
      setup: setup with the largest number of devices.
      strong: measure strong scaling (constant global batch size) in addition to weak scaling.

    Yields:
      One row per number of devices, with the efficiency relative to the fewest devices. If the global batch does not
      fit, the row has the reason as "left_out" in place of measurements.
    """
    max_devices = 2 ** (setup.devices.total.bit_length() - 1)
    for kind in ("weak", "strong") if strong else ("weak",):
        for sync in (True, False):
            base_rate = None  # images per second and device on the fewest devices
            for count in (2**power for power in range(max_devices.bit_length())):
                batch = setup.config.batch_size_per_device * (max_devices // count if kind == "strong" else 1)
                row = {"devices": count, "scaling": kind, "batch_size_per_device": batch, "sync_batch_norm": sync}
                found = _train_on(count, batch, sync, setup, may_not_fit=kind == "strong")
                if found is None:
                    logger.info(
                        f"skipped strong scaling on {count} devices: {batch} images per device do not fit into memory"
                    )
                    yield row | {"left_out": "out of memory"}
                    continue
                rate = found["images_per_second"]
                base_rate = base_rate or rate / count
                speed = {"images_per_second": rate, "ms_per_step": found["ms_per_step"]}
                yield row | speed | {"efficiency": rate / (count * base_rate)}


def _train_on(count: int, batch: int, sync: bool, setup: BenchmarkSetup, may_not_fit: bool) -> dict[str, Any] | None:
    """Run `train` on some of the devices; return None if it runs out of memory and `may_not_fit`."""
    change = {"devices": str(count), "sync_batch_norm": sync, "batch_size_per_device": batch}
    config = dataclasses.replace(setup.config, **change)
    devices = choose_devices(str(count), config.deterministic, config.mapping)
    try:
        return train(dataclasses.replace(setup, config=config, devices=devices))
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not (may_not_fit and is_out_of_memory(error)):
            raise
        return None


def random_samples(count: int, image_size: tuple[int, int]) -> CachedSplit:
    """Return samples of noise, since throughput does not depend on the content of images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *image_size, 3), np.uint8)
    return from_arrays(images, rng.integers(0, NUM_CLASSES, (count, *image_size), np.uint8))
