"""The measurements of `portability measure` on this machine, one precision at a time."""

import hashlib
import logging
import pathlib
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from segnet_jax.benchmarks.portability import reference
from segnet_jax.benchmarks.portability.layer_differences import (
    Difference,
    count_other_maxima,
    differences,
    intermediates,
)
from segnet_jax.benchmarks.portability.steps import StepConstants, lower_steps
from segnet_jax.benchmarks.roofline import utilization, work_of
from segnet_jax.benchmarks.timing import Timing, timed
from segnet_jax.config import files
from segnet_jax.config.fields import Config
from segnet_jax.data.dataset import evenly_spaced
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.distributed.data_parallel import Devices, choose_devices, peak_memory_of
from segnet_jax.inference.network import Network, folded
from segnet_jax.metrics.confusion import count_confusion, scores
from segnet_jax.nn.preprocessing import normalize
from segnet_jax.runs.load_dataset import decode, open_data, validation_split
from segnet_jax.runs.out_of_memory import check_memory
from segnet_jax.system.errors import UserError
from segnet_jax.training.choose_devices import check_device, device_shard, start_devices
from segnet_jax.training.restore_network import Restored, restore

logger = logging.getLogger(__name__)


class MeasurementSettings(Protocol):
    """The fields of `portability.MeasureOptions` that the measurements use."""

    run: str
    data: str
    checkpoint: str
    images: int
    compared: int
    training_steps: int
    batch_size_per_device: int
    devices: str
    steps: int
    rounds: int


@dataclass(frozen=True, eq=False)
class Machine:
    """This machine, with the run to measure and its data.

    Attributes:
      settings: settings of the measurement.
      config: config of the run, with these settings applied.
      devices: devices to train on.
      samples: training samples.
      eval_samples: samples to score.
      split: split of `eval_samples`.
      data: fingerprint of each of the two splits.
    """

    settings: MeasurementSettings
    config: Config
    devices: Devices
    samples: CachedSplit
    eval_samples: CachedSplit
    split: str
    data: dict[str, str]

    @classmethod
    def open(cls, settings: MeasurementSettings) -> "Machine":
        """Open the run's data and start the devices.

        Raises:
          UserError: If the run or its data are missing, the config does not match the checkpoint, or there are too few
            devices.
          OutOfMemory: If a batch cannot fit into memory.
        """
        config = replace(
            files.read_run(settings.run),
            devices=settings.devices,
            fake_devices=0,
            batch_size_per_device=settings.batch_size_per_device,
            grad_accum_steps=1,
            precision="float32",  # only for starting the devices; `measure` gets a precision
            steps_per_dispatch=1,
            input="auto",
            **({"data": settings.data} if settings.data else {}),
        )
        # Compilation is timed. JAX reads this option when it compiles the first program.
        jax.config.update("jax_enable_compilation_cache", False)
        devices, _ = start_devices(config)
        check_memory(config, devices, flags=type(settings))
        restore(settings.run, config, settings.checkpoint, choose_devices("1"), "float32")  # raises errors early
        dataset = open_data(config)
        split = validation_split(dataset)
        samples = [decode(dataset.splits[name], config, "reading images") for name in ("train", split)]
        data = {name: dataset.splits[name].fingerprint[:16] for name in ("train", split)}
        return cls(settings, config, devices, *samples, split, data)

    @property
    def platform(self) -> str:
        """Platform name, such as "cuda"."""
        return export.default_export_platform()

    def describe_network(self) -> dict[str, Any]:
        """Return values that identify the network and the data; machines are comparable if the values are equal."""
        restored = self._restored("float32")
        digest = hashlib.sha256()
        for name, array in sorted(reference.by_path(restored.variables).items()):
            digest.update(name.encode() + array.tobytes())
        network = {name: getattr(self.config, name) for name in ("protocol", "image_size", "encoder", "depth", "width")}
        return network | {"step": restored.meta["step"], "weights": digest.hexdigest(), "data": self.data}

    def measure(self, precision: str) -> dict[str, Any]:
        """Return all measurements in one precision; {"fails": message} after an error, which float32 raises instead."""
        logger.info(f"measuring {precision}")
        try:
            check_device(self.devices.local[0], precision)
            restored = self._restored(precision)
            network = folded(restored, self.config)
            found = self._compare(network) | {"score": self._score(network), "infer": self._infer(network, precision)}
            return found | {"train": self._train(restored, precision), "operations": self._operations(precision)}
        except (UserError, jax.errors.JaxRuntimeError) as error:
            if precision == "float32":
                raise
            return {"fails": " ".join(str(error).split())[:300]}

    # --- difference from the reference ---

    @cached_property
    def _reference(self) -> tempfile.TemporaryDirectory:
        logger.info("computing the float64 reference on the CPU")
        folder = tempfile.TemporaryDirectory(prefix="segnet_jax_reference_")
        images = np.stack([self.eval_samples.read(index)[0] for index in self._compared])
        run, checkpoint = self.settings.run, self.settings.checkpoint
        reference.compute(pathlib.Path(folder.name), run, self.config, checkpoint, images, self._batches)
        return folder

    @property
    def _compared(self) -> list[int]:
        return evenly_spaced(self.settings.compared, len(self.eval_samples))

    @cached_property
    def _batches(self) -> list[tf_data.Batch]:
        """Batches of the training steps: the first batches of the run's sampler."""
        shard = device_shard(self.devices, self.config.batch_size_per_device)
        images_per_step = shard.num_devices * shard.batch_size_per_device
        sampler = Sampler.from_config(self.config, len(self.samples), images_per_step)
        steps = range(self.settings.training_steps)
        return [tf_data.training_batch(self.samples, sampler, shard, 1, step) for step in steps]

    def _compare(self, network: Network) -> dict[str, Any]:
        """Compare convolutions, pooling maxima and predicted classes with the reference."""
        folder = pathlib.Path(self._reference.name)

        def results(variables, images):
            image = normalize(images, network.preprocessing, network.model.dtype)
            found = intermediates(network.model, variables, image)
            names[:] = found  # while tracing, because jit sorts the keys of a returned dict
            return list(found.values())

        names: list[str] = []
        compute = jax.jit(results)
        layers: dict[str, Difference] = {}
        poolings: dict[str, np.ndarray] = {}
        changed = num_pixels = 0
        for number, index in enumerate(self._compared):
            expected = reference.results_of(folder, number)
            arrays = jax.device_get(compute(network.variables, self.eval_samples.read(index)[0][None]))
            found = dict(zip(names, arrays, strict=True))
            for name, difference in differences(found, expected).items():
                layers[name] = layers.get(name, Difference()) + difference
            for name, counts in count_other_maxima(found, expected).items():
                poolings[name] = poolings.get(name, 0) + counts
            changed += int((reference.prediction_of(found) != reference.prediction_of(expected)).sum())
            num_pixels += expected["logits"][..., 0].size
        return {
            "layers": {name: difference.relative for name, difference in layers.items()},
            "poolings": {
                name: {"other_maxima": int(other), "windows": int(windows)}
                for name, (other, windows) in poolings.items()
            },
            "pixels_changed": changed / num_pixels,
            "pixels_compared": num_pixels,
        }

    # --- scores, speed and training ---

    def _restored(self, precision: str) -> Restored:
        return restore(self.settings.run, self.config, self.settings.checkpoint, choose_devices("1"), precision)

    def _score(self, network: Network) -> dict[str, Any]:
        num_images = self.settings.images or len(self.eval_samples)
        indices, batch = evenly_spaced(num_images, len(self.eval_samples)), self.config.batch_size_per_device
        confusion = 0
        for start in range(0, len(indices), batch):
            # The last batch is padded with its last image, so that all batches use one compiled program.
            chosen = [indices[min(i, len(indices) - 1)] for i in range(start, start + batch)]
            images, labels = zip(*map(self.eval_samples.read, chosen), strict=True)
            part = slice(len(indices) - start)
            predictions = np.asarray(jnp.argmax(network.logits(np.stack(images)), axis=-1).astype(jnp.uint8))[part]
            confusion = confusion + count_confusion(np.stack(labels)[part], predictions, len(network.class_names))
        found = scores(confusion)
        return {
            "split": self.split,
            "num_images": len(indices),
            "miou": found.miou,
            "mean_accuracy": found.mean_accuracy,
            "global_accuracy": found.global_accuracy,
        }

    def _infer(self, network: Network, precision: str) -> dict[str, Any]:
        shape = (self.config.batch_size_per_device, *self.config.image_size, 3)
        images = jax.device_put(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

        def predict(variables, images):
            return jnp.argmax(network.forward(variables, images), axis=-1).astype(jnp.uint8)

        start = time.monotonic()
        program = jax.jit(predict).lower(network.variables, images).compile()
        seconds = time.monotonic() - start
        timing = timed(
            lambda steps: [program(network.variables, images) for _ in range(steps)][-1],
            steps=self.settings.steps,
            rounds=self.settings.rounds,
        )
        work = work_of(network.model, *self.config.image_size)
        speed = self._speed(timing, 1, work.infer_flop, work.infer_bytes, precision)
        return speed | _compiled(program, seconds)

    def _train(self, restored: Restored, precision: str) -> dict[str, Any]:
        """Compare the next training steps with the reference, and time the step on a device-resident batch."""
        before, peak = reference.by_path(restored.variables["params"]), peak_memory_of(self.devices.local[0])
        step, state = reference.training(
            self.config, restored.model, restored.variables, restored, precision, self.devices
        )
        state, losses = reference.take_steps(step, state, self._batches, self.devices)
        params = reference.by_path(state.params)
        expected, expected_losses = reference.trained_of(pathlib.Path(self._reference.name))
        moved = sum(
            (Difference.of(params[name] - before[name], expected[name] - before[name]) for name in params),
            start=Difference(),
        )
        batch = reference.on_devices(self._batches[0], self.devices)

        def take(steps):
            nonlocal state
            for _ in range(steps):
                state, metrics = step(state, batch)
            return state, metrics

        timing = timed(take, steps=self.settings.steps, rounds=self.settings.rounds)
        work = work_of(restored.model, *self.config.image_size)
        return {
            "losses": losses.tolist(),
            "reference_losses": expected_losses.tolist(),
            "update_difference": moved.relative["rms"],
            "finite": bool(state.finite),
            "skipped": int(state.skipped),
            **self._speed(timing, self.devices.total, work.train_flop, work.train_bytes, precision),
            "peak_memory_mb": new_peak_mb(peak, peak_memory_of(self.devices.local[0])),
            **_compiled(step.program(state, batch), step.seconds),
        }

    def _speed(self, timing: Timing, num_devices: int, flop: float, num_bytes: float, precision: str) -> dict[str, Any]:
        found = timing.summary(self.config.batch_size_per_device * num_devices)
        kind = self.devices.local[0].device_kind
        return found | utilization(found["images_per_second"] / num_devices, flop, num_bytes, kind, precision)

    def _operations(self, precision: str) -> dict[str, dict[str, int]]:
        """Return the operation counts of each step as lowered for this platform."""
        lowered = lower_steps(
            self.config,
            StepConstants(len(self._restored("float32").classes)),
            precisions=[precision],
            platforms=[self.platform],
            num_devices=self.devices.total,
        )
        return {one.step: one.operations for one in lowered}


def new_peak_mb(before: int | None, after: int | None) -> float | None:
    """Return a measurement's peak device memory in MB, or None if it is unknown.

    A device reports the peak since the process started, so the measurement's peak is known only if it is higher.

    Args:
      before: the device's peak before the measurement, in bytes; None if the device reports none.
      after: the device's peak after the measurement.
    """
    return after / 1e6 if after and after > (before or 0) else None


def _compiled(program: Any, seconds: float) -> dict[str, float | None]:
    """Return the compile time, and the compiler's estimate of the program's temporary memory."""
    memory = program.memory_analysis()
    return {"compile_seconds": seconds, "program_memory_mb": memory and memory.temp_size_in_bytes / 1e6}
