"""Rows measured by `python -m segnet_jax.benchmark scaling`, and the prediction for each."""

import json
import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

from communication import OURS, OVERLAPS, Machine, step_seconds

from segnet_jax.system.errors import UserError


@dataclass(frozen=True)
class Measured:
    """A row of the benchmark's list "scaling"."""

    devices: int
    batch_size_per_device: int
    sync_batch_norm: bool
    images_per_second: float
    scaling: str = "weak"

    def is_sound(self) -> bool:
        """Return whether types and ranges are valid; a bool is not a count."""
        counts, speed = (self.devices, self.batch_size_per_device), self.images_per_second
        return (
            all(type(count) is int and count > 0 for count in counts)
            and type(self.sync_batch_norm) is bool
            and type(speed) in (int, float)
            and 0 < speed < math.inf
        )


def read_measured(path: pathlib.Path) -> list[Measured]:
    """Read the output of `python -m segnet_jax.benchmark scaling --json FILE`.

    Raises:
      UserError: If the file cannot be read, is not JSON, or lacks required values.
    """
    names = Measured.__annotations__
    try:
        rows = [
            Measured(**{name: row[name] for name in names if name != "scaling" or name in row})
            for row in json.loads(path.read_text("utf-8"))["scaling"]
        ]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f'{path} must contain a list "scaling" of rows with {", ".join(names)}') from error
    for row in rows:
        if not row.is_sound():
            raise UserError(
                f"{path}: a row needs positive integers for devices and batch, a boolean sync_batch_norm and a speed "
                f"above 0, got {row}"
            )
    if not any(row.devices == 1 for row in rows):
        raise UserError(f"{path}: its {len(rows)} rows lack one for a single device, which speed-ups are relative to")
    return rows


def one_device(row: Measured, rows: Sequence[Measured]) -> Measured | None:
    """Return the single-device row with the same batch size, or None; preferably with the same BatchNorm."""
    alone = [r for r in rows if r.devices == 1 and r.scaling == row.scaling]
    found = [r for r in alone if row.scaling == "strong" or r.batch_size_per_device == row.batch_size_per_device]
    return min(found, key=lambda r: r.sync_batch_norm != row.sync_batch_norm, default=None)


def predicted_efficiencies(machine: Machine, row: Measured, base: Measured) -> list[float]:
    """Predict the efficiency, 0 to 1, without and with full overlap, from the measured compute time."""
    compute = row.batch_size_per_device / base.images_per_second
    links = OURS | {"sync_batch_norm": row.sync_batch_norm}
    return [compute / step_seconds(machine, row.devices, compute, **links, overlap=overlap) for overlap in OVERLAPS]


def held(row: Measured) -> str:
    """Describe what is held constant while devices are added."""
    batch = row.batch_size_per_device
    return f"strong: {batch * row.devices} images in all" if row.scaling == "strong" else f"weak: {batch} a device"
