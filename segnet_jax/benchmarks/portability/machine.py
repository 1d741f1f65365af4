"""What `portability measure` finds on the machine at hand, in one precision after another."""

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
from segnet_jax.benchmarks.portability.layer_differences import Difference, differences, intermediates, other_choices
from segnet_jax.benchmarks.portability.steps import Given, lower_steps
from segnet_jax.benchmarks.roofline import shares, work_of
from segnet_jax.benchmarks.timing import Timing, timed
from segnet_jax.config import files
from segnet_jax.config.fields import Config
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.distributed.data_parallel import Devices, choose_devices, peak_memory_of
from segnet_jax.inference.network import Network, folded
from segnet_jax.metrics.confusion import count_confusion, scores
from segnet_jax.nn.preprocessing import normalize
from segnet_jax.runs.dataset import decode, open_data, validation_split
from segnet_jax.system.errors import UserError
from segnet_jax.training.devices import check_device, device_shard, start_devices
from segnet_jax.training.restored import Restored, restore

logger = logging.getLogger(__name__)


class Wishes(Protocol):
    """What `portability.Measure` says of what is to be measured."""

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
    """A machine and what is measured on it.

    Attributes:
      wishes: what to measure.
      config: the run's, as it is measured here.
      devices: to train on.
      samples: to train on.
      eval_samples: to score.
      split: of these.
      data: the fingerprints of both.
    """

    wishes: Wishes
    config: Config
    devices: Devices
    samples: CachedSplit
    eval_samples: CachedSplit
    split: str
    data: dict[str, str]

    @classmethod
    def of(cls, wishes: Wishes) -> "Machine":
        """Opens the run's data and finds the devices.

        Raises:
          UserError: for a missing run or data, or fewer devices.
        """
        config = replace(
            files.read_run(wishes.run),
            devices=wishes.devices,
            fake_devices=0,
            batch_size_per_device=wishes.batch_size_per_device,
            grad_accum_steps=1,
            precision="float32",  # of the start; each is tried when its turn comes
            steps_per_dispatch=1,
            input="auto",
            **({"data": wishes.data} if wishes.data else {}),
        )
        # Compiling is timed. Before the first program, for JAX looks at this once.
        jax.config.update("jax_enable_compilation_cache", False)
        devices, _ = start_devices(config)
        dataset = open_data(config)
        split = validation_split(dataset)
        samples = [decode(dataset.splits[name], config, "reading images") for name in ("train", split)]
        data = {name: dataset.splits[name].fingerprint[:16] for name in ("train", split)}
        return cls(wishes, config, devices, *samples, split, data)

    @property
    def platform(self) -> str:
        """Such as "cuda"."""
        return export.default_export_platform()

    @property
    def subject(self) -> dict[str, Any]:
        """What is measured: two machines compare where this is the same."""
        restored = self._restored("float32")
        digest = hashlib.sha256()
        for name, array in sorted(reference.by_path(restored.variables).items()):
            digest.update(name.encode() + array.tobytes())
        kept = ("protocol", "image_size", "encoder", "depth", "width")
        network = {name: getattr(self.config, name) for name in kept}
        return network | {"step": restored.meta["step"], "weights": digest.hexdigest(), "data": self.data}

    def measure(self, precision: str) -> dict[str, Any]:
        """Everything in one precision; where the machine cannot do it, what it said of that."""
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

    # --- how far from the reference ---

    @cached_property
    def _reference(self) -> tempfile.TemporaryDirectory:
        logger.info("computing the float64 reference on the CPU")
        folder = tempfile.TemporaryDirectory(prefix="segnet_jax_reference_")
        images = np.stack([self.eval_samples.read(index)[0] for index in self._compared])
        reference.ask(
            pathlib.Path(folder.name), self.wishes.run, self.config, self.wishes.checkpoint, images, self._batches
        )
        return folder

    @property
    def _compared(self) -> list[int]:
        return _evenly(self.wishes.compared, len(self.eval_samples))

    @cached_property
    def _batches(self) -> list[tf_data.Batch]:
        """Of the training steps, the first of the run's plan."""
        shard = device_shard(self.devices, self.config.batch_size_per_device)
        images_per_step = shard.num_devices * shard.batch_size_per_device
        sampler = Sampler.from_config(self.config, len(self.samples), images_per_step)
        steps = range(self.wishes.training_steps)
        return [tf_data.training_batch(self.samples, sampler, shard, 1, step) for step in steps]

    def _compare(self, network: Network) -> dict[str, Any]:
        """Convolutions' differences, pooling windows that chose another pixel, pixels whose class is another."""
        folder = pathlib.Path(self._reference.name)

        def results(variables, images):
            image = normalize(images, network.preprocessing, network.model.dtype)
            found = intermediates(network.model, variables, image)
            names[:] = found  # while it is traced: a dict that comes out of jit has lost the network's order
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
            for name, counts in other_choices(found, expected).items():
                poolings[name] = poolings.get(name, 0) + counts
            changed += int((reference.prediction_of(found) != reference.prediction_of(expected)).sum())
            num_pixels += expected["logits"][..., 0].size
        return {
            "layers": {name: difference.relative for name, difference in layers.items()},
            "poolings": {
                name: {"other_choices": int(other), "windows": int(windows)}
                for name, (other, windows) in poolings.items()
            },
            "pixels_changed": changed / num_pixels,
            "pixels_compared": num_pixels,
        }

    # --- what it does here ---

    def _restored(self, precision: str) -> Restored:
        return restore(self.wishes.run, self.config, self.wishes.checkpoint, choose_devices("1"), precision)

    def _score(self, network: Network) -> dict[str, Any]:
        wanted = self.wishes.images or len(self.eval_samples)
        indices, batch = _evenly(wanted, len(self.eval_samples)), self.config.batch_size_per_device
        confusion = 0
        for start in range(0, len(indices), batch):
            chosen = [indices[min(i, len(indices) - 1)] for i in range(start, start + batch)]  # filled up: one program
            images, labels = zip(*map(self.eval_samples.read, chosen), strict=True)
            part = slice(len(indices) - start)
            predictions = network.predict(np.stack(images))[part]
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
            steps=self.wishes.steps,
            rounds=self.wishes.rounds,
        )
        work = work_of(network.model, *self.config.image_size)
        speed = self._speed(timing, 1, work.infer_flop, work.infer_bytes, precision)
        return speed | _compiled(program, seconds)

    def _train(self, restored: Restored, precision: str) -> dict[str, Any]:
        """Where the next steps lead, beside the reference, and the speed of the step on a batch that lies here."""
        before, peak = reference.by_path(restored.variables["params"]), peak_memory_of(self.devices.local[0])
        step, state = reference.training(
            self.config, restored.model, restored.variables, restored, precision, self.devices
        )
        state, losses = reference.go_on(step, state, self._batches, self.devices)
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
                state, measures = step(state, batch)
            return state, measures

        timing = timed(take, steps=self.wishes.steps, rounds=self.wishes.rounds)
        work = work_of(restored.model, *self.config.image_size)
        return {
            "losses": losses.tolist(),
            "reference_losses": expected_losses.tolist(),
            "update_difference": moved.relative["rms"],
            "finite": bool(state.finite),
            "skipped": int(state.skipped),
            **self._speed(timing, self.devices.total, work.train_flop, work.train_bytes, precision),
            "peak_memory_mb": peak_of_this_part(peak, peak_memory_of(self.devices.local[0])),
            **_compiled(step.program(state, batch), step.seconds),
        }

    def _speed(self, timing: Timing, num_devices: int, flop: float, num_bytes: float, precision: str) -> dict[str, Any]:
        found = timing.summary(self.config.batch_size_per_device * num_devices)
        kind = self.devices.local[0].device_kind
        return found | shares(found["images_per_second"] / num_devices, flop, num_bytes, kind, precision)

    def _operations(self, precision: str) -> dict[str, dict[str, int]]:
        """Of each step as it is lowered for this platform."""
        lowered = lower_steps(
            self.config,
            Given(len(self._restored("float32").classes)),
            precisions=[precision],
            platforms=[self.platform],
            num_devices=self.devices.total,
        )
        return {one.step: one.operations for one in lowered}


def peak_of_this_part(before: int | None, after: int | None) -> float | None:
    """MB that were in use at most while something ran, where that can be told.

    A device tells its highest since the process began, which is that of an earlier part unless it has risen.

    Args:
      before: the device's highest when the part began, in bytes; None where it does not count them.
      after: likewise, when it ended.
    """
    return after / 1e6 if after and after > (before or 0) else None


def _compiled(program: Any, seconds: float) -> dict[str, float | None]:
    """What compiling took, and the memory that the compiler says the program asks for beside its arguments."""
    asked = program.memory_analysis()
    return {"compile_seconds": seconds, "program_memory_mb": asked and asked.temp_size_in_bytes / 1e6}


def _evenly(wanted: int, num: int) -> list[int]:
    """So many of the first `num` numbers, evenly spread."""
    return sorted({round(place) for place in np.linspace(0, num - 1, min(wanted, num))})
