"""Check the architecture: rooms, imports downward only, no cycles, single-place libraries, file lengths."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

PACKAGE = "segnet_jax"
ROOT = pathlib.Path(__file__).parents[1] / PACKAGE
FILES = sorted(ROOT.rglob("*.py"))

# Each room is on a floor and may import every room on a lower floor, unless limited below.
FLOORS = {
    1: ("nn", "system", "constants"),
    2: ("data", "config", "weights", "metrics", "distributed", "exporting"),
    3: ("training", "reporting"),
    4: ("runs", "inference"),
    5: (
        *(
            "__init__",
            "train",
            "evaluate",
            "predict",
            "export",
            "report",
            "doctor",
            "check",
            "prepare",
            "convert",
        ),
        "benchmarks",
        "sweep",
    ),
    6: ("api", "__main__", "benchmark", "portability"),
}
LIMITED = {"reporting": {"data", "config", "metrics", "nn", "system", "constants"}}
LOWEST_IMPORTS = {"nn": set(), "system": set(), "constants": set()}
ROOM_FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}

MOST_LOOSE = 15  # files on the package's top level
MOST_FLOORS = 6  # of the house
MOST_FLOORS_INSIDE = 4  # of a room, and of each folder inside one
MOST_LINES = 320

ONLY_IN = {
    "orbax": "training/checkpoints.py",
    "jax.pmap": "distributed/data_parallel.py",
    "av": "inference/video.py",
}
# TensorFlow takes seconds to import and only reading data needs it: imported inside functions. TFDS requires its
# builder to be a class of a module, so that module alone may import it at the top, and is itself imported inside
# functions.
BUILDER = f"{PACKAGE}.data.camvid.tfds_builder"
HEAVY = ("tensorflow", "tensorflow_datasets", BUILDER)
TENSORFLOW_IN = ("data/input_pipeline/tf_data.py", "data/camvid/", "exporting/saved_model.py")


# ---------------------------------------------------------------------------------------------------------------------
# What the files import
# ---------------------------------------------------------------------------------------------------------------------
def relative(path):
    return path.relative_to(ROOT).as_posix()


def module_of(path):
    """Return a module's dotted name without the package's, such as data.camvid.frames."""
    return relative(path).removesuffix(".py").replace("/", ".")


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


def imports(tree, package=()):
    """Return every dotted name that a module imports, anywhere in it: `from a import b` gives a.b.

    Args:
      tree: parsed module.
      package: parts of the name of its package, for relative imports.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join((*above, *(node.module or "").split("."))).strip(".")
            yield from (f"{start}.{alias.name}" for alias in node.names)


def our_imports(source, tree):
    """Return the dotted names in the package that the module `source` imports, without the package name."""
    package = (PACKAGE, *source.split(".")[:-1])
    names = (name for name in imports(tree, package) if f"{name}.".startswith(f"{PACKAGE}."))
    return [name.removeprefix(PACKAGE).removeprefix(".") for name in names]


def targets(source, tree, modules):
    """Return the modules of the package that the module `source` imports, by their longest name among `modules`."""
    for name in our_imports(source, tree):
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            found = ".".join(parts[:count])
            if found in modules:
                yield found
                break
            if f"{found}.__init__" in modules:
                yield f"{found}.__init__"
                break


@functools.cache
def arrows():
    """Return module -> the modules of the package that it imports."""
    modules = {module_of(path) for path in FILES}
    return {module_of(path): set(targets(module_of(path), parsed(path), modules)) for path in FILES}


def uses(tree, name):
    """Return whether a module imports the dotted name or one below it, or uses it as an attribute: `jax.pmap(f)`."""
    attributes = (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return any(f"{used}.".startswith(f"{name}.") for used in (*imports(tree), *attributes))


def runs_at_import(tree):
    """Return the module without the bodies of its functions, which run later."""
    tree = ast.parse(ast.unparse(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = []
    return tree


# ---------------------------------------------------------------------------------------------------------------------
# Rooms
# ---------------------------------------------------------------------------------------------------------------------
def room_of(module):
    return module.split(".")[0]


def may_import(room):
    """Return the rooms that a room may import besides itself."""
    below = {other for other, floor in ROOM_FLOOR.items() if floor < ROOM_FLOOR[room]}
    return LOWEST_IMPORTS.get(room, below & LIMITED.get(room, below))


def is_allowed(source, target):
    """Return whether the module `source` may import `target`, both dotted names without the package name."""
    if not target or target == "__version__":
        return True
    room, other = room_of(source), room_of(target)
    return room == other or (room in ROOM_FLOOR and other in may_import(room))


def forbidden_imports(source, code):
    """Return the names that the code of module `source` imports without permission."""
    return [name for name in our_imports(source, ast.parse(code)) if not is_allowed(source, name)]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_module_is_in_a_room(path):
    assert room_of(module_of(path)) in ROOM_FLOOR, f"{relative(path)} is in no room of DESIGN.md, section 2"


def test_every_room_of_the_table_is_there():
    assert {room_of(module_of(path)) for path in FILES} == ROOM_FLOOR.keys()


def test_few_files_are_on_the_top_level_and_each_folder_is_a_package():
    loose = [path for path in FILES if path.parent == ROOT]
    assert len(loose) <= MOST_LOOSE
    assert [folder for folder in {path.parent for path in FILES} if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_module_imports_what_its_room_may_not(path):
    assert not forbidden_imports(module_of(path), path.read_text())


@pytest.mark.parametrize(
    "source, code",
    [
        ("nn.segnet", "from segnet_jax.metrics.confusion import scores"),
        ("nn.segnet", "from segnet_jax.system.errors import UserError"),
        ("system.errors", "from segnet_jax import constants"),
        ("metrics.confusion", "import segnet_jax.config.fields"),
        ("training.steps", "from segnet_jax import train"),
        ("training.steps", "from segnet_jax import nn, runs"),
        ("training.steps", "from segnet_jax.reporting.console import bar"),
        ("training.__init__", "from ..runs import setup"),
        ("data.input_pipeline.tf_data", "def read():\n    from ... import weights"),
        ("weights.keras", "from segnet_jax.data.dataset import DataSet"),
        ("reporting.figures", "from segnet_jax.training.evaluation import Evaluation"),
        ("reporting.figures", "from segnet_jax.distributed import hosts"),
        ("runs.setup", "from segnet_jax.inference import network"),
        ("inference.network", "from segnet_jax.runs.run_folder import overrides"),
        ("config.fields", "import segnet_jax.data_of_others as data"),
        ("train", "from segnet_jax import evaluate"),
        ("benchmarks.run", "from segnet_jax.benchmark import main"),
        ("somewhere", "from segnet_jax.nn import SegNet"),
    ],
)
def test_a_forbidden_import_is_found_in_every_form(source, code):
    assert len(forbidden_imports(source, code)) == 1


@pytest.mark.parametrize(
    "source, code",
    [
        ("training.steps", "from segnet_jax.nn import SegNet\nfrom segnet_jax.metrics.confusion import scores"),
        ("training.steps", "from . import losses\nfrom .state import State\nfrom segnet_jax import __version__"),
        ("nn.segnet", "import jax\nfrom flax import linen\nfrom segnet_jax.nn import pooling"),
        ("reporting.figures", "from segnet_jax.data import labels\nfrom segnet_jax.data.labels.classes import CAMVID"),
        ("data.camvid.archives", "import segnet_jax.system.download\nfrom segnet_jax.constants import VOID"),
        ("train", "from segnet_jax import runs, config\nfrom segnet_jax.training.steps import train_step"),
        ("benchmark", "from segnet_jax.benchmarks import run\nfrom segnet_jax import train"),
    ],
)
def test_an_allowed_import_is_not_found(source, code):
    assert not forbidden_imports(source, code)


# ---------------------------------------------------------------------------------------------------------------------
# Floors and cycles
# ---------------------------------------------------------------------------------------------------------------------
def floors(graph):
    """Return the floor of each node, 1 for those without imports; None for the nodes of a cycle and above."""
    found, waiting = {}, dict(graph)
    while ready := [node for node, below in waiting.items() if below <= found.keys()]:
        for node in ready:
            found[node] = 1 + max((found[each] for each in waiting.pop(node)), default=0)
    return found | dict.fromkeys(waiting)


def children(folder, graph):
    """Return the import graph of a folder ("" for the package) whose nodes are its files and subfolders."""
    prefix = f"{folder}." if folder else ""
    found = {}
    for module, below in graph.items():
        if not module.startswith(prefix) or (folder and module == f"{folder}.__init__"):
            continue  # a package's __init__ only re-exports names of its folder
        child = module.removeprefix(prefix).split(".")[0]
        mine = {each.removeprefix(prefix).split(".")[0] for each in below if each.startswith(prefix)}
        found.setdefault(child, set()).update(mine - {child, "__init__"})
    return found


FOLDERS = sorted({module_of(path).rpartition(".")[0] for path in FILES})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder or PACKAGE)
def test_no_import_cycles_and_few_floors(folder):
    found = floors(children(folder, arrows()))
    assert [node for node, floor in found.items() if floor is None] == [], "a circle"
    assert max(found.values()) <= (MOST_FLOORS_INSIDE if folder else MOST_FLOORS), found


def test_no_module_is_in_an_import_cycle():
    assert [module for module, floor in floors(arrows()).items() if floor is None] == []


@pytest.mark.parametrize("room", ROOM_FLOOR)
def test_no_room_is_on_a_higher_floor_than_the_table_says(room):
    assert floors(children("", arrows()))[room] in range(1, ROOM_FLOOR[room] + 1)


def test_cycles_and_floors_are_found():
    graph = {"a.x": {"a.y"}, "a.y": {"b.z"}, "b.z": set(), "b.__init__": {"b.z"}, "c": {"a.x", "b.__init__"}}
    assert floors(graph) == {"b.z": 1, "a.y": 2, "b.__init__": 2, "a.x": 3, "c": 4}
    assert children("", graph) == {"a": {"b"}, "b": set(), "c": {"a", "b"}}
    assert children("a", graph) == {"x": {"y"}, "y": set()}
    assert floors(children("", graph | {"b.z": {"a.x"}})) == {"a": None, "b": None, "c": None}
    assert floors({"x": {"y"}, "y": {"x"}, "z": set()}) == {"z": 1, "x": None, "y": None}


def test_imports_are_found_in_every_form():
    modules = {"nn.__init__", "nn.segnet", "nn.cpu.winograd", "constants", "train"}
    code = "from segnet_jax.nn import SegNet, segnet\nfrom . import constants\nimport segnet_jax.nn.cpu.winograd.f"
    assert sorted(targets("train", ast.parse(code), modules)) == [
        "constants",
        "nn.__init__",
        "nn.cpu.winograd",
        "nn.segnet",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Libraries used in one place
# ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, place", ONLY_IN.items())
def test_replaceable_libraries_are_used_in_one_file(name, place):
    assert {relative(path) for path in FILES if uses(parsed(path), name)} == {place}


@pytest.mark.parametrize("code", ["step = jax.pmap(f)", "from jax import pmap", "partial(jax.pmap, axis_name='x')"])
def test_pmap_is_found_in_every_form(code):
    assert uses(ast.parse(code), "jax.pmap")


def test_tensorflow_is_imported_in_few_places():
    found = {relative(path) for path in FILES if any(uses(parsed(path), name) for name in HEAVY[:2])}
    assert [file for file in found if not file.startswith(TENSORFLOW_IN)] == []


def test_tensorflow_is_imported_inside_functions_only():
    at_the_top = [
        (relative(path), name)
        for path in FILES
        for name in imports(runs_at_import(parsed(path)), (PACKAGE, *path.relative_to(ROOT).parts[:-1]))
        if any(f"{name}.".startswith(f"{heavy}.") for heavy in HEAVY)
    ]
    assert {file for file, _ in at_the_top} == {f"{BUILDER.removeprefix(PACKAGE + '.').replace('.', '/')}.py"}


def test_importing_the_package_imports_neither_tensorflow_nor_orbax():
    code = f"import sys, {PACKAGE}; print([name for name in ('tensorflow', 'orbax') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["[]"]


def test_no_file_is_long_and_none_is_a_junk_drawer():
    assert {relative(path): n for path in FILES if (n := len(path.read_text().splitlines())) > MOST_LINES} == {}
    assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "misc")]
