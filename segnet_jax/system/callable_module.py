"""Modules that can be called: `segnet_jax.train(...)` in addition to `python -m segnet_jax.train`.

A command is a module of the package, and the Python API has a function of the same name. Importing the module sets the
package's attribute to the module, so the function can only be reached by calling that.
"""

import importlib
import sys
import types


class _CallableModule(types.ModuleType):
    def __call__(self, *args, **settings):
        return getattr(importlib.import_module("segnet_jax.api"), self.__name__.rpartition(".")[2])(*args, **settings)


def make_callable(name: str) -> None:
    """Make a module of the package call the function of `segnet_jax.api` that has its name."""
    module = sys.modules[name]
    module.__class__ = _CallableModule
