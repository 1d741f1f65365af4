"""Log to Weights & Biases (`--logger wandb`), which needs the package wandb.

Its environment variables apply: WANDB_MODE=offline writes to WANDB_DIR, by default the folder wandb, without a network.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any


class WandbLogger:
    """A run of Weights & Biases.

    Args:
      folder: run folder, which gives the run in wandb its name.
      run_id: id of the run in wandb, which is resumed if it exists.
    """

    def __init__(self, folder: pathlib.Path, run_id: str):
        import wandb

        self.run_id, self._wandb = run_id, wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "segnet_jax"),
            name=folder.resolve().name,
            id=run_id,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")  # evaluations and pictures come later than steps

    def describe(self, hyperparameters: Mapping[str, Any], classes: Sequence[str]) -> None:
        """See `Logger`."""
        self._run.config.update({**hyperparameters, "classes": list(classes)}, allow_val_change=True)

    def numbers(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """See `Logger`."""
        self._run.log({"step": step} | {f"{kind}/{name}": value for name, value in values.items()})

    def picture(self, name: str, step: int, path: pathlib.Path) -> None:
        """See `Logger`."""
        self._run.log({"step": step, name: self._wandb.Image(str(path))})

    def close(self) -> None:
        """See `Logger`."""
        self._run.finish()
