"""The Python API: `segnet_jax.train`, `evaluate` and `load` do what the commands do."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from segnet_jax.config.fields import Config
from segnet_jax.config.flags import parse_config
from segnet_jax.config.options import CONFIG_FLAG, Flag, flags_of, words_of
from segnet_jax.inference.trained_network import TrainedNetwork, load
from segnet_jax.runs.default_recipe import default_config
from segnet_jax.runs.run_folder import RESULT_FILE
from segnet_jax.system import confined, logs
from segnet_jax.system.errors import UserError

__all__ = ["Run", "Scores", "TrainedNetwork", "evaluate", "load", "train"]


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


def train(**settings: Any) -> Run:
    """Train SegNet as `python -m segnet_jax.train` does, with the same defaults for own images, and return the run.

    Progress is logged to standard error. The same call resumes a run that was interrupted.

    Args:
      **settings: flags of the command, with underscores: fields of the config, `protocol` and `config`, such as
        `train(data="photos", image_size=(240, 320), flip=False)`.

    Raises:
      UserError: If a setting is wrong, or the data have faults; the message is that of the command.
      ExitError: If the training ends early.
    """
    from segnet_jax.runs.trainer import Trainer

    logs.configure()
    config = parse_config(_words(Config, settings), prog="segnet_jax.train", description="", defaults=default_config)
    if config.find_lr:
        raise UserError("find_lr is for the command only: use python -m segnet_jax.train --find-lr")
    if config.folds and not config.fold:
        raise UserError("folds is for the command only, unless fold names one: use python -m segnet_jax.train --folds")
    trainer = Trainer(config)
    trainer.run()
    return _read_run(trainer.folder)


def evaluate(run: str | pathlib.Path | Sequence[str | pathlib.Path], **settings: Any) -> Scores:
    """Score a run's network on a split as `python -m segnet_jax.evaluate` does, and print the table.

    Args:
      run: the run folder; several are evaluated as an ensemble, the mean of their probabilities.
      **settings: flags of the command, with underscores, such as `evaluate("runs/photos-1", split="val")` or
        `evaluate(["runs/a", "runs/b"], tta="flip", tta_scales=(0.75, 1, 1.25))`.

    Raises:
      UserError: If a setting is wrong, or the run or split does not exist.
    """
    from segnet_jax.config.flags import parse_flags
    from segnet_jax.evaluate import EvaluateOptions, evaluate_to_json

    logs.configure()  # before the flags, which may change the verbosity
    runs = [run] if isinstance(run, str | pathlib.Path) else run
    words = [*map(str, runs), *_words(EvaluateOptions, settings)]
    options = parse_flags(EvaluateOptions, words, prog="segnet_jax.evaluate", description="")
    return Scores.from_json(evaluate_to_json(options))


def _read_run(folder: pathlib.Path) -> Run:
    finished = confined.is_file(folder, RESULT_FILE)
    return Run(folder, Scores.from_json(confined.read_json(folder, RESULT_FILE)) if finished else None)


def _words(kind: type, settings: Mapping[str, Any]) -> list[str]:
    """Return keywords as the command-line words of a dataclass's flags; those that are None are left out."""
    flags = {flag.name: flag for flag in (*flags_of(kind), CONFIG_FLAG)}
    words = []
    for name, value in settings.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            value = [f"{key}={each}" for key, each in value.items()]
        words += words_of(flags.get(name, Flag(name, "", arity=0 if isinstance(value, bool) else 1)), value)
    return words
