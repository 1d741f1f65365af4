"""Trace the system calls of commands on a run full of links, and on a run that is itself named by a link.

    python experiments/reliability/traces.py --machine "2 cores of an AMD EPYC, no GPU"

Needs strace. Writes `traces.json` next to this file: per command the exit code, the number of calls that create,
change, remove or open for writing, those of them outside the run, the cache and the named outputs, and the addresses
contacted.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "tests" / "commands")]
os.environ["JAX_PLATFORMS"] = "cpu"

from attack_commands import TRAIN  # noqa: E402
from attack_inputs import link_to_victim, make_victim, replaced  # noqa: E402
from test_writes import NO_FILES, written  # noqa: E402

from segnet_jax.reporting.environment import environment  # noqa: E402

LINKS = (
    *("checkpoints/x", "checkpoints/best", "checkpoints/last.json", "checkpoints/statistics", "checkpoints/damaged"),
    *("lock", "metrics.jsonl", "outcome.json", "overrides.json", "environment.json", "train.log", "progress.png"),
    *("samples", "evaluations", "incident", "export", "predictions-1", "report.html", "confusion.csv", "other"),
)
COMMANDS = {
    "resume": ["train", *TRAIN, "--run", "{run}", "--resume"],
    "evaluate": ["evaluate", "{run}", "--no-boundary", "--json", "{out}/scores.json", "--pictures", "{out}/pictures"],
    "report": ["report", "{run}", "--json", "{out}/report.json"],
    "export": ["export", "{run}", "--format", "stablehlo", "safetensors", "--images", "1", "--out", "{out}/export"],
    "export to a SavedModel": ["export", "{run}", "--format", "saved-model", "--images", "1", "--out", "{out}/model"],
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", required=True, help="description of the machine")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "traces.json")
    parser.add_argument("--only", choices=COMMANDS, help="trace only this command again; keep the others of --out")
    options = parser.parse_args()
    found = json.loads(options.out.read_text())["traces"] if options.only else {}
    about = environment(["cpu"])
    with tempfile.TemporaryDirectory(prefix="traces-") as place:
        around = pathlib.Path(place)
        for name in ("home", "tmp", "cache"):
            (around / name).mkdir()
        env = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL", "JAX_C"))}
        env |= {"HOME": str(around / "home"), "TMPDIR": str(around / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
        env |= {"SEGNET_JAX_CACHE": str(around / "cache"), "PYTHONPATH": str(REPOSITORY)}
        template = around / "template"
        command = [sys.executable, "-m", "segnet_jax.train", *TRAIN, "--run", str(template), "--max-steps", "3"]
        subprocess.run(command, env=env, check=True, capture_output=True)
        for name, words in COMMANDS.items():
            if options.only not in (None, name):
                continue
            for kind, is_linked in (("full of links", True), ("named by a link", False)):
                found[f"{name}, {kind}"] = one = {"commit": about["commit"]} | traced(
                    words, template, around, env, is_linked
                )
                print(f"{name}, a run {kind}: {one}", flush=True)
    bad = [name for name, one in found.items() if not one["held"]]
    summary = {
        "command": "python experiments/reliability/traces.py",
        "machine": options.machine,
        "date": datetime.date.today().isoformat(),
        "strace": subprocess.run(["strace", "-V"], capture_output=True, text=True).stdout.split("\n")[0],
        "links": len(LINKS),
        "traces": found,
        **about,
    }
    options.out.write_text(json.dumps(summary, indent=1) + "\n")
    sys.exit(f"not as promised: {', '.join(bad)}" if bad else 0)


def traced(words: list[str], template: pathlib.Path, around: pathlib.Path, env: dict, is_linked: bool) -> dict:
    """Trace a command on a copy of a run, and return its exit code, writes and addresses.

    Args:
      words: the command; {run} and {out} are replaced.
      template: the run.
      around: folder for the copy.
      env: environment of the command.
      is_linked: put links at LINKS inside the run, which must be refused; else the run is named by a link, and the
        command must succeed.
    """
    folder = pathlib.Path(tempfile.mkdtemp(dir=around))
    run, out, record = folder / "run", folder / "out", folder / "record"
    shutil.copytree(template, run)
    for each in (out, record):
        each.mkdir()
    victim = make_victim(folder / "victim")
    if is_linked:
        for name in LINKS:
            replaced(name, link_to_victim)(run, folder)
        named = run
    else:
        named = folder / "latest"
        named.symlink_to(run)
    before = state_of(victim)
    command = [word.format(run=named, out=out) for word in words]
    strace = ["strace", "-ff", "-y", "--seccomp-bpf", "-qq", "-s", "4096", "-o", str(record / "of")]
    strace += ["-e", "trace=file,ftruncate,connect,sendto", sys.executable, "-m", f"segnet_jax.{command[0]}"]
    done = subprocess.run([*strace, *command[1:]], env=env, cwd=folder, capture_output=True, text=True, timeout=1800)
    lines = [line for path in record.iterdir() for line in path.read_text(errors="replace").splitlines()]
    paths = {real(path) for path in written(lines, folder) if not path.startswith(NO_FILES)}
    paths |= {match[1] for match in map(re.compile(r"ftruncate\(\d+<(.*?)>").match, lines) if match}
    allowed = tuple(f"{real(each)}/" for each in (run, out, around / "cache"))
    outside = sorted(str(path) for path in paths if not f"{path}/".startswith(allowed))
    connected = [line for line in lines if "sa_family=AF_INET" in line]
    untouched = state_of(victim) == before
    code = 2 if is_linked else 0
    held = done.returncode == code and not outside and not connected and untouched and len(lines) > 1000
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "held": held,
        "exit_code": done.returncode,
        "last_line": (done.stderr.strip().splitlines() or [""])[-1].replace(str(folder), ""),
        "calls": len(lines),
        "paths_written": len(paths),
        "outside": [path.replace(str(around), "") for path in outside],
        "connections": connected,
        "files_behind_the_links_are_untouched": untouched,
    }


def real(path: str | os.PathLike) -> str:
    """Resolve the folder of a path: a link in it would lead outside."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def state_of(folder: pathlib.Path) -> dict[str, tuple]:
    """Return content and times of all files and folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[path.relative_to(folder).as_posix()] = (
            path.read_bytes() if path.is_file() else None,
            *(status.st_mtime_ns, status.st_ctime_ns, status.st_mode),
        )
    return found


if __name__ == "__main__":
    main()
