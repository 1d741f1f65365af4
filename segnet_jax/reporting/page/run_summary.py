"""Read a run folder for its report, skipping missing or damaged files.

The folder may come from somebody else, so every value is checked, bounded in length, and made printable.
"""

import contextlib
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_whole_config
from segnet_jax.data.dataset import evenly_spaced
from segnet_jax.metrics.confusion import Scores, scores
from segnet_jax.reporting.evaluations import DATASET_FILE, FOLDER, UNCERTAINTY_FILE, WORST_FILE
from segnet_jax.reporting.metrics_log import FILE_NAME, read_metrics
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import UserError, shown

_MAX_BYTES = 64 * 2**20  # of a JSON file
_MAX_STEPS = 8  # evaluations with pictures on a page
_MAX_CLASSES = 255
_ABOUT = ("dataset", "split", "num_images", "fingerprints")


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation stored in the run folder.

    Attributes:
      step: finished steps.
      confusion: int64 [C,C]; None if unknown.
      predictions: base64 of a PNG for each preview sample.
      peak_memory: bytes by "host" and "device"; None if unknown.
    """

    step: int
    confusion: np.ndarray | None
    predictions: tuple[str, ...]
    peak_memory: dict[str, int | None]

    @property
    def scores(self) -> Scores | None:
        """Scores of the confusion matrix; None if it is unknown or zero."""
        return None if self.confusion is None or not self.confusion.any() else scores(self.confusion)


@dataclass
class RunSummary:
    """The content of a run folder; values that the folder does not have are empty.

    Attributes:
      folder: path of the run folder.
      config: config of the run.
      environment: `environment.json`.
      result: `result.json` of a finished run.
      outcome: `outcome.json`, how the last start ended.
      overrides: `overrides.json`, changes of the config when resuming.
      incidents: `incident/*.json`, steps with non-finite values.
      train: rows of the training steps in `metrics.jsonl`.
      val: rows of the evaluations.
      about: the dataset's name, the evaluated split, and number of images and fingerprints by split.
      classes: class names.
      colors: RGB 0..255 of each class.
      samples: the preview samples, each with name, image and label.
      evaluations: up to eight stored evaluations in order, with the first, the newest and the chosen one.
      worst: `worst.json`.
      uncertainty: `uncertainty.json`, the results of `evaluate --samples`.
      started: ISO date of the first line in `train.log`.
      problems: files that could not be read, one clause each.
    """

    folder: pathlib.Path
    config: Config | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
    overrides: list[dict[str, Any]] = field(default_factory=list)
    incidents: list[dict[str, Any]] = field(default_factory=list)
    train: list[dict[str, Any]] = field(default_factory=list)
    val: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    samples: list[dict[str, str]] = field(default_factory=list)
    evaluations: list[StoredEvaluation] = field(default_factory=list)
    worst: dict[str, Any] = field(default_factory=dict)
    uncertainty: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return text(self.folder.resolve().name, 80)

    @property
    def seconds(self) -> float | None:
        """Seconds that the run has taken; None if unknown."""
        seconds = number(self.result.get("seconds"))
        if seconds is None:
            rows = (*self.train[-1:], *self.val[-1:])
            seconds = max((number(row.get("seconds")) or 0.0 for row in rows), default=None)
        return seconds

    @property
    def last_step(self) -> int:
        """The newest logged step."""
        return max((row["step"] for row in (*self.train[-1:], *self.val[-1:])), default=0)

    @property
    def chosen_step(self) -> int | None:
        """The step that represents the run: that of the result, or else of the best or last evaluation."""
        step = integer(self.result.get("step"))
        if step is not None or not self.val:
            return step
        if self.config is not None and self.config.result_checkpoint == "last":
            return self.val[-1]["step"]
        return max(self.val, key=lambda row: number(row.get("miou")) or 0.0)["step"]

    @property
    def chosen(self) -> StoredEvaluation | None:
        """The stored evaluation of `chosen_step`, with the result's own confusion matrix if it has one."""
        stored = next((each for each in self.evaluations if each.step == self.chosen_step), None)
        own = _confusion(self.result.get("confusion"), len(self.classes))  # with precise batch-norm statistics
        return stored if stored is None or own is None else dataclasses.replace(stored, confusion=own)

    @property
    def chosen_row(self) -> dict[str, Any]:
        """The row of `chosen_step` in `metrics.jsonl`; empty without one."""
        return next((row for row in self.val if row["step"] == self.chosen_step), {})


def read_run_summary(folder: pathlib.Path) -> RunSummary:
    """Read a run folder; never raises because of its content."""
    run = RunSummary(folder)
    try:
        run.config = read_whole_config(folder, "config.toml")
    except UserError as error:
        run.problems.append(f"config.toml was skipped: {text(error, 300)}")
    for name in ("environment", "result", "outcome"):
        setattr(run, name, _dict(_json(run, f"{name}.json")))
    run.overrides = _dicts(_json(run, "overrides.json"))
    incidents = [name for name in _names(run, "incident") if name.endswith(".json")][:10]
    run.incidents = [_dict(_json(run, f"incident/{name}")) for name in incidents]
    run.started = _first_date(folder)
    _read_rows(run)
    _read_classes(run)
    _read_evaluations(run)
    run.worst = _dict(_json(run, f"{FOLDER}/{WORST_FILE}"))
    run.uncertainty = _dict(_json(run, f"{FOLDER}/{UNCERTAINTY_FILE}"))
    return run


def _first_date(folder: pathlib.Path) -> str:
    """Return the date at the beginning of `train.log`; "" without one."""
    with contextlib.suppress(OSError, UserError), untrusted_files.open_file(folder, "train.log") as file:
        match = re.match(rb"\d{4}-\d\d-\d\d", file.read(10), re.ASCII)
        return match[0].decode() if match else ""
    return ""


def _json(run: RunSummary, name: str) -> Any:
    """Parse a JSON file; return None if it is missing, and also add a problem if it is too large or damaged."""
    try:
        return untrusted_files.read_json(run.folder, name, most=_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UserError as error:
        run.problems.append(f"{text(name)} was skipped: {_without_path(run, error)}")
    except (OSError, ValueError):
        run.problems.append(f"{text(name)} was skipped: it is damaged")
    return None


def _names(run: RunSummary, folder: str) -> list[str]:
    """Return the names in a folder of the run; add a problem if the folder is a link or cannot be read."""
    try:
        return untrusted_files.names(run.folder, folder)
    except (OSError, UserError) as error:
        run.problems.append(f"{text(folder)} was skipped: {_without_path(run, error)}")
        return []


def _without_path(run: RunSummary, error: Exception) -> str:
    """Return an error's message without the path of the run, since pages are shared."""
    return text(str(error).replace(f"{run.folder}/", ""), 300)


def _read_rows(run: RunSummary) -> None:
    rows = []
    try:
        rows = read_metrics(run.folder / FILE_NAME)
    except FileNotFoundError:
        pass
    except (OSError, UserError, MemoryError) as error:
        run.problems.append(f"{FILE_NAME} was skipped: {text(error, 300)}")
    rows = [row for row in rows if 0 <= row["step"] < 2**53]
    run.train = [row for row in rows if row["kind"] == "train"]
    run.val = [row for row in rows if row["kind"] == "val"]


def _read_classes(run: RunSummary) -> None:
    """Read `dataset.json`; a run without it has only the class names of its result or metrics."""
    content = _dict(_json(run, f"{FOLDER}/{DATASET_FILE}"))
    names, colors = content.get("classes"), content.get("colors")
    is_valid = (
        isinstance(names, list)
        and isinstance(colors, list)
        and len(names) == len(colors) <= _MAX_CLASSES
        and all(isinstance(color, list) and len(color) == 3 and all(map(_is_byte, color)) for color in colors)
    )
    if is_valid:
        run.classes, run.colors = tuple(map(text, names)), tuple(map(tuple, colors))
        run.about = {name: content[name] for name in _ABOUT if name in content}
        run.samples = [_pictures(each, ("image", "label")) for each in _dicts(content.get("samples"))]
        return
    if content:
        run.problems.append(f"{FOLDER}/{DATASET_FILE} was skipped: it is damaged")
    per_class = _dict(run.result.get("per_class")) or _dict((run.val or [{}])[-1].get("iou"))
    run.classes = tuple(text(name) for name in list(per_class)[:_MAX_CLASSES])


def _read_evaluations(run: RunSummary) -> None:
    matches = (re.fullmatch(r"step_(\d{7,15})\.json", name, re.ASCII) for name in _names(run, FOLDER))
    logged = {row["step"] for row in run.val}
    names = {int(each[1]): each[0] for each in matches if each and (not logged or int(each[1]) in logged)}
    for step in select_steps(sorted(names), run.chosen_step):
        content = _dict(_json(run, f"{FOLDER}/{names[step]}"))
        predictions = content.get("predictions")
        predictions = tuple(map(base64_text, predictions)) if isinstance(predictions, list) else ()
        memory = {name: integer(value) for name, value in _dict(content.get("peak_memory")).items()}
        confusion = _confusion(content.get("confusion"), len(run.classes))
        run.evaluations.append(StoredEvaluation(step, confusion, predictions, memory))


def select_steps(steps: list[int], chosen: int | None, max_steps: int = _MAX_STEPS) -> list[int]:
    """Return at most `max_steps` evenly spaced steps, including the first, the last and the chosen one."""
    if len(steps) <= max_steps:
        return steps
    spaced = {steps[index] for index in evenly_spaced(max_steps - 1, len(steps))}
    return sorted(spaced | ({chosen} & set(steps)))


def _confusion(value: Any, size: int) -> np.ndarray | None:
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        confusion = np.array(value, np.int64)
        shapes = (size, size), (size + 1, size + 2)  # the second of several classes per pixel
        if confusion.shape in shapes and size and (confusion >= 0).all():
            return confusion
    return None


def _pictures(content: dict[str, Any], kinds: Iterable[str]) -> dict[str, str]:
    return {"name": text(content.get("name", "")), **{kind: base64_text(content.get(kind)) for kind in kinds}}


def worst_pictures(run: RunSummary) -> list[dict[str, str]]:
    """Return the worst images with label, prediction and errors, the worst first."""
    kinds = ("image", "label", "prediction", "errors")
    return [_pictures(each, kinds) for each in _dicts(run.worst.get("pictures"))]


def worst_accuracies(run: RunSummary) -> list[tuple[str, float]]:
    """Return name and accuracy of the worst images, the worst first."""
    rows = [(text(row.get("name", "")), number(row.get("accuracy"))) for row in _dicts(run.worst.get("lowest"))]
    return [row for row in rows if row[1] is not None]


# --- checks of single values ---


def text(value: Any, max_length: int = 120) -> str:
    """Convert a value to text of bounded length with unprintable characters escaped."""
    full = value if isinstance(value, str) else str(value)
    cut = shown(full[: max_length + 1])
    return cut if len(cut) <= max_length else f"{cut[: max_length - 1]}…"


def number(value: Any) -> float | None:
    """Return a finite number as a float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with contextlib.suppress(OverflowError):
        return float(value) if math.isfinite(value) else None
    return None


def integer(value: Any) -> int | None:
    """Return an integer from 0 to 2^63 - 1, or None for anything else."""
    return value if type(value) is int and 0 <= value < 2**63 else None


def base64_text(value: Any) -> str:
    """Return a base64 string; "" for anything else."""
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", value) else ""


def _is_byte(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
