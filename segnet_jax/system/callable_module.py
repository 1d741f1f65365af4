"""Callable modules: `segnet_jax.train(...)` in addition to `python -m segnet_jax.train`.

A command is a module of the package, and the Python API has a function of the same name. Importing the module sets the
package's attribute to the module, so the module itself must be callable.
"""

import importlib
import sys
import types


class _CallableModule(types.ModuleType):
    def __call__(self, *args, **settings):
        return getattr(importlib.import_module("segnet_jax.api"), self.__name__.rpartition(".")[2])(*args, **settings)


def make_callable(name: str) -> None:
    """Make a command's module callable as the function of the same name in `segnet_jax.api`."""
    module = sys.modules[name]
    module.__class__ = _CallableModule
