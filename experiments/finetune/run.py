"""Train without one drive of CamVid, fine-tune on 30 of its frames from three starts, and score its other 71.

python experiments/finetune/run.py --data DIR --runs FOLDER --machine "2 CPU cores"

A training that was stopped resumes, one that is finished is not repeated. With --machine the scores go to scores.json,
scores.png and the table of README.md, over the seeds that are finished.
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import sys
import tomllib

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from segnet_jax.metrics.confusion import scores
from segnet_jax.reporting.evaluations import images_path, read_images

HERE = pathlib.Path(__file__).parent
STARTS = tomllib.loads((HERE / "starts.toml").read_text(encoding="utf-8"))
BASE = "base"
NOT_TUNED = "SegNet trained on the other drives, not fine-tuned"
SCORES = ("miou", "mean_accuracy", "global_accuracy")


def main() -> int:
    """Run the command; return 1 if a training failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CamVid with all 701 frames; without it nothing is trained")
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="folder of the run folders")
    parser.add_argument("--vgg", default="vgg16", help="file of VGG-16's weights, if they are not prepared")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--machine", help="description of the machine; without it nothing is written")
    given = parser.parse_args()
    failed = []
    if given.data:
        jobs = [command_of_base(given.runs, given.data, given.vgg)] if "segnet" in given.starts else []
        jobs += [
            command_of(start, seed, given.runs, given.data, given.vgg) for seed in given.seeds for start in given.starts
        ]
        failed = [job for job in jobs if subprocess.run(job, check=False).returncode]
    rows = collect(given.runs)
    print(in_words(rows))
    if given.machine:
        origin = {
            "command": "python experiments/finetune/run.py --data DIR --runs FOLDER",
            "machine": given.machine,
            "date": datetime.date.today().isoformat(),
        }
        (HERE / "scores.json").write_text(json.dumps(origin | {"rows": rows}, indent=2) + "\n", encoding="utf-8")
        put(in_words(rows), HERE / "README.md", "scores")
        draw(rows, HERE / "scores.png")
    for job in failed:
        print(f"failed: {' '.join(job)}", file=sys.stderr)
    return int(bool(failed))


def command_of_base(runs: pathlib.Path, data: str, vgg: str) -> list[str]:
    """Return the command of the training without the drive."""
    return _train("base.toml", data, runs / BASE, vgg)


def command_of(start: str, seed: int, runs: pathlib.Path, data: str, vgg: str) -> list[str]:
    """Return the command that fine-tunes from a start, a key of starts.toml."""
    init = {"BASE": str(runs / BASE), "VGG": vgg}.get(STARTS[start]["init"], STARTS[start]["init"])
    rate = ["--learning-rate", str(STARTS[start]["learning_rate"]), "--seed", str(seed)]
    return [*_train("finetune.toml", data, runs / f"{start}-{seed}", init), *rate]


def _train(config: str, data: str, run: pathlib.Path, init: str) -> list[str]:
    command = [sys.executable, "-m", "segnet_jax.train", "--config", str(HERE / config), "--data", data]
    return [*command, "--run", str(run), "--init", init]


def collect(runs: pathlib.Path) -> list[dict]:
    """Return the scores of the finished trainings on the 71 frames: a row per start, in it a list over seeds."""
    rows = []
    for start, settings in STARTS.items():
        finished = sorted(runs.glob(f"{start}-[0-9]*/result.json"))
        results = [json.loads(path.read_text(encoding="utf-8")) for path in finished]
        row = {"name": settings["name"], "seeds": [result["seed"] for result in results]}
        rows.append(row | {name: [result[name] for result in results] for name in SCORES})
    if (not_tuned := _scores_of_base(runs)) is not None:
        rows.append({"name": NOT_TUNED, "seeds": [0]} | {name: [getattr(not_tuned, name)] for name in SCORES})
    return [row for row in rows if row["seeds"]]


def _scores_of_base(runs: pathlib.Path):
    """Return the scores of the network before fine-tuning on the frames that the others are scored on, if known."""
    result = runs / BASE / "result.json"
    others = sorted(runs.glob("*-[0-9]*/result.json"))
    if not result.is_file() or not others:
        return None
    images = read_images(images_path(runs / BASE, json.loads(result.read_text(encoding="utf-8"))["step"]))
    tuned = json.loads(others[0].read_text(encoding="utf-8"))
    scored = read_images(images_path(others[0].parent, tuned["step"]))
    if images is None or scored is None or not set(scored.names) < set(images.names):
        return None
    chosen = [images.names.index(name) for name in scored.names]
    return scores(images.confusions[chosen].sum(axis=0, dtype=np.int64))


def in_words(rows: list[dict]) -> str:
    """Return the rows as a Markdown table: percent, mean over the seeds, for mIoU also the smallest and the largest."""
    lines = ["| start | seeds | mIoU | from, to | class acc. | global acc. |", "|---|---|---|---|---|---|"]
    for row in rows:
        miou, mean, right = (f"{100 * np.mean(row[name]):.1f}" for name in SCORES)
        ends = f"{100 * min(row['miou']):.1f}, {100 * max(row['miou']):.1f}"
        lines.append(f"| {row['name']} | {len(row['seeds'])} | {miou} | {ends} | {mean} | {right} |")
    return "\n".join(lines)


def put(words: str, page: pathlib.Path, name: str) -> None:
    """Put a table into a page, between <!-- NAME --> and <!-- / -->."""
    before, _, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->")
    _, end, after = rest.partition("<!-- / -->")
    page.write_text(f"{before}<!-- {name} -->\n{words}\n{end}{after}", encoding="utf-8")


def draw(rows: list[dict], path: pathlib.Path) -> None:
    """Draw a dot for each seed's mIoU and a line at their mean."""
    rows = rows[::-1]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.5 * len(rows)), layout="constrained")
    for height, row in enumerate(rows):
        values = 100 * np.array(row["miou"])
        axes.plot(values, np.full(len(values), height), "o", color="#1f5fa8", alpha=0.7)
        axes.plot([values.mean()] * 2, [height - 0.3, height + 0.3], color="#c2410c", linewidth=2)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_xlabel("mIoU on 71 frames of 0006R0, percent: a dot a seed, a line their mean")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
