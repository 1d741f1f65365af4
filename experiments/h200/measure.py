"""Run all measurements on one GPU in one command, each case in a separate process, the most valuable first.

python experiments/h200/measure.py --data DIR --init FILE --out OUT

DIR is CamVid in the tutorial's layout, FILE a VGG-16. After every case, `results.json` and `summary.md` are written to
OUT, and `log.txt` with the output of failed cases. With `--earlier FOLDER`, the OUT of an earlier call, a second
call runs only the cases that are missing there. `--dry-run` tries all cases on a CPU.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

import variants  # noqa: E402

BATCHES = (16, 4, 32, 64)
NEEDED = ("jax", "flax", "optax", "orbax.checkpoint", "tyro", "rich", "PIL", "matplotlib", "safetensors", "h5py")
OPTIONAL = ("torch", "google.protobuf")
VERSIONS = ("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13") + (
    ("flax", "optax", "orbax-checkpoint", "numpy", "torch")
)
OF_RUN = ("miou", "global_accuracy", "mean_accuracy", "per_class", "split", "step", "seconds", "images_per_second")
OF_RUN += ("num_steps", "device", "precision", "checkpoint")


@dataclasses.dataclass(frozen=True)
class Case:
    """A measurement.

    Attributes:
      name: name in the results.
      command: command that writes `result`.
      result: path of the JSON file.
    """

    name: str
    command: list[str]
    result: pathlib.Path


def cases_of(work: pathlib.Path, data: str, init: str, dry_run: bool) -> list[Case]:
    """Return all cases, the most valuable first: training at 16 images, whole runs, inference, peers, the rest.

    Args:
      work: folder for the files of the cases.
      data: CamVid's folder, or "synthetic".
      init: file of VGG-16 weights; "" leaves out the runs that start from them.
      dry_run: small sizes on a CPU.
    """
    small = ["--image-size", "32", "48", "--width", "0.0625"] if dry_run else []
    rounds = ["--steps", "2", "--rounds", "2"] if dry_run else []
    half = "float32" if dry_run else "bfloat16"  # 16 bits are not representative on a CPU
    batches = (2, 1) if dry_run else BATCHES
    images = ["--data", data]

    def benchmark(name: str, what: str, batch: int, *flags: str, precision: str = half) -> Case:
        path = work / f"{name}.json"
        command = ["-m", "segnet_jax.benchmark", what, "--batch-size-per-device", str(batch), "--precision", precision]
        return Case(name, [*command, "--devices", "1", *small, *flags, "--json", str(path)], path)

    def run(name: str, *flags: str) -> Case:
        folder = work / name
        changed = ["--precision", half, "--batch-size-per-device", "2", "--epochs", "2"] if dry_run else []
        command = ["-m", "segnet_jax.train", *flags, *images, "--devices", "1", "--run", str(folder)]
        return Case(name, [*command, *small, *changed], folder / "result.json")

    def peers(batch: int) -> Case:
        name = f"peers-{half}-{batch}"
        path = work / f"{name}.json"
        script = [str(ROOT / "experiments/peers/compare.py"), "network", "--batch-size", str(batch)]
        more = ["--rounds", "2"] if dry_run else ["--compile"]
        return Case(name, [*script, "--precision", half, *small, *more, "--json", str(path)], path)

    def variant(name: str, batch: int) -> Case:
        path = work / f"variant-{name}.json"
        flags = ["--batch-size-per-device", str(batch), "--precision", half, "--devices", "1", *small, *rounds]
        return Case(f"variant-{name}", [str(HERE / "variants.py"), name, *flags, "--json", str(path)], path)

    def whole(batch: int, what: str) -> Case:
        return benchmark(f"{what}-{half}-{batch}", what, batch, *rounds)

    first, *others = batches
    initial = ["--init", init]
    # Tuned for the device by itself: a hundred epochs of camvid-strong at the full size from real weights.
    own = ["--protocol", "camvid-strong", "--batch-size-per-device", "16", "--evaluate-every", "10"]
    cases = [whole(first, "train"), run("run", "--config", str(HERE / "config.toml"))]
    cases += [run("camvid-strong", *own, *initial)] if init else []
    cases += [whole(first, "infer"), peers(first)]
    cases += [run("camvid-tutorial", "--protocol", "camvid-tutorial", *initial)] if init else []
    cases += [benchmark("epoch", "epoch", first, *images, "--rounds", "2" if dry_run else "5")]
    cases += [whole(batch, what) for batch in others for what in ("train", "infer")]
    cases += [peers(others[0])]
    cases += [benchmark(f"input-{each}", "train", first, *rounds, "--input", each) for each in ("device", "host")]
    several = ["--input", "device", "--steps-per-dispatch", "8"]
    cases += [benchmark("eight-steps-a-call", "train", first, *rounds, *several)]
    cases += [variant(name, first) for name in variants.VARIANTS]
    cases += [benchmark(f"train-{each}", "train", first, *rounds, precision=each) for each in ("float16", "float32")]
    return [*cases, benchmark("pooling", "pooling", first, *rounds)]


def missing(names: tuple[str, ...]) -> list[str]:
    """Return the modules of `names` that cannot be imported here."""

    def is_absent(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is None
        except ModuleNotFoundError:  # the parent package is missing
            return True

    return [name for name in names if is_absent(name)]


def versions() -> dict[str, Any]:
    """Return the versions of Python and of the installed libraries, and the devices as JAX and nvidia-smi name them."""
    found: dict[str, Any] = {"python": sys.version.split()[0]}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    code = "import jax; print([(d.platform, d.device_kind) for d in jax.devices()])"
    found["devices"] = _output([sys.executable, "-c", code])
    found["gpu"] = _output(["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"])
    return found


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def main() -> int:
    """Run the command; return the number of failed cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic", help="CamVid in the tutorial's layout, PNG or JPEG")
    parser.add_argument("--init", default="", help="VGG-16 weights; without them no run starts from pretrained weights")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the results")
    parser.add_argument("--earlier", type=pathlib.Path, help="results of an earlier call, to continue with the rest")
    parser.add_argument("--only", default="", help="run only cases whose names contain this")
    parser.add_argument("--minutes", type=float, default=9.0, help="time after which the running case is ended")
    parser.add_argument("--dry-run", action="store_true", help="small sizes, to test that all cases run")
    given = parser.parse_args()
    if absent := missing(NEEDED):
        print(f"error: these modules are missing: {', '.join(absent)}; see README.md, Without installing", flush=True)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    results = read_results(given.out) or read_results(given.earlier) or {"versions": versions(), "cases": {}}
    print(json.dumps(results["versions"], indent=2), flush=True)
    end = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as work:
        for case in cases_of(pathlib.Path(work), given.data, given.init, given.dry_run):
            if given.only in case.name and not results["cases"].get(case.name, {}).get("result"):
                if time.monotonic() > end:
                    print(f"{case.name}: not started, the time is up; --earlier continues with it", flush=True)
                    continue
                results["cases"][case.name] = measure(case, end - time.monotonic(), given.out / "log.txt")
                write_results(given.out, results)
    print((given.out / "summary.md").read_text() if results["cases"] else "no case was run")
    return sum(not case["result"] for case in results["cases"].values())


def measure(case: Case, seconds: float, log: pathlib.Path) -> dict[str, Any]:
    """Run a case with a time limit; return its command, time, exit code and result, None if it failed."""
    path = os.pathsep.join(each for each in (str(ROOT), os.environ.get("PYTHONPATH", "")) if each)
    start, command = time.monotonic(), [sys.executable, *case.command]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=seconds
        )
        code, printed = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        code, printed = -1, f"ended after {seconds:.0f} s\n{(error.stderr or b'').decode(errors='replace')}"
    took = time.monotonic() - start
    result = json.loads(case.result.read_text()) if code == 0 and case.result.is_file() else None
    print(f"{case.name}: {'done' if result else 'FAILED'} in {took:.0f} s", flush=True)
    if not result:
        with log.open("a") as file:
            file.write(f"=== {case.name}, exit code {code}\n{printed[-20_000:]}\n")
        print("\n".join(printed.splitlines()[-15:]), flush=True)
    elif case.result.name == "result.json":  # of a run, whose images stay where they are
        result = {name: result[name] for name in OF_RUN if name in result}
    shown = ["python", *(word.replace(f"{case.result.parent}{os.sep}", "") for word in case.command)]
    return {"command": " ".join(shown), "seconds": round(took, 1), "exit_code": code, "result": result}


def read_results(folder: pathlib.Path | None) -> dict[str, Any] | None:
    """Return the results in a folder, None if there are none."""
    path = folder / "results.json" if folder else None
    return json.loads(path.read_text()) if path and path.is_file() else None


def write_results(out: pathlib.Path, results: dict[str, Any]) -> None:
    """Write the results and their table atomically."""
    for name, text in (("results.json", json.dumps(results, indent=2) + "\n"), ("summary.md", as_markdown(results))):
        (out / f"{name}.new").write_text(text)
        (out / f"{name}.new").replace(out / name)


def rows_of(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return case -> throughput, times, fractions and memory; each comparison with peers has a separate row."""
    rows = {}
    for name, case in results["cases"].items():
        found = case["result"] or {}
        for part in ("train", "epoch", "infer", "pooling"):
            found = found[part] if isinstance(found.get(part), dict) else found
        if "images_per_second" in found:
            rows[name] = found
        for each in found.get("comparisons", ()):
            rows[f"{name}: {each['what']}"] = each["sides"]["ours"] | {"of_peer": each["ours_over_fastest"]}
    return rows


def as_markdown(results: dict[str, Any]) -> str:
    """Format a table of throughputs, each variant's also relative to the unchanged step."""
    rows = rows_of(results)
    ours = rows.get("variant-ours", {}).get("images_per_second")
    lines = [
        "| case | images/s | ms a step | of roofline | of peak | memory, MB | beside ours | time / PyTorch | mIoU |",
        "|---|" + "---|" * 8,
    ]
    for name, row in rows.items():
        beside = row["images_per_second"] / ours if ours and name.startswith("variant-") else None
        cells = [
            name,
            f"{row['images_per_second']:.1f}",
            _number(row.get("ms_per_step"), ".2f"),
            _number(row.get("fraction_of_roofline"), ".1%"),
            _number(row.get("fraction_of_peak"), ".1%"),
            _number(row.get("peak_memory_mb") or row.get("program_memory_mb"), ",.0f"),
            _number(beside, ".2f"),
            _number(row.get("of_peer"), ".2f"),
            _number(row.get("miou"), ".1%"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(main())
