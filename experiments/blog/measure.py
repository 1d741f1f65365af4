"""Compare the article's two figures with ours: 100 epochs of SegNet on 1..N devices, extrapolated from a few steps.

python experiments/blog/measure.py --devices 1 2 4 8

Each number of devices is measured by `python -m segnet_jax.benchmark train` in a separate process, with the input path
used in training. Without a GPU, use `--fake-devices 2 --devices 1 2 --scaled-down`: it shows that the command works,
but its times are not comparable. Writes times.json and times.png next to this file, or to --out.
"""

import argparse
import datetime
import io
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from segnet_jax.config.fields import Config
from segnet_jax.config.files import read_config
from segnet_jax.data.camvid_frames import split_names
from segnet_jax.system.command import run_command
from segnet_jax.system.errors import UserError
from segnet_jax.system.files import atomic_write_bytes, atomic_write_json, check_place

HERE = pathlib.Path(__file__).resolve().parent
ARTICLE = {
    "what": "MATLAB, SegNet on CamVid, 100 epochs, 4 images a GPU (NVIDIA article of 2018)",
    "minutes": {"1": 121, "8": 37},
    "device": {"1": "1 x V100 (p3.2xlarge)", "8": "8 x V100 (p3.16xlarge)"},
    "speed_up": 121 / 37,
    "speed_up_as_quoted": 3.25,
}
SCALED_DOWN = ("--image-size", "48", "64", "--width", "0.25", "--depth", "3")
HOW = (
    "extrapolated: 100 epochs times the whole steps of an epoch times the median time of a step with its input; "
    "compiling, evaluation and checkpoints are left out, and so are BatchNorm after the last convolution and class "
    "weights, which cost next to nothing"
)


def measure(devices: int, given: argparse.Namespace) -> dict[str, Any]:
    """Measure some training steps on this many devices.

    Raises:
      UserError: If the benchmark failed; the message includes its error.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "benchmark.json"
        command = [sys.executable, "-m", "segnet_jax.benchmark", "train", "--devices", str(devices)]
        command += ["--batch-size-per-device", str(given.batch_size_per_device), "--precision", given.precision]
        command += ["--steps", str(given.steps), "--rounds", str(given.rounds), "--json", str(path)]
        command += ["--fake-devices", str(given.fake_devices)] if given.fake_devices else []
        command += SCALED_DOWN if given.scaled_down else []
        done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"the benchmark on {devices} devices failed: {last.removeprefix('error: ')}")
        return json.loads(path.read_text(encoding="utf-8"))


def row(devices: int, measured: dict[str, Any], num_images: int, epochs: int) -> dict[str, Any]:
    """Extrapolate the time of the whole training run.

    Args:
      devices: number of devices.
      measured: output of `benchmark train --json`.
      num_images: images per epoch.
      epochs: epochs of the run.
    """
    batch = devices * measured["batch_size_per_device"]
    steps, rate = epochs * (num_images // batch), measured["train"]["images_per_second_with_input"]
    return {
        "devices": devices,
        "device": measured["device"],
        "precision": measured["precision"],
        "image_size": measured["image_size"],
        "width": measured["width"],
        "depth": measured["depth"],
        "global_batch_size": batch,
        "steps": steps,
        "images_per_second": rate,
        "ms_per_step_spread": [measured["train"]["ms_per_step_min"], measured["train"]["ms_per_step_max"]],
        "minutes": steps * batch / rate / 60,
    }


def result(rows: list[dict[str, Any]], environment: dict[str, Any], *, comparable: bool, how: str) -> dict[str, Any]:
    """Return the content of times.json."""
    for each in rows:
        each["speed_up"] = rows[0]["minutes"] / each["minutes"] if rows[0]["devices"] == 1 else None
    note = "the published size on accelerators" if comparable else "NOT COMPARABLE: a CPU, or scaled down"
    return {
        "command": " ".join(["python experiments/blog/measure.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "comparable": comparable,
        "note": note,
        "how": how,
        "article": ARTICLE,
        "ours": rows,
        "environment": environment,
    }


def draw(measured: dict[str, Any]) -> bytes:
    """Plot minutes and speed-up of the article and of our runs as PNG; on one scale only if they are comparable."""
    from matplotlib.figure import Figure

    comparable, ours = measured["comparable"], measured["ours"]
    figure = Figure(figsize=(10.6, 4.0), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    article = {int(devices): minutes for devices, minutes in ARTICLE["minutes"].items()}
    _bars(left, article, "#8a8a93", "MATLAB 2018, V100")
    _bars(middle, {each["devices"]: each["minutes"] for each in ours}, "#0a64b0", f"ours, {size_of(ours[0])}")
    if comparable:
        middle.sharey(left)
    right.plot([1, 8], [1, 8], color="#c4c4ca", linestyle="--", linewidth=1, label="ideal")
    right.plot([1, 8], [1, measured["article"]["speed_up"]], "s-", color="#8a8a93", label="the article")
    if comparable and ours[0]["speed_up"] is not None:
        points = [(each["devices"], each["speed_up"]) for each in ours]
        right.plot(*zip(*points, strict=True), "o-", color="#0a64b0", label="ours, extrapolated")
    right.set(xlabel="devices", title="speed-up")
    right.legend(frameon=False, fontsize=8)
    what = "100 epochs of CamVid, 4 images a device" if comparable else measured["note"]
    figure.suptitle(what, fontsize=11, color="#1c2127" if comparable else "#b3261e", weight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _bars(axes, minutes: dict[int, float], color: str, title: str) -> None:
    places = range(len(minutes))
    axes.bar(places, list(minutes.values()), width=0.5, color=color)
    for place, value in zip(places, minutes.values(), strict=True):
        axes.annotate(f"{value:.3g}", (place, value), ha="center", va="bottom", fontsize=9)
    axes.set_xticks(places, [str(devices) for devices in minutes])
    axes.set(xlabel="devices", ylabel="minutes of 100 epochs")
    axes.set_title(title, fontsize=9)
    axes.margins(y=0.14)


def size_of(ours: dict[str, Any]) -> str:
    """Describe the device and image size of a row."""
    height, width = ours["image_size"]
    kind = ours["device"].split(" x ", 1)[-1]
    return f"{kind}, {ours['precision']}, {height}x{width}, width {ours['width']:g}, depth {ours['depth']}"


def table(measured: dict[str, Any]) -> str:
    """Format the rows as a Markdown table."""
    lines = ["| | devices | minutes of 100 epochs | speed-up |", "|---|---|---|---|"]
    one, eight = ARTICLE["minutes"]["1"], ARTICLE["minutes"]["8"]
    lines.append(f"| the article, V100 | 1 | {one} | 1 |")
    lines.append(f"| the article, V100 | 8 | {eight} | {ARTICLE['speed_up']:.2f} |")
    for each in measured["ours"]:
        up = f"{each['speed_up']:.2f}" if each["speed_up"] is not None else "-"
        minutes = f"{each['minutes']:.3g}, extrapolated"
        lines.append(f"| ours, {size_of(each)} | {each['devices']} | {minutes} | {up} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code.

    Raises:
      UserError: If there are fewer devices.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[1], help="numbers of devices to measure")
    parser.add_argument("--batch-size-per-device", type=int, default=4, help="the article's is 4")
    parser.add_argument("--precision", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--steps", type=int, default=20, help="steps per round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the median is reported")
    parser.add_argument("--fake-devices", type=int, default=0, help="split the CPU into this many devices")
    parser.add_argument("--scaled-down", action="store_true", help="small images and a narrow network")
    parser.add_argument(
        "--out", type=pathlib.Path, default=HERE / "times.json", help="JSON file; the figure is written next to it"
    )
    given = parser.parse_args(argv)
    if given.out != HERE / "times.json":  # the default is meant to be overwritten
        check_place("out", str(given.out))
    if min(given.devices) < 1:
        raise UserError(f"--devices must be positive, got {' '.join(map(str, given.devices))}")
    config = read_config(HERE / "config.toml", Config())
    num_images, rows, environment = len(split_names(config.split_rule)["train"]), [], {}
    for devices in sorted(set(given.devices)):
        measured = measure(devices, given)
        rows.append(row(devices, measured, num_images, config.epochs))
        environment = measured["environment"]
        minutes = rows[-1]["minutes"]
        print(f"{devices} devices: {rows[-1]['images_per_second']:.1f} images/s, {minutes:.3g} min", flush=True)
    on_cpu = rows[0]["device"].endswith("x cpu")
    comparable = not on_cpu and not given.scaled_down
    found = result(rows, environment, comparable=comparable, how=HOW)
    atomic_write_json(given.out, found)
    atomic_write_bytes(given.out.with_suffix(".png"), draw(found))
    print(table(found))
    print(found["note"])
    return 0


if __name__ == "__main__":
    run_command(main)
