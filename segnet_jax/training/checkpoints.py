"""A run's checkpoints through Orbax: the newest few for resuming, and a copy of the best.

Each holds the whole training state as arrays, and beside them as JSON what is needed to understand it. Saving is
asynchronous and atomic: a kill leaves the checkpoints before it. The only module that imports Orbax.
"""

import logging
import os
import pathlib
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp

from segnet_jax.errors import UserError
from segnet_jax.training.parallel import Devices, replicate, rewrap
from segnet_jax.training.state import TrainState

Which = Literal["newest", "best"]


class Checkpoints:
    """The folder `checkpoints` of a run; to be closed, or used in a `with`, so that the last save is waited for.

    Args:
      folder: made if it is not there.
      devices: where restored states are to lie.
      keep: how many of the newest to keep.
    """

    def __init__(self, folder: str | os.PathLike, devices: Devices, keep: int = 2):
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells each of its steps
        root = pathlib.Path(folder).absolute()  # Orbax wants no relative path
        self._devices = devices
        self._managers = {
            "newest": ocp.CheckpointManager(root / "newest", options=ocp.CheckpointManagerOptions(max_to_keep=keep)),
            "best": ocp.CheckpointManager(root / "best", options=ocp.CheckpointManagerOptions(max_to_keep=1)),
        }

    def steps(self, which: Which) -> list[int]:
        """Steps that can be restored, in order."""
        return sorted(self._managers[which].all_steps())

    def save(self, which: Which, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Begins to save a state; every process calls it.

        Args:
          which: "newest" or "best".
          step: finished steps; a step that is there already is not saved again.
          state: replicated; it may be donated to the next step as soon as this returns.
          meta: JSON to lie beside it.
        """
        if step in self.steps(which):
            return  # the same step of the same run is the same state
        saved = self._managers[which].save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(rewrap(state, self._devices.world)), meta=ocp.args.JsonSave(meta)
            ),
        )
        if not saved:  # Orbax says so in silence, for a step before its latest
            raise RuntimeError(f"step {step} was not saved: the {which} checkpoint is {self.steps(which)}")

    def read_meta(self, which: Which) -> dict[str, Any]:
        """The JSON of the latest checkpoint, without its arrays.

        Raises:
          UserError: if there is none.
        """
        return self._restore(which, ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def restore(self, which: Which, like: TrainState) -> TrainState:
        """Restores the latest state, replicated over the devices.

        Args:
          which: "newest" or "best".
          like: a state of the same shapes, such as `jax.eval_shape` gives.

        Raises:
          UserError: if there is none.
        """
        world = self._devices.world
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=world), like)
        state = self._restore(which, ocp.args.Composite(state=ocp.args.StandardRestore(shapes))).state
        # A copy by way of the host: the first step takes the state's memory over, and Orbax may still hold its arrays.
        return replicate(rewrap(state, self._devices.replicated), self._devices)

    def _restore(self, which: Which, args: ocp.args.Composite):
        manager = self._managers[which]
        if manager.latest_step() is None:
            told = f"no {which} checkpoint in {manager.directory}: the run stopped before its first one"
            raise UserError(f"{told}; start it anew in another folder")
        return manager.restore(manager.latest_step(), args=args)

    def wait(self) -> None:
        """Waits until all that was begun is saved."""
        for manager in self._managers.values():
            manager.wait_until_finished()

    def close(self) -> None:
        """Waits until all is saved, and lets go of the folder."""
        self.wait()
        for manager in self._managers.values():
            manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()
