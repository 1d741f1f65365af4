"""Run whole commands on malicious inputs and under system limits, and summarize what held.

    python experiments/reliability/attacks.py --machine "2 cores of an AMD EPYC, no GPU" [--kind links] [--keep FILE]

Writes `attacks.json` next to this file, unless only some attacks are selected. Each attack is a separate process, on a
fresh copy of a small trained run, limited in time and memory. The command holds if it exits with one of the expected
codes, without a traceback, within 60 seconds of CPU time and 1 GiB more memory than on ordinary files, prints no
control characters and creates no names with them, and changes no file next to the run.

The commands are imported once, and each attack runs in a fork of that process, as `python -m` would run it; attacks by
limits or by the environment start a new interpreter.
"""

import argparse
import importlib
import json
import math
import os
import pathlib
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]
os.environ["JAX_PLATFORMS"] = "cpu"

from attack_commands import TRAIN, Attack, words_of  # noqa: E402
from attack_feature_inputs import copied, sweep  # noqa: E402
from attack_features import feature_attacks  # noqa: E402
from attack_inputs import make_victim  # noqa: E402
from attack_list import attacks  # noqa: E402
from attack_pictures import in_data, ordinary  # noqa: E402
from attack_summary import combine, summarize  # noqa: E402

from segnet_jax.__main__ import COMMANDS  # noqa: E402
from segnet_jax.reporting.environment import environment  # noqa: E402

COMMIT = environment(["cpu"]).get("commit")
SECONDS, PATIENCE = 60, 600  # CPU time; wall time, on a shared machine
MORE_MEMORY, MOST_MEMORY = 2**30, 16 * 2**30
CONTROL = set("\x1b\x07\u202e")
IMPORTED = ("orbax.checkpoint", "jinja2", "matplotlib.figure", "safetensors", "h5py")
USUAL = {  # a command on ordinary files -> commands whose peak of memory is compared with its peak
    "train": ("train", "init", "init-run", "convert", "prepare", "prepare-vgg", "lower", "measure", "compare"),
    **{name: (name,) for name in ("evaluate", "predict", "export", "report", "doctor", "check")},
    "begin": ("begin", "channels"),
    "sweep": ("sweep", "folds", "config", "profile", "upload", "bucket", "init-export", "resume"),
    "ensemble": ("ensemble", "calibrate", "csv", "evaluate-export", "predict-both", "predict-export"),
    "benchmark": ("benchmark",),
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="", help="description of the machine")
    parser.add_argument("--set", choices=("first", "features"), help="run only the attacks of this set")
    parser.add_argument("--kind", default="", help="attack only this promise")
    parser.add_argument("--command", default="", help="attack only this command")
    parser.add_argument("--name", default="", help="run only attacks whose name contains this")
    parser.add_argument("--keep", type=pathlib.Path, help="file of outcomes, to continue after an interruption")
    parser.add_argument("--stop", type=float, default=math.inf, help="start no attack after this many minutes")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "attacks.json")
    options = parser.parse_args()
    for name in (*(f"segnet_jax.{command}" for command in COMMANDS), *IMPORTED):
        importlib.import_module(name)
    sets = {"first": attacks(), "features": feature_attacks()}
    everything = [attack for each in sets.values() for attack in each]
    names = [(attack.kind, attack.name, attack.command) for attack in everything]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    chosen = [
        attack
        for attack in (sets[options.set] if options.set else everything)
        if options.kind in ("", attack.kind) and options.name in attack.name and options.command in ("", attack.command)
    ]
    begin = time.monotonic()
    kept = read_kept(options.keep) if options.keep else {}
    usual = kept.pop("usual", {})
    with tempfile.TemporaryDirectory(prefix="attacks-") as place:
        around = pathlib.Path(place)
        os.environ["SEGNET_JAX_CACHE"] = str(around / "cache")
        if left := [attack for attack in chosen if key_of(attack) not in kept]:
            template, measured = make_template(around, {attack.command for attack in left})
            usual |= measured
            keep(options.keep, "usual", usual)
        for attack in left:
            if time.monotonic() > begin + 60 * options.stop:
                break
            kept[key_of(attack)] = outcome = tried(attack, template, around, usual)
            keep(options.keep, key_of(attack), outcome)
            show(outcome)
    is_whole = not (options.kind or options.command or options.name)
    parts = json.loads(options.out.read_text())["sets"] if is_whole and options.out.exists() else {}
    for name in (name for name in sets if not options.set or name == options.set):
        each = [attack for attack in sets[name] if attack in chosen]
        results = [kept[key_of(attack)] for attack in each if key_of(attack) in kept]
        if results:
            not_run = [key_of(attack) for attack in each if key_of(attack) not in kept]
            parts[name] = summarize(results, usual, not_run) | {"machine": options.machine, **environment(["cpu"])}
    summary = combine(parts)
    print(json.dumps({name: each for name, each in summary.items() if name not in ("failed", "sets")}, indent=1))
    if is_whole:
        options.out.write_text(json.dumps(summary, indent=1) + "\n")
    sys.exit(summary["held"] != summary["attacks"])


def key_of(attack: Attack) -> str:
    """Return the name of an attack in the file of `--keep`."""
    return "|".join((attack.kind, attack.name, attack.command))


def read_kept(path: pathlib.Path) -> dict[str, dict]:
    """Read the outcomes of interrupted starts, and the peaks of memory on ordinary files."""
    kept: dict[str, dict] = {"usual": {}}
    for line in path.read_text().splitlines() if path.exists() else []:
        for key, value in json.loads(line).items():
            kept[key] = kept["usual"] | value if key == "usual" else value
    return kept


def keep(path: pathlib.Path | None, key: str, value: dict) -> None:
    """Append an outcome to the file of `--keep`, if there is one."""
    if path:
        with open(path, "a") as file:
            file.write(json.dumps({key: value}) + "\n")


def show(outcome: dict) -> None:
    """Print an outcome."""
    what = "; ".join(outcome["wrong"]) or "held"
    name = f"{outcome['command']:11} {outcome['kind']}: {outcome['name']}"
    print(f"{name}: {what} ({outcome['code']}, {outcome['seconds']} s, {outcome['beyond'] >> 20} MiB)", flush=True)
    if outcome["wrong"]:
        print(f"            {outcome['last']}", flush=True)


# --- how it is tried ---


def make_template(around: pathlib.Path, needed: set[str]) -> tuple[pathlib.Path, dict[str, int]]:
    """Train the run to attack; return it, and the peak of memory of each needed command on ordinary files."""
    template, usual = around / "template", {}
    made = started(["train", *TRAIN, "--run", str(template), "--max-steps", "3"], around, {})
    assert made["code"] == 0, made["err"]
    if needed & {"evaluate-export", "predict-export", "init-export"}:
        words = ["export", str(template), "--format", "safetensors", "--images", "1", "--out", str(around / "exported")]
        made = started(words, around, {})
        assert made["code"] == 0, made["err"]
    for command, compared in USUAL.items():
        if not needed & {*compared}:
            continue
        folder = around / f"usual-{command}"
        run = shutil.copytree(template, folder / "run")
        given = ordinary(run, folder) if command in ("predict", "doctor", "begin", "check") else {}
        given |= sweep("")(run, folder) if command == "sweep" else {}
        if command == "ensemble":
            copied("other")(run, folder)
        done = started(words_of(command, run, folder, given), folder, {})
        assert done["code"] == 0, done["err"]
        usual |= dict.fromkeys(compared, done["peak"])
        if "data" in given:  # the folder that attacks replace files of is itself valid
            small = in_data("images/../notes.txt", lambda path: path.touch())(run, folder / "small")
            valid = started(words_of(command, run, folder / "small", small | {"flags": []}), folder / "small", {})
            assert valid["code"] == 0, valid["err"]
    return template, usual


def tried(attack: Attack, template: pathlib.Path, around: pathlib.Path, usual: dict[str, int]) -> dict:
    """Run one attack on a fresh copy; return the outcome."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=around))
    run = shutil.copytree(template, folder / "run", symlinks=True)
    victim = make_victim(folder / "victim")
    given = attack.prepare(run, folder) or {}
    before = content_of(victim)
    own = {name: (run / name).read_bytes() for name in ("result.json", "first_batch.png") if (run / name).is_file()}
    names = names_below(folder)
    found = started(words_of(attack.command, run, folder, given), folder, given)
    printed = found.pop("out") + found.pop("err")
    beyond = max(0, found["peak"] - usual[attack.command])
    wrong = []
    if found["code"] not in attack.codes:
        wrong.append(f"exit code {found['code']} instead of {' or '.join(map(str, attack.codes))}")
    if "Traceback" in printed:
        wrong.append("a traceback")
    if set(printed) & CONTROL:
        wrong.append("control characters")
    if any(CONTROL & set(text) for text in texts_below(folder, attack.kind)):
        wrong.append("control characters in a written file")
    if any(CONTROL & set(name) for name in names_below(folder) - names):
        wrong.append("control characters in a file name")
    if found["seconds"] > SECONDS:
        wrong.append("too slow")
    if beyond > MORE_MEMORY:
        wrong.append(f"a peak of {found['peak'] / 2**20:.0f} MiB")
    after = content_of(victim)
    if after.keys() - before.keys() - {*given.get("adds", ())} or before.items() - after.items():
        wrong.append("somebody's files were changed")
    if attack.kind == "overwriting" and any((run / name).read_bytes() != data for name, data in own.items()):
        wrong.append("a file of the run was replaced")
    shutil.rmtree(folder, ignore_errors=True)
    last = ascii((printed.strip().splitlines() or [""])[-1][:300].replace(str(folder), ""))
    about = {"kind": attack.kind, "name": attack.name, "command": attack.command, "commit": COMMIT}
    return about | found | {"beyond": beyond, "wrong": wrong, "last": last}


def started(words: list[str], cwd: pathlib.Path, given: dict) -> dict:
    """Run a command with limited time and memory."""
    out, err = cwd / ".out", given.get("stderr", cwd / ".err")
    begin = time.monotonic()
    pid = (
        launched(words, cwd, given, out, err)
        if given.keys() & {"limit", "env", "full"}
        else forked(words, cwd, out, err)
    )
    while True:
        found, status, used = os.wait4(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() - begin > PATIENCE:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.02)
    code = os.waitstatus_to_exitcode(status)
    texts = [pathlib.Path(each).read_bytes().decode(errors="replace") if pathlib.Path(each).is_file() else ""
             for each in (out, err)]  # fmt: skip
    return {
        "code": code if code >= 0 else 128 - code,
        "seconds": round(used.ru_utime + used.ru_stime, 1),
        "by_clock": round(time.monotonic() - begin, 1),
        "peak": used.ru_maxrss * 1024,
        "out": texts[0],
        "err": texts[1],
    }


def launched(words: list[str], cwd: pathlib.Path, given: dict, out: pathlib.Path, err: pathlib.Path) -> int:
    """Start a command in a new interpreter, under a limit of the shell or with another environment; return its pid."""
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), **given.get("env", {})}
    mount = 'mount -t tmpfs -o size=4k none "$0" && { head -c 8192 /dev/zero >"$0/.full" 2>/dev/null; exec "$@"; }'
    command = [sys.executable, "-m", f"segnet_jax.{words[0]}", *words[1:]]
    if "limit" in given:
        command = ["bash", "-c", f'ulimit {given["limit"]}; exec "$@"', "_", *command]
    if "full" in given:
        command = ["unshare", "-rm", "bash", "-c", mount, str(given["full"]), *command]
    with open(out, "wb") as stdout, open(err, "wb") as stderr:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, process_group=0
        )
    process.returncode = 0  # waited for by `started`
    return process.pid


def forked(words: list[str], cwd: pathlib.Path, out: pathlib.Path, err: pathlib.Path) -> int:
    """Run a command in a fork of this process, as `python -m` does; return its pid."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(cwd)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        for number, (path, flags) in enumerate([(os.devnull, os.O_RDONLY), (out, 0o1101), (err, 0o1101)]):
            descriptor = os.open(path, flags, 0o666)
            os.dup2(descriptor, number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
        sys.argv = [f"segnet_jax.{words[0]}", *words[1:]]
        sys.path.insert(0, str(cwd))
        sys.modules.pop(f"segnet_jax.{words[0]}", None)  # run as __main__ now
        runpy.run_module(f"segnet_jax.{words[0]}", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 120  # as the interpreter does
        os._exit(code)


def content_of(folder: pathlib.Path) -> dict[str, bytes]:
    """Return name -> content of all files."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def texts_below(folder: pathlib.Path, kind: str) -> list[str]:
    """Return what a command has written as CSV or Markdown, for attacks by control characters."""
    found = [*folder.rglob("*.csv"), *folder.rglob("*.md")] if kind == "control characters" else []
    return [path.read_text(errors="replace") for path in found if "data" not in path.parts and path.is_file()]


def names_below(folder: pathlib.Path) -> set[str]:
    """Return the names of all files and folders."""
    return {name for _, folders, files in os.walk(folder) for name in (*folders, *files)}


if __name__ == "__main__":
    main()
