"""What `environment.json` and `result.json` of a run folder say."""

import collections
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence

from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.metrics.boundary import BoundaryF1
from segnet_jax.metrics.confusion import Scores
from segnet_jax.system.files import plain

_LIBRARIES = ("segnet_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment(devices: Sequence[str] = ()) -> dict:
    """Describes what a run runs on, without paths, names of hosts or of users.

    Args:
      devices: the kind of each device in use, such as eight times "Tesla V100-SXM2-16GB".

    Returns:
      python, platform, num_cpus, devices (kind -> count), versions (library -> version) and commit.
    """
    assert not isinstance(devices, str), f"one kind for each device, not {devices!r}"  # its letters would be counted
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "devices": dict(collections.Counter(devices)),
        "versions": versions(),
        "commit": commit(),
    }


def versions() -> dict[str, str]:
    """Versions of ours and of the libraries that the numbers depend on; what is not installed is left out."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of the checkout that the package lies in, with "-dirty" after local changes; None outside one."""
    checkout = pathlib.Path(__file__).parents[2]
    if not (checkout / ".git").exists():  # else git would name the repository around an installed package
        return None

    def git(*command: str) -> str:
        # Not `describe --dirty`, which writes to git's index whatever one says; we only look.
        return subprocess.run(
            ["git", "--no-optional-locks", "-C", str(checkout), *command],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        return f"{head}-dirty" if git("status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):
        return None


def result(
    scores: Scores,
    classes: ClassTable,
    *,
    protocol: str,
    split: str,
    num_images: int,
    seconds: float,
    images_per_second: float,
    device: str,
    seed: int,
    boundary_f1: BoundaryF1 | None = None,
) -> dict:
    """Builds the content of `result.json`: the scores of one split and all that is needed to obtain them again.

    Args:
      scores: of the whole split.
      classes: names for the scores of each class.
      protocol: name of the published recipe, or "custom".
      split: "train", "val" or "test".
      num_images: images evaluated.
      seconds: wall time of what is reported, a whole training or an evaluation.
      images_per_second: its speed.
      device: such as "8 x Tesla V100-SXM2-16GB".
      seed: the run's.
      boundary_f1: left out where it was not measured.

    Returns:
      A dict that is valid JSON as it is: the score of a class without ground truth is None.
    """
    per_class = {
        name: {"iou": iou, "accuracy": accuracy, "pixels": pixels}
        for name, iou, accuracy, pixels in zip(classes.names, scores.iou, scores.accuracy, scores.pixels, strict=True)
    }
    measured = {}
    if boundary_f1 is not None:
        measured = {"boundary_f1": {"paper": boundary_f1.paper, "script": boundary_f1.script}}
        both = zip(boundary_f1.paper_classes, boundary_f1.script_classes, strict=True)
        for row, (paper, script) in zip(per_class.values(), both, strict=True):
            row["boundary_f1"] = {"paper": paper, "script": script}
    return plain(
        {
            "protocol": protocol,
            "split": split,
            "num_images": num_images,
            "miou": scores.miou,
            "mean_accuracy": scores.mean_accuracy,
            "global_accuracy": scores.global_accuracy,
            "weighted_iou": scores.weighted_iou,
            **measured,
            "per_class": per_class,
            "images_per_second": images_per_second,
            "seconds": seconds,
            "device": device,
            "versions": versions(),
            "seed": seed,
            "commit": commit(),
        }
    )
