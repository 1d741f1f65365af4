"""Train without one drive of CamVid, fine-tune on 30 of its frames from three initial networks, and score the other 71.

python experiments/finetune/run.py --data DIR --runs FOLDER --machine "2 CPU cores"

A stopped run is resumed and a finished one is not repeated. With --machine, the scores of the finished seeds are
written to scores.json, scores.png and the table of README.md.
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import sys
import tomllib

import numpy as np

from segnet_jax.metrics.confusion import scores
from segnet_jax.reporting.evaluations import images_path, read_images

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from study import SCORES, as_markdown, draw_scores, insert_table  # noqa: E402

STARTS = tomllib.loads((HERE / "starts.toml").read_text(encoding="utf-8"))
BASE = "base"
NOT_TUNED = "SegNet trained on the other drives, not fine-tuned"


def main() -> int:
    """Run the command; return 1 if a run failed."""
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
    table = as_markdown(rows, "start")
    print(table)
    if given.machine:
        origin = {
            "command": "python experiments/finetune/run.py --data DIR --runs FOLDER",
            "machine": given.machine,
            "date": datetime.date.today().isoformat(),
        }
        (HERE / "scores.json").write_text(json.dumps(origin | {"rows": rows}, indent=2) + "\n", encoding="utf-8")
        insert_table(table, HERE / "README.md", "scores")
        draw_scores("Fine-tuning on 30 frames", rows, HERE / "scores.png", "71 frames of 0006R0,")
    for job in failed:
        print(f"failed: {' '.join(job)}", file=sys.stderr)
    return int(bool(failed))


def command_of_base(runs: pathlib.Path, data: str, vgg: str) -> list[str]:
    """Return the command that trains without the drive."""
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
    """Return the scores of the finished runs on the 71 frames: one row per start, with a list over seeds."""
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
    """Return the scores of the network before fine-tuning on the 71 frames, if known."""
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


if __name__ == "__main__":
    sys.exit(main())
