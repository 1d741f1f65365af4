"""Compute the uncovered communication of steps compiled for eight devices, with assumed link speeds.

python experiments/scaling/compiled_communication.py        # prints the table of README.md
"""

import json
import pathlib
from dataclasses import dataclass
from typing import Any

from communication import MACHINES, MESSAGE_LATENCY, Machine, ring_bytes

HERE = pathlib.Path(__file__).parent
FOLDER = HERE.parent / "portability" / "compiled"
OF_CONVOLUTIONS, OF_OTHERS = 0.6, 0.8  # assumed fractions of the peak rates, as in the compiled files


@dataclass(frozen=True)
class Communication:
    """The collectives of a training step and the time they cost.

    Attributes:
      images: images per device.
      is_synchronized: whether BatchNorm synchronizes its statistics.
      synchronous: number of synchronous collectives.
      synchronous_bytes: their bytes.
      asynchronous: number of asynchronous collectives.
      asynchronous_bytes: their bytes.
      compute: seconds of the kernels, predicted from the program.
      uncovered: seconds in which a device only communicates.
    """

    images: int
    is_synchronized: bool
    synchronous: int
    synchronous_bytes: int
    asynchronous: int
    asynchronous_bytes: int
    compute: float
    uncovered: float

    @property
    def efficiency(self) -> float:
        """Fraction of the time in which a device computes."""
        return self.compute / (self.compute + self.uncovered)


def read(name: str, machine: Machine) -> Communication:
    """Read a file of `portability compile`."""
    content = json.loads((FOLDER / f"{name}.json").read_text())
    config, step = content["config"], content["programs"]["train"]
    groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for each in step["collectives"]:
        groups[each["is_async"]].append(each)
    images = config["batch_size_per_device"]
    return Communication(
        images=images,
        is_synchronized=config["sync_batch_norm"],
        synchronous=len(groups[False]),
        synchronous_bytes=sum(each["bytes"] for each in groups[False]),
        asynchronous=len(groups[True]),
        asynchronous_bytes=sum(each["bytes"] for each in groups[True]),
        compute=images / step["limit"]["at_efficiencies"][0]["images_per_second"],
        uncovered=sum(uncovered_seconds(each, machine, content["num_devices"]) for each in step["collectives"]),
    )


def uncovered_seconds(collective: dict[str, Any], machine: Machine, devices: int) -> float:
    """Return the time of a collective that no kernel covers: latency and a ring's transfer, less concurrent kernels."""
    needed = MESSAGE_LATENCY.value + ring_bytes(collective["bytes"], devices) / machine.bus_bandwidth.value
    if not collective["is_async"]:
        return needed
    between = collective["between"]
    covered = between["gflop"] * 1e9 / machine.flops.value / OF_CONVOLUTIONS
    covered = max(covered, between["bytes"] / machine.memory_bandwidth.value / OF_OTHERS)
    return max(0.0, needed - covered)


def table() -> str:
    """Return the table of README.md."""
    lines = [
        "| 8 H200, bfloat16 | synchronous all-reduces | asynchronous ones | kernels | uncovered | efficiency |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in ("h200-8x4-bfloat16", "h200-8x4-bfloat16-local", "h200-8x16-bfloat16", "h200-8x16-bfloat16-local"):
        each = read(name, MACHINES["h200"])
        kind = "synchronized" if each.is_synchronized else "local"
        lines.append(
            f"| {each.images} images a device, {kind} statistics "
            f"| {each.synchronous}, {each.synchronous_bytes / 1e6:.2f} MB "
            f"| {each.asynchronous}, {each.asynchronous_bytes / 1e6:.1f} MB | {1e3 * each.compute:.1f} ms "
            f"| {1e3 * each.uncovered:.2f} ms | {100 * each.efficiency:.0f} % |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
