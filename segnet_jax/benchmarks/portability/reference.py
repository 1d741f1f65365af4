"""Reference of `portability measure`: inference and the next training steps in float64 on the CPU.

JAX enables float64 per process, so `compute` starts `python -m segnet_jax.benchmarks.portability.reference FOLDER`.
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
from segnet_jax.training import build_model, build_steps, checkpoint_folders
from segnet_jax.training.restore_network import Restored, restore
from segnet_jax.training.state import TrainState, create_state
from segnet_jax.training.step_inputs import Input, as_sent

_REQUEST, _IMAGES, _BATCHES, _TRAINED = "request.json", "images.npy", "batches.npz", "trained.npz"


def compute(
    folder: pathlib.Path, run: str, config: Config, checkpoint: str, images: np.ndarray, batches: Sequence[Batch]
) -> None:
    """Compute the reference in a separate process and write it to a folder.

    Args:
      folder: empty folder.
      run: run folder.
      config: config of the run.
      checkpoint: "result", "best" or "newest".
      images: images to compare on, uint8 [N,H,W,3].
      batches: batches of the next training steps, each [L,A,B,...].

    Raises:
      UserError: If the process fails.
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
    """Return the reference's intermediate results of one image by name: float64 [1,H,W,C], codes uint8."""
    with np.load(folder / f"{number}.npz") as arrays:
        return dict(arrays)


def trained_of(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the reference's parameters by name after its training steps, and the losses of the steps."""
    with np.load(folder / _TRAINED) as arrays:
        params = dict(arrays)
    return params, params.pop("losses")


def main() -> None:
    """Compute the reference in this process, from the files of `compute` in a folder."""
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
    # One device processes the whole batch, which is equivalent with synchronized BatchNorm.
    merged = [{name: each.reshape(1, 1, -1, *each.shape[3:]) for name, each in batch.items()} for batch in batches]
    step, state = training(config, model, variables, restored, "float32", device)
    state, losses = take_steps(step, state, merged, device)
    np.savez(folder / _TRAINED, losses=losses, **by_path(state.params))


def training(
    config: Config,
    model: SegNet,
    variables: dict[str, Any],
    restored: Restored,
    precision: str,
    devices: Devices,
) -> tuple[AheadOfTime, TrainState]:
    """Return the training step with host input, and a state with a new optimizer state.

    Class weights and preprocessing are those of `restored`; `precision` determines loss scaling.
    """
    settings = build_model.step_settings(
        dataclasses.replace(config, half_gradients=False),  # no rounding to 16 bits
        model,
        checkpoint_folders.class_weights_of(restored.meta),
        checkpoint_folders.preprocessing_of(restored.meta),
        steps_per_epoch=1000,
    )
    step = build_steps.build_train_step(Input(lambda: iter(()), as_sent), devices, settings)
    return step, replicate(create_state(variables, settings.optimizer, precision), devices)


def take_steps(
    step: AheadOfTime, state: TrainState, batches: Iterable[Batch], devices: Devices
) -> tuple[TrainState, np.ndarray]:
    """Take one step per batch [L,A,B,...]; return the last state and the losses."""
    losses = []
    for batch in batches:
        state, metrics = step(state, on_devices(batch, devices))
        losses.append(float(metrics["loss"][0]))
    return state, np.array(losses)


def on_devices(batch: Batch, devices: Devices) -> dict[str, jax.Array]:
    """Place a batch [L,A,B,...] on the devices, as input of a single step."""
    return jax.device_put({name: each[:, None] for name, each in batch.items()}, devices.split)


def by_path(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return parameters as float64 arrays by path, such as "conv1_1/kernel"."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf).astype(np.float64)
        for path, leaf in paths
    }


def prediction_of(results: dict[str, np.ndarray]) -> np.ndarray:
    """Return the predicted class ids, int [B,H,W]."""
    return np.argmax(np.asarray(results[LOGITS]), axis=-1)


if __name__ == "__main__":
    main()
