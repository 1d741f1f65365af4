"""Configure every test: eight CPU devices and strict JAX."""

import os
import pathlib
import sys
import tempfile

# Tests use helpers of other rooms' tests, and those defined here.
sys.path[:0] = sorted(str(path.parent) for path in pathlib.Path(__file__).parent.glob("*/test_*.py"))

from xla_flags import with_fake_devices  # noqa: E402

os.environ["XLA_FLAGS"] = f"{with_fake_devices(8)} {os.environ.get('XLA_FLAGS', '')}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

# Decoded images and compiled programs are cached in one folder for this session and its processes.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="segnet_jax_tests_")
    os.environ["SEGNET_JAX_CACHE"] = _CACHE.name

import gc  # noqa: E402
import logging  # noqa: E402
import shutil  # noqa: E402

import jax  # noqa: E402
import program_memo  # noqa: E402
import pytest  # noqa: E402

from segnet_jax.reporting import run_logger  # noqa: E402
from segnet_jax.system import logs  # noqa: E402

gc.set_threshold(200_000, 20, 100)  # tracing creates many long-lived objects, so frequent garbage collection is slow

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
program_memo.install()

_draw, _drawn = run_logger.training_plot, pathlib.Path(os.environ["SEGNET_JAX_CACHE"], "progress.png")


def _draw_once(rows, path, **settings):
    """Draw the first plot of a session and copy it for later ones, since drawing takes a quarter of a small run."""
    if not _drawn.exists():
        _draw(rows, _drawn, **settings)
    shutil.copyfile(_drawn, path)


run_logger.training_plot = _draw_once
logs.configure()  # as every command does


@pytest.fixture
def logged():
    """Yield the lines logged during the test, as the console shows them."""
    handler, package = _Lines(), logging.getLogger("segnet_jax")
    package.addHandler(handler)
    yield handler.lines
    package.removeHandler(handler)


class _Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        self.lines.append(level + record.getMessage())


@pytest.fixture(scope="session")
def camvid_folder():
    """Return the folder of real CamVid in the tutorial's layout; skip the test if there is none."""
    folder = pathlib.Path(os.environ.get("SEGNET_JAX_CAMVID", "."))
    if not (folder / "train.txt").is_file():
        pytest.skip("no CamVid: set SEGNET_JAX_CAMVID to the folder that contains train.txt")
    return folder


@pytest.fixture(scope="session")
def camvid_sizes(camvid_folder):
    """Return the number of images per split of that folder, which may lack the test images."""
    sizes = {"train": 367, "val": 101, "test": 233}
    return {name: size for name, size in sizes.items() if (camvid_folder / f"{name}.txt").is_file()}
