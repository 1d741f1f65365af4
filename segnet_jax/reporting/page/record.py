"""What a run folder tells of its run, read with patience: what is missing or damaged is left out, and said."""

import contextlib
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_whole_config
from segnet_jax.metrics.confusion import Scores, scores
from segnet_jax.reporting.evaluations import FOLDER, RECORDS_FILE, UNCERTAINTY_FILE, WORST_FILE
from segnet_jax.reporting.metrics_log import FILE_NAME, read_metrics
from segnet_jax.system.errors import UserError, shown

_MOST_BYTES = 64 * 2**20  # of a file that is read whole
_MOST_STEPS = 8  # whose pictures a page holds
_MOST_CLASSES = 255
_ABOUT = ("dataset", "split", "num_images", "fingerprints")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that the run has kept.

    Attributes:
      step: finished steps.
      confusion: int64 [C,C]; None where it is not known.
      predictions: base64 of a PNG for each of the fixed records.
      peak_memory: bytes, by "host" and "device"; None where it is not known.
    """

    step: int
    confusion: np.ndarray | None
    predictions: tuple[str, ...]
    peak_memory: dict[str, int | None]

    @property
    def scores(self) -> Scores | None:
        """Of its confusion matrix."""
        return None if self.confusion is None or not self.confusion.any() else scores(self.confusion)


@dataclass
class Record:
    """A run as its folder tells it; each value is empty where the folder does not have it.

    Attributes:
      folder: as it was given.
      config: of the run.
      environment: `environment.json`.
      result: `result.json`, of a finished run.
      outcome: `outcome.json`, how its last start ended.
      overrides: `overrides.json`, what was changed on the way.
      incidents: `incident/*.json`, steps that were not finite.
      train: the steps' rows of the metrics.
      val: the evaluations' rows.
      about: the data set's name, the scored split, images and fingerprints by split.
      classes: their names.
      colors: RGB 0..255 of each.
      records: the fixed records, each with its name, image and label.
      evaluations: some that were kept, in order: the first, the newest, the best and some between.
      worst: images that the newest evaluation, or the last that was drawn, found worst.
      uncertainty: what `evaluate --samples` has found.
      problems: what could not be read, a sentence each.
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
    records: list[dict[str, str]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    worst: dict[str, Any] = field(default_factory=dict)
    uncertainty: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return text(self.folder.resolve().name, 80)

    @property
    def last_step(self) -> int:
        """The newest step that is written down."""
        return max((row["step"] for row in (*self.train[-1:], *self.val[-1:])), default=0)

    @property
    def chosen_step(self) -> int | None:
        """The evaluation that stands for the run: the result's, else the best so far, or the last where that counts."""
        told = whole(self.result.get("step"))
        if told is not None or not self.val:
            return told
        if self.config is not None and self.config.result_checkpoint == "last":
            return self.val[-1]["step"]
        return max(self.val, key=lambda row: number(row.get("miou")) or 0.0)["step"]

    @property
    def chosen(self) -> Evaluation | None:
        """What was kept of it; with the result's own confusion matrix, where BatchNorm was recomputed after it."""
        kept = next((each for each in self.evaluations if each.step == self.chosen_step), None)
        own = _confusion(self.result.get("confusion"), len(self.classes))
        return kept if kept is None or own is None else dataclasses.replace(kept, confusion=own)

    @property
    def chosen_row(self) -> dict[str, Any]:
        """Its row of the metrics; empty without one."""
        return next((row for row in self.val if row["step"] == self.chosen_step), {})


def read_record(folder: pathlib.Path) -> Record:
    """Reads a run folder; whatever it holds, this does not raise."""
    record = Record(folder)
    try:
        record.config = read_whole_config(folder / "config.toml")
    except UserError as error:
        record.problems.append(f"its config is left out: {text(error, 300)}")
    for name in ("environment", "result", "outcome"):
        setattr(record, name, _dict(_json(record, f"{name}.json")))
    record.overrides = _dicts(_json(record, "overrides.json"))
    incidents = sorted((folder / "incident").glob("*.json"))[:10]
    record.incidents = [_dict(_json(record, f"incident/{path.name}")) for path in incidents]
    _read_rows(record)
    _read_classes(record)
    _read_evaluations(record)
    record.worst = _dict(_json(record, f"{FOLDER}/{WORST_FILE}"))
    record.uncertainty = _dict(_json(record, f"{FOLDER}/{UNCERTAINTY_FILE}"))
    return record


def _json(record: Record, name: str) -> Any:
    """A JSON file's value; None where it is not there, and where it is damaged, which is noted."""
    path = record.folder / name
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > _MOST_BYTES:
            record.problems.append(f"{text(name)} is left out: it has {path.stat().st_size:,} bytes")
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        record.problems.append(f"{text(name)} is left out: it is damaged")
        return None


def _read_rows(record: Record) -> None:
    rows = []
    try:
        rows = read_metrics(record.folder / FILE_NAME)
    except FileNotFoundError:
        pass
    except (OSError, UserError, MemoryError) as error:
        record.problems.append(f"the curves are left out: {text(error, 300)}")
    rows = [row for row in rows if 0 <= row["step"] < 2**53]
    record.train = [row for row in rows if row["kind"] == "train"]
    record.val = [row for row in rows if row["kind"] == "val"]


def _read_classes(record: Record) -> None:
    """Classes, colours and what else holds for all evaluations; names alone where the run is of an older version."""
    told = _dict(_json(record, f"{FOLDER}/{RECORDS_FILE}"))
    names, colors = told.get("classes"), told.get("colors")
    is_whole = (
        isinstance(names, list)
        and isinstance(colors, list)
        and len(names) == len(colors) <= _MOST_CLASSES
        and all(isinstance(color, list) and len(color) == 3 and all(map(_is_byte, color)) for color in colors)
    )
    if is_whole:
        record.classes, record.colors = tuple(map(text, names)), tuple(map(tuple, colors))
        record.about = {name: told[name] for name in ("dataset", "split", "num_images", "fingerprints") if name in told}
        record.records = [_pictures(each, ("image", "label")) for each in _dicts(told.get("records"))]
        return
    if told:
        record.problems.append(f"{FOLDER}/{RECORDS_FILE} is left out: it is damaged")
    known = _dict(record.result.get("per_class")) or _dict((record.val or [{}])[-1].get("iou"))
    record.classes = tuple(text(name) for name in list(known)[:_MOST_CLASSES])


def _read_evaluations(record: Record) -> None:
    found = (re.fullmatch(r"step_(\d{7,15})\.json", path.name) for path in (record.folder / FOLDER).glob("step_*.json"))
    written = {row["step"] for row in record.val}
    names = {int(each[1]): each[0] for each in found if each and (not written or int(each[1]) in written)}
    for step in spread(sorted(names), record.chosen_step):
        told = _dict(_json(record, f"{FOLDER}/{names[step]}"))
        predictions = told.get("predictions")
        predictions = tuple(map(base64, predictions)) if isinstance(predictions, list) else ()
        memory = {name: whole(value) for name, value in _dict(told.get("peak_memory")).items()}
        confusion = _confusion(told.get("confusion"), len(record.classes))
        record.evaluations.append(Evaluation(step, confusion, predictions, memory))


def spread(steps: list[int], chosen: int | None, most: int = _MOST_STEPS) -> list[int]:
    """At most so many steps, evenly spread, with the first and the last and the chosen one among them."""
    if len(steps) <= most:
        return steps
    places = np.linspace(0, len(steps) - 1, most - 1).round().astype(int)
    return sorted({steps[place] for place in places} | ({chosen} & set(steps)))


def _confusion(value: Any, size: int) -> np.ndarray | None:
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        confusion = np.array(value, np.int64)
        if confusion.shape == (size, size) and size and (confusion >= 0).all():
            return confusion
    return None


def _pictures(told: dict[str, Any], kinds: Iterable[str]) -> dict[str, str]:
    return {"name": text(told.get("name", "")), **{kind: base64(told.get(kind)) for kind in kinds}}


def worst_pictures(record: Record) -> list[dict[str, str]]:
    """The worst images with label, prediction and errors, the worst first."""
    kinds = ("image", "label", "prediction", "errors")
    return [_pictures(each, kinds) for each in _dicts(record.worst.get("pictures"))]


def worst_listed(record: Record) -> list[tuple[str, float]]:
    """Name and accuracy of the worst images, the worst first."""
    rows = [(text(row.get("name", "")), number(row.get("accuracy"))) for row in _dicts(record.worst.get("lowest"))]
    return [row for row in rows if row[1] is not None]


# --- values of others, made harmless ---


def text(value: Any, most: int = 120) -> str:
    """A value as text of a bounded length, in which what cannot be printed is escaped."""
    whole_text = value if isinstance(value, str) else str(value)
    cut = shown(whole_text[: most + 1])
    return cut if len(cut) <= most else f"{cut[: most - 1]}…"


def number(value: Any) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with contextlib.suppress(OverflowError):
        return float(value) if math.isfinite(value) else None
    return None


def whole(value: Any) -> int | None:
    """A whole number from 0 that a counter may reach; None for anything else."""
    return value if type(value) is int and 0 <= value < 2**63 else None


def base64(value: Any) -> str:
    """Base64 of a picture; empty for anything else."""
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", value) else ""


def _is_byte(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
