"""The Python API: `segnet_jax.train`, `evaluate` and `load` do what the commands do."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.config.flag_specs import flag_words
from segnet_jax.config.flags import parse_config
from segnet_jax.inference.trained_network import TrainedNetwork, load
from segnet_jax.reporting.metrics_log import FILE_NAME, flat_numbers, read_metrics
from segnet_jax.runs.callbacks import Callback, EvaluationResult
from segnet_jax.runs.default_recipe import default_config
from segnet_jax.runs.run_folder import RESULT_FILE, read_result
from segnet_jax.system import logs, untrusted_files
from segnet_jax.system.bucket_address import remember_named
from segnet_jax.system.did_you_mean import nearest_hint
from segnet_jax.system.errors import UserError
from segnet_jax.training.custom_augmentation import CustomAugmentation
from segnet_jax.training.custom_network import import_given
from segnet_jax.training.custom_objects import custom_objects
from segnet_jax.training.losses import Loss

__all__ = ["Callback", "Config", "Curve", "EvaluationResult", "Loss"]
__all__ += ["Run", "Scores", "TrainedNetwork", "evaluate", "load", "train"]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a network on a split.

    Attributes:
      miou: mean intersection over union over the classes with ground truth.
      global_accuracy: fraction of labeled pixels predicted correctly.
      iou: class name -> intersection over union; None for a class without ground truth.
      details: full content of `result.json` or `evaluate --json`.
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
      steps: numbers of finished steps, int [N].
      epochs: the same in epochs, float [N].
      values: values of the metric, float [N]; NaN where it is missing or not finite.
    """

    steps: np.ndarray
    epochs: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
      folder: path of the run folder.
      scores: scores of the run; None until it is finished.
    """

    folder: pathlib.Path
    scores: Scores | None

    def load(self, **settings: Any) -> TrainedNetwork:
        """Load the run's network; keywords are passed to `segnet_jax.load`."""
        return load(self.folder, **settings)

    def curve(self, name: str, kind: Literal["train", "val"] = "val") -> Curve:
        """Return a metric over the run's steps.

        Args:
          name: name of the metric, such as "loss", "miou", "learning_rate" or, for one class, "iou/Sky".
          kind: "train" for metrics of each step, "val" for those of each evaluation.

        Raises:
          UserError: If the run has no such metric; the message names the nearest known one.
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
    """Train SegNet as `python -m segnet_jax.train` does, with the same defaults, and return the run.

    Progress is logged to standard error. Repeating the call resumes an interrupted run. Only the names of a custom
    model, loss and optimizer are stored: resume with the same objects, and load the network by `load(run, model=...)`.

    Args:
      config: a `Config`, or a TOML file with config fields; keywords override it.
      model: class of a custom network that implements the interface in `segnet_jax.nn.network_interface`, or a
        `functools.partial` of it; its fields are filled from config fields of the same names.
      loss: a formula as on the command line, or a custom loss: a `Loss`, or a function (logits float32 [B,H,W,C], label
        uint8 [B,H,W] with VOID, class weights float32 [C]) -> the sum of the loss over the labeled pixels.
      optimizer: a name as on the command line, or a function of the learning-rate schedule, such as `optax.adamw`; a
        function replaces the weight decay of the config.
      callbacks: see `Callback` for when its methods are called.
      **settings: flags of the command, with underscores: config fields and `protocol`, such as
        `train(data="photos", image_size=(240, 320), flip=False)`; `augment` may also be a function.

    Raises:
      UserError: If a setting is invalid, or the data has faults; the message is that of the command.
      ExitError: If the training ends early.
    """
    from segnet_jax.runs.trainer import Trainer

    logs.configure()
    if isinstance(config, Config) and settings.get("protocol"):
        raise UserError("a Config already contains the settings of its protocol: pass either config or protocol")
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
        raise UserError("find_lr works only on the command line: use python -m segnet_jax.train --find-lr")
    if resolved.folds and not resolved.fold:
        raise UserError("folds without fold works only on the command line: use python -m segnet_jax.train --folds")
    given = (None if isinstance(each, str) else each for each in (loss, optimizer))
    augment = CustomAugmentation(resolved.augment, function) if callable(function) else None
    own = custom_objects(model, *given, augment or CustomAugmentation.named(resolved.augment, words))
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
      run: run folder, or several to evaluate as an ensemble, the mean of their probabilities.
      model: as in `train`; needed if the run was trained with it.
      **settings: flags of the command, with underscores, such as `evaluate("runs/photos-1", split="val")` or
        `evaluate(["runs/a", "runs/b"], tta="flip", tta_scales=(0.75, 1, 1.25))`.

    Raises:
      UserError: If a setting is invalid, or the run or split does not exist.
    """
    from segnet_jax.config.flags import parse_flags
    from segnet_jax.evaluate import EvaluateOptions, evaluate_to_json

    logs.configure()  # before the flags, which may change the verbosity
    runs = [run] if isinstance(run, str | pathlib.Path) else run
    words = [*map(str, runs), *flag_words(EvaluateOptions, settings)]
    options = parse_flags(EvaluateOptions, words, prog="segnet_jax.evaluate", description="")
    return Scores.from_json(evaluate_to_json(options, custom_objects(model)))


def _read_run(folder: pathlib.Path) -> Run:
    finished = untrusted_files.is_file(folder, RESULT_FILE)
    return Run(folder, Scores.from_json(read_result(folder)) if finished else None)
