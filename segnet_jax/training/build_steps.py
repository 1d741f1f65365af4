"""Build the training step and the evaluation of a split, mapped over the devices."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from segnet_jax.data.dataset import evenly_spaced
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.distributed.data_parallel import AheadOfTime, Devices, parallel_eval_step, parallel_train_step, prefetch
from segnet_jax.training.evaluation import Evaluation, evaluate
from segnet_jax.training.step_inputs import Input
from segnet_jax.training.step_settings import StepSettings
from segnet_jax.training.steps import eval_step, train_steps

NUM_PICTURES = 6


def build_train_step(source: Input, devices: Devices, settings: StepSettings) -> AheadOfTime:
    """Return a function (state, inputs) -> (state, metrics) that runs the steps of one dispatch on all devices."""
    step = partial(train_steps, make_batch=source.make_batch, settings=settings)
    mapped = parallel_train_step(step, devices, source.store_axis)
    return AheadOfTime(mapped, "the training step", devices, source.store)


def build_evaluator(
    source: Input,
    num_samples: int,
    shard: tf_data.BatchShard,
    devices: Devices,
    settings: StepSettings,
    forward: Callable | None = None,
) -> Callable[..., Evaluation | None]:
    """Return a function (variables, should_stop, on_prediction) -> Evaluation of a whole split, compiled once.

    The scores do not depend on `shard`, this process's shard of each batch. See `eval_step` for `forward`.
    """
    step = partial(eval_step, make_batch=source.make_batch, settings=settings, forward=forward)
    mapped = parallel_eval_step(step, devices, source.store_axis)
    score = AheadOfTime(mapped, "the evaluation step", devices, source.store)
    mean_loss = partial(settings.loss.mean, class_weights=settings.class_weights)

    def run(
        variables: dict,
        should_stop: Callable[[], bool] = lambda: False,
        on_prediction: Callable[[int, np.ndarray], None] | None = None,
    ) -> Evaluation | None:
        num_steps = tf_data.num_evaluation_steps(num_samples, shard)
        all_devices = dataclasses.replace(shard, first_device=0, num_local_devices=shard.num_devices)
        start, compile_seconds = time.monotonic(), score.seconds
        evaluation = evaluate(
            score,
            variables,
            prefetch(source.inputs(), devices),
            [tf_data.evaluation_indices(num_samples, all_devices, number) for number in range(num_steps)],
            first_device=shard.first_device,
            keep=evenly_spaced(NUM_PICTURES, num_samples),
            num_worst=NUM_PICTURES,
            mean_loss=mean_loss,
            on_prediction=on_prediction,
            should_stop=should_stop,
        )
        seconds = time.monotonic() - start - (score.seconds - compile_seconds)
        return evaluation and dataclasses.replace(evaluation, seconds=seconds)

    return run
