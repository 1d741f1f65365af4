"""Allowed ranges of the numeric config fields."""

from typing import Any

from segnet_jax.constants import MAX_CHANNELS
from segnet_jax.system.errors import UserError
from segnet_jax.system.flag_names import option_of

MAX_STAGES = 5
_POSITIVE = 1e-12
RANGES = {
    "scenes": (1, 1_000_000),
    "image_size": (1, 16_384),
    "leave_out_train": (0, 1_000_000),
    "labels_start_at": (-1, 255),
    "threshold": (0, 255),
    "image_range": (0, 65_535),
    "channels": (1, MAX_CHANNELS),
    "val_fraction": (0, 0.9),
    "folds": (0, 100),
    "fold": (0, 100),
    "shift": (0, 16_384),
    "scale": (0.25, 4),
    "color": (0, 1),
    "blur": (0, 8),
    "rotate": (0, 180),
    "shear": (0, 45),
    "crop": (0, 16_384),
    "class_mix": (0, 1),
    "depth": (1, MAX_STAGES),
    "width": (1e-3, 16),
    "stage_convolutions": (1, 8),
    "stage_channels": (1, 4096),
    "kernel_size": (1, 31),
    "batch_norm_momentum": (0, 1 - 1e-6),
    "batch_norm_epsilon": (_POSITIVE, 1),
    "batch_norm_bias": (-1, 1),
    "dropout": (0, 0.9),
    "epochs": (1, 1_000_000),
    "steps": (0, 2**31 - 1),
    "batch_size_per_device": (1, 65_536),
    "grad_accum_steps": (1, 65_536),
    "learning_rate": (_POSITIVE, 10),
    "encoder_lr_mult": (0, 100),
    "warmup_epochs": (0, 1_000_000),
    "step_epochs": (1, 1_000_000),
    "step_factor": (_POSITIVE, 1),
    "plateau_patience": (0, 1_000_000),
    "poly_power": (_POSITIVE, 100),
    "momentum": (0, 1 - 1e-6),
    "clip_gradients": (0, 1e6),
    "weight_decay": (0, 1),
    "bias_lr_mult": (0, 100),
    "ema_decay": (0, 1 - 1e-6),
    "seed": (0, 2**63 - 1),
    "fake_devices": (0, 1024),
    "steps_per_dispatch": (0, 10_000),
    "max_steps": (0, 2**31 - 1),
    "process_id": (-1, 2**20),
    "num_processes": (0, 2**20),
    "heartbeat": (1, 86_400),
    "evaluate_every": (0, 1_000_000),
    "patience": (0, 1_000_000),
    "checkpoint_every": (1, 1_000_000),
    "keep_checkpoints": (1, 1000),
    "swa_epochs": (0, 1_000_000),
    "swa_learning_rate": (0, 10),
    "profile": (0, 10_000),
}
"""Field -> (smallest, largest) allowed value; for a tuple, they apply to each element."""


def check_ranges(config: Any) -> None:
    """Check the numeric fields of a config.

    Raises:
      UserError: If a value is out of range; the message names the flag, its range and the value.
    """
    for name, (low, high) in RANGES.items():
        values = getattr(config, name)
        for value in values if isinstance(values, tuple | list) else (values,):
            if not low <= value <= high:  # also rejects NaN
                given = " ".join(map(str, values)) if isinstance(values, tuple | list) else values
                raise UserError(f"{option_of(name)} must be between {low:g} and {high:g}, got {given}")
