"""Train the variants of a study on several seeds, and write JSON, figures and tables that compare their scores.

python experiments/study.py experiments/ablation/study.toml --data DIR --runs FOLDER

A study.toml lists variants (config fields over `[small]` and `[recipe]`) and tables of variants. The scores of each run
are stored in `scores/` next to the study.toml, and the run is not repeated while they exist; an interrupted run is
resumed. On a CPU, `--at-once 2` trains two runs at a time on half of the cores each, which takes less time in total.
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
from dataclasses import dataclass
from functools import cached_property

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

HERE = pathlib.Path(__file__).parent
OTHERS = ("own", "none")  # BatchNorm statistics that ablation/other_statistics.py scores
SCORES = ("miou", "mean_accuracy", "global_accuracy")  # columns of the tables
START = "start_from"  # key of a variant: the variant whose finished run, of the same seed, it is initialized from


def main() -> int:
    """Run the command; return 1 if a run failed, which does not stop the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=pathlib.Path, help="the study.toml")
    parser.add_argument("--data", help="CamVid; without it nothing is trained, and existing scores are collected")
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="folder for the run folders")
    parser.add_argument("--init", help="weight file for variants whose init is vgg16, where it is not in the cache")
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="default: those of the study")
    parser.add_argument("--variants", nargs="+", default=None, help="default: all")
    parser.add_argument("--at-once", type=int, default=1, help="number of runs to train in parallel")
    parser.add_argument("--machine", help="description of the machine; without it no table is written")
    given = parser.parse_args()
    study = Study(given.study)
    if not 1 <= given.at_once <= len(os.sched_getaffinity(0)):
        parser.error(f"--at-once must be between 1 and the {len(os.sched_getaffinity(0))} cores available")
    if unknown := set(given.variants or ()) - study.variants.keys():
        parser.error(f"{given.study} has no variant {', '.join(sorted(unknown))}; it has {', '.join(study.variants)}")
    for path in study.kept.glob("*.json"):
        study.read_kept(path)
    failed = train_all(study, given) if given.data else []
    for name, table in study.tables.items():
        found = study.collect(table)
        print(f"\n{table['question']}\n{as_markdown(found)}")
        if given.machine:
            command = f"python experiments/study.py {study.path.parent.name}/study.toml --data DIR --runs FOLDER"
            origin = {"command": command, "machine": given.machine, "date": datetime.date.today().isoformat()}
            folder = HERE / table["folder"]
            text = json.dumps(origin | {"question": table["question"], "rows": found}, indent=2)
            (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
            draw = draw_curves if table.get("curves") else draw_scores
            draw(table["question"], found, folder / f"{name}.png")
            insert_table(as_markdown(found), folder / "README.md", name)
    for variant, seed in failed:
        print(f"failed: {variant}, seed {seed}; see {given.runs / f'{variant}-{seed}.log'}", file=sys.stderr)
    return int(bool(failed))


@dataclass(frozen=True)
class Study:
    """A study.toml and the scores stored next to it.

    Attributes:
      path: path of the study.toml.
    """

    path: pathlib.Path

    @cached_property
    def content(self) -> dict:
        """Parsed content of the study.toml."""
        return tomllib.loads(self.path.read_text(encoding="utf-8"))

    @property
    def variants(self) -> dict[str, dict]:
        """Name of each variant and the config fields that it changes."""
        return self.content["variants"]

    @property
    def tables(self) -> dict[str, dict]:
        """Name of each table, its question and its rows."""
        return self.content["tables"]

    @property
    def kept(self) -> pathlib.Path:
        """Folder of the stored scores."""
        return self.path.parent / "scores"

    def settings(self, variant: str, seed: int) -> tuple[str, str]:
        """Return the protocol that a run starts from, or "", and the text of its config file."""
        changes = dict(self.variants[variant])
        changes.pop(START, None)
        protocol = changes.pop("protocol", "")
        recipe = {} if protocol else self.content["recipe"]
        longer = self.content["longer"] if variant.startswith("longer-") else {}
        values = self.content["small"] | recipe | longer | changes | {"seed": seed}
        return protocol, "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())

    def read_kept(self, path: pathlib.Path) -> dict:
        """Read the stored scores of a run; exit if they were made with another study.toml."""
        kept = json.loads(path.read_text(encoding="utf-8"))
        variant, _, seed = path.stem.rpartition("-")
        if (kept["protocol"], kept["config"]) != self.settings(variant, int(seed)):
            sys.exit(f"error: {path} was made with another study.toml; move its scores away")
        return kept

    def collect(self, table: dict) -> list[dict]:
        """Return the rows of a table, with the scores of each as a list over the seeds found."""
        rows = []
        for row in table["rows"]:
            rule = row.get("batch_norm", "running") if row.get("averaged", True) else "not_averaged"
            found, curves = {}, []
            for path in sorted(self.kept.glob(f"{row['variant']}-[0-9]*.json")):
                kept = self.read_kept(path)
                if rule in kept["scores"]:
                    found[int(path.stem.rpartition("-")[2])] = kept["scores"][rule]
                    curves.append(kept.get("curve", []))
            scored = {name: [one[name] for one in found.values()] for name in SCORES}
            curve = {"curves": curves} if table.get("curves") else {}
            rows.append({"name": row["name"], "variant": row["variant"], "seeds": list(found)} | scored | curve)
        return rows


def train_all(study: Study, given: argparse.Namespace) -> list[tuple[str, int]]:
    """Train all selected variants and seeds; return those that failed."""
    failed = []
    seeds = given.seeds or study.content.get("seeds", [0, 1, 2])
    wanted = [(variant, seed) for seed in seeds for variant in given.variants or study.variants]
    free = queue.SimpleQueue()  # groups of cores that no run uses at the moment
    for cores in np.array_split(sorted(os.sched_getaffinity(0)), given.at_once):
        free.put(cores.tolist())

    def carry_out(job: tuple[str, int]) -> None:
        cores = free.get()
        try:
            train_and_score(study, *job, given.runs, given.data, given.init, cores)
        except subprocess.CalledProcessError:
            failed.append(job)
        finally:
            free.put(cores)

    with concurrent.futures.ThreadPoolExecutor(given.at_once) as pool:
        list(pool.map(carry_out, wanted))
    return failed


def train_and_score(
    study: Study, variant: str, seed: int, runs: pathlib.Path, data: str, init: str | None, cores: list[int]
) -> None:
    """Run the missing parts of one run and its evaluations, and store the scores.

    Raises:
      subprocess.CalledProcessError: If a command failed; its output is in RUN.log.
    """
    kept = study.kept / f"{variant}-{seed}.json"
    if kept.exists():
        return
    run = runs / f"{variant}-{seed}"
    runs.mkdir(parents=True, exist_ok=True)
    protocol, text = study.settings(variant, seed)
    config = run.with_suffix(".toml")
    if config.exists() and config.read_text(encoding="utf-8") != text:
        sys.exit(f"error: {run} was trained with another study.toml; use another --runs")
    config.write_text(text, encoding="utf-8")
    flags = ["--protocol", protocol] if protocol else []
    start = study.variants[variant].get(START)
    if start:
        flags += ["--init", runs / f"{start}-{seed}"]
    elif init and 'init = "vgg16"' in text:
        flags += ["--init", init]
    evaluate = ["-m", "segnet_jax.evaluate", run, "--data", data, "--checkpoint", "newest"]
    commands = {
        "result": ["-m", "segnet_jax.train", "--config", config, *flags, "--data", data, "--run", run],
        "scores": [*evaluate, "--batch-norm", "recompute", "--json"],
    }
    if "ema_decay" in study.variants[variant]:
        commands["not_averaged"] = [*evaluate, "--no-ema", "--json"]
    rows = [row for table in study.tables.values() for row in table["rows"] if row["variant"] == variant]
    if any(row.get("batch_norm") in OTHERS for row in rows):
        commands["others"] = [HERE / "ablation" / "other_statistics.py", run, "--data", data, "--json"]
    if not any("batch_norm" in row for row in rows) and study.content.get("running_only"):
        del commands["scores"]
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
    study.kept.mkdir(exist_ok=True)
    whole = {"protocol": protocol, "config": text} | summarize(found) | read_fit(run / "metrics.jsonl")
    kept.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def summarize(found: dict[str, dict]) -> dict:
    """Return the part to store of a run's result and of the later evaluations."""
    result = found["result"]
    summary = {name: result[name] for name in ("num_steps", "seconds", "commit", "versions")}
    if "scores" in found:
        scores, per_class = dict(found["scores"]["batch_norm"]), found["scores"]["per_class"]
        iou = {"iou_recomputed": {name: each["iou"] for name, each in per_class.items()}}
    else:
        scores = {"running": {score: result[score] for score in SCORES}}
        iou = {"iou": {name: each["iou"] for name, each in result["per_class"].items()}}
    scores |= found.get("others", {"batch_norm": {}})["batch_norm"]
    if "not_averaged" in found:
        scores["not_averaged"] = {score: found["not_averaged"][score] for score in SCORES}
    return summary | {"scores": scores} | iou


def read_fit(metrics: pathlib.Path) -> dict:
    """Return the training accuracy over the last epoch, the last validation loss, and the curve of validation mIoU."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    train, val = ([row for row in rows if row["kind"] == kind] for kind in ("train", "val"))
    last = [row["accuracy"] for row in train if row["epoch"] > train[-1]["epoch"] - 1]
    curve = [[row["epoch"], row["miou"]] for row in val if "miou" in row]
    fit = {"training_accuracy": float(np.mean(last)), "validation_loss": val[-1]["loss"]}
    return fit | ({"curve": curve} if curve else {})


def as_markdown(rows: list[dict], first_column: str = "training") -> str:
    """Return the rows as a Markdown table: percent, mean over the seeds, and for mIoU also minimum and maximum."""
    lines = [f"| {first_column} | seeds | mIoU | from, to | class acc. | global acc. |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row["seeds"]:
            miou, mean, right = (f"{100 * np.mean(row[name]):.1f}" for name in SCORES)
            ends = f"{100 * min(row['miou']):.1f}, {100 * max(row['miou']):.1f}"
            lines.append(f"| {row['name']} | {len(row['seeds'])} | {miou} | {ends} | {mean} | {right} |")
    return "\n".join(lines)


def insert_table(table: str, page: pathlib.Path, name: str) -> None:
    """Insert a table into a page, between <!-- NAME --> and <!-- / -->."""
    before, _, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->")
    _, end, after = rest.partition("<!-- / -->")
    page.write_text(f"{before}<!-- {name} -->\n{table}\n{end}{after}", encoding="utf-8")


def draw_scores(question: str, rows: list[dict], path: pathlib.Path, images: str = "validation") -> None:
    """Draw a dot for each seed's mIoU and a line at their mean."""
    rows = [row for row in rows if row["seeds"]][::-1]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.45 * len(rows)), layout="constrained")
    for height, row in enumerate(rows):
        values = 100 * np.array(row["miou"])
        axes.plot(values, np.full(len(values), height), "o", color="#1f5fa8", alpha=0.7)
        axes.plot([values.mean()] * 2, [height - 0.3, height + 0.3], color="#c2410c", linewidth=2)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_xlabel(f"{images} mIoU, percent: a dot per seed, a line at their mean")
    axes.set_title(question, loc="left")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curves(question: str, rows: list[dict], path: pathlib.Path) -> None:
    """Draw validation mIoU over the epochs, one line per run, labeled at its end."""
    rows = [row for row in rows if row["seeds"] and row["curves"][0]]
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for row, color in zip(rows, plt.cm.turbo(np.linspace(0.05, 0.95, max(len(rows), 2))), strict=False):
        for curve in row["curves"]:
            epochs, miou = np.array(curve).T
            label = f"{row['name']}: {100 * miou[-1]:.1f}" if curve is row["curves"][0] else None
            axes.plot(epochs, 100 * miou, "o-", markersize=3, color=color, label=label)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation mIoU, percent")
    axes.set_title(question, loc="left")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
