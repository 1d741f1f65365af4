"""Trains what study.toml lists, on several seeds, and sets the scores side by side: a JSON file and a figure a table.

python experiments/ablation/study.py --data DIR --runs FOLDER

Each training leaves its scores in scores/, and is not repeated while they are there; one that was broken off goes on.
On a CPU, `--at-once 2` gives each training half of the cores, which takes less time in all.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import pathlib
import queue
import subprocess
import sys
import tomllib

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

HERE = pathlib.Path(__file__).parent
STUDY = tomllib.loads((HERE / "study.toml").read_text(encoding="utf-8"))
KEPT = HERE / "scores"
OTHERS = ("own", "none")  # statistics that other_statistics.py takes
SCORES = ("miou", "mean_accuracy", "global_accuracy")


def main() -> int:
    """The command; returns 1 where a training failed, which stops none of the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CamVid; without it nothing is trained, what is there is collected")
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="folder of the trainings' run folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(STUDY["variants"]), default=list(STUDY["variants"]))
    parser.add_argument("--at-once", type=int, default=1, help="trainings side by side")
    parser.add_argument("--machine", help="what it runs on, in words; without it nothing is written")
    given = parser.parse_args()
    if not 1 <= given.at_once <= len(os.sched_getaffinity(0)):
        parser.error(f"--at-once must be between 1 and the {len(os.sched_getaffinity(0))} cores that there are")
    for path in KEPT.glob("*.json"):
        read_kept(path)
    failed = []
    if given.data:
        wanted = [(variant, seed) for seed in given.seeds for variant in given.variants]
        free = queue.SimpleQueue()  # groups of cores that no training has at the moment
        for cores in np.array_split(sorted(os.sched_getaffinity(0)), given.at_once):
            free.put(cores.tolist())

        def carry_out(job: tuple[str, int]) -> None:
            cores = free.get()
            try:
                train_and_score(*job, given.runs, given.data, cores)
            except subprocess.CalledProcessError:
                failed.append(job)
            finally:
                free.put(cores)

        with concurrent.futures.ThreadPoolExecutor(given.at_once) as pool:
            list(pool.map(carry_out, wanted))
    for name, table in STUDY["tables"].items():
        found = collect(table)
        print(f"\n{table['question']}\n{in_words(found)}")
        if given.machine:
            origin = {
                "command": "python experiments/ablation/study.py --data DIR --runs FOLDER",
                "machine": given.machine,
                "date": datetime.date.today().isoformat(),
            }
            folder = HERE.parent / table["folder"]
            text = json.dumps(origin | {"question": table["question"], "rows": found}, indent=2)
            (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
            draw(table["question"], found, folder / f"{name}.png")
            put(in_words(found), folder / "README.md", name)
    for variant, seed in failed:
        print(f"failed: {variant}, seed {seed}; see {given.runs / f'{variant}-{seed}.log'}", file=sys.stderr)
    return int(bool(failed))


def settings(variant: str, seed: int) -> tuple[str, str]:
    """The protocol that a training starts from, or "", and its config file's text."""
    changes = dict(STUDY["variants"][variant])
    protocol = changes.pop("protocol", "")
    recipe = {} if protocol else STUDY["recipe"]
    longer = STUDY["longer"] if variant.startswith("longer-") else {}
    values = STUDY["small"] | recipe | longer | changes | {"seed": seed}
    return protocol, "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def train_and_score(variant: str, seed: int, runs: pathlib.Path, data: str, cores: list[int]) -> None:
    """Carries out what is still missing of one training and its scores, and keeps these.

    Raises:
      subprocess.CalledProcessError: it failed; its last words stand in RUN.log.
    """
    kept = KEPT / f"{variant}-{seed}.json"
    if kept.exists():
        return
    run = runs / f"{variant}-{seed}"
    runs.mkdir(parents=True, exist_ok=True)
    protocol, text = settings(variant, seed)
    config = run.with_suffix(".toml")
    if config.exists() and config.read_text(encoding="utf-8") != text:
        sys.exit(f"error: {run} was trained by another study.toml: name another --runs")
    config.write_text(text, encoding="utf-8")
    named = ["--protocol", protocol] if protocol else []
    evaluate = ["-m", "segnet_jax.evaluate", run, "--data", data, "--checkpoint", "newest"]
    commands = {
        "result": ["-m", "segnet_jax.train", *named, "--config", config, "--data", data, "--run", run],
        "scores": [*evaluate, "--batch-norm", "recompute", "--json"],
    }
    if "average" in STUDY["variants"][variant]:
        commands["not_averaged"] = [*evaluate, "--no-ema", "--json"]
    rows = [row for table in STUDY["tables"].values() for row in table["rows"] if row["variant"] == variant]
    if any(row.get("batch_norm") in OTHERS for row in rows):
        commands["others"] = [HERE / "other_statistics.py", run, "--data", data, "--json"]
    with open(run.with_suffix(".log"), "a", encoding="utf-8") as log:
        for name, command in commands.items():
            made = run / f"{name}.json"
            if made.exists():
                continue
            print(f"{variant}, seed {seed}: {name}", flush=True)
            subprocess.run(
                [sys.executable, *map(str, command), *([str(made)] if command[-1] == "--json" else [])],
                check=True,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
    found = {name: json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in commands}
    scores = found["scores"]["batch_norm"] | found.get("others", {"batch_norm": {}})["batch_norm"]
    if "not_averaged" in found:
        scores["not_averaged"] = {score: found["not_averaged"][score] for score in SCORES}
    result = found["result"]
    told = {name: result[name] for name in ("num_steps", "seconds", "commit", "versions")}
    told |= fit(run / "metrics.jsonl")
    KEPT.mkdir(exist_ok=True)
    per_class = {name: each["iou"] for name, each in found["scores"]["per_class"].items()}
    whole = {"protocol": protocol, "config": text} | told | {"scores": scores, "iou_recomputed": per_class}
    kept.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def fit(metrics: pathlib.Path) -> dict[str, float]:
    """How well the training's own pixels were labelled over its last epoch, and the validation loss at its end."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    train, val = ([row for row in rows if row["kind"] == kind] for kind in ("train", "val"))
    last = [row["accuracy"] for row in train if row["epoch"] > train[-1]["epoch"] - 1]
    return {"training_accuracy": float(np.mean(last)), "validation_loss": val[-1]["loss"]}


def read_kept(path: pathlib.Path) -> dict:
    """What is kept of a training, which must be one of today's study.toml: no table holds two sizes."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    variant, _, seed = path.stem.rpartition("-")
    if (kept["protocol"], kept["config"]) != settings(variant, int(seed)):
        sys.exit(f"error: {path} is of another study.toml: move the scores of that one away")
    return kept


def collect(table: dict) -> list[dict]:
    """The scores of a table's rows, a list of each over the seeds that are there."""
    rows = []
    for row in table["rows"]:
        rule = row.get("batch_norm", "running") if row.get("averaged", True) else "not_averaged"
        found = {}
        for path in sorted(KEPT.glob(f"{row['variant']}-[0-9]*.json")):
            scores = read_kept(path)["scores"]
            if rule in scores:
                found[int(path.stem.rpartition("-")[2])] = scores[rule]
        scored = {name: [one[name] for one in found.values()] for name in SCORES}
        rows.append({"name": row["name"], "variant": row["variant"], "seeds": list(found)} | scored)
    return rows


def in_words(rows: list[dict]) -> str:
    """The rows as a Markdown table: percent, mean over the seeds, mIoU also with its smallest and largest."""
    lines = ["| training | seeds | mIoU | from, to | class acc. | global acc. |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row["seeds"]:
            miou, mean, right = (f"{100 * np.mean(row[name]):.1f}" for name in SCORES)
            ends = f"{100 * min(row['miou']):.1f}, {100 * max(row['miou']):.1f}"
            lines.append(f"| {row['name']} | {len(row['seeds'])} | {miou} | {ends} | {mean} | {right} |")
    return "\n".join(lines)


def put(words: str, page: pathlib.Path, name: str) -> None:
    """Puts a table into its place in a page, between <!-- NAME --> and <!-- / -->."""
    before, _, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->")
    _, end, after = rest.partition("<!-- / -->")
    page.write_text(f"{before}<!-- {name} -->\n{words}\n{end}{after}", encoding="utf-8")


def draw(question: str, rows: list[dict], path: pathlib.Path) -> None:
    """A dot for each seed's mIoU, a line at their mean."""
    rows = [row for row in rows if row["seeds"]][::-1]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.45 * len(rows)), layout="constrained")
    for height, row in enumerate(rows):
        values = 100 * np.array(row["miou"])
        axes.plot(values, np.full(len(values), height), "o", color="#1f5fa8", alpha=0.7)
        axes.plot([values.mean()] * 2, [height - 0.3, height + 0.3], color="#c2410c", linewidth=2)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_xlabel("validation mIoU, percent: a dot a seed, a line their mean")
    axes.set_title(question, loc="left")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
