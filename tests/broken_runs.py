"""Small trainings as processes of their own, broken by `faults.py`, and how they are held against an unbroken one."""

import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import jax
import numpy as np
import orbax.checkpoint as ocp

from segnet_jax.training.manifest import verify

HERE = pathlib.Path(__file__).resolve().parent
FLAGS = [
    *("--data", "synthetic", "--scenes", "26", "9", "--image-size", "24", "32", "--init", "none"),
    *("--depth", "1", "--width", "0.0625", "--class-weights", "auto-present", "--learning-rate", "0.05"),
]
EIGHT = [*FLAGS, "--devices", "8", "--batch-size-per-device", "1"]
ONE = [*FLAGS, "--devices", "1", "--batch-size-per-device", "8"]
STEPS_PER_EPOCH = 3
LIMIT = 120  # seconds for one start


@dataclass(frozen=True)
class Ended:
    """A start of a training that has ended.

    Attributes:
      code: as a shell says it: 137 after SIGKILL.
      out: what it printed.
      err: what it printed to standard error.
      moments: (name, count, monotonic seconds) of each that came.
      seconds: that it took.
      at: monotonic, when it had ended.
    """

    code: int
    out: str
    err: str
    moments: list[tuple[str, int, float]]
    seconds: float
    at: float

    def count(self, moment: str) -> int:
        return sum(name == moment for name, _, _ in self.moments)

    @property
    def first_step(self) -> int:
        """That it went on after."""
        found = re.search(r"goes on after step (\d+)", self.err)
        return int(found[1]) if found else 0

    @property
    def finished_steps(self) -> int:
        """That were taken when it ended, also by the starts before."""
        return self.first_step + self.count("training: stepped")

    @property
    def phase(self) -> str:
        """What was going on last; "importing" before anything was reached."""
        names = [name for name, _, _ in self.moments if not name.startswith("fault")]
        return names[-1].partition(":")[0] if names else "importing"

    def seconds_since(self, fault: str) -> float:
        """From a fault to the end."""
        return self.at - next(time for name, _, time in self.moments if name == f"fault: {fault}")


class Start:
    """A start of a training, going on.

    Args:
      flags: of the training.
      at: "MOMENT[:N]=FAULT" each.
      cache: what commands keep.
      programs: the compiled programs that are kept, the shortest too; empty leaves it to the package.
      disk: of the faults that fill one.
      cwd: where it starts.
      wrapper: a command to start it by.
      more: of its environment.
    """

    def __init__(self, flags, *, cache, programs, told, at=(), disk="", cwd=None, wrapper=(), **more):
        self._told = pathlib.Path(told)
        self._told.unlink(missing_ok=True)
        command = [*wrapper, sys.executable, HERE / "faults.py", "--tell", self._told, "--disk", disk]
        command += [part for each in at for part in ("--at", each)]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
            "SEGNET_JAX_CACHE": str(cache),
        }
        if programs:  # else where the package itself keeps them
            environment |= {
                "JAX_COMPILATION_CACHE_DIR": str(programs),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
        self._output = [self._told.with_suffix(suffix) for suffix in (".out", ".err")]
        out, err = (open(path, "wb") for path in self._output)
        with out, err:
            self.begin = time.monotonic()
            self._process = subprocess.Popen(
                [*map(str, command), "--", *map(str, flags)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env=environment | more,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def __enter__(self) -> "Start":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(LIMIT)

    def kill(self) -> None:
        self._process.kill()

    @property
    def err(self) -> str:
        return self._output[1].read_text(errors="replace")

    def wait_for(self, found) -> None:
        """Waits until `found` is true of what was printed to standard error and of the moments."""
        while not found(self.err, [name for name, _, _ in self._moments()]):
            assert self._process.poll() is None, self.err
            assert time.monotonic() < self.begin + LIMIT, self.err
            time.sleep(0.02)

    def wait(self, seconds: float = LIMIT) -> Ended:
        """Waits for its end.

        Raises:
          subprocess.TimeoutExpired: it does not come.
        """
        with self:
            code = self._process.wait(seconds)
            at = time.monotonic()
        out, err = (path.read_text(errors="replace") for path in self._output)
        return Ended(code if code >= 0 else 128 - code, out, err, self._moments(), at - self.begin, at)

    def is_over(self, seconds: float) -> bool:
        """Whether it ends within so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            return True
        return False

    def _moments(self) -> list[tuple[str, int, float]]:
        if not self._told.exists():
            return []
        rows = [line.split("\t") for line in self._told.read_text().splitlines()]
        return [(name, int(count), float(seconds)) for name, count, seconds in rows]


@dataclass(frozen=True)
class Place:
    """Where a run and what belongs to it lies.

    Attributes:
      run: the run's folder.
      cache: decoded images and counts, this run's own.
      programs: compiled programs, which runs may share.
      flags: of the training.
      disk: the run's, if it is to be filled.
    """

    run: pathlib.Path
    cache: pathlib.Path
    programs: pathlib.Path
    flags: tuple[str, ...]
    disk: str = ""

    def start(self, *at: str, more: tuple[str, ...] = (), **settings) -> Start:
        told = self.cache.with_name(f"{self.cache.name}-told")
        flags = [*self.flags, *more, "--run", self.run]
        settings = {"cache": self.cache, "programs": self.programs, "disk": self.disk, "told": told} | settings
        return Start(flags, at=at, **settings)

    def train(self, *at: str, **settings) -> Ended:
        return self.start(*at, **settings).wait()


KILLS = {  # moments that come in each start, by phase
    "starting": ["starting: data", "starting: restore", "starting: metrics"],
    "compiling": ["compiling: step", "compiling: XLA"],
    "training": ["training: step", "training: stepped", "training: line"],
    "evaluating": ["evaluating: batch", "evaluating: scored"],
    "drawing": ["drawing: pictures", "drawing: plot", "drawing: half"],
    "saving": [
        *("saving: begin", "saving: arrays", "saving: meta", "saving: manifest", "saving: sealed", "saving: named"),
        *("saving: read", "saving: note", "saving: prune", "saving: removing"),
    ],
}
FIRST_KILLS = ["starting: counting:9", "starting: decoding:30", "starting: cache", "starting: files:2", "drawing: half"]


def draw_kill(generator: random.Random, phase: str) -> str:
    """A moment of a phase to be killed at, in a start that goes on with something saved."""
    moment = generator.choice(KILLS[phase])
    if phase == "starting":
        return f"{moment}=kill"
    if moment in ("compiling: step", "training: step"):  # beside what goes on
        return f"{moment}=kill+{generator.uniform(0.001, 0.2):.3f}"
    certain_once = phase in ("compiling", "drawing")
    return f"{moment}:{1 if certain_once else generator.choice((1, 1, 2))}=kill"


# --- what a run has become ---


def rows_of(run: pathlib.Path) -> list[dict]:
    """The metrics, without what the clock says."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: each for name, each in row.items() if name not in ("seconds", "images_per_second")} for row in rows]


def digest_of(checkpoint: pathlib.Path) -> str:
    """A sum over a checkpoint's arrays as Orbax reads them."""
    digest = hashlib.sha256()
    tree = ocp.PyTreeCheckpointer().restore(checkpoint / "state")
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def is_whole(checkpoint: pathlib.Path) -> bool:
    """Whether each file of a checkpoint has the sum that its manifest says, and none is more or less: by hashlib."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    files = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    del files["manifest.json"]
    sums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    return sums == {name: known["sha256"] for name, known in manifest["files"].items()}


def steps_of(run: pathlib.Path, which: str = "newest") -> list[int]:
    folder = run / "checkpoints" / which
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def saved(run: pathlib.Path) -> int:
    """The newest step that is whole, by our check and by hashlib; 0 for none."""
    for step in reversed(steps_of(run)):
        folder = run / "checkpoints" / "newest" / str(step)
        assert verify(folder)["step"] == step and is_whole(folder)
        return step
    return 0


def differences(run: pathlib.Path, unbroken: pathlib.Path) -> list[str]:
    """In which ways a finished run is another than the unbroken one."""
    found = []

    def same(what, look) -> None:
        ours, theirs = look(run), look(unbroken)
        if ours != theirs:
            found.append(f"{what}: {ours} instead of {theirs}")

    for name in ("outcome.json", "result.json"):
        same(f"state of {name}", lambda folder, name=name: json.loads((folder / name).read_text())["state"])
    for which in ("newest", "best"):
        same(f"steps of {which}", lambda folder, which=which: steps_of(folder, which)[-1:])
        step = steps_of(unbroken, which)[-1]

        def last(folder, which=which, step=step):
            return folder / "checkpoints" / which / str(step)

        same(f"state of {which}", lambda folder, last=last: verify(last(folder))["state"])
        same(f"arrays of {which}", lambda folder, last=last: digest_of(last(folder)))
        same(f"sums of {which}", lambda folder, last=last: is_whole(last(folder)))
    same("steps", lambda folder: [row["step"] for row in rows_of(folder) if row["kind"] == "train"])
    same("metrics", rows_of)
    if odd := _names(run) ^ _names(unbroken):
        found.append(f"files of one of both alone: {sorted(odd)}")
    same("scores", lambda folder: json.loads((folder / "result.json").read_text())["per_class"])
    return found


def _names(run: pathlib.Path) -> set[str]:
    """The files of a run, but for checkpoints and those that each start adds; nothing half-written among them."""
    names = {path.relative_to(run).as_posix() for path in run.rglob("*")}
    of_saves = {name for name in names if name.startswith("checkpoints/") and "/." not in name}
    return {name for name in names - of_saves if not name.startswith(("events.", "samples/step_"))}
