"""Learning-rate schedules: functions from the step to the learning rate."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

Schedule = Literal["constant", "step", "poly", "cosine", "one-cycle", "plateau"]

ONE_CYCLE_RISE = 0.3  # fraction of the steps
ONE_CYCLE_START, ONE_CYCLE_END = 25.0, 1e4  # peak / first rate, first rate / last rate


def learning_rate_schedule(
    schedule: Schedule,
    *,
    peak: float,
    total_steps: int,
    warmup_steps: int = 0,
    drop_every: int = 1,
    drop_factor: float = 0.1,
    power: float = 0.9,
) -> optax.Schedule:
    """Return the learning rate as a function of the step.

    Args:
      schedule: "constant"; "step": multiply by `drop_factor` every `drop_every` steps; "poly": the remaining fraction
        of the steps to the `power`; "cosine": cosine decay to 0; "one-cycle": see `one_cycle`; "plateau": constant,
        because the optimizer itself reduces it (see `plateau`).
      peak: the peak learning rate.
      total_steps: total number of steps, including the warm-up.
      warmup_steps: steps of linear warm-up before the schedule starts; for "one-cycle", steps of the rise.
      drop_every: steps between drops, for "step".
      drop_factor: factor of each drop, for "step".
      power: exponent, for "poly".
    """
    if schedule == "one-cycle":
        return one_cycle(peak, total_steps, warmup_steps)
    remaining = max(total_steps - warmup_steps, 1)
    after_warmup = {
        "constant": optax.constant_schedule(peak),
        "step": optax.exponential_decay(peak, drop_every, drop_factor, staircase=True),
        "poly": optax.polynomial_schedule(peak, 0.0, power, remaining),
        "cosine": optax.cosine_decay_schedule(peak, remaining),
        "plateau": optax.constant_schedule(peak),
    }[schedule]
    if not warmup_steps:
        return after_warmup
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(warmup_steps - 1, 1))  # 0 would waste a step
    return optax.join_schedules([warmup, after_warmup], [warmup_steps])


def one_cycle(peak: float, total_steps: int, rise_steps: int = 0) -> optax.Schedule:
    """Return a cosine rise from peak / 25 to the peak and a cosine decay to peak / 250,000 at the last step.

    The rise takes `rise_steps` steps; 0 stands for 30 % of all steps.

    Source: Smith & Topin 2018 (arXiv 1708.07120), with the values of `torch.optim.lr_scheduler.OneCycleLR`.
    """
    start = peak / ONE_CYCLE_START
    end = start / ONE_CYCLE_END
    top = max((rise_steps or ONE_CYCLE_RISE * total_steps) - 1, 1e-6)  # the step with the peak
    fall = max(total_steps - 1 - top, 1e-6)

    def between(first: float, last: float, fraction: jax.Array) -> jax.Array:
        return last + (first - last) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(fraction, 0, 1)))

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        return jnp.where(step <= top, between(start, peak, step / top), between(peak, end, (step - top) / fall))

    return schedule


def constant_from(schedule: optax.Schedule, first_step: int, rate: float = 0.0) -> optax.Schedule:
    """Hold a schedule constant from `first_step` on: at `rate` or, if that is 0, at its rate at that step."""

    def constant(step):
        return jnp.where(step < first_step, schedule(step), rate or schedule(first_step))

    return constant


def exponential_range(first: float, last: float, num_steps: int) -> optax.Schedule:
    """Return a schedule that grows exponentially from `first` to `last` over `num_steps` steps."""

    def schedule(step):
        return first * (last / first) ** (jnp.asarray(step, jnp.float32) / max(num_steps - 1, 1))

    return schedule
