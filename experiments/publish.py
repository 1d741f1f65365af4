"""Copy a finished run's result and figures into its experiment folder, with their provenance.

python experiments/publish.py RUN experiments/NAME --machine "2 cores of an AMD EPYC, no GPU" --command "python -m ..."
"""

import argparse
import datetime
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
    given = parser.parse_args()
    result = json.loads((given.run / "result.json").read_text())
    origin = {"command": given.command, "machine": given.machine, "date": datetime.date.today().isoformat()}
    given.experiment.mkdir(exist_ok=True)
    (given.experiment / "result.json").write_text(json.dumps(origin | result, indent=2) + "\n")
    shutil.copy(given.run / "progress.png", given.experiment / "progress.png")
    if given.pictures:
        shutil.copy(given.pictures, given.experiment / "predictions.png")


if __name__ == "__main__":
    main()
