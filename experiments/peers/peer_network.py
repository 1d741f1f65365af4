"""Compare the whole network: a training step and inference."""

import gc

import numpy as np
import torch
from machine import Machine, Run
from our_training import OurTraining
from problem import Problem
from side_by_side import Checks, Comparison, take_turns
from torch_training import TorchTraining

NUM_CHECKED_STEPS = 2  # with the second, momentum counts
EXACT = {"logits": 0.02, "losses": 1e-4, "change of the parameters": 4e-3}
ROUGH = {"logits": 0.7, "losses": 0.02, "change of the parameters": 0.7}
"""Tolerance of our outputs relative to PyTorch's: norm of the difference over the norm of PyTorch's.

Rounding moves a maximum to another pixel of its window, and all later layers see a different image. At full size,
PyTorch's own logits with separate and with fused BatchNorm differ by 0.006 in float32, and by a third in bfloat16.
Hence for 16 bits, and for a GPU's TF32, equality is first checked in float32; the timed form is compared only roughly.
"""

Sides = dict[str, Run]


def compare(problem: Problem, machine: Machine, *, rounds: int, steps: int) -> list[Comparison]:
    """Compare outputs, then time the training step and inference.

    Raises:
      UnequalError: If the sides do not compute the same.
    """
    training, inference, checks = equal_sides(problem, machine)
    images = len(problem.image)
    return [
        Comparison(f"training step, batch {images}", images, take_turns(training, rounds=rounds, steps=steps), checks),
        Comparison(f"inference, batch {images}", images, take_turns(inference, rounds=rounds, steps=steps), checks),
    ]


def equal_sides(problem: Problem, machine: Machine) -> tuple[Sides, Sides, Checks]:
    """Return the sides of the training step and of inference, after comparing their outputs.

    Raises:
      UnequalError: If the sides do not compute the same.
    """
    checks = Checks()
    if machine.is_exact:
        return *_hold(problem, machine, EXACT, checks), checks
    with machine.exactly() as exact:
        _hold(problem, exact, EXACT, checks, " in float32")
    gc.collect()
    if not machine.is_cpu:
        torch.cuda.empty_cache()  # for JAX
    return *_hold(problem, machine, ROUGH, checks), checks


def _hold(
    problem: Problem, machine: Machine, tolerances: dict[str, float], checks: Checks, where: str = ""
) -> tuple[Sides, Sides]:
    ours, theirs = OurTraining(problem, machine), TorchTraining(problem, machine)
    infer, logits = ours.inference()
    inference = {"ours": infer}
    for name, fused in (("PyTorch", False), ("PyTorch, fused", True)):
        inference[name], expected = theirs.inference(fused)
        checks.close(f"logits{where}, {name}", logits, expected, tolerances["logits"])
    before = ours.parameters()
    losses = np.array([[np.asarray(ours.step()).item(), theirs.step().item()] for _ in range(NUM_CHECKED_STEPS)])
    checks.close(f"losses{where}", *losses.T, tolerances["losses"])
    our_change, their_change = (
        np.concatenate([(after[name] - array).ravel() for name, array in before.items()])
        for after in (ours.parameters(), theirs.parameters())
    )
    what = "change of the parameters"
    checks.close(f"{what} by {NUM_CHECKED_STEPS} steps{where}", our_change, their_change, tolerances[what])
    return {"ours": ours.run, "PyTorch": theirs.run}, inference
