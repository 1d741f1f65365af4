"""A training tried out before it is begun: its data, some steps, scored batches, a save; and what all of it will take.

Nothing of it is left but what any training keeps in the cache.
"""

import contextlib
import ctypes
import dataclasses
import pathlib
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segnet_jax import assembly, runs
from segnet_jax.config import Config
from segnet_jax.endings import DiskFailed
from segnet_jax.inputs import calls_of, choose_place, evaluation_input, training_input
from segnet_jax.nn.preprocessing import Preprocessing
from segnet_jax.nn.segnet import SegNet
from segnet_jax.pipeline import host
from segnet_jax.pipeline.decoded import Records
from segnet_jax.reporting.figures import prediction_pictures
from segnet_jax.reporting.kept import keep_evaluation, peak_of_process
from segnet_jax.reporting.metrics_log import FILE_NAME, MetricsLog, read_metrics
from segnet_jax.reporting.page.draw import write_report
from segnet_jax.reporting.training_plot import training_plot
from segnet_jax.setting import Setting, settle
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.evaluation import Evaluation
from segnet_jax.training.parallel import AheadOfTime, Devices, memory_of, prefetch, replicate
from segnet_jax.training.state import TrainState, create_state, num_bytes_of
from segnet_jax.weights.vgg import VGG

MOST_SECONDS = 20.0  # for which steps are timed, after the two that are always taken
MOST_CALLS = 10
CALLS_AGAIN = 4  # one more than are under way at once
BATCHES = 3  # that are scored: as many as are under way at once


@dataclass(frozen=True)
class Material:
    """What a training is made of, read and checked.

    Attributes:
      setting: what the config comes to here.
      records: to train on.
      records_scored: to score.
      class_weights: float32 [C].
      vgg: the encoder's first weights, if there are any.
      preprocessing: what the network expects of an image.
      model: the network.
    """

    setting: Setting
    records: Records
    records_scored: Records
    class_weights: np.ndarray
    vgg: VGG | None
    preprocessing: Preprocessing
    model: SegNet


def read_material(config: Config, say: Callable[[str], None]) -> Material:
    """Opens the data, decodes every record and looks at every label, as a training does before its first step.

    Raises:
      UserError: for what a training would refuse.
    """
    runs.check_free(config)
    setting = settle(config, say)
    vgg = assembly.read_first_weights(config)
    preprocessing = assembly.choose_preprocessing(config, vgg)
    class_weights = assembly.load_class_weights(config, setting.data_set, say)
    records = assembly.decode(setting.train_split, config, "reading training images", say)
    scored = assembly.decode(setting.scored_split, config, f"reading {setting.scored} images", say)
    assembly.warn_of_labels(setting.data_set.classes, say, **{"train": records, setting.scored: scored})
    model = assembly.build_model(config, len(setting.data_set.classes), setting.precision)
    return Material(setting, records, scored, class_weights, vgg, preprocessing, model)


def try_out(config: Config, material: Material, say: Callable[[str], None]) -> dict[str, Any]:
    """Takes two steps and some more, scores some batches, saves and restores, and tells what the whole run will take.

    Returns:
      The measurements, in seconds and bytes, as JSON.

    Raises:
      Ending: what would end the training too: no memory, no room on the disk, a save that does not come back.
    """
    setting, model, preprocessing = material.setting, material.model, material.preprocessing
    devices, plan = setting.devices, setting.plan
    place = choose_place(
        "device" if setting.steps_per_call > 1 else config.input, devices, material.records, material.records_scored
    )
    share = assembly.device_share(devices, config.batch_size_per_device)
    optimizer, schedule = assembly.build_optimizer(config, plan.steps_per_epoch)
    has_average = config.average > 0
    shapes = assembly.state_shapes(model, optimizer, setting.precision, has_average)
    runs.check_room(config, num_bytes_of(shapes))
    settings = {"model": model, "class_weights": jnp.asarray(material.class_weights), "preprocessing": preprocessing}
    with assembly.telling_of_memory(config, devices):
        batch_of = partial(host.training_batch, material.records, plan, share, config.accumulate)
        variables = assembly.first_variables(config, model, material.vgg, preprocessing, batch_of, devices)
        state = replicate(create_state(variables, optimizer, setting.precision, has_average), devices)
        source = training_input(place, material.records, plan, share, config.accumulate, devices)
        chosen = {"optimizer": optimizer, "schedule": schedule, "half_gradients": config.half_gradients}
        take = assembly.build_train_step(
            source, devices, say, seed=config.seed, average=config.average, **chosen, **settings
        )
        state, first = _time_steps(take, state, source, setting, most_calls=1)
        _forget_peak()  # of compiling: the training will find the program in the cache
        state, steps = _time_steps(take, state, source, setting)
        steps["taken"] += first["taken"]
        memory = _program_memory(take, state, source, setting)
        batch_size = devices.total * config.batch_size_per_device
        some = _first(material.records_scored, BATCHES * batch_size)
        source_scored = evaluation_input(place, some, share, devices)
        score = assembly.build_evaluator(source_scored, len(some), share, devices, say, **settings)
        found, scoring = _time_scoring(score, state.variables, -(-len(some) // batch_size))
    with _beside_the_run(config) as folder:
        saving = _time_saving(state, devices, folder)
        drawing = _time_drawing(found, some, material, folder)
    # Once more, on top of all that a training has loaded by then: what the process holds now is what it will hold.
    with assembly.telling_of_memory(config, devices):
        _time_steps(take, state, source, setting, most_calls=CALLS_AGAIN)
    num_scored = -(-len(material.records_scored) // batch_size)
    epoch = plan.steps_per_epoch * steps["seconds_a_step"]
    epoch_with_rest = (
        epoch
        + (num_scored * scoring["seconds_a_batch"] + drawing["seconds"]) / config.evaluate_every
        + saving["seconds"] / config.checkpoint_every
    )
    return {
        "input": place,
        "global_batch_size": plan.global_batch_size,
        "steps_per_epoch": plan.steps_per_epoch,
        "epochs": config.epochs,
        "step": steps,
        "scoring": scoring | {"batches": num_scored},
        "saving": saving,
        "drawing": drawing,
        "memory": memory | {"host": peak_of_process(), "of_a_device": memory_of(devices.local[0])},
        "seconds_an_epoch": epoch_with_rest,
        "seconds_in_all": config.epochs * epoch_with_rest + steps["compiling"] + scoring["compiling"],
    }


def _time_steps(
    take: AheadOfTime, state: TrainState, source, setting: Setting, most_calls: int = MOST_CALLS
) -> tuple[TrainState, dict[str, Any]]:
    """Takes so many calls' steps, or as many as there is time for; the first call starts the clock and does not count.

    As in a training some calls are under way at once, for that takes memory too.
    """
    per_epoch, per_call = setting.plan.steps_per_epoch, setting.steps_per_call
    calls = calls_of(range(min(most_calls * per_call, setting.total_steps)), per_call, per_epoch)
    unread, done, num_taken = deque(), [], 0
    for steps, inputs in zip(calls, prefetch(source.inputs(calls), setting.devices), strict=True):
        state, measures = take(state, inputs)
        unread.append((len(steps), measures))
        num_taken += len(steps)
        while len(unread) > (2 if done else 0):
            done.append(_finished(*unread.popleft()))
        if done and len(done) + len(unread) > 1 and time.monotonic() - done[0][1] > MOST_SECONDS:
            break
    while unread:
        done.append(_finished(*unread.popleft()))
    seconds = [(now - before) / num_steps for (_, before, _), (num_steps, now, _) in pairwise(done)]
    told = {name: np.asarray(values).ravel() for name, values in done[-1][2].items()}
    found = {"taken": num_taken, "compiling": take.seconds, "seconds_a_step": float(np.median(seconds or [np.nan]))}
    return state, found | {"loss": float(told["loss"][-1]), "finite": bool(told["finite"].all())}


def _finished(num_steps: int, measures: dict[str, Any]) -> tuple[int, float, dict[str, Any]]:
    """Waits for a call; how many steps it took, and when it was done."""
    measures = jax.device_get(measures)
    return num_steps, time.monotonic(), measures


def _program_memory(take: AheadOfTime, state: TrainState, source, setting: Setting) -> dict[str, Any]:
    """Bytes that a training step needs on a device, by the compiler's count, and that the device has had in use."""
    calls = calls_of(range(setting.steps_per_call), setting.steps_per_call, setting.plan.steps_per_epoch)
    inputs = next(prefetch(source.inputs(calls), setting.devices))
    asked = take.program(state, inputs).memory_analysis()
    if asked is not None:
        kept = asked.argument_size_in_bytes + asked.output_size_in_bytes - asked.alias_size_in_bytes
        asked = kept + asked.temp_size_in_bytes + asked.generated_code_size_in_bytes
    used = (setting.devices.local[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"step": asked, "device": used}


def _forget_peak() -> None:
    """Gives back memory that is free, and lets the system's record of the most begin anew; on Linux alone."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
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
    around = runs.innermost(pathlib.Path(config.run or "runs"))
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


def _time_drawing(found: Evaluation, records: Records, material: Material, folder: pathlib.Path) -> dict[str, float]:
    """Draws what a training draws after an evaluation; the second time counts, when all is imported."""
    classes, names = material.setting.data_set.classes, material.setting.scored_split.names
    pictures = [(names[i], *records.read(i), prediction) for i, prediction in sorted(found.predictions.items())]
    arrays = [np.stack(each) for each in list(zip(*pictures, strict=True))[1:]]
    told = {"about": material.setting.about, "confusion": found.confusion, "loss": found.loss, "accuracies": {}}
    with MetricsLog(folder) as log:
        for step in (1, 2):
            start = time.monotonic()
            log.write("train", step, loss=0.0)
            keep_evaluation(folder, step, classes=classes, pictures=pictures, worst=pictures, **told)
            prediction_pictures(*arrays, [picture[0] for picture in pictures], classes, folder / "samples", step)
            training_plot(read_metrics(folder / FILE_NAME), folder / "progress.png", steps_per_epoch=1, title="check")
            write_report(folder)
    return {"seconds": time.monotonic() - start}


def _first(records: Records, most: int) -> Records:
    """The first records alone."""
    arrays = {name: array[:most] for name in ("images", "labels") if (array := getattr(records, name)) is not None}
    return dataclasses.replace(records, num_records=min(most, len(records)), **arrays)
