"""How a start of a run ended, left in `outcome.json`, and how to resume.

Where a step was not finite, its batch is kept in `incident/`, to be looked at.
"""

import contextlib
import io
import logging
import pathlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from segnet_jax.config.fields import Config
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.reporting.figures import batch_picture
from segnet_jax.reporting.metrics_log import FILE_NAME as METRICS_FILE
from segnet_jax.reporting.metrics_log import read_metrics
from segnet_jax.runs.checks import epochs_between_evaluations
from segnet_jax.system import confined
from segnet_jax.system.errors import ExitError, HostLost, NoCheckpoint, NotFinite, UserError, listed
from segnet_jax.system.files import atomic_write_bytes, atomic_write_json

logger = logging.getLogger(__name__)

OUTCOME_FILE, CHECKPOINTS = "outcome.json", "checkpoints"


def check_never_saved(folder: pathlib.Path, config: Config, steps_per_epoch: int) -> None:
    """Refuse to begin anew a run of which something was saved; say so where nothing was and it begins anew.

    Args:
      folder: the run's.
      config: its config.
      steps_per_epoch: of its training.

    Raises:
      NoCheckpoint: the run's outcome or its metrics tell of a checkpoint.
    """
    put_back = "put the checkpoints back, or begin a new run in another folder (--run)"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        step = confined.read_json(folder, OUTCOME_FILE).get("saved")
        if step is not None:
            raise NoCheckpoint(f"{folder} was saved at step {step}, and holds no checkpoint: {put_back}")
    try:
        last = max((row["step"] for row in read_metrics(folder / METRICS_FILE)), default=0)
    except FileNotFoundError:
        return
    # The folder is made before the step that follows the first save, so that a kill cannot have left steps without it.
    evaluate_every = epochs_between_evaluations(config, steps_per_epoch)
    first_save = min(config.checkpoint_every, evaluate_every) * steps_per_epoch
    if last > first_save and confined.status(folder, CHECKPOINTS) is None:
        raise NoCheckpoint(f"{folder} has taken {last} steps, and holds no checkpoint: {put_back}")
    if last:
        logger.warning(f"{folder} has taken {last} steps and saved none of them: it begins anew")


def resume_command(folder: pathlib.Path) -> str:
    """What to paste into a shell to go on with a run."""
    return shlex.join(["python", "-m", "segnet_jax.train", "--run", str(folder), "--resume"])


@contextlib.contextmanager
def record_outcome(folder: pathlib.Path, saved: Callable[[], int | None]) -> Iterator[dict[str, Any]]:
    """Leaves `outcome.json`, how this start of the run ended, whichever way, and how to go on; and the last report.

    Args:
      folder: the run's.
      saved: finds the step of the newest checkpoint that verifies, after another ending than success.

    Yields:
      A dict to be filled with what is known after success: "saved", that step, and "state", the sum of its state.
    """
    facts: dict[str, Any] = {"exit_code": 0, "why": "finished"}
    try:
        yield facts
    except BaseException as error:
        code = error.exit_code if isinstance(error, ExitError) else 2 if isinstance(error, UserError) else 1
        why = " ".join(str(error).split()) or type(error).__name__
        with contextlib.suppress(Exception):  # whatever it is that fails now, the first error is what matters
            facts |= {"exit_code": code, "why": why, "saved": None}
            facts["saved"] = saved()
        if isinstance(error, ExitError):
            step = facts["saved"]
            told = "Nothing is saved yet" if step is None else f"Step {step} is saved and verified"
            error.args = (f"{why}. {told}; go on with: {resume_command(folder)}",)
        raise
    finally:
        with contextlib.suppress(OSError):  # the disk may be what ended it
            go_on = {} if facts["why"] == "finished" else {"go_on": resume_command(folder)}
            atomic_write_json(folder / OUTCOME_FILE, facts | go_on)
        with contextlib.suppress(Exception):  # nor is the report worth another ending
            from segnet_jax.reporting.page.draw import write_report  # needed at the end only

            write_report(folder)


def write_loss(folder: pathlib.Path, message: str) -> None:
    """Leaves `outcome.json` where this process is about to leave because another one is lost."""
    atomic_write_json(folder / OUTCOME_FILE, {"exit_code": HostLost.exit_code, "why": message})


def write_incident(
    folder: pathlib.Path,
    step: int,
    measures: Mapping[str, Any],
    batch: Mapping[str, np.ndarray],
    names: Sequence[str],
    classes: ClassTable,
) -> None:
    """Keeps the batch of a step as arrays and as a picture, with the names of its images, in `incident/`.

    Args:
      folder: the run's.
      step: the one that was not finite, counted from 1.
      measures: what it measured.
      batch: this process's "image" and "label", as the step got them.
      names: of the images of the whole global batch.
      classes: for the picture.
    """
    place = confined.make_folder(folder, "incident")
    images, labels = (batch[name].reshape(-1, *batch[name].shape[3:]) for name in ("image", "label"))
    packed = io.BytesIO()
    np.savez(packed, image=images, label=labels)
    atomic_write_bytes(place / f"step_{step:07}.npz", packed.getvalue())
    atomic_write_json(place / f"step_{step:07}.json", {"step": step, "images": list(names), "measures": dict(measures)})
    batch_picture(images, labels, classes, place / f"step_{step:07}.png", f"Batch of step {step}, which was not finite")


def not_finite(step: int, names: Sequence[str], folder: pathlib.Path, learning_rate: float) -> NotFinite:
    """What to say of it."""
    return NotFinite(
        f"step {step} was not finite (NaN or infinity in loss, gradients or statistics) on the images {listed(names)}; "
        f"the batch is kept in {folder / 'incident'}; try a lower --learning-rate (it was {learning_rate:g}) with "
        "--override, or look for a broken image"
    )
