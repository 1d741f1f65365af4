"""Flip single bits of a run's newest checkpoint, and check that each is detected and the older checkpoint used.

    python experiments/reliability/flips.py --flips 200 --seed 0 --machine "2 cores of an AMD EPYC, no GPU"

Writes `flips.json` next to this file. Half of the bits are drawn from all bytes of the arrays, half from a random file
of the checkpoint, so that small files are hit as well. Each flip is also given to Orbax alone.
"""

import argparse
import collections
import datetime
import json
import logging
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["JAX_PLATFORMS"] = "cpu"

from broken_runs import ONE, digest_of  # noqa: E402

from segnet_jax.reporting.environment import environment  # noqa: E402
from segnet_jax.training.checkpoint_folders import CheckpointFolders  # noqa: E402
from segnet_jax.training.manifest import verify  # noqa: E402


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machine", required=True, help="description of the machine")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "flips.json")
    given = parser.parse_args()
    logging.disable()
    generator, where, orbax = random.Random(given.seed), collections.Counter(), collections.Counter()
    undetected = []
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder)
        run, env = base / "run", os.environ | {"PYTHONPATH": str(ROOT), "SEGNET_JAX_CACHE": str(base / "cache")}
        train = [sys.executable, "-m", "segnet_jax.train", *ONE, "--epochs", "2", "--keep-checkpoints", "2"]
        subprocess.run([*train, "--run", str(run)], env=env, check=True, capture_output=True)
        older, newer = sorted(int(path.name) for path in (run / "checkpoints" / "newest").iterdir())
        intact = run / "checkpoints" / "newest" / str(newer)
        files = sorted(path.relative_to(intact) for path in intact.rglob("*") if path.is_file() and path.stat().st_size)
        arrays = [path for path in files if "/d/" in path.as_posix()]
        sizes = [(intact / path).stat().st_size for path in arrays]
        expected, digest = verify(intact)["state"], digest_of(intact)
        for number in range(given.flips):
            copy = shutil.copytree(run, base / f"copy-{number}")
            name = generator.choices(arrays, sizes)[0] if number % 2 else generator.choice(files)
            damaged = copy / "checkpoints" / "newest" / str(newer)
            flip(damaged / name, generator)
            where["arrays" if name in arrays else "other files"] += 1
            orbax[read_by_orbax(damaged, digest)] += 1
            found = CheckpointFolders(copy / "checkpoints", keep=2).find_latest("newest")
            moved = copy / "checkpoints" / "damaged" / f"newest-{newer}"
            if found != older or not moved.is_dir():
                undetected.append(name.as_posix())
            shutil.rmtree(copy)
        assert verify(intact)["state"] == expected
    summary = {
        "command": f"python experiments/reliability/flips.py --flips {given.flips} --seed {given.seed}",
        "machine": given.machine,
        "date": datetime.date.today().isoformat(),
        "flips": given.flips,
        "seed": given.seed,
        "flips_in": dict(where),
        "files_of_a_checkpoint": len(files),
        "detected_and_older_checkpoint_used": given.flips - len(undetected),
        "undetected": undetected,
        "orbax_alone": dict(orbax),
        **environment(["cpu"]),
    }
    given.out.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))
    assert not undetected


def flip(path: pathlib.Path, generator: random.Random) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    place = generator.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def read_by_orbax(checkpoint: pathlib.Path, digest: str) -> str:
    """Return how Orbax alone reads a damaged checkpoint."""
    try:
        return "the same arrays" if digest_of(checkpoint) == digest else "other arrays without an error"
    except Exception:  # whatever it raises
        return "an error"


if __name__ == "__main__":
    main()
