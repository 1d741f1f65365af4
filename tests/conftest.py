"""Eight CPU devices and strict JAX for every test."""

import os
import pathlib
import sys
import tempfile

# Tests import helpers from other test folders and from here.
sys.path[:0] = sorted(str(path.parent) for path in pathlib.Path(__file__).parent.glob("*/test_*.py"))

from xla_flags import with_fake_devices  # noqa: E402

os.environ["XLA_FLAGS"] = f"{with_fake_devices(8)} {os.environ.get('XLA_FLAGS', '')}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

# One cache folder for this session and its workers.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="segnet_jax_tests_")
    os.environ["SEGNET_JAX_CACHE"] = _CACHE.name

import gc  # noqa: E402
import shutil  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

from segnet_jax.reporting import run_logger  # noqa: E402

gc.set_threshold(200_000, 20, 100)  # tracing creates many long-lived objects, which make frequent collections slow

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

_draw, _drawn = run_logger.training_plot, pathlib.Path(os.environ["SEGNET_JAX_CACHE"], "progress.png")


def _draw_once(rows, path, **options):
    """Draw the first plot of a session and copy it for all later ones: a plot takes a quarter of a small training."""
    if not _drawn.exists():
        _draw(rows, _drawn, **options)
    shutil.copyfile(_drawn, path)


run_logger.training_plot = _draw_once


@pytest.fixture(scope="session")
def camvid_folder():
    """Folder of the real CamVid frames in the tutorial layout; skips the test if it is not set."""
    folder = pathlib.Path(os.environ.get("SEGNET_JAX_CAMVID", "."))
    if not (folder / "train.txt").is_file():
        pytest.skip("no CamVid: set SEGNET_JAX_CAMVID to the folder that holds train.txt")
    return folder


@pytest.fixture(scope="session")
def camvid_sizes(camvid_folder):
    """Number of images of each split of that folder, which may lack the test split."""
    sizes = {"train": 367, "val": 101, "test": 233}
    return {name: size for name, size in sizes.items() if (camvid_folder / f"{name}.txt").is_file()}
