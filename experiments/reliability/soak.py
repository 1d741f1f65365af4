"""Kill training runs repeatedly, at named and at random moments, and compare each with an uninterrupted run.

python experiments/reliability/soak.py --kills 200 --seed 0 --machine "2 cores of an AMD EPYC, no GPU"

Writes `kills.json` next to this file. Each run is killed 25 times, each time restarted by the same command, and then
runs to its end. Half of the kills are at moments defined in `tests/faults.py`, half external, after a random time.
"""

import argparse
import collections
import datetime
import json
import os
import pathlib
import random
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["JAX_PLATFORMS"] = "cpu"

from xla_flags import with_fake_devices  # noqa: E402

os.environ["XLA_FLAGS"] = with_fake_devices(8)

from broken_runs import EIGHT, FIRST_KILLS, KILLS, Ended, RunPaths, differences, draw_kill, saved  # noqa: E402

from segnet_jax.reporting.environment import environment  # noqa: E402

KILLS_PER_RUN, EPOCHS = 25, 40
PHASES = ["saving"] * 4 + ["evaluating"] * 2 + ["drawing"] * 2 + ["compiling", "training", "starting"]
MOST_SECONDS = 5.0  # from a start to an external kill: up to the second remaining epoch


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", default="", help="description of the machine")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "kills.json")
    parser.add_argument("--merge", type=pathlib.Path, nargs="+", help="summaries of several seeds, to write as one")
    given = parser.parse_args()
    if given.merge:
        merged = merge([json.loads(path.read_text()) for path in given.merge])
        given.out.write_text(json.dumps(merged, indent=2) + "\n")
        return
    generator, begin = random.Random(given.seed), time.monotonic()
    named, phases, again, runs = 0, collections.Counter(), [], []
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder)
        alone = place_of(base, "alone")
        ended = alone.train()
        assert ended.code == 0, ended.err
        while (done := sum(phases.values())) < given.kills:
            place = place_of(base, f"run-{len(runs)}")
            most = min(KILLS_PER_RUN, given.kills - done)
            num_kills = 0
            while num_kills < most:
                before = saved(place.run)
                moment = draw(generator, fresh=before == 0)
                ended = train(place, moment, generator)
                if ended.code == 0:
                    break  # the run ended before the moment was reached
                assert ended.code == 137, ended.err
                num_kills += 1
                named += moment is not None
                phases[ended.phase] += 1
                again.append(before + ended.count("training: stepped") - saved(place.run))
                note = f"{moment or 'outside'}: in {ended.phase}, {again[-1]} steps to repeat"
                print(f"{sum(phases.values())} {note}", flush=True)
            ended = place.train()
            assert ended.code == 0, ended.err
            runs.append({"kills": num_kills, "differences": differences(place.run, alone.run)})
            print(f"run {len(runs)}: {runs[-1]}", flush=True)
            summary = {
                "command": " ".join(["python experiments/reliability/soak.py", *map(quoted, sys.argv[1:])]),
                "machine": given.machine,
                "date": datetime.date.today().isoformat(),
                "seed": given.seed,
                "training": " ".join(map(str, alone.flags)),
                "state": json.loads((alone.run / "result.json").read_text())["state"],
                "kills": sum(phases.values()),
                "kills_at_named_moments": named,
                "kills_by_phase": dict(sorted(phases.items())),
                "runs": len(runs),
                "runs_equal_to_the_unbroken_one": sum(not run["differences"] for run in runs),
                "most_steps_taken_again": max(again),
                "mean_steps_taken_again": round(sum(again) / len(again), 2),
                "seconds": round(time.monotonic() - begin),
                "each_run": runs,
                **environment(["cpu"] * 8),
            }
            given.out.write_text(json.dumps(summary, indent=2) + "\n")  # after each run: an interruption keeps them
    assert summary["runs_equal_to_the_unbroken_one"] == summary["runs"]


def merge(soaks: list[dict]) -> dict:
    """Return one summary of soaks with different seeds, which must have ended in the same state on the same commit."""
    for name in ("state", "training", "machine", "commit"):
        assert len({soak[name] for soak in soaks}) == 1, name
    assert len({soak["seed"] for soak in soaks}) == len(soaks)
    phases = sum((collections.Counter(soak["kills_by_phase"]) for soak in soaks), collections.Counter())
    kills = sum(soak["kills"] for soak in soaks)
    totals = ("kills", "kills_at_named_moments", "runs", "runs_equal_to_the_unbroken_one", "seconds")
    again = sum(soak["mean_steps_taken_again"] * soak["kills"] for soak in soaks) / kills
    return soaks[0] | {
        "command": [soak["command"] for soak in soaks],
        "seed": [soak["seed"] for soak in soaks],
        **{name: sum(soak[name] for soak in soaks) for name in totals},
        "kills_by_phase": dict(sorted(phases.items())),
        "most_steps_taken_again": max(soak["most_steps_taken_again"] for soak in soaks),
        "mean_steps_taken_again": round(again, 2),
        "each_run": [run for soak in soaks for run in soak["each_run"]],
    }


def quoted(part: str) -> str:
    """Quote a command-line argument for a shell."""
    return f'"{part}"' if " " in part else part


def place_of(base: pathlib.Path, name: str) -> RunPaths:
    """Return the paths of one run, with its own cache, so that decoding is killed too."""
    return RunPaths(base / name, base / f"{name}-cache", base / "programs", (*EIGHT, "--epochs", EPOCHS))


def draw(generator: random.Random, fresh: bool) -> str | None:
    """Draw a kill at a named moment, or None for an external one."""
    if generator.random() < 0.5:
        return None
    if fresh:
        return f"{generator.choice(FIRST_KILLS + KILLS['saving'][:6])}=kill"
    return draw_kill(generator, generator.choice(PHASES))


def train(place: RunPaths, moment: str | None, generator: random.Random) -> Ended:
    """Start the command and kill it; return the exit code, 0 if it ended before."""
    if moment:
        return place.train(moment)
    with place.start() as start:
        if not start.is_over(generator.uniform(0, MOST_SECONDS)):
            start.kill()
        return start.wait()


if __name__ == "__main__":
    main()
