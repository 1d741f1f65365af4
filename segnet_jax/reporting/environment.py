"""The contents of `environment.json` and `result.json` in a run folder."""

import collections
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence

import segnet_jax
from segnet_jax.data.labels.classes import ClassTable
from segnet_jax.metrics.boundary import BoundaryF1
from segnet_jax.metrics.confusion import Scores
from segnet_jax.system.files import plain

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment(devices: Sequence[str] = ()) -> dict:
    """Describe hardware and software, without paths, host names or user names.

    Args:
      devices: the kind of each device in use, such as 8 x "Tesla V100-SXM2-16GB".

    Returns:
      python, platform, num_cpus, devices (kind -> count), versions (library -> version) and commit.
    """
    assert not isinstance(devices, str), f"expected one kind per device, got the string {devices!r}"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "devices": dict(collections.Counter(devices)),
        "versions": versions(),
        "commit": commit(),
    }


def versions() -> dict[str, str]:
    """Return the versions of segnet_jax and of the installed libraries that affect its numbers."""
    installed = {"segnet_jax": segnet_jax.__version__}  # of the running code, which need not be installed
    for name in _LIBRARIES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def commit() -> str | None:
    """Return the git commit of the checkout, with "-dirty" after local changes, or None outside a checkout."""
    checkout = pathlib.Path(__file__).parents[2]
    if not (checkout / ".git").exists():  # git would use the repository around an installed package
        return None

    def git(*command: str) -> str:
        # Not `describe --dirty`, which always writes to the git index.
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
    """Build the content of `result.json`: the scores of a split, and the facts needed to reproduce them.

    Args:
      scores: scores of the whole split.
      classes: class names.
      protocol: name of the protocol, or "custom".
      split: "train", "val" or "test".
      num_images: images evaluated.
      seconds: wall time of the training or evaluation.
      images_per_second: throughput.
      device: such as "8 x Tesla V100-SXM2-16GB".
      seed: random seed of the run.
      boundary_f1: None if it was not computed.

    Returns:
      A JSON-compatible dict, with None as the score of a class without ground truth.
    """
    per_class = {
        name: {key: values[class_id] for key, values in scores.per_class.items()} | {"pixels": scores.pixels[class_id]}
        for class_id, name in enumerate(classes.names)
    }
    boundary = {}
    if boundary_f1 is not None:
        boundary = {"boundary_f1": {"paper": boundary_f1.paper, "script": boundary_f1.script}}
        both = zip(boundary_f1.paper_classes, boundary_f1.script_classes, strict=True)
        for row, (paper, script) in zip(per_class.values(), both, strict=True):
            row["boundary_f1"] = {"paper": paper, "script": script}
    return plain(
        {
            "protocol": protocol,
            "split": split,
            "num_images": num_images,
            **scores.values,
            **boundary,
            "per_class": per_class,
            "images_per_second": images_per_second,
            "seconds": seconds,
            "device": device,
            "versions": versions(),
            "seed": seed,
            "commit": commit(),
        }
    )
