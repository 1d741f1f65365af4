"""Check that names in a run, a config or a dataset are never imported or executed."""

import ast
import pathlib

import pytest

import segnet_jax

ROOT = pathlib.Path(segnet_jax.__file__).parent
IMPORTS = {  # modules that import a non-constant name, and where that name comes from
    "__main__.py": "the command line's first word, one of COMMANDS",
    "config/completion.py": "the same, of all COMMANDS",
    "exporting/formats.py": "the names of libraries in this file",
    "system/custom_code.py": "--network and --augment of this command line or Python call",
    "training/choose_devices.py": "JAX's plugins, named in this file",
}
CALLS = ("import_module", "__import__", "exec", "eval", "compile", "run_path", "run_module", "spec_from_file_location")


def calls_of(tree):
    """Yield the calls that import or execute something given by a variable."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and not isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            # re.compile and programs' own compile take no code of Python's
            is_method = isinstance(node.func, ast.Attribute) and name in ("compile", "eval", "exec")
            if name in CALLS and not is_method:
                yield name


def test_names_are_imported_only_in_known_places():
    found = {
        path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if [*calls_of(ast.parse(path.read_text()))]
    }
    assert found <= IMPORTS.keys(), "a name that a stored config may hold must be named on the command line"


@pytest.mark.parametrize(
    "code",
    ["importlib.import_module(config.network)", "__import__(name)", "exec(text)", "eval(text)", "run_path(path)"],
)
def test_such_a_call_is_found(code):
    assert [*calls_of(ast.parse(code))]


@pytest.mark.parametrize("code", ['importlib.import_module("numpy")', "re.compile(text)", "lowered.compile(options)"])
def test_another_is_not(code):
    assert not [*calls_of(ast.parse(code))]
