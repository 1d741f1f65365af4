"""Compare float32, bfloat16 and float16 training: speed, memory, score and loss scale.

python experiments/precision/measure.py --machine "2 cores of an AMD EPYC, no GPU"

Other flags are passed to training, such as --protocol camvid-tutorial --data DIR on a GPU or TPU; without any, the runs
use `config.toml` next to this file. Writes `precisions.json` and `precisions.png` to --out.
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
PRECISIONS = ("float32", "bfloat16", "float16")
_SHAPE = ("image_size", "width", "depth", "batch_size_per_device")  # config fields that the benchmark has too
_COLORS = ("#1a1a1a", "#0a6ebd", "#d1520f")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", required=True, help="description of the machine")
    parser.add_argument("--out", type=pathlib.Path, default=HERE, help="output folder")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--steps", default="4", help="steps per timed round of the benchmark")
    given, more = parser.parse_known_args()
    flags = more or ["--config", str(HERE / "config.toml")]
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as runs:
        found = {
            precision: measure(pathlib.Path(runs) / precision, precision, flags, given.steps)
            for precision in given.precisions
        }
    shown = [part if " " not in part else f'"{part}"' for part in sys.argv[1:]]
    result = {
        "command": " ".join(["python experiments/precision/measure.py", *shown]),
        "machine": given.machine,
        "date": datetime.date.today().isoformat(),
        "precisions": found,
    }
    (given.out / "precisions.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(found, given.machine, given.out / "precisions.png")
    print(as_table(found))


def measure(run: pathlib.Path, precision: str, flags: list[str], steps: str) -> dict:
    """Train in one precision, then measure the time and memory of a step."""
    train = [sys.executable, "-m", "segnet_jax.train", *flags, "--precision", precision, "--run", str(run)]
    subprocess.run(train, check=True)
    result = json.loads((run / "result.json").read_text())
    config = dict(line.split(" = ", 1) for line in (run / "config.toml").read_text().splitlines())
    shape = [part for name in _SHAPE for part in (f"--{name.replace('_', '-')}", *_words(config[name]))]
    file = run / "benchmark.json"
    benchmark = ["segnet_jax.benchmark", "train", *shape, "--precision", precision, "--devices", "1"]
    subprocess.run(
        [sys.executable, "-m", *benchmark, "--steps", steps, "--rounds", "3", "--json", str(file)], check=True
    )
    speed = json.loads(file.read_text())["train"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps_taken, scored = ([line for line in lines if line["kind"] == kind] for kind in ("train", "val"))
    kept = ("ms_per_step", "images_per_second", "fraction_of_peak", "fraction_of_roofline", "peak_memory_mb")
    return {
        "miou": result["miou"],
        "last_miou": result["last_miou"],
        "num_steps": result["num_steps"],
        "skipped_steps": int(steps_taken[-1]["skipped"]),
        **{name: speed[name] for name in (*kept, "program_memory_mb", "compile_seconds")},
        "device": result["device"],
        "versions": result["versions"],
        "commit": result["commit"],
        "step": [line["step"] for line in steps_taken],
        "loss": [round(line["loss"], 5) for line in steps_taken],
        "loss_scale": [line["loss_scale"] for line in steps_taken if "loss_scale" in line],
        "scored": [[line["step"], line["miou"]] for line in scored],
    }


def _words(toml: str) -> list[str]:
    """Return a number, or a list of numbers, from a run's config."""
    return [part.strip() for part in toml.strip("[]").split(",")]


def as_table(found: dict[str, dict]) -> str:
    """Format the results in Markdown."""
    lines = [
        "| precision | mIoU, last step | ms a step | program memory, MB | skipped steps |",
        "|---|---|---|---|---|",
    ]
    for name, one in found.items():
        cells = [f"{100 * one['last_miou']:.1f}", f"{one['ms_per_step']:,.4g}", f"{one['program_memory_mb']:,.4g}"]
        lines.append(f"| {' | '.join([name, *cells, str(one['skipped_steps'])])} |")
    return "\n".join(lines)


def draw(found: dict[str, dict], machine: str, path: pathlib.Path) -> None:
    """Plot loss, score and loss scale over the steps, one line per precision."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    loss, score, scale = figure.subplots(1, 3)
    for (name, one), color in zip(found.items(), _COLORS, strict=False):
        loss.plot(one["step"], one["loss"], color=color, linewidth=1, label=name)
        score.plot(*zip(*one["scored"], strict=True), color=color, marker="o", markersize=3, label=name)
        if one["loss_scale"]:
            scale.step(one["step"], one["loss_scale"], where="post", color=color, label=name)
    scale.set_yscale("log", base=2)
    for axes, title in ((loss, "loss"), (score, "mIoU, validation"), (scale, "loss scale")):
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(color="#d9d9de", linewidth=0.6)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    figure.suptitle(f"SegNet in three precisions, {machine}", fontsize=11)
    figure.savefig(path)


if __name__ == "__main__":
    main()
