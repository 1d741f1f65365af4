"""The training step and inference of `segnet_jax`, for comparison."""

import jax
import jax.numpy as jnp
import numpy as np
from machine import Machine, Run
from problem import LOSS_SCALE, Parameters, Problem

from segnet_jax.distributed.data_parallel import replicate
from segnet_jax.nn.folding import fold_batch_norm
from segnet_jax.nn.preprocessing import TORCH, normalize
from segnet_jax.training import build_model, build_steps
from segnet_jax.training.precision import LossScale
from segnet_jax.training.state import create_state
from segnet_jax.training.step_inputs import Input, as_sent


class OurTraining:
    """The training step as compiled by `segnet_jax.train`, on a batch in device memory."""

    def __init__(self, problem: Problem, machine: Machine):
        devices = machine.devices
        self._machine = machine
        self._model = problem.model(machine)
        settings = build_model.step_settings(problem.config, self._model, problem.class_weights, TORCH)
        state = create_state(problem.variables, settings.optimizer, machine.precision)
        if state.loss_scale is not None:
            state = state.replace(loss_scale=LossScale(jnp.float32(LOSS_SCALE), jnp.int32(0)))
        self._state = replicate(state, devices)
        source = Input(lambda calls: iter(()), as_sent)
        self._step = build_steps.build_train_step(source, devices, settings)
        batch = {"image": problem.image, "label": problem.label}  # of one device, one step a call, one batch a step
        self._inputs = jax.device_put({name: array[None, None, None] for name, array in batch.items()}, devices.split)
        self._image = jax.device_put(problem.image, devices.local[0])

    def step(self) -> jax.Array:
        """Take an optimizer step; return the loss, on the device."""
        self._state, measures = self._step(self._state, self._inputs)
        return measures["loss"]

    def run(self, steps: int) -> None:
        """Take this many steps without waiting between them, then wait."""
        for _ in range(steps):
            self.step()
        jax.block_until_ready(self._state)

    def parameters(self) -> Parameters:
        """Return the current parameters as numpy arrays."""
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(self._state.params))
        return {tuple(key.key for key in path): array for path, array in leaves}

    def inference(self) -> tuple[Run, np.ndarray]:
        """Return a function that runs inference with BatchNorm folded, and its logits for the batch's images."""
        folded = fold_batch_norm(jax.device_get(self._state.variables), self._model)
        variables = jax.device_put(folded, self._machine.devices.local[0])
        model = self._model.clone(folded=True)

        @jax.jit
        def infer(variables, image):
            return model.apply(variables, normalize(image, TORCH, model.dtype), train=False)

        return self._machine.ours(infer, variables, self._image), np.asarray(infer(variables, self._image))
