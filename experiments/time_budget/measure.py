"""Estimate how long 100 epochs of CamVid take on one H200, part by part.

    python experiments/time_budget/measure.py --data DIR --machine "2 cores of ..."

What the host does is measured here: imports, decoding, checkpoints, pictures, report, boundary F1. What the GPU does
is calculated from the programs compiled for it (`experiments/portability/compiled`). Writes budget.json beside this
file and prints the table of README.md.
"""

import argparse
import dataclasses
import datetime
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

HERE = pathlib.Path(__file__).parent
RECIPE = HERE.parent / "h200" / "config.toml"
PROGRAMS = HERE.parent / "portability" / "compiled" / "h200-1x16-bfloat16.json"
EPOCHS, HEIGHT, WIDTH = 100, 360, 480
HOST_CORES = 16  # of a machine with one H200; decoding and boundary F1 use all cores


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CamVid")
    parser.add_argument("--machine", required=True, help="description of this machine")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEGNET_JAX_CACHE"] = folder  # nothing is cached yet
        measured = measure(given.data, pathlib.Path(folder))
    programs = json.loads(PROGRAMS.read_text())["programs"]
    counts = {"train_images": measured.pop("train_images"), "val_images": measured.pop("val_images")}
    origin = {
        "command": "python experiments/time_budget/measure.py --data DIR --machine MACHINE",
        "machine": given.machine,
        "cores": len(os.sched_getaffinity(0)),
        "date": datetime.date.today().isoformat(),
    }
    result = origin | counts | {"measured": measured}
    result["budget"] = budget(result, programs)
    (HERE / "budget.json").write_text(json.dumps(result, indent=2) + "\n")
    print(as_markdown(result))


def measure(data: str, folder: pathlib.Path) -> dict[str, float]:
    """Return the seconds that each part takes on this host, and the numbers of images.

    Args:
      data: CamVid's folder.
      folder: an empty folder for caches, checkpoints and pictures.
    """
    command = [sys.executable, "-c", "import segnet_jax.runs.trainer"]
    imports = [timed(subprocess.run, command, check=True)[0] for _ in range(4)][1:]  # the first compiles bytecode

    import numpy as np

    from segnet_jax.config.fields import Config
    from segnet_jax.config.files import read_config
    from segnet_jax.constants import VOID
    from segnet_jax.metrics.boundary_matching import count_pairs
    from segnet_jax.nn.preprocessing import TORCH
    from segnet_jax.reporting.figures import prediction_pictures
    from segnet_jax.reporting.page.render import write_report
    from segnet_jax.reporting.training_plot import training_plot
    from segnet_jax.runs import setup as runs_setup
    from segnet_jax.training.checkpoints import Checkpoints

    on_cpu = {"precision": "float32", "input": "host", "steps_per_dispatch": 1}
    config = dataclasses.replace(read_config(RECIPE, Config()), data=data, image_size=(HEIGHT, WIDTH), **on_cpu)
    opening, setup = timed(runs_setup.resolve, config)
    weights = np.ones(len(setup.dataset.classes.names), np.float32)
    decoding, setup = timed(runs_setup.load_data, setup, TORCH, weights)

    state = setup.initial_state(None)
    with Checkpoints(folder / "checkpoints", setup.devices) as checkpoints:
        checkpoints.save("newest", 1, state, {"step": 1})  # the first also starts Orbax' threads
        checkpoints.wait()
        blocked = timed(checkpoints.save, "newest", 2, state, {"step": 2})[0]
        writing = timed(checkpoints.wait)[0]

    images, labels = zip(*(setup.eval_samples.read(index) for index in range(8)), strict=True)
    # Predictions of labels moved by two pixels: boundaries that mostly, but not all, lie within the tolerance.
    moved = [np.roll(label % VOID, (2, 2), (0, 1)) for label in labels]
    num_classes = len(setup.dataset.classes.names)
    boundary = [timed(count_pairs, *pair, num_classes)[0] for pair in zip(labels, moved, strict=True)]
    names = [f"image {index}" for index in range(4)]
    shown = np.stack(images[:4]), np.stack(labels[:4]), np.stack(moved[:4])
    pictures = timed(prediction_pictures, *shown, names, setup.dataset.classes, folder / "samples", 1, "val")[0]
    rows = [{"kind": "train", "step": step, "loss": 1 / step, "accuracy": 0.5} for step in range(1, 2301)]
    plot_about = {"steps_per_epoch": 23, "title": "time budget"}
    plot = timed(training_plot, rows, folder / "progress.png", **plot_about)[0]
    report = timed(write_report, demo_run(folder))[0]
    return {
        "train_images": len(setup.train_split),
        "val_images": len(setup.eval_split),
        "imports": statistics.median(imports),
        "opening the dataset": opening,
        "decoding, all cores": decoding,
        "a checkpoint, training waits": blocked,
        "a checkpoint, written beside training": writing,
        "boundary F1 of an image, one core": statistics.median(boundary),
        "sample pictures": pictures,
        "progress.png": plot,
        "report.html": report,
    }


def timed(function, *arguments, **named):
    """Return the seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = function(*arguments, **named)
    return time.perf_counter() - start, result


def demo_run(folder: pathlib.Path) -> pathlib.Path:
    """Copy the demo's finished run, whose metrics are stored compressed, to a run folder in `folder`."""
    import gzip
    import shutil

    run = folder / "demo"
    shutil.copytree(HERE.parent / "demo" / "run", run)
    packed = run / "metrics.jsonl.gz"
    (run / "metrics.jsonl").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    return run


def budget(result: dict, programs: dict) -> list[dict]:
    """Return the parts of the run in order: name, seconds at the lower and higher efficiency, and their origin.

    Args:
      result: the measured seconds, the number of cores, and the numbers of images.
      programs: the compiled programs of the training, evaluation and inference steps.
    """
    seconds, cores = result["measured"], result["cores"] / HOST_CORES
    evaluations = EPOCHS // 10
    rates = {
        name: [each["images_per_second"] for each in programs[name]["limit"]["at_efficiencies"]]
        for name in ("train", "evaluate")
    }
    images = {"train": EPOCHS * result["train_images"], "evaluate": (evaluations + 1) * result["val_images"]}
    steps, scoring = ([images[name] / rate for rate in sorted(rates[name])] for name in ("train", "evaluate"))
    matching = result["val_images"] * seconds["boundary F1 of an image, one core"] / HOST_CORES
    compiling = sum(programs[name]["compile_seconds"] for name in ("train", "evaluate"))
    host = "measured"
    return [
        part("imports", seconds["imports"], host),
        part("opening the dataset", seconds["opening the dataset"], host),
        part("decoding", seconds["decoding, all cores"] * cores, f"measured, scaled to {HOST_CORES} cores"),
        part("compiling, without a cache", compiling, "compiled on two busy cores, without autotuning", counted=False),
        part(f"steps of {EPOCHS} epochs", steps, "calculated from the program"),
        part(f"{evaluations + 1} evaluations", scoring, "calculated from the program"),
        part("checkpoints, training waits", (evaluations + 1) * seconds["a checkpoint, training waits"], host),
        part("boundary F1 of the result", matching, f"measured, scaled to {HOST_CORES} cores"),
        part("last checkpoint, pictures and report", last_files(seconds), host),
    ]


def last_files(seconds: dict[str, float]) -> float:
    """Return the seconds of what is written after the last step; earlier files are written beside the steps."""
    names = ("a checkpoint, written beside training", "sample pictures", "progress.png", "report.html")
    return sum(seconds[name] for name in names)


def part(name: str, seconds: float | list[float], origin: str, counted: bool = True) -> dict:
    """Return one part of the budget; seconds are those at the lower and the higher efficiency, or the same."""
    slow, fast = seconds if isinstance(seconds, list) else (seconds, seconds)
    return {"part": name, "seconds": [round(slow, 2), round(fast, 2)], "origin": origin, "counted": counted}


def total(parts: list[dict]) -> list[float]:
    """Return the sums of the counted parts at the lower and the higher efficiency."""
    return [round(math.fsum(each["seconds"][side] for each in parts if each["counted"]), 1) for side in (0, 1)]


def as_markdown(result: dict) -> str:
    """Return the budget as a Markdown table."""
    lines = ["| part | seconds | origin |", "|---|---:|---|"]
    for each in result["budget"]:
        slow, fast = each["seconds"]
        shown = f"{slow:.1f}" if slow == fast else f"{fast:.1f} to {slow:.1f}"
        lines.append(f"| {each['part']} | {shown} | {each['origin']} |")
    slow, fast = total(result["budget"])
    lines.append(f"| **sum without compiling** | **{fast:.0f} to {slow:.0f}** | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
