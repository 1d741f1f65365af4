"""Copy a finished run's result and figures into its experiment folder, with their provenance.

python experiments/publish.py RUN experiments/NAME --machine "2 cores of an AMD EPYC, no GPU" --command "python -m ..."
"""

import argparse
import datetime
import gzip
import json
import pathlib
import shutil


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("experiment", type=pathlib.Path)
    parser.add_argument("--machine", required=True, help="description of the machine")
    parser.add_argument("--command", required=True, help="command that reproduces it")
    parser.add_argument("--pictures", type=pathlib.Path, help="figure to show, without third-party photos")
    parser.add_argument("--keep-run", action="store_true", help="also copy what pictures are drawn from; photos too")
    given = parser.parse_args()
    result = json.loads((given.run / "result.json").read_text())
    origin = {"command": given.command, "machine": given.machine, "date": datetime.date.today().isoformat()}
    given.experiment.mkdir(exist_ok=True)
    (given.experiment / "result.json").write_text(json.dumps(origin | result, indent=2) + "\n")
    shutil.copy(given.run / "progress.png", given.experiment / "progress.png")
    if given.pictures:
        shutil.copy(given.pictures, given.experiment / "predictions.png")
    if given.keep_run:
        keep(given.run, given.experiment / "run", result["step"])


def keep(run: pathlib.Path, target: pathlib.Path, step: int) -> None:
    """Copy the files from which a run's report and pictures are drawn, and compress the metrics."""
    (target / "evaluations").mkdir(parents=True, exist_ok=True)
    for name in ("config.toml", "environment.json", "outcome.json", "result.json", "train.log"):
        shutil.copy(run / name, target / name)
    for name in ("dataset.json", "worst.json", f"step_{step:07}.json"):
        shutil.copy(run / "evaluations" / name, target / "evaluations" / name)
    for path in sorted((run / "evaluations").glob("step_*.json"))[:1]:  # the report slides from the first to the last
        shutil.copy(path, target / "evaluations" / path.name)
    (target / "metrics.jsonl.gz").write_bytes(gzip.compress((run / "metrics.jsonl").read_bytes(), mtime=0))


if __name__ == "__main__":
    main()
