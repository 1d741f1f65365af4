"""What the result of a finished training is of: the variables of the checkpoint that `--result-checkpoint` names."""

from typing import Any

from segnet_jax.beginning import Beginning
from segnet_jax.recomputing import recompute_and_keep
from segnet_jax.training.state import TrainState


def finish(start: Beginning, state: TrainState, step: int) -> dict[str, Any] | None:
    """The variables that count; with `--batch-norm recompute`, statistics of the best and the newest are taken first.

    Every process calls it.

    Args:
      start: the training.
      state: after its last step.
      step: the last.

    Returns:
      The variables; None where they are the best checkpoint's and that is not whole any more.
    """
    config, checkpoints, best = start.config, start.checkpoints, start.meta["best"]["step"]
    chosen = best if config.result_checkpoint == "best" else step
    recomputes = config.batch_norm == "recompute"
    found = {}
    for which, of_step in (("newest", step), ("best", best)):
        if of_step in found or not (recomputes or of_step == chosen):
            continue
        if of_step == step:
            variables = state.variables
        else:
            checkpoints.wait()
            if not checkpoints.is_whole(which, of_step):
                continue
            variables = checkpoints.restore(which, of_step, start.material.shapes).variables
        found[of_step] = recompute_and_keep(start, which, of_step, variables) if recomputes else variables
    return found.get(chosen)
