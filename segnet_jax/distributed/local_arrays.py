"""Functions of global arrays, which span several processes, called with this process's local arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclass(frozen=True)
class OnLocalArrays:
    """A function of global arrays, called like a `pmap` with this process's local arrays, without copying data.

    Attributes:
      function: jitted, lowered or compiled function.
      local_mesh: mesh of this process's devices.
      mesh: mesh of the devices of all processes.
      in_specs: spec of each argument: empty if replicated, otherwise sharded along its leading axis.
      out_specs: spec of each result, likewise.
    """

    function: Any
    local_mesh: Mesh
    mesh: Mesh
    in_specs: Sequence[PartitionSpec]
    out_specs: Sequence[PartitionSpec]

    def lower(self, *arguments):
        """Lower the function for arguments of these shapes."""
        return replace(self, function=self.function.lower(*self._to_global(arguments)))

    def compile(self, compiler_options: dict | None = None):
        """Compile the lowered function."""
        return replace(self, function=self.function.compile(compiler_options))

    def __call__(self, *arguments):
        """Call the function with local arrays and return local arrays."""
        results = zip(self.function(*self._to_global(arguments)), self.out_specs, strict=True)
        return tuple(jax.tree.map(lambda x, spec=spec: self._local_array(x, spec), tree) for tree, spec in results)

    def _to_global(self, arguments):
        pairs = zip(arguments, self.in_specs, strict=True)
        return [jax.tree.map(lambda x, spec=spec: self._global_array(x, spec), tree) for tree, spec in pairs]

    def _global_array(self, x, spec: PartitionSpec) -> jax.Array:
        return _rewrap(jax.device_put(x, NamedSharding(self.local_mesh, spec)), self.mesh, spec)

    def _local_array(self, x: jax.Array, spec: PartitionSpec) -> jax.Array:
        return _rewrap(x, self.local_mesh, spec)


def _rewrap(x: jax.Array, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """Return an array on another mesh with the same buffers on this process's devices."""
    shape = (mesh.size, *x.shape[1:]) if spec else x.shape
    sharding = NamedSharding(mesh, spec)
    buffers = {shard.device: shard.data for shard in x.addressable_shards}
    parts = [buffers[device] for device in sharding.addressable_devices_indices_map(shape)]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)
