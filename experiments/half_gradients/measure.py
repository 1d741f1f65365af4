"""Measure the effect of 16-bit gradient all-reduce on the score: the demo on four fake devices, over several seeds.

python experiments/half_gradients/measure.py --seeds 3 --machine "2 cores of an AMD EPYC, no GPU"

Gradients are sent in bfloat16; activations are float32. Writes `scores.json` next to this file.
"""

import argparse
import datetime
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
FLAGS = ["--protocol", "demo", "--devices", "4", "--fake-devices", "4", "--batch-size-per-device", "1"]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--machine", required=True, help="description of the machine")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "scores.json")
    given, more = parser.parse_known_args()
    scores = {"float32": [], "bfloat16": []}
    with tempfile.TemporaryDirectory() as runs:
        for seed in range(given.seeds):
            for wire, flag in (("float32", "--no-half-gradients"), ("bfloat16", "--half-gradients")):
                run = pathlib.Path(runs) / f"{wire}-{seed}"
                command = ["-m", "segnet_jax.train", *FLAGS, flag, "--seed", str(seed), "--run", str(run), *more]
                subprocess.run([sys.executable, *command], check=True)
                result = json.loads((run / "result.json").read_text())
                scores[wire].append(result["miou"])
    shown = [part if " " not in part else f'"{part}"' for part in sys.argv[1:]]
    given.out.write_text(
        json.dumps(
            {
                "command": " ".join(["python experiments/half_gradients/measure.py", *shown]),
                "machine": given.machine,
                "date": datetime.date.today().isoformat(),
                "training": " ".join(FLAGS + more),
                "commit": result["commit"],
                "versions": result["versions"],
                "num_steps": result["num_steps"],
                "split": f"{result['num_images']} {result['split']} images",
                "miou": scores,
                "mean_miou": {wire: statistics.mean(values) for wire, values in scores.items()},
                "mean_difference": statistics.mean(scores["bfloat16"]) - statistics.mean(scores["float32"]),
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
