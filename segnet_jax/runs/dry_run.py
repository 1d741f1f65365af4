"""Dry run of training: read the data, take a few steps, evaluate, save once, and estimate time and memory.

Like every training run, it fills the cache; it leaves no other files.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.data.input_pipeline.cache import CachedSplit
from segnet_jax.distributed.data_parallel import Devices, memory_of, peak_memory_of, prefetch
from segnet_jax.reporting.evaluations import peak_process_memory, write_dataset_info, write_evaluation, write_worst
from segnet_jax.reporting.figures import prediction_pictures
from segnet_jax.reporting.metrics_log import FILE_NAME, MetricsLog, read_metrics
from segnet_jax.reporting.page.render import write_report
from segnet_jax.reporting.run_logger import DRAWING_FRACTION
from segnet_jax.reporting.training_plot import training_plot
from segnet_jax.runs import find_run
from segnet_jax.runs.config_checks import epochs_between_evaluations
from segnet_jax.runs.initialization import read_initial
from segnet_jax.runs.load_dataset import channel_statistics
from segnet_jax.runs.out_of_memory import explain_out_of_memory
from segnet_jax.runs.setup import Setup, Steps, load_data, resolve
from segnet_jax.system.errors import DiskFailed
from segnet_jax.system.memory_budget import release_freed_memory
from segnet_jax.training import initial_weights
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.class_weights import load_class_weights
from segnet_jax.training.custom_objects import NO_OBJECTS, CustomObjects
from segnet_jax.training.evaluation import Evaluation
from segnet_jax.training.initial_weights import TrainedSegNet
from segnet_jax.training.state import TrainState, num_bytes_of
from segnet_jax.weights.vgg import VGG

MAX_SECONDS = 20.0  # of timing steps, after the first dispatch
MAX_DISPATCHES = 10
FINAL_DISPATCHES = 4  # one more than are in flight together
EVAL_BATCHES = 3


def read(config: Config, own: CustomObjects = NO_OBJECTS) -> tuple[Setup, VGG | TrainedSegNet | None]:
    """Resolve a config, decode every sample and check every label, as a training run does before its first step.

    Args:
      config: config of the training run.
      own: custom objects, including the augmentation that `config.augment` names.

    Returns:
      The setup, and the initial weights.

    Raises:
      UserError: If the config or the data are invalid, as for a training run.
    """
    find_run.check_free(config)
    setup = resolve(config, own)
    initial = read_initial(config, setup.devices)
    statistics = partial(channel_statistics, setup.train_split, config)
    preprocessing = initial_weights.choose_preprocessing(config, initial, statistics)
    return load_data(setup, preprocessing, load_class_weights(config, setup.dataset)), initial


def try_out(setup: Setup, initial: VGG | TrainedSegNet | None) -> dict[str, Any]:
    """Take a few steps, evaluate a few batches, save and restore, and estimate time and memory of the whole run.

    Returns:
      The measurements, in seconds and bytes, as JSON.

    Raises:
      ExitError: If there is too little memory or disk space, or a checkpoint cannot be restored.
    """
    config = setup.config
    devices, sampler = setup.devices, setup.sampler
    find_run.check_room(config, num_bytes_of(setup.state_shapes))
    batch_size = devices.total * config.batch_size_per_device
    small = dataclasses.replace(setup, eval_samples=_first(setup.eval_samples, EVAL_BATCHES * batch_size))
    with explain_out_of_memory(config, devices):
        state = setup.initial_state(initial)
        steps = small.build_steps()
        state, first = _time_steps(steps, state, setup, max_dispatches=1)
        _reset_peak()  # without the peak of compilation: training finds the program in the cache
        state, step = _time_steps(steps, state, setup)
        step["taken"] += first["taken"]
        memory = _program_memory(steps, state, setup)
        evaluation, scoring = _time_scoring(steps.evaluate, state.variables, -(-len(small.eval_samples) // batch_size))
    with _temporary_folder(config) as folder:
        saving = _time_saving(state, devices, folder)
        showing = _time_showing(evaluation, small, folder)
    # Repeat steps for the peak memory of the process: the modules that training needs are all loaded now.
    with explain_out_of_memory(config, devices):
        _time_steps(steps, state, setup, max_dispatches=FINAL_DISPATCHES)
    num_scored = -(-len(setup.eval_samples) // batch_size)
    score_every = epochs_between_evaluations(config, sampler.steps_per_epoch)
    epoch = (
        sampler.steps_per_epoch * step["seconds_a_step"]
        + (num_scored * scoring["seconds_a_batch"] + showing["keeping"]) / score_every
        + saving["seconds"] / config.checkpoint_every
    )
    num_epochs = setup.total_steps / sampler.steps_per_epoch
    epoch = min(epoch + showing["drawing"] / score_every, epoch / (1 - DRAWING_FRACTION))
    return {
        "input": setup.placement,
        "global_batch_size": sampler.global_batch_size,
        "steps_per_epoch": sampler.steps_per_epoch,
        "epochs": num_epochs,
        "step": step,
        "scoring": scoring | {"batches": num_scored},
        "saving": saving,
        "showing": showing,
        "memory": memory | {"host": peak_process_memory(), "of_a_device": memory_of(devices.local[0])},
        "seconds_an_epoch": epoch,
        "seconds_in_all": setup.total_steps / sampler.steps_per_epoch * epoch
        + step["compiling"]
        + scoring["compiling"],
    }


def _time_steps(
    steps: Steps, state: TrainState, setup: Setup, max_dispatches: int = MAX_DISPATCHES
) -> tuple[TrainState, dict[str, Any]]:
    """Time dispatches after the first, up to `max_dispatches` or MAX_SECONDS.

    As in training, several dispatches are in flight together, because that affects memory use.
    """
    dispatches = setup.dispatches(range(min(max_dispatches * setup.steps_per_dispatch, setup.total_steps)))
    pending, done, num_steps_taken = deque(), [], 0
    for dispatch, inputs in zip(dispatches, prefetch(steps.source.inputs(dispatches), setup.devices), strict=True):
        state, metrics = steps.train(state, inputs)
        pending.append((len(dispatch), metrics))
        num_steps_taken += len(dispatch)
        while len(pending) > (2 if done else 0):
            done.append(_wait(*pending.popleft()))
        if done and len(done) + len(pending) > 1 and time.monotonic() - done[0][1] > MAX_SECONDS:
            break
    while pending:
        done.append(_wait(*pending.popleft()))
    seconds = [(now - before) / num_steps for (_, before, _), (num_steps, now, _) in pairwise(done)]
    metrics = {name: np.asarray(values).ravel() for name, values in done[-1][2].items()}
    timing = {
        "taken": num_steps_taken,
        "compiling": steps.train.seconds,
        "seconds_a_step": float(np.median(seconds or [np.nan])),
    }
    return state, timing | {"loss": float(metrics["loss"][-1]), "finite": bool(metrics["finite"].all())}


def _wait(num_steps: int, metrics: dict[str, Any]) -> tuple[int, float, dict[str, Any]]:
    """Wait for a dispatch; return its number of steps, the time at which it finished, and its metrics."""
    metrics = jax.device_get(metrics)
    return num_steps, time.monotonic(), metrics


def _program_memory(steps: Steps, state: TrainState, setup: Setup) -> dict[str, Any]:
    """Return the compiler's estimate of a training step's memory, and the device's peak memory use, in bytes."""
    dispatches = setup.dispatches(range(setup.steps_per_dispatch))
    inputs = next(prefetch(steps.source.inputs(dispatches), setup.devices))
    analysis, num_bytes = steps.train.program(state, inputs).memory_analysis(), None
    if analysis is not None:
        arrays = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        num_bytes = arrays + analysis.temp_size_in_bytes + analysis.generated_code_size_in_bytes
    return {"step": num_bytes, "device": peak_memory_of(setup.devices.local[0])}


def _reset_peak() -> None:
    """Release freed memory and, on Linux, reset the peak memory that the system reports for this process."""
    release_freed_memory()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def _time_scoring(score: Callable, variables: dict[str, Any], num_batches: int) -> tuple[Evaluation, dict[str, Any]]:
    """Time the evaluation of batches, after a first one that compiles."""
    start = time.monotonic()
    score(variables)
    first = time.monotonic() - start
    evaluation = score(variables)
    second = time.monotonic() - start - first
    return evaluation, {"seconds_a_batch": second / num_batches, "compiling": max(first - second, 0.0)}


@contextlib.contextmanager
def _temporary_folder(config: Config) -> Iterator[pathlib.Path]:
    """Create a temporary folder on the disk of the run."""
    parent = find_run.existing_parent(pathlib.Path(config.run or "runs"))
    with tempfile.TemporaryDirectory(prefix=".segnet_jax_check-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield pathlib.Path(folder)


def _time_saving(state: TrainState, devices: Devices, folder: pathlib.Path) -> dict[str, Any]:
    """Time saving the state; restore it and compare bit for bit.

    Raises:
      DiskFailed: If the restored state differs.
    """
    with Checkpoints(folder / "checkpoints", devices) as checkpoints:
        start = time.monotonic()
        checkpoints.save("newest", 1, state, {"step": 1})
        checkpoints.wait()
        seconds = time.monotonic() - start
        restored = checkpoints.restore("newest", checkpoints.latest("newest"), state)
        ours, theirs = (jax.tree.leaves(jax.device_get(each)) for each in (state, restored))
        if any(one.tobytes() != other.tobytes() for one, other in zip(ours, theirs, strict=True)):
            raise DiskFailed(
                f"a checkpoint written to {folder.parent} differs when read back: the disk or memory may be faulty; "
                "choose another --run"
            )
    return {"seconds": seconds, "bytes": num_bytes_of(state)}


def _time_showing(evaluation: Evaluation, setup: Setup, folder: pathlib.Path) -> dict[str, float]:
    """Time writing and drawing an evaluation, after a first repetition that imports modules."""
    samples, classes, names = setup.eval_samples, setup.dataset.classes, setup.eval_split.names
    pictures = [(names[i], *samples.read(i), prediction) for i, prediction in sorted(evaluation.predictions.items())]
    picture_names, *arrays = zip(*pictures, strict=True)
    drawn = (*map(np.stack, arrays), picture_names, classes, folder / "samples")
    values = {"confusion": evaluation.confusion, "loss": evaluation.loss, "pictures": pictures}
    write_dataset_info(folder, setup.about, classes, pictures)
    with MetricsLog(folder) as log:
        for step in (1, 2):
            start = time.monotonic()
            log.write("train", step, loss=0.0)
            write_evaluation(folder, step, classes=classes, **values)
            written = time.monotonic()
            write_worst(folder, step, classes, pictures, {})
            prediction_pictures(*drawn, step, setup.eval_name)
            training_plot(read_metrics(folder / FILE_NAME), folder / "progress.png", steps_per_epoch=1, title="check")
            write_report(folder)
    return {"keeping": written - start, "drawing": time.monotonic() - written}


def _first(samples: CachedSplit, count: int) -> CachedSplit:
    """Return a split of the first `count` samples."""
    arrays = {name: array[:count] for name in ("images", "labels") if (array := getattr(samples, name)) is not None}
    return dataclasses.replace(samples, num_samples=min(count, len(samples)), **arrays)
