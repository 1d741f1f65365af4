"""A training tried out before it is begun: its data, some steps, scored batches, a save; and what all of it will take.

Nothing of it is left but what any training keeps in the cache.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
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
from segnet_jax.reporting.page.draw import write_report
from segnet_jax.reporting.run_logger import DRAWING_FRACTION
from segnet_jax.reporting.training_plot import training_plot
from segnet_jax.runs import find_run
from segnet_jax.runs.checks import epochs_between_evaluations
from segnet_jax.runs.initialization import read_initial
from segnet_jax.runs.out_of_memory import explain_out_of_memory
from segnet_jax.runs.setup import Setup, Steps, load_data, resolve
from segnet_jax.system.budget import release_freed_memory
from segnet_jax.system.errors import DiskFailed
from segnet_jax.training import initial_weights
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.class_weights import load_class_weights
from segnet_jax.training.evaluation import Evaluation
from segnet_jax.training.initial_weights import TrainedSegNet
from segnet_jax.training.state import TrainState, num_bytes_of
from segnet_jax.weights.vgg import VGG

MOST_SECONDS = 20.0  # for which steps are timed, after the two that are always taken
MOST_CALLS = 10
CALLS_AGAIN = 4  # one more than are under way at once
BATCHES = 3  # that are scored: as many as are under way at once


def read(config: Config) -> tuple[Setup, VGG | TrainedSegNet | None]:
    """Resolve a config, decode every sample and check every label, as a training does before its first step.

    Returns:
      The setup, and the initial weights.

    Raises:
      UserError: for what a training would refuse.
    """
    find_run.check_free(config)
    setup = resolve(config)
    initial = read_initial(config, setup.devices)
    preprocessing = initial_weights.choose_preprocessing(config, initial)
    return load_data(setup, preprocessing, load_class_weights(config, setup.dataset)), initial


def try_out(setup: Setup, initial: VGG | TrainedSegNet | None) -> dict[str, Any]:
    """Take a few steps, score some batches, save and restore, and estimate what the whole run takes.

    Returns:
      The measurements, in seconds and bytes, as JSON.

    Raises:
      ExitError: what would end the training too: no memory, no disk space, a save that cannot be restored.
    """
    config = setup.config
    devices, sampler = setup.devices, setup.sampler
    find_run.check_room(config, num_bytes_of(setup.state_shapes))
    batch_size = devices.total * config.batch_size_per_device
    some = dataclasses.replace(setup, eval_samples=_first(setup.eval_samples, BATCHES * batch_size))
    with explain_out_of_memory(config, devices):
        state = setup.initial_state(initial)
        steps = some.build_steps()
        state, first = _time_steps(steps, state, setup, most_calls=1)
        _forget_peak()  # of compiling: the training will find the program in the cache
        state, step = _time_steps(steps, state, setup)
        step["taken"] += first["taken"]
        memory = _program_memory(steps, state, setup)
        found, scoring = _time_scoring(steps.evaluate, state.variables, -(-len(some.eval_samples) // batch_size))
    with _beside_the_run(config) as folder:
        saving = _time_saving(state, devices, folder)
        showing = _time_showing(found, some, folder)
    # Once more, on top of all that a training has loaded by then: what the process holds now is what it will hold.
    with explain_out_of_memory(config, devices):
        _time_steps(steps, state, setup, most_calls=CALLS_AGAIN)
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
    steps: Steps, state: TrainState, setup: Setup, most_calls: int = MOST_CALLS
) -> tuple[TrainState, dict[str, Any]]:
    """Takes so many calls' steps, or as many as there is time for; the first call starts the clock and does not count.

    As in a training some calls are under way at once, for that takes memory too.
    """
    calls = setup.dispatches(range(min(most_calls * setup.steps_per_dispatch, setup.total_steps)))
    unread, done, num_taken = deque(), [], 0
    for call, inputs in zip(calls, prefetch(steps.source.inputs(calls), setup.devices), strict=True):
        state, measures = steps.train(state, inputs)
        unread.append((len(call), measures))
        num_taken += len(call)
        while len(unread) > (2 if done else 0):
            done.append(_finished(*unread.popleft()))
        if done and len(done) + len(unread) > 1 and time.monotonic() - done[0][1] > MOST_SECONDS:
            break
    while unread:
        done.append(_finished(*unread.popleft()))
    seconds = [(now - before) / num_steps for (_, before, _), (num_steps, now, _) in pairwise(done)]
    told = {name: np.asarray(values).ravel() for name, values in done[-1][2].items()}
    found = {
        "taken": num_taken,
        "compiling": steps.train.seconds,
        "seconds_a_step": float(np.median(seconds or [np.nan])),
    }
    return state, found | {"loss": float(told["loss"][-1]), "finite": bool(told["finite"].all())}


def _finished(num_steps: int, measures: dict[str, Any]) -> tuple[int, float, dict[str, Any]]:
    """Waits for a call; how many steps it took, and when it was done."""
    measures = jax.device_get(measures)
    return num_steps, time.monotonic(), measures


def _program_memory(steps: Steps, state: TrainState, setup: Setup) -> dict[str, Any]:
    """Bytes that a training step needs on a device, by the compiler's count, and that the device has had in use."""
    calls = setup.dispatches(range(setup.steps_per_dispatch))
    inputs = next(prefetch(steps.source.inputs(calls), setup.devices))
    asked = steps.train.program(state, inputs).memory_analysis()
    if asked is not None:
        kept = asked.argument_size_in_bytes + asked.output_size_in_bytes - asked.alias_size_in_bytes
        asked = kept + asked.temp_size_in_bytes + asked.generated_code_size_in_bytes
    return {"step": asked, "device": peak_memory_of(setup.devices.local[0])}


def _forget_peak() -> None:
    """Gives back memory that is free, and lets the system's record of the most begin anew; on Linux alone."""
    release_freed_memory()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def _time_scoring(score: Callable, variables: dict[str, Any], num_batches: int) -> tuple[Evaluation, dict[str, Any]]:
    """Scores the batches twice; the first time it compiles."""
    start = time.monotonic()
    score(variables)
    first = time.monotonic() - start
    found = score(variables)
    again = time.monotonic() - start - first
    return found, {"seconds_a_batch": again / num_batches, "compiling": max(first - again, 0.0)}


@contextlib.contextmanager
def _beside_the_run(config: Config) -> Iterator[pathlib.Path]:
    """A folder on the disk that the run will lie on, removed at the end."""
    around = find_run.innermost(pathlib.Path(config.run or "runs"))
    with tempfile.TemporaryDirectory(prefix=".segnet_jax_check-", dir=around, ignore_cleanup_errors=True) as folder:
        yield pathlib.Path(folder)


def _time_saving(state: TrainState, devices: Devices, folder: pathlib.Path) -> dict[str, Any]:
    """Saves the state, restores it and compares every bit.

    Raises:
      DiskFailed: it is not what it was.
    """
    with Checkpoints(folder / "checkpoints", devices) as checkpoints:
        start = time.monotonic()
        checkpoints.save("newest", 1, state, {"step": 1})
        checkpoints.wait()
        seconds = time.monotonic() - start
        restored = checkpoints.restore("newest", checkpoints.latest("newest"), state)
        ours, theirs = (jax.tree.leaves(jax.device_get(each)) for each in (state, restored))
        if any(one.tobytes() != other.tobytes() for one, other in zip(ours, theirs, strict=True)):
            raise DiskFailed(f"a state that was saved to the disk of {folder.parent} does not come back as it was")
    return {"seconds": seconds, "bytes": num_bytes_of(state)}


def _time_showing(found: Evaluation, setup: Setup, folder: pathlib.Path) -> dict[str, float]:
    """Keeps and draws what a training does of an evaluation; the second time counts, when all is imported."""
    samples, classes, names = setup.eval_samples, setup.dataset.classes, setup.eval_split.names
    pictures = [(names[i], *samples.read(i), prediction) for i, prediction in sorted(found.predictions.items())]
    chosen, *arrays = zip(*pictures, strict=True)
    drawn = (*map(np.stack, arrays), chosen, classes, folder / "samples")
    told = {"confusion": found.confusion, "loss": found.loss, "pictures": pictures}
    write_dataset_info(folder, setup.about, classes, pictures)
    with MetricsLog(folder) as log:
        for step in (1, 2):
            start = time.monotonic()
            log.write("train", step, loss=0.0)
            write_evaluation(folder, step, classes=classes, **told)
            kept = time.monotonic()
            write_worst(folder, step, classes, pictures, {})
            prediction_pictures(*drawn, step, setup.eval_name)
            training_plot(read_metrics(folder / FILE_NAME), folder / "progress.png", steps_per_epoch=1, title="check")
            write_report(folder)
    return {"keeping": kept - start, "drawing": time.monotonic() - kept}


def _first(samples: CachedSplit, most: int) -> CachedSplit:
    """The first records alone."""
    arrays = {name: array[:most] for name in ("images", "labels") if (array := getattr(samples, name)) is not None}
    return dataclasses.replace(samples, num_samples=min(most, len(samples)), **arrays)
