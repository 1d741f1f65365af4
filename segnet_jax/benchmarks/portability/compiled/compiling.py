"""Compile the steps of a config for devices that are not present."""

import time
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from segnet_jax.benchmarks.portability.compiled.chips import Target
from segnet_jax.benchmarks.portability.compiled.counts import count_program, limits
from segnet_jax.benchmarks.portability.compiled.hlo import kernels
from segnet_jax.benchmarks.portability.steps import Program
from segnet_jax.benchmarks.roofline import peak_of
from segnet_jax.distributed.data_parallel import AXIS, sharded_on
from segnet_jax.distributed.xla_options import gpu_options

_ANALYSES = {"flops": "flop", "bytes accessed": "bytes_accessed", "optimal_seconds": "optimal_seconds"}


def compile_program(program: Program, target: Target, deterministic: bool = False) -> tuple[Any, float]:
    """Compile a step as training with `--mapping shard_map` does, with the same XLA options.

    Args:
      program: from `steps.build_program`.
      target: devices to compile for; a step that is not mapped is compiled for the first device.
      deterministic: whether to compile for bit-reproducible GPU runs, as in the config.

    Returns:
      The compiled program, and the compile time in seconds without lowering.
    """
    mesh = target.mesh
    if program.split is None:
        jitted = jax.jit(program.function)
        mesh = jax.sharding.Mesh(mesh.devices.ravel()[:1], (AXIS,))
        specs = [PartitionSpec()] * len(program.arguments)
    else:
        in_axes, out_axes = ([0 if each else None for each in axes] for axes in (program.split, program.outputs_split))
        jitted = sharded_on(mesh, program.function, in_axes, out_axes, program.donated)
        specs = [PartitionSpec(AXIS) if each else PartitionSpec() for each in program.split]
    arguments = [
        jax.tree.map(lambda x, spec=spec: _placed(x, NamedSharding(mesh, spec)), tree)
        for tree, spec in zip(program.arguments, specs, strict=True)
    ]
    lowered = jitted.lower(*arguments)
    options = gpu_options(mesh.size > 1, deterministic) if target.chip.platform == "cuda" else {}
    start = time.monotonic()
    compiled = lowered.compile(compiler_options=options)
    return compiled, time.monotonic() - start


def _placed(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def describe(compiled: Any, target: Target, precision: str, num_images: int) -> dict[str, Any]:
    """Return counts, limits and memory use of a program from `compile_program`, JSON-serializable.

    `num_images` is the number of images that one device processes in a call.
    """
    listed = kernels(compiled.as_text())
    analysis = compiled.cost_analysis() or {}
    return {
        **count_program(listed, num_images),
        "limit": limits(listed, num_images, peak_of(target.chip.device_kind, precision)),
        "memory": _memory(compiled.memory_analysis()),
        "compiler_analysis": {
            name: analysis[key] for key, name in _ANALYSES.items() if analysis.get(key, -1) >= 0 and target.is_tpu
        },
    }


def _memory(stats: Any) -> dict[str, int]:
    arguments, outputs, aliased, temporary = (
        getattr(stats, f"{name}_size_in_bytes") for name in ("argument", "output", "alias", "temp")
    )
    return {
        "arguments": arguments,
        "outputs": outputs,
        "aliased": aliased,
        "temporary": temporary,
        "peak": arguments + outputs - aliased + temporary,
    }
