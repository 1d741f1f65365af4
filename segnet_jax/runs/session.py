"""What there is before the first step: which run, on what devices and data, from which state; all of it checked."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from segnet_jax.config.fields import Config
from segnet_jax.distributed.hosts import Hosts
from segnet_jax.metrics.confusion import selection_score
from segnet_jax.runs import find_run, run_folder
from segnet_jax.runs.outcome import check_never_saved, record_outcome, write_loss
from segnet_jax.runs.setup import Material, Setting, read_material, settle
from segnet_jax.system.disk import DiskRetry
from segnet_jax.system.errors import UserError
from segnet_jax.system.signals import Stop
from segnet_jax.training import checkpoint_folders, initial_weights
from segnet_jax.training.checkpoints import Checkpoints
from segnet_jax.training.class_weights import load_class_weights
from segnet_jax.training.state import TrainState, num_bytes_of


@dataclass(frozen=True)
class Beginning:
    """A training before its first step.

    Attributes:
      material: what it is made of; its config has the run's folder, and whether it is gone on with.
      folder: the run's, held by a lock.
      checkpoints: of the run.
      resumed: the step of the checkpoint that is gone on from; None for a new training.
      meta: what that checkpoint says, or a new one is to say.
      room: carries out what writes into the folder.
      outcome: to be filled with how it ended.
    """

    material: Material
    folder: pathlib.Path
    checkpoints: Checkpoints
    resumed: int | None
    meta: dict[str, Any]
    room: DiskRetry
    outcome: dict[str, Any]

    @property
    def config(self) -> Config:
        """The training's."""
        return self.material.config

    @property
    def setting(self) -> Setting:
        """What the config comes to here."""
        return self.material.setting

    def first_state(self) -> TrainState:
        """That of the checkpoint, or a new one, on the devices."""
        if self.resumed is None:
            return self.material.first_state()
        return self.checkpoints.restore("newest", self.resumed, self.material.shapes)


def begin(
    config: Config, hosts: Hosts, stop: Stop, say: Callable[[str], None], stack: contextlib.ExitStack
) -> Beginning | None:
    """Finds or makes the run, opens the data, and checks that all fits; nothing is compiled.

    Args:
      config: as the command says.
      hosts: the processes that train together.
      stop: ends the waiting for room.
      say: prints a line.
      stack: keeps what is held until the training ends: the run's lock, its checkpoints.

    Returns:
      All that the training needs; None where the run is finished already.

    Raises:
      UserError: for the user's mistakes.
      ExitError: the run is in use, or none of its checkpoints is whole.
    """
    asked_to_resume = config.resume
    config = _agree_on_run(config, hosts, say, stack)
    setting = settle(config, say)
    dataset = setting.dataset

    def open_checkpoints(folder: pathlib.Path) -> Checkpoints:
        share = partial(hosts.broadcast, "checkpoint")
        settings = {"keep": config.keep_checkpoints, "say": say, "share": share}
        return stack.enter_context(Checkpoints(folder / "checkpoints", devices=setting.devices, **settings))

    resumed = vgg = None
    if config.resume:
        folder = pathlib.Path(config.run)
        checkpoints = open_checkpoints(folder)
        resumed = checkpoints.latest("newest")
        if resumed is None:
            check_never_saved(folder)
    if resumed is not None:
        meta = checkpoints.read_meta("newest", resumed)
        run_folder.check_resumable(meta, setting.identity, folder, dataset)
        if resumed == setting.total_steps == run_folder.steps_of_result(folder):
            _tell_finished(folder, setting.total_steps, asked_to_resume, say)
            return None
        if resumed > setting.total_steps:
            least = -(-resumed // setting.sampler.steps_per_epoch)
            raise UserError(
                f"{folder} has taken {resumed} steps, and --epochs {config.epochs} makes {setting.total_steps}: give "
                f"--epochs {least} --override, or more, or start a new --run"
            )
        meta |= {"best": _best_that_is_whole(checkpoints, resumed, meta, config.best_metric, say)}
        preprocessing = checkpoint_folders.preprocessing_of(meta)
    else:
        vgg = initial_weights.read_first_weights(config)
        preprocessing = initial_weights.choose_preprocessing(config, vgg)
        meta = setting.identity | {"preprocessing": vars(preprocessing), "class_weights_by": None}
        meta |= {"colors": dataset.classes.colors, "step": 0, "seconds": 0.0, "last": None, "best": None}
    if config.class_weights != meta["class_weights_by"]:  # new, or overridden
        class_weights = load_class_weights(config, dataset, say)
        meta |= {"class_weights": class_weights.tolist(), "class_weights_by": config.class_weights}
    tell_each_other = partial(hosts.all_gather, "where the images lie")
    material = read_material(
        config, setting, vgg, preprocessing, checkpoint_folders.class_weights_of(meta), say, tell_each_other
    )
    if resumed is None and hosts.is_writer:
        find_run.check_room(config, num_bytes_of(material.shapes))
    if not config.resume:
        claimed = str(find_run.claim_folder(config, say, stack)) if hosts.is_writer else None
        folder = pathlib.Path(hosts.broadcast("folder", claimed))
        checkpoints = open_checkpoints(folder)
    tells = record_outcome(folder, saved=checkpoints.newest_saved) if hosts.is_writer else contextlib.nullcontext({})
    beginning = Beginning(
        material=material,
        folder=folder,
        checkpoints=checkpoints,
        resumed=resumed,
        meta=meta,
        room=DiskRetry(folder, config.on_disk_full == "wait", say, stop),
        outcome=stack.enter_context(tells),
    )
    if hosts.is_writer:
        hosts.before_lost(partial(write_loss, folder))
        _lay_out(beginning)
    see = f", goes on after step {resumed}" if resumed else ": see its first_batch.png while this compiles"
    say(f"run      {folder}{see}")
    return beginning


def _agree_on_run(config: Config, hosts: Hosts, say: Callable[[str], None], stack: contextlib.ExitStack) -> Config:
    """The config with the run that all processes go on with, if there is one."""
    if hosts.is_writer:
        config = find_run.find(config, say, stack)
    run, resume = json.loads(hosts.broadcast("run", json.dumps([config.run, config.resume])))
    return dataclasses.replace(config, run=run, resume=resume)


def _best_that_is_whole(
    checkpoints: Checkpoints, resumed: int, meta: dict[str, Any], best_metric: str, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """The best of a run that goes on; where it is not whole any more, what is left takes its place, and that is told.

    Args:
      checkpoints: of the run.
      resumed: the step of the checkpoint that is gone on from.
      meta: what that says.
      best_metric: the score that the best is best in.
      say: prints a line.

    Returns:
      Its step and confusion matrix; None where the next evaluation is to be the best.
    """
    best, step = meta["best"], checkpoints.latest_best(until=resumed)
    if step == (best and best["step"]):
        return best
    left = [checkpoints.read_meta("best", step)["best"]] if step is not None else []
    left += [meta["last"]] if meta["last"] and meta["last"]["step"] == resumed else []  # the newest itself was scored
    found = max(filter(None, left), key=lambda each: selection_score(each, best_metric), default=None)
    if best and found != best:
        was = f"of step {best['step']}, {best_metric} {selection_score(best, best_metric):.4f}"
        now = f"that of step {found['step']}" if found else "the next that is evaluated"
        say(
            f"warning: the best checkpoint, {was}, is lost: {now} is the best from here on, the result may be worse; "
            f"to have it back, stop, put a copy to {checkpoints.shelf.place('best', best['step'])}, and start again"
        )
    return found


def _lay_out(beginning: Beginning) -> None:
    """Leaves in the folder what the run is, and takes away what a start that was broken off has left."""
    folder, config, resumed = beginning.folder, beginning.config, beginning.resumed
    shelf = beginning.checkpoints.shelf
    run_folder.tidy(folder)
    shelf.tidy()
    if resumed is None:
        kinds, dataset = beginning.setting.devices.kinds, beginning.setting.dataset
        beginning.room(
            lambda: run_folder.write_first_files(folder, config, kinds, dataset, beginning.material.batch_of(0))
        )
    else:
        beginning.room(lambda: run_folder.put_result_aside(folder))
        beginning.room(lambda: run_folder.note_overrides(folder, config, resumed))
        beginning.room(lambda: shelf.forget_after(resumed))


def _tell_finished(folder: pathlib.Path, total_steps: int, asked_to_resume: bool, say: Callable[[str], None]) -> None:
    told = f"{folder} is finished: all {total_steps} steps are done"
    if asked_to_resume:
        raise UserError(f"{told}; start a new --run for more")
    say(f"{told}; name another --run for a new training, or see its {run_folder.RESULT_FILE}")
