"""The Python API: `segnet_jax.train`, `evaluate` and `load` do what the commands do."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config
from segnet_jax.config.options import flag_words
from segnet_jax.inference.trained_network import TrainedNetwork, load
from segnet_jax.reporting.metrics_log import FILE_NAME, flat_numbers, read_metrics
from segnet_jax.runs.callbacks import Callback, EvaluationResult
from segnet_jax.runs.default_recipe import default_config
from segnet_jax.runs.run_folder import RESULT_FILE, read_result
from segnet_jax.system import confined, logs
from segnet_jax.system.bucket_address import remember_named
from segnet_jax.system.errors import UserError
from segnet_jax.system.nearest import nearest_hint
from segnet_jax.training.losses import Loss
from segnet_jax.training.own_augmentation import OwnAugmentation
from segnet_jax.training.own_network import import_given
from segnet_jax.training.own_objects import own_objects

__all__ = ["Callback", "Config", "Curve", "EvaluationResult", "Loss"]
__all__ += ["Run", "Scores", "TrainedNetwork", "evaluate", "load", "train"]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a network on a split.

    Attributes:
      miou: mean intersection over union over the classes with ground truth.
      global_accuracy: fraction of labeled pixels predicted correctly.
      iou: class name -> intersection over union; None for a class without ground truth.
      details: all that `result.json` or `evaluate --json` contains.
    """

    miou: float
    global_accuracy: float
    iou: Mapping[str, float | None]
    details: Mapping[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def from_json(cls, details: Mapping[str, Any]) -> "Scores":
        """Create scores from the content of `result.json`."""
        iou = {name: row["iou"] for name, row in details["per_class"].items()}
        return cls(details["miou"], details["global_accuracy"], iou, details)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric over the steps of a run.

    Attributes:
      steps: finished steps, int [N].
      epochs: the same in epochs, float [N].
      values: float [N], NaN where it was not finite.
    """

    steps: np.ndarray
    epochs: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
      folder: path of the run folder.
      scores: scores of the finished run; None before.
    """

    folder: pathlib.Path
    scores: Scores | None

    def load(self, **settings: Any) -> TrainedNetwork:
        """Return the run's network; the keywords are those of `segnet_jax.load`."""
        return load(self.folder, **settings)

    def curve(self, name: str, kind: Literal["train", "val"] = "val") -> Curve:
        """Return a metric over the run's steps.

        Args:
          name: such as "loss", "miou", "learning_rate", or "iou/Sky" of a class.
          kind: "train", of each step, or "val", of each evaluation.

        Raises:
          UserError: If the run has no such metric; the message lists those that it has.
        """
        rows = [row for row in read_metrics(self.folder / FILE_NAME) if row["kind"] == kind]
        numbers = [{tag: value for tag, value in flat_numbers(row).items() if tag != "step"} for row in rows]
        known = dict.fromkeys(tag for row in numbers for tag in row)
        if name not in known:
            raise UserError(f"{self.folder} has no {kind} metric {name!r}{nearest_hint(name, known)}")
        steps = np.array([row["step"] for row in rows])
        epochs, values = (np.array([row.get(key, math.nan) for row in numbers]) for key in ("epoch", name))
        return Curve(steps, epochs, values)


def train(
    config: Config | str | pathlib.Path | None = None,
    *,
    model: Callable[..., Any] | None = None,
    loss: str | Loss | Callable[..., Any] | None = None,
    optimizer: str | Callable[..., Any] | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Run:
    """Train SegNet as `python -m segnet_jax.train` does, with the same defaults for own images, and return the run.

    Progress is logged to standard error. The same call resumes a run that was interrupted. Of an own model, loss and
    optimizer, the run stores only their names: resume it with the same objects, and load its network with
    `load(run, model=...)`.

    Args:
      config: a `Config`, or a TOML file with config fields; keywords override it.
      model: class of an own network that keeps the contract of `segnet_jax.nn.contract`, or a `functools.partial` of
        it; its fields are filled from config fields of the same names.
      loss: a formula as on the command line, or an own loss: a `Loss`, or a function (logits float32 [B,H,W,C], label
        uint8 [B,H,W] with VOID, class weights float32 [C]) -> the sum of the loss over the labeled pixels.
      optimizer: a name as on the command line, or a function of the learning-rate schedule, such as `optax.adamw`, in
        which the weight decay of the config is not applied.
      callbacks: called at the moments that `Callback` describes.
      **settings: flags of the command, with underscores: fields of the config and `protocol`, such as
        `train(data="photos", image_size=(240, 320), flip=False)`; `augment` may also be a function.

    Raises:
      UserError: If a setting is wrong, or the data have faults; the message is that of the command.
      ExitError: If the training ends early.
    """
    from segnet_jax.runs.trainer import Trainer

    logs.configure()
    if isinstance(config, Config) and settings.get("protocol"):
        raise UserError("a Config has all settings, those of a protocol too: give either config or protocol")
    if isinstance(config, str | pathlib.Path):
        settings |= {"config": str(config)}
    if isinstance(config, Config):
        remember_named((config.data, config.init))
    settings |= {name: each for name, each in (("loss", loss), ("optimizer", optimizer)) if isinstance(each, str)}
    if callable(function := settings.get("augment")):
        settings["augment"] = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"
    defaults = (lambda data, init: config) if isinstance(config, Config) else default_config
    words = flag_words(Config, settings)
    resolved = parse_config(words, prog="segnet_jax.train", description="", defaults=defaults)
    import_given(words)
    if resolved.find_lr:
        raise UserError("find_lr is for the command only: use python -m segnet_jax.train --find-lr")
    if resolved.folds and not resolved.fold:
        raise UserError("folds is for the command only, unless fold names one: use python -m segnet_jax.train --folds")
    given = (None if isinstance(each, str) else each for each in (loss, optimizer))
    augment = OwnAugmentation(resolved.augment, function) if callable(function) else None
    own = own_objects(model, *given, augment or OwnAugmentation.named(resolved.augment, words))
    trainer = Trainer(resolved, own, callbacks)
    trainer.run()
    return _read_run(trainer.folder)


def evaluate(
    run: str | pathlib.Path | Sequence[str | pathlib.Path],
    *,
    model: Callable[..., Any] | None = None,
    **settings: Any,
) -> Scores:
    """Score a run's network on a split as `python -m segnet_jax.evaluate` does, and print the table.

    Args:
      run: the run folder; several are evaluated as an ensemble, the mean of their probabilities.
      model: as in `train`, if the run's network was given from Python.
      **settings: flags of the command, with underscores, such as `evaluate("runs/photos-1", split="val")` or
        `evaluate(["runs/a", "runs/b"], tta="flip", tta_scales=(0.75, 1, 1.25))`.

    Raises:
      UserError: If a setting is wrong, or the run or split does not exist.
    """
    from segnet_jax.config.flags import parse_flags
    from segnet_jax.evaluate import EvaluateOptions, evaluate_to_json

    logs.configure()  # before the flags, which may change the verbosity
    runs = [run] if isinstance(run, str | pathlib.Path) else run
    words = [*map(str, runs), *flag_words(EvaluateOptions, settings)]
    options = parse_flags(EvaluateOptions, words, prog="segnet_jax.evaluate", description="")
    return Scores.from_json(evaluate_to_json(options, own_objects(model)))


def _read_run(folder: pathlib.Path) -> Run:
    finished = confined.is_file(folder, RESULT_FILE)
    return Run(folder, Scores.from_json(read_result(folder)) if finished else None)
