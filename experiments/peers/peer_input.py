"""Measure the throughput of the host's training batches, with the same augmentation parameters and no consumer."""

import contextlib
import itertools
import os
import pathlib
import tempfile
from collections.abc import Iterator

import torch_loader
from side_by_side import Checks, Comparison, take_turns

from segnet_jax.data.camvid.find_folder import CAMVID_VARIABLE
from segnet_jax.data.input_pipeline import tf_data
from segnet_jax.data.input_pipeline.cache import open_cached
from segnet_jax.data.input_pipeline.sampler import Sampler
from segnet_jax.data.layouts.camvid import tutorial
from segnet_jax.data.synthetic.street_scenes import street_scenes, write_tutorial_layout
from segnet_jax.system.files import cache_folder

NUM_CHECKED = 4  # batches
OUR_TURNS_ARE_LONGER = 8  # times, as they are shorter
REST = 0.5  # seconds; by then, the previous side has prefetched its batches and its workers sleep
NUM_SCENES = 64


def compare(
    folder: pathlib.Path, batch_size: int, image_size: tuple[int, int], workers: int, *, rounds: int, steps: int | None
) -> Comparison:
    """Compare the first batches bit for bit, then time both sides.

    Args:
      folder: CamVid in the tutorial's layout.
      batch_size: images per batch.
      image_size: height and width to resize to.
      workers: number of processes of PyTorch's loader.
      rounds: turns of each side.
      steps: batches in each of PyTorch's turns; None for an epoch.

    Raises:
      UnequalError: If the batches differ.
    """
    samples = open_cached(tutorial(folder).splits["train"], image_size, cache_folder())
    sampler = Sampler(len(samples), batch_size, seed=0, flip=True, shift=10)
    steps = steps or sampler.steps_per_epoch
    ours = tf_data.training_batches(samples, sampler, tf_data.BatchShard(1, 0, 1, batch_size), 1, range(10**9))
    dataset = torch_loader.CamVid(folder, image_size)
    theirs = iter(torch_loader.loader(dataset, draws(sampler), workers))
    checks = Checks()
    for number in range(NUM_CHECKED):
        our, their = next(ours), next(theirs)
        for name, array in zip(("image", "label"), their, strict=True):
            checks.close(f"{name}s of batch {number}", our[name][0, 0], array.numpy(), tolerance=0.0)

    times = take_turns(
        {"ours": lambda steps: take(ours, steps), "PyTorch": lambda steps: take(theirs, steps)},
        rounds=rounds,
        steps={"ours": OUR_TURNS_ARE_LONGER * steps, "PyTorch": steps},
        lead=4 * max(workers, 1),  # twice what its workers make ahead
        rest=REST,
    )
    ours.close()
    return Comparison(f"batches of {batch_size}", batch_size, times, checks)


def take(batches: Iterator, steps: int) -> None:
    """Take this many batches."""
    for _ in range(steps):
        next(batches)


def draws(sampler: Sampler) -> Iterator[list[torch_loader.Draw]]:
    """Yield the augmentation parameters of each step, in the form that PyTorch's loader passes to its workers."""
    for step in itertools.count():
        draw = sampler.batch(step)
        columns = (draw.index, draw.flip, draw.shift_y, draw.shift_x)
        yield list(zip(*(column.tolist() for column in columns), strict=True))


@contextlib.contextmanager
def camvid(data: str, image_size: tuple[int, int]) -> Iterator[tuple[pathlib.Path, str]]:
    """Return the folder of CamVid's training frames, or else of rendered scenes, and its description.

    Args:
      data: folder, or "" for $SEGNET_JAX_CAMVID or `../shared/camvid`.
      image_size: size of rendered scenes.
    """
    beside = pathlib.Path(__file__).resolve().parents[3] / "shared" / "camvid"
    folder = pathlib.Path(data or os.environ.get(CAMVID_VARIABLE, beside))
    if data or (folder / "train.txt").is_file():
        yield folder, "the training images of a folder" if data else "CamVid's training frames"
        return
    with tempfile.TemporaryDirectory() as rendered:
        write_tutorial_layout(street_scenes(NUM_SCENES, 1, *image_size, seed=0), rendered)
        yield pathlib.Path(rendered), f"{NUM_SCENES} rendered scenes"
