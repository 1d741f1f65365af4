"""One of several processes that train together: `python two_processes.py RANK COUNT PORT FOLDER [PLACE [MAPPING]]`.

Started by test_data_parallel.py, also alone (COUNT 1). Each has its part of eight fake devices, makes its shard of each
global batch, takes five steps, and saves; process 0 then restores the checkpoint and writes its arrays to a file. PLACE
is where the images are kept: "host" (default), "device" or "shards". MAPPING is "pmap" (default) or "shard_map".
"""

import logging
import os
import pathlib
import sys
from functools import partial

from xla_flags import with_fake_devices

rank, count, port = map(int, sys.argv[1:4])
folder = pathlib.Path(sys.argv[4])
place = sys.argv[5] if len(sys.argv) > 5 else "host"
mapping = sys.argv[6] if len(sys.argv) > 6 else "pmap"
os.environ["XLA_FLAGS"] = with_fake_devices(8 // count)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402

from segnet_jax.distributed.hosts import join  # noqa: E402

hosts = join(f"127.0.0.1:{port}", rank, count, heartbeat=30) if count > 1 else join("", -1, 0, heartbeat=30)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from segnet_jax.data.input_pipeline.cache import from_arrays  # noqa: E402
from segnet_jax.data.input_pipeline.sampler import Sampler  # noqa: E402
from segnet_jax.data.input_pipeline.tf_data import BatchShard  # noqa: E402
from segnet_jax.distributed.data_parallel import (  # noqa: E402
    AXIS,
    AheadOfTime,
    choose_devices,
    parallel_train_step,
    prefetch,
    replicate,
)
from segnet_jax.nn.preprocessing import TORCH  # noqa: E402
from segnet_jax.nn.segnet import SegNet  # noqa: E402
from segnet_jax.training.checkpoints import Checkpoints  # noqa: E402
from segnet_jax.training.optimizer import OptimizerSettings, build_optimizer  # noqa: E402
from segnet_jax.training.state import create_state, init_variables  # noqa: E402
from segnet_jax.training.step_inputs import training_input  # noqa: E402
from segnet_jax.training.step_settings import StepSettings  # noqa: E402
from segnet_jax.training.steps import train_steps  # noqa: E402

random = np.random.default_rng(0)
images = random.integers(0, 256, (40, 16, 16, 3), np.uint8)
labels = random.choice(np.array([0, 1, 2, 255], np.uint8), (40, 16, 16))

devices = choose_devices("all", mapping=mapping)
model = SegNet(3, depth=1, width=0.125, sync_axis=AXIS)
optimizer, schedule = build_optimizer(OptimizerSettings(learning_rate=0.05), model, 5)
state = replicate(create_state(init_variables(model, seed=0), optimizer, "float32"), devices)
sampler = Sampler(num_samples=40, global_batch_size=16, seed=0, flip=True, shift=2)
share = BatchShard(devices.total, devices.first, len(devices.local), batch_size_per_device=2)
source = training_input(place, from_arrays(images, labels), sampler, share, 1, devices)
mapped = parallel_train_step(
    partial(
        train_steps,
        make_batch=source.make_batch,
        settings=StepSettings(model, jnp.ones(3), TORCH, optimizer, schedule),
    ),
    devices,
    source.store_axis,
)
compiled = []
logger = logging.getLogger("segnet_jax.distributed.data_parallel")
logger.setLevel(logging.INFO)
logger.addFilter(lambda record: bool(compiled.append(record.getMessage())))
step = AheadOfTime(mapped, "the step", devices, source.store)
for inputs in prefetch(source.inputs([range(number, number + 1) for number in range(5)]), devices):
    state, measures = step(state, inputs)
assert len(compiled) == (1 if count == 1 or mapping == "shard_map" else 0), compiled  # compiled ahead of time, and once

with Checkpoints(folder / "checkpoints", devices, broadcast=partial(hosts.broadcast, "checkpoint")) as checkpoints:
    checkpoints.save("newest", 5, state, {"loss": float(measures["loss"][-1])})
    checkpoints.wait()
    restored = checkpoints.restore("newest", checkpoints.latest("newest"), like=state)
same = jax.tree.map(np.array_equal, jax.device_get(restored), jax.device_get(state))
assert all(jax.tree.leaves(same)), "what was restored is not what was saved"
if devices.is_writer:
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get((restored.params, restored.batch_stats)))
    np.savez(folder / "restored.npz", **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
hosts.leave()
