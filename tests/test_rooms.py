"""The house as it was designed: who imports whom, what stands in one place only, how long a file may be."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = "segnet_jax"
ROOT = pathlib.Path(__file__).parents[1] / PACKAGE
FILES = sorted(ROOT.rglob("*.py"))

ROOMS = {  # what each may import besides itself and the leaves
    "nn": set(),
    "metrics": set(),
    "datasets": set(),
    "weights": {"nn"},
    "pipeline": {"datasets"},
    "training": {"nn", "metrics"},
    "reporting": {"metrics", "datasets.labels"},
    "exporting": {"nn"},
    "portable": {"nn", "training"},  # the steps on other platforms and machines
    "prediction": {"datasets", "metrics", "training", "reporting", "network"},  # a trained network's inputs and outputs
}
# Every other module of the top level is a command, or stands beside the commands.
LEAVES = {
    "constants",
    "errors",
    "config",
    "config_files",
    "download",
    "confined",
    "bounded_toml",
    "budget",
    "limits",
    "endings",
    "files",
    "stopping",
    "zips",
}
MOST_LINES = 320
ONLY_IN = {"orbax": "training/checkpoints.py", "jax.pmap": "training/parallel.py", "av": "prediction/video.py"}
# TensorFlow takes seconds to import and only reading data needs it: imported inside functions. TFDS wants its builder
# as a class of a module, so that module alone may, and is itself imported inside functions.
BUILDER = "segnet_jax.datasets.tfds_camvid"
HEAVY = ("tensorflow", "tensorflow_datasets", BUILDER)


def relative(path):
    return path.relative_to(ROOT).as_posix()


def imports(tree, package=()):
    """Every dotted name that a module imports, wherever the import stands: `from a import b` gives a.b.

    Args:
      tree: the parsed module.
      package: the parts of the name of the package that holds it, for relative imports.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join((*above, *(node.module or "").split("."))).strip(".")
            yield from (f"{start}.{alias.name}" for alias in node.names)


def is_allowed(source, target):
    """Whether the module `source` may import `target`; both dotted, without the package's own name."""
    room = source.split(".")[0]
    if not target or target == "__version__" or (room not in ROOMS and room not in LEAVES):
        return True
    allowed = LEAVES | ({room} | ROOMS[room] if room in ROOMS else set())
    return any(f"{target}.".startswith(f"{name}.") for name in allowed)


def forbidden_imports(source, code):
    """The names of the package that the module `source` with that code imports and may not."""
    package = (PACKAGE, *source.split(".")[:-1])
    names = (name for name in imports(ast.parse(code), package) if f"{name}.".startswith(f"{PACKAGE}."))
    return [name for name in names if not is_allowed(source, name.removeprefix(PACKAGE).removeprefix("."))]


def uses(tree, name):
    """Whether a module imports the dotted name or what lies below it, or writes it as an attribute: `jax.pmap(f)`."""
    attributes = (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return any(f"{used}.".startswith(f"{name}.") for used in (*imports(tree), *attributes))


def runs_at_import(tree):
    """The module without the bodies of its functions, which run later."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = []
    return tree


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_room_imports_what_it_may_not(path):
    assert not forbidden_imports(relative(path).removesuffix(".py").replace("/", "."), path.read_text())


@pytest.mark.parametrize(
    "source, code",
    [
        ("nn.segnet", "from segnet_jax.metrics.confusion import scores"),
        ("metrics.confusion", "import segnet_jax.nn.pooling"),
        ("training.steps", "from segnet_jax import train"),
        ("training.steps", "from segnet_jax import nn, command"),
        ("training.__init__", "from ..datasets import labels"),
        ("pipeline.host", "def read():\n    from .. import weights"),
        ("weights.keras", "from segnet_jax.training import state"),
        ("reporting.figures", "from segnet_jax.datasets.camvid import read"),
        ("reporting.figures", "from segnet_jax.datasets import records"),
        ("datasets.labels", "from segnet_jax.datasets_of_others import x"),
        ("config", "import segnet_jax.nn as network"),
    ],
)
def test_a_forbidden_import_is_found_in_whatever_form_it_is_written(source, code):
    assert len(forbidden_imports(source, code)) == 1


@pytest.mark.parametrize(
    "source, code",
    [
        ("training.steps", "from segnet_jax.nn import SegNet\nfrom segnet_jax.metrics.confusion import scores"),
        ("training.steps", "from . import losses\nfrom .state import State\nfrom segnet_jax import __version__"),
        ("nn.segnet", "import jax\nfrom flax import linen\nfrom segnet_jax.constants import VOID"),
        ("reporting.figures", "from segnet_jax.datasets import labels\nfrom segnet_jax.datasets.labels import CAMVID"),
        ("datasets.camvid", "import segnet_jax.download\nfrom segnet_jax.errors import UserError"),
        ("train", "from segnet_jax import command, config\nfrom segnet_jax.training.steps import train_step"),
    ],
)
def test_an_allowed_import_is_not_found(source, code):
    assert not forbidden_imports(source, code)


def test_every_folder_with_code_is_a_room():
    folders = {path.relative_to(ROOT).parts[0] for path in FILES if path.parent != ROOT}
    assert folders == ROOMS.keys()


@pytest.mark.parametrize("name, place", ONLY_IN.items())
def test_what_may_be_replaced_stands_in_one_file(name, place):
    assert {relative(path) for path in FILES if uses(ast.parse(path.read_text()), name)} <= {place}


@pytest.mark.parametrize("code", ["step = jax.pmap(f)", "from jax import pmap", "partial(jax.pmap, axis_name='x')"])
def test_pmap_is_found_in_whatever_form_it_is_written(code):
    assert uses(ast.parse(code), "jax.pmap")


def test_tensorflow_is_imported_inside_functions_only():
    at_the_top = [
        (relative(path), name)
        for path in FILES
        for name in imports(runs_at_import(ast.parse(path.read_text())), (PACKAGE, *path.relative_to(ROOT).parts[:-1]))
        if any(f"{name}.".startswith(f"{heavy}.") for heavy in HEAVY)
    ]
    assert {file for file, _ in at_the_top} <= {f"{BUILDER.removeprefix(PACKAGE + '.').replace('.', '/')}.py"}


def test_importing_the_package_imports_neither_tensorflow_nor_orbax():
    code = f"import sys, {PACKAGE}; print([name for name in ('tensorflow', 'orbax') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["[]"]


def test_no_file_is_long_and_none_is_a_junk_drawer():
    assert {relative(path): n for path in FILES if (n := len(path.read_text().splitlines())) > MOST_LINES} == {}
    assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "misc")]
