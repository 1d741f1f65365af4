"""The reference of `portability measure`: the network and its next training steps in float64 on the CPU.

It has a process of its own, for JAX takes float64 everywhere or nowhere: `python -m
segnet_jax.benchmarks.portability.reference FOLDER`, where the folder holds what `ask` has put there.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segnet_jax.benchmarks.portability.layer_differences import LOGITS, intermediates
from segnet_jax.config import files
from segnet_jax.config.fields import Config
from segnet_jax.data.input_pipeline.tf_data import Batch
from segnet_jax.distributed.data_parallel import AheadOfTime, Devices, choose_devices, replicate
from segnet_jax.nn.folding import fold_batch_norm
from segnet_jax.nn.segnet import SegNet
from segnet_jax.system.errors import UserError
from segnet_jax.training import build, build_steps, checkpoint_folders
from segnet_jax.training.inputs import Input, as_sent
from segnet_jax.training.restored import Restored, restore
from segnet_jax.training.state import TrainState, create_state

_REQUEST, _IMAGES, _BATCHES, _TRAINED = "request.json", "images.npy", "batches.npz", "trained.npz"


def ask(
    folder: pathlib.Path, run: str, config: Config, checkpoint: str, images: np.ndarray, batches: Sequence[Batch]
) -> None:
    """Has the reference computed into a folder.

    Args:
      folder: empty.
      run: folder of the run.
      config: the run's.
      checkpoint: "result", "best" or "newest".
      images: uint8 [N,H,W,3].
      batches: of the next training steps, each [L,A,B,...].

    Raises:
      UserError: it could not be computed.
    """
    (folder / files.CONFIG_FILE).write_text(config.to_toml())
    np.save(folder / _IMAGES, images)
    np.savez(
        folder / _BATCHES, **{f"{i} {name}": each for i, batch in enumerate(batches) for name, each in batch.items()}
    )
    (folder / _REQUEST).write_text(
        json.dumps({"run": str(pathlib.Path(run).resolve()), "checkpoint": checkpoint, "num_batches": len(batches)})
    )
    environment = os.environ | {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "segnet_jax.benchmarks.portability.reference", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"the float64 reference could not be computed on this machine: {last}")


def results_of(folder: pathlib.Path, number: int) -> dict[str, np.ndarray]:
    """What the reference computes on its way for one of the images, by name: float64 [1,H,W,C], codes uint8."""
    with np.load(folder / f"{number}.npz") as arrays:
        return dict(arrays)


def trained_of(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The reference's parameters, by name, after its training steps, and the loss of each."""
    with np.load(folder / _TRAINED) as arrays:
        found = dict(arrays)
    return found, found.pop("losses")


def main() -> None:
    """The reference's process."""
    (folder,) = map(pathlib.Path, sys.argv[1:])
    request = json.loads((folder / _REQUEST).read_text())
    config = files.read_run(folder)
    device = choose_devices("1")
    restored = restore(request["run"], config, request["checkpoint"], device, "float32")
    variables = jax.tree.map(lambda array: np.asarray(array, np.float64), restored.variables)
    model = restored.model.clone(dtype=jnp.float64)
    preprocessing = checkpoint_folders.preprocessing_of(restored.meta)
    folded = jax.jit(partial(fold_batch_norm, model=model))(variables)
    compute = jax.jit(partial(intermediates, model.clone(folded=True)))
    for number, image in enumerate(np.load(folder / _IMAGES)):
        normal = (image[None].astype(np.float64) - preprocessing.mean) / preprocessing.std
        np.savez(folder / f"{number}.npz", **jax.device_get(compute(folded, normal)))
    with np.load(folder / _BATCHES) as arrays:
        batches = [{name: arrays[f"{i} {name}"] for name in ("image", "label")} for i in range(request["num_batches"])]
    # One device takes all images: with synchronised BatchNorm it is the same step.
    merged = [{name: each.reshape(1, 1, -1, *each.shape[3:]) for name, each in batch.items()} for batch in batches]
    step, state = training(config, model, variables, restored, "float32", device)
    state, losses = go_on(step, state, merged, device)
    np.savez(folder / _TRAINED, losses=losses, **by_path(state.params))


def training(
    config: Config,
    model: SegNet,
    variables: dict[str, Any],
    restored: Restored,
    precision: str,
    devices: Devices,
) -> tuple[AheadOfTime, TrainState]:
    """The training step, to which the host sends its batches, and a state with new momentum.

    Args:
      config: the run's.
      model: to train.
      variables: to go on from.
      restored: the checkpoint.
      precision: for float16's loss scale.
      devices: to train on.
    """
    settings = build.step_settings(
        dataclasses.replace(config, half_gradients=False),  # a reference is not rounded to 16 bits
        model,
        checkpoint_folders.class_weights_of(restored.meta),
        checkpoint_folders.preprocessing_of(restored.meta),
        steps_per_epoch=1000,
    )
    step = build_steps.build_train_step(Input(lambda: iter(()), as_sent), devices, settings)
    return step, replicate(create_state(variables, settings.optimizer, precision), devices)


def go_on(
    step: AheadOfTime, state: TrainState, batches: Iterable[Batch], devices: Devices
) -> tuple[TrainState, np.ndarray]:
    """Takes a step for each batch [L,A,B,...]; returns the last state and the loss of each."""
    losses = []
    for batch in batches:
        state, measures = step(state, on_devices(batch, devices))
        losses.append(float(measures["loss"][0]))
    return state, np.array(losses)


def on_devices(batch: Batch, devices: Devices) -> dict[str, jax.Array]:
    """A batch [L,A,B,...] as a call of one step takes it."""
    return jax.device_put({name: each[:, None] for name, each in batch.items()}, devices.split)


def by_path(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Parameters by name, such as "conv1_1/kernel", in float64."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf).astype(np.float64)
        for path, leaf in paths
    }


def prediction_of(results: dict[str, np.ndarray]) -> np.ndarray:
    """Class ids [B,H,W]."""
    return np.argmax(np.asarray(results[LOGITS]), axis=-1)


if __name__ == "__main__":
    main()
