"""How a start of a run ended, left in its `outcome.json`, and how to go on."""

import contextlib
import pathlib
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from segnet_jax import confined
from segnet_jax.config import Config
from segnet_jax.endings import Ending, HostLost, NoCheckpoint
from segnet_jax.errors import UserError
from segnet_jax.files import atomic_write_json
from segnet_jax.reporting.metrics_log import FILE_NAME as METRICS_FILE
from segnet_jax.reporting.metrics_log import read_metrics
from segnet_jax.reporting.page.draw import write_report

OUTCOME_FILE, CHECKPOINTS = "outcome.json", "checkpoints"


def check_never_saved(folder: pathlib.Path, config: Config, steps_per_epoch: int, say: Callable[[str], None]) -> None:
    """Refuse to begin anew a run of which something was saved; say so where nothing was and it begins anew.

    Args:
      folder: the run's.
      config: its config.
      steps_per_epoch: of its training.
      say: prints a line.

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
    first_save = min(config.checkpoint_every, config.evaluate_every) * steps_per_epoch
    if last > first_save and confined.status(folder, CHECKPOINTS) is None:
        raise NoCheckpoint(f"{folder} has taken {last} steps, and holds no checkpoint: {put_back}")
    if last:
        say(f"warning: {folder} has taken {last} steps and saved none of them: it begins anew")


def command_to_go_on(folder: pathlib.Path) -> str:
    """What to paste into a shell to go on with a run."""
    return shlex.join(["python", "-m", "segnet_jax.train", "--run", str(folder), "--resume"])


@contextlib.contextmanager
def telling_outcome(folder: pathlib.Path, saved: Callable[[], int | None]) -> Iterator[dict[str, Any]]:
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
        code = error.exit_code if isinstance(error, Ending) else 2 if isinstance(error, UserError) else 1
        why = " ".join(str(error).split()) or type(error).__name__
        with contextlib.suppress(Exception):  # whatever it is that fails now, the first error is what matters
            facts |= {"exit_code": code, "why": why, "saved": None}
            facts["saved"] = saved()
        if isinstance(error, Ending):
            step = facts["saved"]
            told = "Nothing is saved yet" if step is None else f"Step {step} is saved and verified"
            error.args = (f"{why}. {told}; go on with: {command_to_go_on(folder)}",)
        raise
    finally:
        with contextlib.suppress(OSError):  # the disk may be what ended it
            go_on = {} if facts["why"] == "finished" else {"go_on": command_to_go_on(folder)}
            atomic_write_json(folder / OUTCOME_FILE, facts | go_on)
        with contextlib.suppress(Exception):  # nor is the report worth another ending
            write_report(folder)


def write_loss(folder: pathlib.Path, message: str) -> None:
    """Leaves `outcome.json` where this process is about to leave because another one is lost."""
    atomic_write_json(folder / OUTCOME_FILE, {"exit_code": HostLost.exit_code, "why": message})
