"""Train with faults at chosen moments: `python tests/faults.py --log FILE --at MOMENT[:N]=FAULT -- FLAGS`.

Wraps functions of the package and causes FAULT when MOMENT is reached for the N-th time (by default the first): see
MOMENTS and FAULTS. FAULT+0.05 happens that many seconds later, in parallel with the work. For each moment reached, a
line with its count and the monotonic time is written to FILE; its last line shows the phase in which the process was
killed externally. FLAGS are those of `segnet_jax.train`.
"""

import argparse
import collections
import contextlib
import fnmatch
import functools
import os
import pathlib
import resource
import shutil
import signal
import sys
import threading
import time

MOMENTS = {  # grouped by phase; the first word names the phase
    "starting: data": "before the data are opened",
    "starting: counting": "a label is counted for the class weights",
    "starting: decoding": "an image is decoded into the cache",
    "starting: cache": "half of a small file of the cache is written",
    "starting: files": "half of a file that describes the run",
    "starting: restore": "before a checkpoint is restored",
    "starting: metrics": "half of the kept metrics is rewritten",
    "compiling: step": "a step is traced and compiled; to be used with a delay",
    "compiling: XLA": "before the compiler is called",
    "compiling: keeping": "half of a compiled program is in the cache",
    "training: step": "before a step",
    "training: stepped": "after a step",
    "training: line": "half of a line of metrics.jsonl is written",
    "evaluating: batch": "before a batch is scored",
    "evaluating: scored": "after a batch was scored",
    "drawing: pictures": "before the predictions are drawn",
    "drawing: plot": "before the curve is drawn",
    "drawing: half": "half of a picture is written",
    "saving: begin": "before Orbax is given the state",
    "saving: arrays": "Orbax has written its first file, and continues",
    "saving: read": "before what Orbax has written is read back",
    "saving: meta": "half of meta.json is written, after Orbax",
    "saving: manifest": "half of the manifest is written",
    "saving: sealed": "before the folder gets its name",
    "saving: named": "after that, before the folder around it is forced to the disk",
    "saving: note": "half of the note of the last save is written",
    "saving: prune": "before older checkpoints are removed",
    "saving: removing": "an older checkpoint is hidden and half removed",
    "ending: result": "half of the result is written",
    "ending: outcome": "half of outcome.json is written",
}
FAULTS = {
    "kill": "SIGKILL",
    "term": "SIGTERM",
    "int": "SIGINT",
    "int-int": "SIGINT, and another half a second later, while the work stands still for half a minute",
    "pause": "the work stands still for two minutes",
    "fill": "the disk of --disk is filled",
    "fill-free": "the same, and emptied two seconds later",
    "limit": "no file may grow beyond 8000 bytes any more",
    "clock": "the wall clock is set a day back, the next time two days ahead, and so on",
}
FILES = {  # whose half-written file is which moment
    "config.toml": "starting: files",
    "environment.json": "starting: files",
    "data.json": "starting: files",
    "first_batch.png": "drawing: half",
    "header.json": "starting: cache",
    "label_counts-*": "starting: cache",
    "metrics.jsonl": "starting: metrics",
    "*.png": "drawing: half",
    "meta.json": "saving: meta",
    "manifest.json": "saving: manifest",
    "last.json": "saving: note",
    "result.json": "ending: result",
    "outcome.json": "ending: outcome",
}
BALLAST = "ballast"


class Faults:
    """A counter and log of moments that causes their scheduled faults."""

    def __init__(self, scheduled: list[str], log: str, disk: str):
        self._scheduled = {}
        for moment, _, fault in (each.partition("=") for each in scheduled):
            name, number = moment, "1"
            if moment not in MOMENTS:
                name, _, number = moment.rpartition(":")
            assert name in MOMENTS and fault.partition("+")[0] in FAULTS, (moment, fault)
            self._scheduled[name, int(number)] = fault
        self._log = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY) if log else None
        self._disk = disk
        self._counts = collections.Counter()
        self._lock = threading.RLock()
        self._days = 0

    def reached(self, moment: str) -> None:
        with self._lock:
            self._counts[moment] += 1
            number = self._counts[moment]
            fault, _, delay = self._scheduled.get((moment, number), "").partition("+")
        self._note(moment, number)
        if delay:
            threading.Thread(target=self._later, args=(fault, float(delay)), daemon=True).start()
        elif fault:
            self._do(fault)

    def _note(self, what: str, number: int = 0) -> None:
        if self._log is not None:
            os.write(self._log, f"{what}\t{number}\t{time.monotonic()}\n".encode())

    def _later(self, fault: str, delay: float) -> None:
        time.sleep(delay)
        self._do(fault)

    def _do(self, fault: str) -> None:
        self._note(f"fault: {fault}")
        match fault:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "term":
                os.kill(os.getpid(), signal.SIGTERM)
            case "int":
                os.kill(os.getpid(), signal.SIGINT)
            case "int-int":
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.5)
                self._note("fault: second")
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(30)
            case "pause":
                time.sleep(120)
            case "fill" | "fill-free":
                self._fill()
                if fault == "fill-free":
                    threading.Thread(target=self._free, daemon=True).start()
            case "limit":
                resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))
            case "clock":
                self._shift_clock()

    def _fill(self) -> None:
        with contextlib.suppress(OSError), open(os.path.join(self._disk, BALLAST), "ab", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def _free(self) -> None:
        time.sleep(2)
        os.unlink(os.path.join(self._disk, BALLAST))
        self._note("fault: freed")

    def _shift_clock(self) -> None:
        shift, self._days = (-86_400, 1) if self._days == 0 else (2 * 86_400 * self._days, -self._days)
        now, now_ns = time.time, time.time_ns
        time.time = lambda: now() + shift
        time.time_ns = lambda: now_ns() + shift * 10**9

    # --- the functions of the moments ---

    def before(self, owner, name: str, moment: str) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def call(*args, **settings):
            self.reached(moment)
            return real(*args, **settings)

        setattr(owner, name, call)

    def advancing(self, owner, name: str, moment: str, place: int) -> None:
        """Wrap a function that calls its argument at `place` after each of its parts."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def call(*args):
            def advance():
                self.reached(moment)
                return args[place]()

            return real(*args[:place], advance, *args[place + 1 :])

        setattr(owner, name, call)

    def halve_files(self, module) -> None:
        """Wrap `open` in a module that writes whole files."""

        def halving(path, mode="r", **settings):
            file = open(path, mode, **settings)
            ending = f".{os.getpid()}.{threading.get_native_id()}.tmp"
            own = pathlib.Path(path).name.removeprefix(".").removesuffix(ending)
            moment = next((moment for name, moment in FILES.items() if fnmatch.fnmatch(own, name)), None)
            return Halved(file, functools.partial(self.reached, moment)) if "w" in mode and moment else file

        module.open = halving


class Halved:
    """A file whose writes are split into two halves."""

    def __init__(self, file, between):
        self._file, self._between = file, between

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *raised):
        return self._file.__exit__(*raised)

    def write(self, data) -> int:
        half = len(data) // 2
        done = self._file.write(data[:half])
        self._file.flush()
        self._between()
        return done + self._file.write(data[half:]) if done == half else done


def install(faults: Faults) -> None:
    """Wrap the functions in which the moments occur."""
    import jax
    from jax._src import lru_cache

    from segnet_jax.data.input_pipeline import cache, class_counts
    from segnet_jax.distributed.data_parallel import AheadOfTime
    from segnet_jax.reporting import metrics_log, run_logger
    from segnet_jax.runs import load_dataset  # noqa: F401
    from segnet_jax.system import files
    from segnet_jax.training import checkpoint_folders, checkpoints, manifest

    faults.before(load_dataset, "open_data", "starting: data")
    faults.advancing(class_counts, "count_labels", "starting: counting", 3)
    faults.advancing(cache, "_decode", "starting: decoding", 2)
    faults.before(checkpoints.Checkpoints, "restore", "starting: restore")
    faults.halve_files(files)
    faults.halve_files(manifest)

    program, call = AheadOfTime.program, AheadOfTime.__call__

    def compiling(self, state, inputs):
        if not self._programs:
            faults.reached("compiling: step")
        return program(self, state, inputs)

    def stepping(self, state, inputs):
        self.program(state, inputs)
        training = "training" in self._name
        faults.reached("training: step" if training else "evaluating: batch")
        done = call(self, state, inputs)
        if training:
            jax.block_until_ready(done)
        faults.reached("training: stepped" if training else "evaluating: scored")
        return done

    AheadOfTime.program, AheadOfTime.__call__ = compiling, stepping
    faults.before(jax.stages.Lowered, "compile", "compiling: XLA")
    keep = lru_cache.LRUCache.put

    def keeping(self, key, value):
        path = self.path / f"{key}{lru_cache._CACHE_SUFFIX}"
        if not path.exists():
            path.write_bytes(value[: len(value) // 2])
            faults.reached("compiling: keeping")
            path.unlink()
        keep(self, key, value)

    lru_cache.LRUCache.put = keeping

    make_log = metrics_log.MetricsLog.__init__

    def make_halved_log(self, *args, **settings):
        make_log(self, *args, **settings)
        self._file = Halved(self._file, functools.partial(faults.reached, "training: line"))

    metrics_log.MetricsLog.__init__ = make_halved_log
    faults.before(run_logger, "prediction_pictures", "drawing: pictures")
    faults.before(run_logger, "training_plot", "drawing: plot")

    make_room, finish = checkpoints.Checkpoints._make_room, checkpoints.Checkpoints._finish

    def made_room(self, *args):
        make_room(self, *args)
        faults.reached("saving: begin")

    def finishing(self, which, step, partial, *rest):
        for _ in range(1000):
            if any(path.is_file() for path in partial.parent.glob(f"{partial.name}/**/*")):
                break
            time.sleep(0.0002)
        faults.reached("saving: arrays")
        return finish(self, which, step, partial, *rest)

    checkpoints.Checkpoints._make_room, checkpoints.Checkpoints._finish = made_room, finishing
    faults.before(checkpoints.Checkpoints, "_read", "saving: read")
    faults.before(checkpoint_folders.CheckpointFolders, "prune", "saving: prune")
    rename, rmtree = os.rename, shutil.rmtree

    def renaming(source, target, **settings):
        of_a_save = str(source).endswith(".partial")
        if of_a_save:
            faults.reached("saving: sealed")
        rename(source, target, **settings)
        if of_a_save:
            faults.reached("saving: named")

    def removing(path, *args, **settings):
        around = f"/proc/self/fd/{settings['dir_fd']}" if "dir_fd" in settings else ""
        place = pathlib.Path(around, path)
        if str(path).endswith(".removed") and place.is_dir():
            os.unlink(next(each for each in place.rglob("*") if each.is_file()))
            faults.reached("saving: removing")
        rmtree(path, *args, **settings)

    os.rename, shutil.rmtree = renaming, removing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", action="append", default=[], metavar="MOMENT[:N]=FAULT[+SECONDS]")
    parser.add_argument("--log", default="")
    parser.add_argument("--disk", default="")
    parser.add_argument("flags", nargs="*")
    given = parser.parse_args()
    faults = Faults(given.at, given.log, given.disk)
    sys.argv = ["train", *given.flags]

    from segnet_jax import train
    from segnet_jax.system.command import run_command

    install(faults)
    run_command(train.main)


if __name__ == "__main__":
    main()
