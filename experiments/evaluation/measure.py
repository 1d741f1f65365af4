"""Measure gain and cost of test-time augmentation and ensembles, folds and calibration, on validation frames of CamVid.

SEGNET_JAX_CAMVID=DIR python experiments/evaluation/measure.py --runs runs/evaluation --machine "2 virtual CPU cores"

It trains two seeds on the tutorial's split, and two folds, with `config.toml` next to this file; the same command
resumes after an interruption. Writes `scores.json` to --out. The test split is never read for scores.
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys

import segnet_jax
from segnet_jax.reporting.environment import commit, versions

HERE = pathlib.Path(__file__).resolve().parent
SEEDS, FOLDS = (0, 1), 2
SCALES = (0.75, 1.0, 1.25)
VIEWS = {
    "plain": {},
    "flip": {"tta": "flip"},
    "3 scales": {"tta_scales": SCALES},
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument("--machine", required=True, help="description of the machine")
    parser.add_argument("--out", type=pathlib.Path, default=HERE, help="output folder")
    given = parser.parse_args()
    for seed in SEEDS:
        train("--seed", seed, "--run", given.runs / f"seed-{seed}")
    train("--folds", FOLDS, "--run", given.runs / "folds")
    result = collect(given.runs, given.machine)
    (given.out / "scores.json").write_text(json.dumps(result, indent=1) + "\n")
    print(as_table(result))


def collect(runs: pathlib.Path, machine: str) -> dict:
    """Evaluate the finished runs in a folder, and return what is stored."""
    names = [f"seed-{seed}" for seed in SEEDS]
    rows = [row(runs, view, [[name] for name in names], view) for view in VIEWS]
    rows += [row(runs, f"2 runs, {view}", [names], view) for view in ("plain", "flip")]
    return {
        "command": f'python experiments/evaluation/measure.py --runs RUNS --machine "{machine}"',
        "machine": machine,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "versions": versions(),
        "split": "val",
        "rows": rows,
        "folds": json.loads((runs / "folds" / "folds.json").read_text()),
        "calibration": [evaluate(runs, [name], "plain")["calibration"] for name in names],
    }


def train(*flags: object) -> None:
    """Train with the config and additional flags, or resume."""
    command = [sys.executable, "-m", "segnet_jax.train", "--config", HERE / "config.toml", *flags]
    subprocess.run(list(map(str, command)), check=True)


def evaluate(folder: pathlib.Path, names: list[str], view: str) -> dict:
    """Evaluate the mean of runs and return its result, or the result that is already stored in the folder.

    A single network without test-time augmentation is also calibrated.
    """
    path = folder / f"{'+'.join(names)}, {view}.json"
    if not path.exists():
        settings = VIEWS[view] | {"calibrate": view == "plain" and len(names) == 1}
        runs = [folder / name for name in names]
        segnet_jax.evaluate(runs, **settings, boundary=False, devices="1", json=str(path))
    return json.loads(path.read_text())


def row(folder: pathlib.Path, name: str, groups: list[list[str]], view: str) -> dict:
    """Evaluate groups of runs, each an ensemble of its members, and return the scores of each.

    The cost is the number of network pixels, relative to a single network on the plain image.
    """
    found = [evaluate(folder, group, view) for group in groups]
    flips = 2 if VIEWS[view].get("tta") == "flip" else 1
    return {
        "name": name,
        "cost": len(groups[0]) * flips * sum(scale**2 for scale in VIEWS[view].get("tta_scales", (1.0,))),
        **{key: [each[key] for each in found] for key in ("miou", "mean_dice", "global_accuracy", "loss", "seconds")},
        "num_images": found[0]["num_images"],
    }


def as_table(result: dict) -> str:
    """Format the results in Markdown: percent, and the mean over the seeds where there are several."""
    lines = ["| evaluated | mIoU of each | mean | gain | mean Dice | network pixels |", "|---|---|---|---|---|---|"]
    mean = {row["name"]: sum(row["miou"]) / len(row["miou"]) for row in result["rows"]}
    for row in result["rows"]:
        each = ", ".join(f"{100 * miou:.1f}" for miou in row["miou"])
        gain = 100 * (mean[row["name"]] - mean["plain"])
        dice = 100 * sum(row["mean_dice"]) / len(row["mean_dice"])
        cells = [
            row["name"],
            each,
            f"{100 * mean[row['name']]:.1f}",
            f"{gain:+.1f}",
            f"{dice:.1f}",
            f"{row['cost']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    folds = result["folds"]
    each = ", ".join(f"{100 * one['miou']:.1f}" for one in folds["folds"].values())
    values = f"{100 * folds['mean']['miou']:.1f} ± {100 * folds['deviation']['miou']:.1f}"
    dice = f"{100 * folds['mean']['mean_dice']:.1f}"
    lines.append(f"| {len(folds['folds'])} folds, plain | {each} | {values} | - | {dice} | 1.00 |")
    lines += ["", "| run | temperature | calibration error before | after |", "|---|---|---|---|"]
    for seed, fitted in zip(SEEDS, result["calibration"], strict=True):
        error = fitted["calibration_error"]
        cells = [f"seed {seed}", f"{fitted['temperature']:.3f}"]
        cells += [f"{100 * error[when]:.1f}" for when in ("before", "after")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
