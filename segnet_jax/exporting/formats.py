"""Export formats: file name, module and required libraries of each."""

import importlib
import importlib.util
from types import ModuleType
from typing import Literal

from segnet_jax.exporting import onnx, safetensors, saved_model, stablehlo
from segnet_jax.system.errors import UserError

Format = Literal["stablehlo", "onnx", "safetensors", "saved-model"]

FILES: dict[Format, str] = {
    "stablehlo": "network.stablehlo",
    "onnx": "network.onnx",
    "safetensors": "network.safetensors",
    "saved-model": "saved_model",
}
MODULES: dict[Format, ModuleType] = {  # each defines `write`, `read` and `use`
    "stablehlo": stablehlo,
    "onnx": onnx,
    "safetensors": safetensors,
    "saved-model": saved_model,
}
_LIBRARIES = {  # required modules, and how to install them
    "onnx": (("onnx", "onnxruntime"), 'pip install -e ".[onnx]"'),
    "safetensors": (("safetensors",), "pip install -e ."),
    "saved-model": (("tensorflow", "jax.experimental.jax2tf"), "pip install -e ."),
}


def check_libraries(name: Format) -> None:
    """Check that the libraries of a format are installed.

    Raises:
      UserError: If a library is missing; the message states the command that installs it.
    """
    libraries, command = _LIBRARIES.get(name, ((), ""))
    if missing := [each for each in libraries if not _is_installed(each)]:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(f"--format {name} needs {' and '.join(missing)}, which {are} not installed: {command}")


def library_versions(name: Format) -> dict[str, str]:
    """Return the versions of the libraries that a format needs."""
    libraries, _ = _LIBRARIES.get(name, ((), ""))
    modules = [importlib.import_module(each) for each in libraries if not each.startswith("jax.")]
    return {each.__name__: each.__version__ for each in modules}


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
