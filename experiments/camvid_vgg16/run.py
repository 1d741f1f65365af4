"""Train the full SegNet on real CamVid from ImageNet's VGG-16 in three stages: 120x160, 180x240, 360x480.

python experiments/camvid_vgg16/run.py --data DIR --runs FOLDER --machine "2 CPU cores"

Each stage starts from the last checkpoint of the previous one, and is exported to FOLDER/STAGE-exported at its end. An
interrupted run is resumed; a finished one is not repeated. With --machine the finished stages go to stages.json,
STAGE.png and the table of README.md, and the last one also to result.json. --score-test scores the test split with the
last stage, once: the recipe must not change afterwards.
"""

import argparse
import datetime
import json
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from study import SCORES, insert_table  # noqa: E402

STAGES = ("120x160", "180x240", "360x480")
TEST = "test.json"  # the scores of the test split


def main() -> int:
    """Run the command; return 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CamVid in the tutorial's layout; without it nothing is trained")
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="folder of the run folders")
    parser.add_argument("--vgg", default="vgg16", help="file of VGG-16's weights, if they are not prepared")
    parser.add_argument("--machine", help="description of the machine; without it nothing is written")
    parser.add_argument("--score-test", action="store_true", help="score the test split with the last stage, once")
    given = parser.parse_args()
    if given.score_test and (HERE / TEST).exists():
        parser.error(f"the test split was scored already: {HERE / TEST}")
    failed = None
    for stage in STAGES if given.data else ():
        jobs = [train_command(stage, given.data, given.runs, given.vgg)]
        if not (given.runs / f"{stage}-exported").exists():
            jobs.append(export_command(stage, given.runs))
        failed = next((job for job in jobs if subprocess.run(job, check=False).returncode), None)
        if failed:
            print(f"failed: {' '.join(failed)}", file=sys.stderr)
            break
    if given.score_test and not failed:
        subprocess.run(test_command(given.data, given.runs), check=True)
    rows = collect(given.runs)
    print(as_markdown(rows))
    if given.machine and rows:
        publish(rows, given.runs, given.machine)
    return int(failed is not None)


def train_command(stage: str, data: str, runs: pathlib.Path, vgg: str) -> list[str]:
    """Return the command that trains a stage."""
    index = STAGES.index(stage)
    init = str(runs / STAGES[index - 1]) if index else vgg
    command = [sys.executable, "-m", "segnet_jax.train", "--config", str(HERE / f"{stage}.toml"), "--data", data]
    return [*command, "--init", init, "--run", str(runs / stage)]


def export_command(stage: str, runs: pathlib.Path) -> list[str]:
    """Return the command that exports a stage's weights."""
    command = [sys.executable, "-m", "segnet_jax.export", str(runs / stage), "--format", "safetensors"]
    return [*command, "--out", str(runs / f"{stage}-exported")]


def test_command(data: str, runs: pathlib.Path) -> list[str]:
    """Return the command that scores the test split with the last stage."""
    command = [sys.executable, "-m", "segnet_jax.evaluate", str(runs / STAGES[-1]), "--split", "test"]
    return [*command, "--data", data, "--json", str(HERE / TEST)]


def collect(runs: pathlib.Path) -> list[dict]:
    """Return a row for each finished stage: name, num_steps, seconds, the scores, and the IoU of each class."""
    rows = []
    for stage in STAGES:
        path = runs / stage / "result.json"
        if path.is_file():
            result = json.loads(path.read_text(encoding="utf-8"))
            row = {"name": stage} | {name: result[name] for name in ("num_steps", "seconds", *SCORES)}
            rows.append(row | {"iou": {name: scores["iou"] for name, scores in result["per_class"].items()}})
    return rows


def as_markdown(rows: list[dict]) -> str:
    """Return the table of the stages."""
    lines = ["| stage | steps | hours | mIoU | class acc. | global acc. |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [row["name"], f"{row['num_steps']:,}", f"{row['seconds'] / 3600:.1f}"]
        lines.append(f"| {' | '.join([*cells, *(f'{100 * row[name]:.1f}' for name in SCORES)])} |")
    return "\n".join(lines)


def publish(rows: list[dict], runs: pathlib.Path, machine: str) -> None:
    """Write stages.json, the plots and README's table; after the last stage also result.json and the pictures."""
    origin = {
        "command": "python experiments/camvid_vgg16/run.py --data DIR --runs FOLDER",
        "machine": machine,
        "date": datetime.date.today().isoformat(),
    }
    (HERE / "stages.json").write_text(json.dumps(origin | {"rows": rows}, indent=2) + "\n", encoding="utf-8")
    insert_table(as_markdown(rows), HERE / "README.md", "stages")
    for row in rows:
        shutil.copy(runs / row["name"] / "progress.png", HERE / f"{row['name']}.png")
    if rows[-1]["name"] == STAGES[-1]:
        command = [sys.executable, str(HERE.parent / "publish.py"), str(runs / STAGES[-1]), str(HERE)]
        subprocess.run([*command, "--machine", machine, "--command", origin["command"]], check=True)


if __name__ == "__main__":
    sys.exit(main())
