"""Run whole commands on malicious inputs and under system limits, and write a report.

    python experiments/reliability/attacks.py --json experiments/reliability/attacks.json [--kind links] [--keep DIR]

Each attack runs in its own process, on a fresh copy of a small trained run, with limited time and memory. The command
passes if it ends in time with one of the expected exit codes, without a traceback, takes at most 1 GiB more than on
ordinary files, prints no terminal escapes, and leaves the user's files next to the run unchanged.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]
SAMPLE = REPOSITORY / "data" / "sample"
SECONDS, PATIENCE = 60, 600  # CPU time; wall time, on a shared machine
MORE_MEMORY, MOST_MEMORY = 2**30, 16 * 2**30
TRAIN = [
    *("--data", "synthetic", "--scenes", "12", "4", "--image-size", "24", "32", "--init", "none", "--devices", "1"),
    *("--depth", "1", "--width", "0.0625", "--class-weights", "none", "--batch-size-per-device", "4", "--epochs", "2"),
]


@dataclass(frozen=True)
class Attack:
    """One attack on a command.

    Attributes:
      kind: promise that it tests.
      name: description.
      command: attacked command, a key of COMMANDS.
      prepare: function of the run and a folder that returns changed arguments: "flags", "data", "limit", "env" or
        "stderr".
      codes: expected exit codes.
    """

    kind: str
    name: str
    command: str
    prepare: Callable[[pathlib.Path, pathlib.Path], dict | None]
    codes: tuple[int, ...] = (2,)


def words_of(command: str, run: pathlib.Path, folder: pathlib.Path, given: dict) -> list[str]:
    """Return the arguments of a command on a run."""
    data = str(given.get("data", SAMPLE))
    base = {
        "train": ["train", *TRAIN, "--run", run, "--resume"],
        "begin": ["train", *TRAIN[12:], "--data", data, "--run", folder / "new", "--image-size", "24", "32"],
        "evaluate": ["evaluate", run, "--no-boundary"],
        "predict": ["predict", run, given.get("image", SAMPLE / "val" / "val_00000.png"), "--out", folder / "out"],
        "export": ["export", run, "--format", "safetensors", "--images", "1"],
        "report": ["report", run],
        "doctor": ["doctor", data],
        "init": [
            "train",
            *TRAIN[:8],
            *TRAIN[10:],
            "--run",
            folder / "new",
            "--width",
            "1",
            "--init",
            given.get("file", ""),
        ],
        "convert": ["convert", given.get("file", ""), "--run", folder / "new"],
    }
    return [str(word) for word in [*base[command], *given.get("flags", ())]]


# --- what is done ---


def replaced(name: str, make: Callable[[pathlib.Path], object]) -> Callable:
    """Return an attack that replaces a file or folder of the run."""

    def prepare(run, folder):
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)

    return prepare


def link_to_victim(path):
    """Create a link to another folder or, in place of a file, to a file in it."""
    victim = next(each for each in path.parents if (each / "victim").is_dir()) / "victim"
    path.symlink_to(victim if not path.suffix and path.name != "lock" else victim / "thesis.txt")


def sparse(path):
    """Write a sparse file of 3 GB."""
    with open(path, "wb") as file:
        file.truncate(3 * 2**30)


def a_socket(path):
    """Create a socket."""
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


def config(change: Callable[[str], str]) -> Callable:
    """Return an attack that edits the run's config."""

    def prepare(run, folder):
        path = run / "config.toml"
        path.write_text(change(path.read_text()))

    return prepare


def setting(name: str, value: str) -> Callable:
    """Return an attack that changes one value of the run's config."""
    return config(lambda text: re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", text))


def sealed(change: Callable[[pathlib.Path], object]) -> Callable:
    """Return an attack that changes every checkpoint and rewrites its manifest with valid checksums."""

    def prepare(run, folder):
        from segnet_jax.training.manifest import MANIFEST, finalize

        for place in [*(run / "checkpoints" / "newest").iterdir(), *(run / "checkpoints" / "best").iterdir()]:
            facts = json.loads((place / MANIFEST).read_text())
            (place / MANIFEST).unlink()
            change(place)
            partial = place.rename(place.with_name(f".{place.name}.partial"))
            finalize(partial, place, {name: facts[name] for name in ("step", "config", "state")})

    return prepare


def meta(**changes) -> Callable:
    """Return an attack that changes the checkpoints' metadata."""

    def change(place):
        path = place / "meta.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return sealed(change)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height: int, width: int, more: bytes = b"", rows: bytes | None = None) -> bytes:
    """Return a gray PNG, black unless its rows are given."""
    pixels = zlib.compress(bytes((width + 1) * height) if rows is None else rows, 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def scan_bomb(path: pathlib.Path) -> None:
    """Write a progressive JPEG of a thousand scans."""
    Image.new("RGB", (4000, 4000)).save(path, "JPEG", progressive=True)
    data = path.read_bytes()
    scans = [place.start() for place in re.finditer(b"\xff\xda", data)]
    last = data[scans[-1] : -2]
    path.write_bytes(data[:-2] + last * 1000 + b"\xff\xd9")


def pictures(*made: tuple[str, bytes]) -> Callable:
    """Return an attack with a folder of images and labels, which the command predicts or reads."""

    def prepare(run, folder):
        (folder / "data" / "images").mkdir(parents=True)
        (folder / "data" / "labels").mkdir()
        for name, data in made:
            (folder / "data" / "images" / name).write_bytes(data)
            size = struct.unpack(">II", data[16:24]) if data.startswith(b"\x89PNG") else (8, 8)
            label = data if data.startswith(b"\x89PNG") else png(size[1], size[0])
            (folder / "data" / "labels" / f"{pathlib.Path(name).stem}.png").write_bytes(label)
        return {"data": folder / "data", "image": folder / "data" / "images"}

    return prepare


def in_data(name: str, make: Callable[[pathlib.Path], object]) -> Callable:
    """Return an attack with a small valid folder in which one file is replaced."""

    def prepare(run, folder):
        found = pictures(*[(f"{number}.png", png(32, 32)) for number in range(4)])(run, folder)
        for number in range(4):
            label = np.zeros((32, 32), np.uint8)
            label[:16] = 1
            Image.fromarray(label).save(folder / "data" / "labels" / f"{number}.png")
        path = folder / "data" / name
        path.unlink(missing_ok=True)
        make(path)
        return found

    return prepare


def weights(name: str, make: Callable[[pathlib.Path], object]) -> Callable:
    """Return an attack with a weight file."""

    def prepare(run, folder):
        make(folder / name)
        return {"file": folder / name}

    return prepare


def flagged(*flags: str, make: Callable[[pathlib.Path], object] | None = None) -> Callable:
    """Return an attack with flags; {run}, {victim} and {folder} are replaced."""

    def prepare(run, folder):
        if make:
            make(folder)
        places = {"run": run, "victim": folder / "victim", "folder": folder}
        return {"flags": [flag.format(**places) for flag in flags]}

    return prepare


def gone(run, folder):
    """Delete a run's checkpoints and the files that refer to them."""
    shutil.rmtree(run / "checkpoints")
    for name in ("outcome.json", "result.json"):
        (run / name).unlink(missing_ok=True)


def text(content: str) -> Callable:
    """Return a function that writes a file with this content."""
    return lambda path: path.write_text(content)


READERS = ("train", "evaluate", "predict", "export", "report")
LINKED = (
    "checkpoints/x",
    "lock",
    "checkpoints/best",
    "metrics.jsonl",
    "config.toml",
    "samples",
    "evaluations",
    "export",
)
KEYS = {"coordinator": '"192.0.2.1:80"', "process_id": "1", "num_processes": "2", "run": '"x"', "resume": "true"}
DEEP = {"brackets": "x = " + "[" * 30_000, "dots": "a" + ".a" * 30_000 + " = 1", "tables": "x = " + "{a=" * 15_000}
STRANGE = {
    "a list": sealed(lambda place: (place / "meta.json").write_text("[]")),
    "deep": sealed(lambda place: (place / "meta.json").write_text("[" * 200_000)),
    "classes with escapes": meta(classes=["\x1b]0;x\x07", *"abcdefghij"]),
    "a million classes": meta(classes=[str(number) for number in range(1_000_000)]),
    "no state": sealed(lambda place: shutil.rmtree(place / "state")),
    "foreign state": sealed(lambda place: (place / "state" / "_METADATA").write_text("{}")),
}


def attacks() -> list[Attack]:
    """Return all attacks."""
    found = []
    for command in READERS:
        found += [Attack("links", f"{name} is a link", command, replaced(name, link_to_victim)) for name in LINKED]
        for name in ("config.toml", "metrics.jsonl", "checkpoints/last.json"):
            for kind, make in (("a pipe", os.mkfifo), ("a socket", a_socket), ("3 GB", sparse)):
                right = (0, 2) if command == "report" or kind == "3 GB" else (2,)
                codes = (
                    (2,) if name == "config.toml" and command != "report" else (0, 2, 3) if kind == "3 GB" else right
                )
                found.append(Attack("bounds", f"{name} is {kind}", command, replaced(name, make), codes))
        for name, content in DEEP.items():
            codes = (0,) if command == "report" else (2,)
            found.append(
                Attack("bounds", f"config of deep {name}", command, replaced("config.toml", text(content)), codes)
            )
    for command in ("train", "evaluate", "predict", "export"):
        for name, value in (("seed", "7"), ("width", "0.125"), ("pooling", '"ceil"')):
            found.append(Attack("one experiment", f"{name} edited", command, setting(name, value)))
        for name, value in KEYS.items():
            line = f"{name} = {value}\n"
            found.append(Attack("keys of one start", name, command, config(lambda text, line=line: text + line)))
        found += [Attack("strange checkpoints", name, command, change, (3,)) for name, change in STRANGE.items()]
    found.append(Attack("one experiment", "checkpoints are gone", "train", gone, (3,)))
    for command in ("evaluate", "export"):
        found.append(Attack("bounds", "image_size of 16384", command, setting("image_size", "[16384, 16384]"), (2, 7)))

    panoramas = [("wide.png", png(700, 65_000)), ("tall.png", png(65_000, 700)), ("wide2.png", png(700, 65_000))]
    bombs = {
        "two panoramas and a tower": (pictures(*panoramas), (0, 2)),
        "a row of 50 million pixels": (pictures(("row.png", png(1, 50_000_000))), (2,)),
        "a million chunks": (pictures(("chunks.png", png(8, 8, chunk(b"teXt", b"") * 1_000_000))), (2,)),
        "a claim of 400 million pixels": (
            pictures(("big.png", png(8, 8).replace(struct.pack(">II", 8, 8), struct.pack(">II", 20_000, 20_000), 1))),
            (2,),
        ),
    }
    for command in ("predict", "doctor"):
        found += [Attack("pictures", name, command, make, codes) for name, (make, codes) in bombs.items()]
        found.append(Attack("pictures", "a thousand scans", command, in_data("images/9.jpg", scan_bomb)))
    for command in ("doctor", "begin"):
        for name, kind, make in (
            ("images/1.png", "a pipe", os.mkfifo),
            ("labels/1.png", "/dev/zero", lambda path: path.symlink_to("/dev/zero")),
            ("classes.toml", "deep", text(DEEP["dots"])),
            ("codes.txt", "a million classes", text("\n".join(map(str, range(1_000_000))))),
            ("images/1.png", "3 GB", sparse),
        ):
            found.append(Attack("bounds", f"{name} is {kind}", command, in_data(name, make)))
    for name, kind, make in (
        ("w.safetensors", "3 GB", sparse),
        ("w.pth", "a pipe", os.mkfifo),
        ("w.npz", "/dev/zero", lambda path: path.symlink_to("/dev/zero")),
        ("w.h5", "text", text("x" * 1000)),
    ):
        found.append(Attack("bounds", f"{name} is {kind}", "init", weights(name, make)))
    for name, kind, make in (
        ("w.caffemodel", "3 GB", sparse),
        ("w.caffemodel", "a pipe", os.mkfifo),
        ("w.caffemodel", "/dev/zero", lambda path: path.symlink_to("/dev/zero")),
    ):
        found.append(Attack("bounds", f"{name} is {kind}", "convert", weights(name, make)))

    evil = os.fsdecode(b"\x1b[2J\xff.png")
    found += [
        Attack("control characters", "file name", "predict", lambda run, folder: _named(folder, evil), (0,)),
        Attack(
            "control characters",
            "file name",
            "doctor",
            in_data(f"images/{evil}", lambda path: path.write_bytes(png(32, 32))),
        ),
        Attack("control characters", "class names", "doctor", in_data("codes.txt", text("\x1b[2Ja\nb"))),
        Attack("control characters", "class names in records", "report", _records(["\x1b[2Ja\u202e", "b"]), (0,)),
        Attack(
            "control characters",
            "a million names in records",
            "report",
            _records(list(map(str, range(1_000_000)))),
            (0,),
        ),
        Attack("control characters", "names in metrics", "report", _metrics("\x1b[2J\u202e"), (0,)),
    ]
    for command in ("evaluate", "export", "report", "doctor"):
        for where in ("{victim}/thesis.json", "{victim}/notebook.json", "{run}/result.json"):
            found.append(Attack("overwriting", f"--json {where}", command, flagged("--json", where)))
    for where in ("{victim}/photo.png", "{run}/first_batch.png", "{victim}/thesis.txt"):
        found.append(Attack("overwriting", f"--picture {where}", "doctor", flagged("--picture", where)))
        found.append(Attack("overwriting", f"--out {where}", "report", flagged("--out", where)))
    found += [
        Attack("overwriting", "--pictures of the run", "evaluate", flagged("--pictures", "{run}/samples"), (0, 2)),
        Attack(
            "overwriting",
            "--out with a file of the user's",
            "export",
            flagged("--out", "{victim}", "--overwrite"),
            (2,),
        ),
        Attack("overwriting", "--out that is a file", "predict", flagged("--out", "{victim}/thesis.txt"), (2,)),
    ]
    for command in READERS:
        found += [
            Attack("exit codes", "ulimit -n 20", command, lambda run, folder: {"limit": "-n 20"}, (2,)),
            Attack("exit codes", "ulimit -v 1500000", command, lambda run, folder: {"limit": "-v 1500000"}, (2,)),
            Attack("exit codes", "2>/dev/full", command, lambda run, folder: {"stderr": "/dev/full"}, (0, 2)),
        ]
        if command != "report":
            absent = {"env": {"JAX_PLATFORMS": "cuda"}}
            codes = (0,) if command == "export" else (2,)  # export always runs on the CPU
            found.append(Attack("exit codes", "a GPU that is absent", command, lambda run, folder, e=absent: e, codes))
        name = "n" * 300
        if command not in ("train", "predict"):
            found.append(
                Attack("exit codes", "a name of 300 letters", command, flagged("--json", f"{{folder}}/{name}"))
            )
    return found


def _named(folder, name):
    (folder / "photos").mkdir()
    (folder / "photos" / name).write_bytes(png(32, 32))
    return {"image": folder / "photos", "flags": ["--json", str(folder / "report.json")]}


def _records(classes):
    def prepare(run, folder):
        path = run / "evaluations" / "records.json"
        content = json.loads(path.read_text()) | {"classes": classes, "colors": [[0, 0, 0]] * len(classes)}
        path.write_text(json.dumps(content))

    return prepare


def _metrics(name):
    def prepare(run, folder):
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"kind": "val", "step": 99, "iou": {name: 0.5}, name: 1}) + "\n")
        (run / "evaluations" / "records.json").unlink()

    return prepare


# --- how it is tried ---


def tried(attack: Attack, template: pathlib.Path, around: pathlib.Path, usual: dict[str, int]) -> dict:
    """Run one attack on a fresh copy; return the outcome."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=around))
    run = shutil.copytree(template, folder / "run", symlinks=True)
    victim = make_victim(folder / "victim")
    before = content_of(victim)
    given = attack.prepare(run, folder) or {}
    own = {name: (run / name).read_bytes() for name in ("result.json", "first_batch.png") if (run / name).is_file()}
    found = started(words_of(attack.command, run, folder, given), folder, given)
    printed = found.pop("out") + found.pop("err")
    wrong = []
    if found["code"] not in attack.codes:
        wrong.append(f"exit code {found['code']} instead of {' or '.join(map(str, attack.codes))}")
    if "Traceback" in printed:
        wrong.append("a traceback")
    if set(printed) & set("\x1b\x07\u202e"):
        wrong.append("control characters")
    if found["seconds"] > SECONDS:
        wrong.append("too slow")
    if found["peak"] > usual.get(attack.command, 0) + MORE_MEMORY:
        wrong.append(f"a peak of {found['peak'] / 2**20:.0f} MiB")
    if content_of(victim) != before:
        wrong.append("somebody's files were changed")
    if attack.kind == "overwriting" and any((run / name).read_bytes() != data for name, data in own.items()):
        wrong.append("a file of the run was replaced")
    shutil.rmtree(folder, ignore_errors=True)
    last = (printed.strip().splitlines() or [""])[-1][:300].replace(str(folder), "")
    return {"kind": attack.kind, "name": attack.name, "command": attack.command, **found, "wrong": wrong, "last": last}


def started(words: list[str], cwd: pathlib.Path, given: dict) -> dict:
    """Run a command with limited time and memory; return exit code, seconds, peak memory and output."""
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", **given.get("env", {})}
    command = [sys.executable, "-m", f"segnet_jax.{words[0]}", *words[1:]]
    if "limit" in given:
        command = ["bash", "-c", f'ulimit {given["limit"]}; exec "$@"', "_", *command]
    out, err = (cwd / f".{name}" for name in ("out", "err"))

    def limit():
        if "limit" not in given:
            resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))

    begin = time.monotonic()
    with open(out, "wb") as stdout, open(given.get("stderr", err), "wb") as stderr:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, preexec_fn=limit,
            start_new_session=True,
        )  # fmt: skip
        while True:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - begin > PATIENCE:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.05)
    process.returncode = os.waitstatus_to_exitcode(status)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    texts = [path.read_bytes().decode(errors="replace") if path.is_file() else "" for path in (out, err)]
    seconds = {"seconds": round(used.ru_utime + used.ru_stime, 1), "by_clock": round(time.monotonic() - begin, 1)}
    return {"code": code, **seconds, "peak": used.ru_maxrss * 1024, "out": texts[0], "err": texts[1]}


def make_victim(folder: pathlib.Path) -> pathlib.Path:
    """Write files of the user with names that commands clean up or replace."""
    for name, data in {
        **{"thesis.txt": b"thesis", "thesis.json": b"{\n", "notebook.json": b'{"cells": []}', ".hidden/kept": b"x"},
        **{"newest/.git/kept": b"x", ".x.1.tmp": b"x", "images_0000001.npz": b"x", "1/manifest.json": b"{}"},
        **{"photo.png": png(8, 8), "network.safetensors": b"mine", "step_0000001.png": b"mine"},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def content_of(folder: pathlib.Path) -> dict[str, bytes]:
    """Return name -> content of all files."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def traced(template: pathlib.Path, around: pathlib.Path) -> dict[str, list[str]]:
    """Trace commands on a run full of links; return files written outside run and cache, and addresses contacted."""
    from test_writes import NO_FILES, written

    found = {}
    for command in ("train", "evaluate", "report", "export"):
        folder = pathlib.Path(tempfile.mkdtemp(dir=around))
        run = shutil.copytree(template, folder / "run")
        make_victim(folder / "victim")
        for name in LINKED[:-4]:
            replaced(name, link_to_victim)(run, folder)
        (folder / "record").mkdir()
        words = words_of(command, run, folder, {})
        strace = ["strace", "-ff", "-y", "--seccomp-bpf", "-qq", "-s", "4096", "-o", str(folder / "record" / "of")]
        strace += ["-e", "trace=file,connect,sendto", sys.executable, "-m", f"segnet_jax.{words[0]}", *words[1:]]
        env = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(strace, env=env, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
        lines = [
            line for path in (folder / "record").iterdir() for line in path.read_text(errors="replace").splitlines()
        ]
        allowed = (f"{run}/", f"{os.environ['SEGNET_JAX_CACHE']}/", *NO_FILES)
        outside = {path for path in written(lines, folder) if not f"{path}/".startswith(allowed)}
        connected = [line for line in lines if "sa_family=AF_INET" in line]
        found[command] = [f"exit code {done.returncode}"] * (done.returncode != 2) + sorted(outside) + connected
        shutil.rmtree(folder, ignore_errors=True)
    return found


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", default="")
    parser.add_argument("--kind", default="")
    parser.add_argument("--name", default="")
    parser.add_argument("--every", type=int, default=1, help="run only every N-th attack")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="attacks-") as place:
        around = pathlib.Path(place)
        os.environ["SEGNET_JAX_CACHE"] = str(around / "cache")
        template = around / "template"
        made = started(["train", *TRAIN, "--run", str(template), "--max-steps", "3"], around, {})
        assert made["code"] == 0, made["err"]
        usual = {"train": made["peak"], "begin": made["peak"], "init": made["peak"], "convert": made["peak"]}
        for command in ("evaluate", "predict", "export", "report", "doctor"):
            copy = shutil.copytree(template, around / f"usual-{command}")
            done = started(words_of(command, copy, around / f"usual-{command}", {}), around, {})
            assert done["code"] == 0, done["err"]
            usual[command] = done["peak"]
        results = []
        for attack in attacks()[:: options.every]:
            if options.kind in ("", attack.kind) and options.name in attack.name:
                results.append(tried(attack, template, around, usual))
                one = results[-1]
                outcome = "; ".join(one["wrong"]) or "held"
                print(
                    f"{one['command']:9} {one['kind']}: {one['name']}: {outcome} ({one['code']}, {one['seconds']} s)",
                    flush=True,
                )
                if one["wrong"]:
                    print(f"          {one['last']}", flush=True)
        outside = traced(template, around) if options.kind in ("", "links") and shutil.which("strace") else None
    failed = [one for one in results if one["wrong"]]
    kinds = sorted({one["kind"] for one in results})
    beyond = [round((one["peak"] - usual.get(one["command"], 0)) / 2**20) for one in results]
    summary = {
        "date": datetime.date.today().isoformat(),
        "attacks": len(results),
        "held": len(results) - len(failed),
        "by_kind": {kind: {"attacks": sum(one["kind"] == kind for one in results),
                           "held": sum(one["kind"] == kind and not one["wrong"] for one in results)} for kind in kinds},
        "slowest_seconds": max(one["seconds"] for one in results),
        "largest_peak_beyond_usual_mib": max(beyond),
        "usual_peak_mib": {command: round(peak / 2**20) for command, peak in usual.items()},
        "traced_outside": outside,
        "failed": failed,
    }  # fmt: skip
    print(json.dumps({name: each for name, each in summary.items() if name != "failed"}, indent=1))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(summary, indent=1) + "\n")
    sys.exit(bool(failed) or any((outside or {}).values()))


if __name__ == "__main__":
    main()
