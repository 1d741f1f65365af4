"""Checks of config fields that depend on one another; some set the fields that follow."""

from typing import Any

from segnet_jax.system.errors import UserError


def check_stages(config: Any, most: int) -> None:
    """Check that the two lists of encoder stages have the same length, and make them tuples.

    Args:
      config: the config.
      most: the largest number of stages.

    Raises:
      UserError: If they differ in length, or there are too many stages.
    """
    for name in ("stage_convolutions", "stage_channels"):  # JSON gives lists
        object.__setattr__(config, name, tuple(getattr(config, name)))
    counts = {len(stages) for stages in (config.stage_convolutions, config.stage_channels) if stages}
    if len(counts) > 1:
        raise UserError(
            f"--stage-convolutions has {len(config.stage_convolutions)} stages and --stage-channels "
            f"{len(config.stage_channels)}: give one number per stage in both"
        )
    if counts and max(counts) > most:
        raise UserError(f"a network has at most {most} stages, got {max(counts)}: give fewer numbers")


def check_averaging(config: Any) -> None:
    """Check stochastic weight averaging, and set what it implies: recomputed statistics, the last checkpoint scored.

    Raises:
      UserError: If another setting contradicts it.
    """
    if not config.swa_epochs:
        return
    given = f"--swa-epochs {config.swa_epochs}"
    if config.ema_decay:
        raise UserError(f"{given} and --ema-decay {config.ema_decay:g} both average the weights: use --ema-decay 0")
    if config.schedule == "plateau":
        raise UserError(f"{given} needs a constant rate, got --schedule plateau: use another --schedule")
    if config.patience:
        raise UserError(f"{given} averages the last epochs, got --patience {config.patience}: use --patience 0")
    object.__setattr__(config, "batch_norm", "recompute")
    object.__setattr__(config, "result_checkpoint", "last")
