"""Run all GPU measurements in one command, each case in a separate process.

python experiments/h200/measure.py --data DIR --out OUT

DIR is CamVid in the tutorial's layout. Writes a JSON file for each case, `summary.json` and `summary.md` to OUT. A
failed case is reported with the end of its output; the others still run. Use `--dry-run` for a small test on a CPU.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import variants  # noqa: E402

BATCHES = (4, 16, 32, 64)
ABLATION_BATCH = 16


def cases(out: pathlib.Path, data: str, dry_run: bool) -> dict[str, list[str]]:
    """Return name -> command of each measurement, most important first."""
    python = sys.executable
    small = ["--image-size", "32", "48", "--width", "0.0625"] if dry_run else []
    rounds = ["--steps", "2", "--rounds", "2"] if dry_run else []
    batches = (1, 2) if dry_run else BATCHES
    half = "float32" if dry_run else "bfloat16"  # 16 bits are not representative on a CPU
    benchmark = [python, "-m", "segnet_jax.benchmark"]
    peers = [python, str(ROOT / "experiments" / "peers" / "compare.py")]

    def json_of(name: str) -> list[str]:
        return ["--json", str(out / f"{name}.json")]

    found = {}
    for batch in batches:
        flags = ["--batch-size-per-device", str(batch), "--precision", half, "--devices", "1", *small, *rounds]
        for what in ("train", "infer"):
            found[f"{what}-{half}-{batch}"] = [*benchmark, what, *flags, *json_of(f"{what}-{half}-{batch}")]
    epochs = "2" if dry_run else "100"
    flags = ["--batch-size-per-device", str(batches[1]), "--precision", half, "--devices", "1", "--data", data]
    found["epoch"] = [*benchmark, "epoch", *flags, *small, "--rounds", "2" if dry_run else "5", *json_of("epoch")]
    found["run"] = [
        *(python, "-m", "segnet_jax.train", "--config", str(HERE / "config.toml"), "--data", data),
        *("--run", str(out / "run"), "--epochs", epochs),
        *(["--precision", half, *small, "--batch-size-per-device", "2"] if dry_run else []),
    ]
    for batch in batches[:2]:
        name = f"peers-{half}-{batch}"
        flags = ["network", "--batch-size", str(batch), "--precision", half, *small]
        found[name] = [*peers, *flags, *(["--rounds", "2"] if dry_run else ["--compile"]), *json_of(name)]
    batch = str(1 if dry_run else ABLATION_BATCH)
    common = ["--batch-size-per-device", batch, "--devices", "1", *small, *rounds]
    for name in variants.VARIANTS:
        flags = [name, *common, "--precision", half, *json_of(f"variant-{name}")]
        found[f"variant-{name}"] = [python, str(HERE / "variants.py"), *flags]
    for name, flags in {
        "input-host": ["--input", "host"],
        "input-device": ["--input", "device"],
        "eight-steps-a-call": ["--input", "device", "--steps-per-dispatch", "8"],
    }.items():
        found[name] = [*benchmark, "train", *common, "--precision", half, *flags, *json_of(name)]
    for precision in ("float32", "float16"):
        name = f"train-{precision}"
        found[name] = [*benchmark, "train", *common, "--precision", precision, *json_of(name)]
    found["pooling"] = [*benchmark, "pooling", *common, "--precision", half, *json_of("pooling")]
    return found


def main() -> int:
    """Run the command; return the number of failed cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic", help="CamVid in the tutorial's layout")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the results")
    parser.add_argument("--only", default="", help="run only cases whose names contain this")
    parser.add_argument("--minutes", type=float, default=9.0, help="time after which no new case is started")
    parser.add_argument("--dry-run", action="store_true", help="small sizes, to test that all cases run")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    start, failed, cases = time.monotonic(), 0, []
    for name, command in cases(given.out.resolve(), given.data, given.dry_run).items():
        if (
            given.only not in name
            or (given.out / f"{name}.json").exists()
            or (given.out / name / "result.json").exists()
        ):
            continue
        if time.monotonic() - start > 60 * given.minutes:
            print(f"{name}: skipped, the time is up; the same command continues with it", flush=True)
            continue
        init_ema = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        seconds = time.monotonic() - init_ema
        cases.append({"case": name, "seconds": seconds, "exit_code": done.returncode})
        print(f"{name}: {'done' if done.returncode == 0 else 'FAILED'} in {seconds:.0f} s", flush=True)
        if done.returncode:
            failed += 1
            print("\n".join((done.stdout + done.stderr).splitlines()[-15:]), flush=True)
    summary = summarize(given.out)
    (given.out / "summary.json").write_text(json.dumps({"cases": cases, "results": summary}, indent=2) + "\n")
    table = as_markdown(summary)
    (given.out / "summary.md").write_text(table)
    print(table)
    return failed


def summarize(out: pathlib.Path) -> dict[str, dict]:
    """Collect the results of all cases, including those of earlier calls."""
    found = {}
    for path in sorted(out.glob("*.json")):
        if path.name == "summary.json":
            continue
        result = json.loads(path.read_text())
        for part in ("train", "epoch", "infer", "pooling"):
            if isinstance(result.get(part), dict):
                found[path.stem] = {"device": result.get("device"), **result[part]}
        if path.stem.startswith("peers-"):
            found[path.stem] = result
    if (result := out / "run" / "result.json").is_file():
        kept = ("miou", "seconds", "images_per_second", "num_steps", "device", "precision", "step")
        found["run"] = {name: value for name, value in json.loads(result.read_text()).items() if name in kept}
    return found


def as_markdown(summary: dict[str, dict]) -> str:
    """Format a table of throughputs, each variant's also relative to the unchanged step."""
    ours = summary.get("variant-ours", {}).get("images_per_second")
    lines = [
        "| case | images/s | ms a step | of the roofline | of the peak | memory, MB | beside ours |",
        "|---|" + "---|" * 6,
    ]
    for name, row in summary.items():
        if "images_per_second" not in row:
            continue
        beside = f"{row['images_per_second'] / ours:.2f}" if ours and name.startswith("variant-") else ""
        memory = row.get("peak_memory_mb") or row.get("program_memory_mb")
        cells = [
            name,
            f"{row['images_per_second']:.1f}",
            _number(row.get("ms_per_step"), ".2f"),
            _number(row.get("fraction_of_roofline"), ".1%"),
            _number(row.get("fraction_of_peak"), ".1%"),
            _number(memory, ",.0f"),
            beside,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(main())
