"""Write `outcome.json` (how a run ended and how to resume it) and the batch of a non-finite step (`incident/`)."""

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
from segnet_jax.runs.config_checks import epochs_between_evaluations
from segnet_jax.system import untrusted_files
from segnet_jax.system.errors import ExitError, HostLost, NoCheckpoint, NotFinite, UserError, listed
from segnet_jax.system.files import atomic_write_bytes, atomic_write_json

logger = logging.getLogger(__name__)

OUTCOME_FILE, CHECKPOINTS = "outcome.json", "checkpoints"


def check_never_saved(folder: pathlib.Path, config: Config, steps_per_epoch: int) -> None:
    """Check that a run without checkpoints never saved one, so that it may restart at step 0; log the restart.

    Raises:
      NoCheckpoint: If the run's outcome or its metrics show that it had a checkpoint.
    """
    advice = "restore the checkpoints, or start a new run in another folder (--run)"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        step = untrusted_files.read_json(folder, OUTCOME_FILE).get("saved")
        if step is not None:
            raise NoCheckpoint(f"{folder} was saved at step {step}, but has no checkpoint: {advice}")
    try:
        last = max((row["step"] for row in read_metrics(folder / METRICS_FILE)), default=0)
    except FileNotFoundError:
        return
    # The checkpoint folder is created before the step after the first save, so no kill leaves later steps without it.
    evaluate_every = epochs_between_evaluations(config, steps_per_epoch)
    first_save = min(config.checkpoint_every, evaluate_every) * steps_per_epoch
    if last > first_save and untrusted_files.status(folder, CHECKPOINTS) is None:
        raise NoCheckpoint(f"{folder} has taken {last} steps, but has no checkpoint: {advice}")
    if last:
        logger.warning(f"{folder} has taken {last} steps but saved none of them: it starts again at step 0")


def resume_command(folder: pathlib.Path) -> str:
    """Return the shell command that resumes a run."""
    return shlex.join(["python", "-m", "segnet_jax.train", "--run", str(folder), "--resume"])


@contextlib.contextmanager
def record_outcome(folder: pathlib.Path, saved: Callable[[], int | None]) -> Iterator[dict[str, Any]]:
    """Write `outcome.json` (exit code, reason, how to resume) and the report on exit, also after an error.

    Args:
      folder: run folder.
      saved: function that returns the step of the newest intact checkpoint; called after an error.

    Yields:
      A dict to fill after success: "saved", the last saved step, and "state", the checksum of its state.
    """
    facts: dict[str, Any] = {"exit_code": 0, "why": "finished"}
    try:
        yield facts
    except BaseException as error:
        code = error.exit_code if isinstance(error, ExitError) else 2 if isinstance(error, UserError) else 1
        why = " ".join(str(error).split()) or type(error).__name__
        with contextlib.suppress(Exception):  # the original error takes precedence
            facts |= {"exit_code": code, "why": why, "saved": None}
            facts["saved"] = saved()
        if isinstance(error, ExitError):
            step = facts["saved"]
            saved_text = "Nothing is saved yet" if step is None else f"Step {step} is saved and verified"
            error.args = (f"{why}. {saved_text}; resume with: {resume_command(folder)}",)
        raise
    finally:
        with contextlib.suppress(OSError):  # the disk may be the cause of the failure
            resume = {} if facts["why"] == "finished" else {"resume": resume_command(folder)}
            atomic_write_json(folder / OUTCOME_FILE, facts | resume)
        with contextlib.suppress(Exception):  # a failing report must not hide the outcome
            from segnet_jax.reporting.page.render import write_report  # needed at the end only

            write_report(folder)


def write_loss(folder: pathlib.Path, message: str) -> None:
    """Write `outcome.json` before this process exits because another process is lost."""
    atomic_write_json(folder / OUTCOME_FILE, {"exit_code": HostLost.exit_code, "why": message})


def write_incident(
    folder: pathlib.Path,
    step: int,
    metrics: Mapping[str, Any],
    batch: Mapping[str, np.ndarray],
    names: Sequence[str],
    classes: ClassTable,
) -> None:
    """Save the batch of a non-finite step to `incident/`: arrays, a picture, and the names of its images.

    Args:
      folder: run folder.
      step: counted from 1.
      metrics: metrics of the step.
      batch: this process's "image" and "label", as passed to the step.
      names: names of the images of the global batch.
      classes: class names and colors for the picture.
    """
    incident = untrusted_files.make_folder(folder, "incident")
    images, labels = (batch[name].reshape(-1, *batch[name].shape[3:]) for name in ("image", "label"))
    packed = io.BytesIO()
    np.savez(packed, image=images, label=labels)
    name = f"step_{step:07}"
    atomic_write_bytes(incident / f"{name}.npz", packed.getvalue())
    atomic_write_json(incident / f"{name}.json", {"step": step, "images": list(names), "metrics": dict(metrics)})
    batch_picture(images, labels, classes, incident / f"{name}.png", f"Batch of step {step}, which was not finite")


def not_finite(step: int, names: Sequence[str], folder: pathlib.Path, learning_rate: float) -> NotFinite:
    """Return the error of a non-finite step."""
    return NotFinite(
        f"step {step} was not finite (NaN or infinity in loss, gradients or statistics) on the images {listed(names)}; "
        f"the batch is saved in {folder / 'incident'}; try a lower --learning-rate (it was {learning_rate:g}) with "
        "--override, or look for a damaged image"
    )
