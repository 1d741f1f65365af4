"""Descriptions of the chips that `portability compile` supports, and compile-only devices for them."""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from segnet_jax.distributed.data_parallel import AXIS
from segnet_jax.system.errors import UserError

_EXTRA = 'pip install "segnet_jax[aot]"'


@dataclass(frozen=True)
class Chip:
    """A chip's description, from `chips/NAME.toml`.

    Attributes:
      name: name of the chip, such as "h200".
      platform: "cuda" or "tpu".
      device_kind: row of `roofline.PEAKS`.
      precision: dtype of activations that "auto" chooses.
      sources: sources of the numbers.
      device: fields of XLA's GpuDeviceInfoProto; for "cuda" only.
      cuda: assumed version of driver, runtime and toolkit; for "cuda" only.
      cudnn: assumed version of cuDNN; for "cuda" only.
      accelerator: accelerator type without the number of chips; for "tpu" only.
      topologies: number of chips -> name of the topology; for "tpu" only.
    """

    name: str
    platform: str
    device_kind: str
    precision: str
    sources: list[str]
    device: dict[str, Any] | None = None
    cuda: str = ""
    cudnn: str = ""
    accelerator: str = ""
    topologies: dict[str, str] | None = None

    @property
    def architecture(self) -> str:
        """NVIDIA's name for the instruction set, such as "sm_90"."""
        capability = self.device["cuda_compute_capability"]
        return f"sm_{capability['major']}{capability.get('minor', 0)}"

    @property
    def target_config(self) -> str:
        """XLA's GpuTargetConfigProto in text format."""
        major, minor, patch = map(int, self.cudnn.split("."))
        versions = dict.fromkeys(("driver_version", "runtime_version", "compile_time_toolkit_version"), self.cuda)
        return proto_text(
            {
                "gpu_device_info": self.device | versions | {"dnn_version": self.cudnn},
                "platform_name": "CUDA",
                "dnn_version_info": {"major": major, "minor": minor, "patch": patch},
                "device_description_str": self.device["name"],
            }
        )


def chip_names() -> list[str]:
    """Return the names of all chips."""
    return sorted(path.name.removesuffix(".toml") for path in _folder().iterdir() if path.name.endswith(".toml"))


def read_chip(name: str) -> Chip:
    """Read a chip's description.

    Raises:
      UserError: If there is no chip of this name.
    """
    if name not in chip_names():
        raise UserError(f"--target must be one of {', '.join(chip_names())}, got {name!r}")
    return Chip(name, **tomllib.loads((_folder() / f"{name}.toml").read_text()))


def _folder():
    return resources.files("segnet_jax") / "benchmarks" / "portability" / "compiled" / "chips"


def proto_text(fields: dict[str, Any]) -> str:
    """Return nested fields in protobuf's text format."""
    lines = []
    for key, value in fields.items():
        if isinstance(value, dict):
            lines.append(f"{key} {{ {proto_text(value)} }}")
        else:
            lines.append(f'{key}: "{value}"' if isinstance(value, str) else f"{key}: {value}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      chip: kind of the devices.
      mesh: mesh of the devices, with the axis AXIS.
      versions: versions of the compiler's packages other than jax and jaxlib.
    """

    chip: Chip
    mesh: Mesh
    versions: dict[str, str]

    @property
    def is_tpu(self) -> bool:
        """Whether the devices are TPUs."""
        return self.chip.platform == "tpu"


def open_target(chip: Chip, num_devices: int) -> Target:
    """Return compile-only devices of a chip, in one process, from an installed compiler.

    Raises:
      UserError: If the compiler's package or `ptxas` is missing, or no topology has enough chips.
    """
    jax.config.update("jax_platforms", "cpu")  # do not use such devices even if they are present
    if chip.platform == "cuda":
        return _cuda_target(chip, num_devices)
    return _tpu_target(chip, num_devices)


def _cuda_target(chip: Chip, num_devices: int) -> Target:
    plugins = [f"jax-cuda{major}-plugin" for major in (13, 12) if _is_importable(f"jax_plugins.xla_cuda{major}")]
    if not plugins:
        raise UserError(f"compiling for {chip.name} needs JAX's CUDA plugin, which is not installed: {_EXTRA}")
    ptxas, version = find_ptxas(chip.architecture)
    # XLA uses the first ptxas on the path.
    os.environ["PATH"] = os.pathsep.join([str(ptxas.parent), os.environ.get("PATH", "")])
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # the libraries are needed only at run time
    described = topologies.get_topology_desc(
        chip.name, "cuda", target_config=chip.target_config, topology=f"1x1x{num_devices}"
    )
    versions = {plugins[0]: importlib.metadata.version(plugins[0]), "ptxas": version}
    return Target(chip, Mesh(np.array(described.devices), (AXIS,)), versions)


def _tpu_target(chip: Chip, num_devices: int) -> Target:
    if not _is_importable("libtpu"):
        raise UserError(f"compiling for {chip.name} needs libtpu, which is not installed: {_EXTRA}")
    enough = sorted(int(count) for count in chip.topologies if int(count) >= num_devices)
    if not enough:
        most = max(map(int, chip.topologies))
        raise UserError(f"--devices for {chip.name} must be at most {most}, got {num_devices}")
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",  # do not query the metadata server
        "TPU_ACCELERATOR_TYPE": f"{chip.accelerator}-{enough[0]}",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    described = topologies.get_topology_desc(chip.topologies[str(enough[0])], "tpu")
    mesh = Mesh(np.array(described.devices[:num_devices]), (AXIS,))
    return Target(chip, mesh, {"libtpu": importlib.metadata.version("libtpu")})


def find_ptxas(architecture: str) -> tuple[pathlib.Path, str]:
    """Return the path and the version of a `ptxas`, NVIDIA's assembler, that supports an instruction set.

    Searches the path, NVIDIA's Python packages and /usr/local/cuda.

    Raises:
      UserError: If no ptxas is found, or none supports the instruction set.
    """
    others = []
    for path in _ptxas_candidates():
        text = "".join(_output(path, flag) for flag in ("--version", "--help"))
        version = match[1] if (match := re.search(r"\bV(\d+(?:\.\d+)+)", text)) else "unknown"
        if f"'{architecture}'" in text:
            return path, version
        others.append(version)
    if not others:
        raise UserError(f"ptxas, NVIDIA's assembler, was not found: {_EXTRA}")
    raise UserError(
        f"ptxas {', '.join(others)} does not support {architecture}; install a version that does, for example "
        'pip install "nvidia-cuda-nvcc-cu12==12.8.*"'
    )


def _ptxas_candidates() -> Iterator[pathlib.Path]:
    if found := shutil.which("ptxas"):
        yield pathlib.Path(found).resolve()
    for package in ("nvidia.cu13", "nvidia.cuda_nvcc"):
        with_parents = _is_importable(package.split(".")[0])
        spec = importlib.util.find_spec(package) if with_parents else None
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if os.access(path := pathlib.Path(folder) / "bin" / "ptxas", os.X_OK):
                yield path
    if os.access(path := pathlib.Path("/usr/local/cuda/bin/ptxas"), os.X_OK):
        yield path


def _output(path: pathlib.Path, flag: str) -> str:
    result = subprocess.run([path, flag], capture_output=True, text=True, timeout=60, check=False)
    return result.stdout + result.stderr


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False
