"""Train small networks in processes that `faults.py` interrupts, and compare the runs with an uninterrupted one."""

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
LIMIT = float(os.environ.get("SEGNET_JAX_TEST_SECONDS", "120"))  # for one start; more on a machine shared by many


@dataclass(frozen=True)
class Ended:
    """A finished training process.

    Attributes:
      code: exit code as a shell reports it: 137 after SIGKILL.
      out: text printed to standard output.
      err: text printed to standard error.
      moments: (name, count, monotonic seconds) of each moment reached.
      seconds: duration.
      at: monotonic time of its end.
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
        """Step that the process resumed from."""
        found = re.search(r"resuming after step (\d+)", self.err)
        return int(found[1]) if found else 0

    @property
    def finished_steps(self) -> int:
        """Number of steps taken by the end, including those of earlier processes."""
        return self.first_step + self.count("training: stepped")

    @property
    def phase(self) -> str:
        """Last moment logged, or "importing" before the first one."""
        names = [name for name, _, _ in self.moments if not name.startswith("fault")]
        return names[-1].partition(":")[0] if names else "importing"

    def seconds_since(self, fault: str) -> float:
        """Return the seconds from a fault to the end."""
        return self.at - next(time for name, _, time in self.moments if name == f"fault: {fault}")


class Start:
    """A running training process.

    Args:
      flags: flags of the training command.
      at: faults to cause, each "MOMENT[:N]=FAULT".
      cache: cache folder of the commands.
      programs: cache folder for all compiled programs; if empty, the package's default.
      disk: folder of the disk to fill.
      cwd: working directory.
      wrapper: command that starts the process.
      more: additional environment variables.
    """

    def __init__(self, flags, *, cache, programs, events, at=(), disk="", cwd=None, wrapper=(), **more):
        self._events = pathlib.Path(events)
        self._events.unlink(missing_ok=True)
        command = [*wrapper, sys.executable, HERE / "faults.py", "--log", self._events, "--disk", disk]
        command += [part for each in at for part in ("--at", each)]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
            "SEGNET_JAX_CACHE": str(cache),
        }
        if programs:  # otherwise the package's default
            environment |= {
                "JAX_COMPILATION_CACHE_DIR": str(programs),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
        self._output = [self._events.with_suffix(suffix) for suffix in (".out", ".err")]
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
        """Wait until `found` returns true for the text on standard error and the moments."""
        while not found(self.err, [name for name, _, _ in self._moments()]):
            assert self._process.poll() is None, self.err
            assert time.monotonic() < self.begin + LIMIT, self.err
            time.sleep(0.02)

    def wait(self, seconds: float = LIMIT) -> Ended:
        """Wait for the process to end.

        Raises:
          subprocess.TimeoutExpired: If it does not end in time.
        """
        with self:
            code = self._process.wait(seconds)
            at = time.monotonic()
        out, err = (path.read_text(errors="replace") for path in self._output)
        return Ended(code if code >= 0 else 128 - code, out, err, self._moments(), at - self.begin, at)

    def is_over(self, seconds: float) -> bool:
        """Return whether the process ends within some seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            return True
        return False

    def _moments(self) -> list[tuple[str, int, float]]:
        if not self._events.exists():
            return []
        rows = [line.split("\t") for line in self._events.read_text().splitlines()]
        return [(name, int(count), float(seconds)) for name, count, seconds in rows]


@dataclass(frozen=True)
class RunPaths:
    """The paths of a run and of its caches.

    Attributes:
      run: run folder.
      cache: folder of decoded images and counts, not shared with other runs.
      programs: folder of compiled programs, which runs may share.
      flags: flags of the training command.
      disk: folder of the disk to fill, if any.
    """

    run: pathlib.Path
    cache: pathlib.Path
    programs: pathlib.Path
    flags: tuple[str, ...]
    disk: str = ""

    def start(self, *at: str, more: tuple[str, ...] = (), **settings) -> Start:
        events = self.cache.with_name(f"{self.cache.name}-events")
        flags = [*self.flags, *more, "--run", self.run]
        settings = {"cache": self.cache, "programs": self.programs, "disk": self.disk, "events": events} | settings
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
    """Draw a moment within a phase at which to kill a process that resumes from a checkpoint."""
    moment = generator.choice(KILLS[phase])
    if phase == "starting":
        return f"{moment}=kill"
    if moment in ("compiling: step", "training: step"):  # in parallel with the work
        return f"{moment}=kill+{generator.uniform(0.001, 0.2):.3f}"
    certain_once = phase in ("compiling", "drawing")
    return f"{moment}:{1 if certain_once else generator.choice((1, 1, 2))}=kill"


# --- the state of a run ---


def rows_of(run: pathlib.Path) -> list[dict]:
    """Return the rows of metrics.jsonl without their times."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        {name: each for name, each in row.items() if name not in ("seconds", "images_per_second", "time")}
        for row in rows
    ]


def digest_of(checkpoint: pathlib.Path) -> str:
    """Return a checksum over a checkpoint's arrays as Orbax reads them."""
    digest = hashlib.sha256()
    tree = ocp.PyTreeCheckpointer().restore(checkpoint / "state")
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def is_whole(checkpoint: pathlib.Path) -> bool:
    """Return whether a checkpoint's files match its manifest, with checksums computed by hashlib."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    files = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    del files["manifest.json"]
    sums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    return sums == {name: known["sha256"] for name, known in manifest["files"].items()}


def steps_of(run: pathlib.Path, which: str = "newest") -> list[int]:
    folder = run / "checkpoints" / which
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def saved(run: pathlib.Path) -> int:
    """Return the newest intact step, which the package and hashlib must agree on; 0 if there is none."""
    for step in reversed(steps_of(run)):
        folder = run / "checkpoints" / "newest" / str(step)
        assert verify(folder)["step"] == step and is_whole(folder)
        return step
    return 0


def differences(run: pathlib.Path, unbroken: pathlib.Path) -> list[str]:
    """Return the differences between a finished run and the uninterrupted one."""
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
    """Return the names of a run's files except checkpoints and per-start files; assert that none is incomplete."""
    names = {path.relative_to(run).as_posix() for path in run.rglob("*")}
    of_saves = {name for name in names if name.startswith("checkpoints/") and "/." not in name}
    return {name for name in names - of_saves if not name.startswith(("events.", "samples/step_"))}
