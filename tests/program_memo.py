"""Compile equal programs once per test process: half of the time of a small training is tracing and compiling.

`install` wraps what `data_parallel` returns for a step. A program is taken from an earlier test only if everything
that it is traced from is equal: the step's code, closures and settings by value, the arguments' shapes, types and
shardings, JAX's settings, and every attribute of the package's modules and classes, so that what a test patches counts.
"""

import dataclasses
import functools
import sys
import types
from collections import OrderedDict

import jax
import numpy as np

from segnet_jax.distributed import data_parallel

MAX_PROGRAMS = 64
OTHER_MODULES = ("jax", "jax.lax", "jax.numpy", "jax.stages")  # in which tests patch something
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, types.CodeType, np.dtype)
_programs: OrderedDict = OrderedDict()
counts = {"compiled": 0, "reused": 0}


class Same:
    """An object that equals itself alone, and is kept alive so that no other takes its address."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self):
        return id(self.value)


def key_of(value, seen=()):
    """Return what is equal for values that make the same program; what it does not know equals itself alone."""
    if isinstance(value, _PLAIN):
        return type(value), value
    if id(value) in seen:
        return "again", seen.index(id(value))
    inner = functools.partial(key_of, seen=(*seen, id(value)))
    if isinstance(value, np.ndarray | np.generic | jax.Array) and not isinstance(value, jax.core.Tracer):
        array = np.asarray(value)
        return "array", type(value), array.dtype, array.shape, array.tobytes()
    if isinstance(value, functools.partial):
        return "partial", inner(value.func), inner(value.args), inner(value.keywords)
    if isinstance(value, types.FunctionType):
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        globals_ = Same(value.__globals__)
        return (
            "function",
            value.__code__,
            globals_,
            inner(cells),
            inner(value.__defaults__),
            inner(value.__kwdefaults__),
        )
    if isinstance(value, types.MethodType):
        return "method", inner(value.__func__), inner(value.__self__)
    if type(value) in (tuple, list) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return type(value), tuple(map(inner, value))
    if isinstance(value, dict):
        return type(value), tuple((inner(name), inner(each)) for name, each in value.items())
    if dataclasses.is_dataclass(value):
        fields = (field.name for field in dataclasses.fields(value))
        return type(value), tuple((name, inner(getattr(value, name, None))) for name in fields)
    return (Same(value),)


def package_now():
    """Return every attribute of the package's and JAX's public modules, their classes and dicts, each as itself."""
    found = []
    for name, module in sorted(sys.modules.items()):
        if name in OTHER_MODULES or (name.startswith("segnet_jax") and module is not None):
            for value in list(vars(module).values()):
                found.append(value)
                if isinstance(value, type) and str(value.__module__).startswith(("segnet_jax", "jax")):
                    found.extend(vars(value).values())
                elif type(value) is dict and value is not vars(module).get("__builtins__"):
                    found.extend(value.values())
    return tuple(map(Same, found))


def shapes_of(tree):
    """Return what a program depends on of its arguments."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jax.typeof(leaf), getattr(leaf, "sharding", None)) for leaf in leaves)


class Mapped:
    """A mapped step whose `lower(...).compile(...)` returns the program of an equal one, if there was one."""

    def __init__(self, function, settings):
        self._function, self._settings = function, settings

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __getattr__(self, name):
        return getattr(self._function, name)

    def lower(self, *arguments):
        options = tuple((name, key_of(getattr(jax.config, name, value))) for name, value in jax.config.values.items())
        key = key_of(self._settings), shapes_of(arguments), options, package_now()
        return Lowered(functools.cache(lambda: self._function.lower(*arguments)), key)


class Lowered:
    """A step for given arguments, which is traced when something is asked of it that is not known."""

    def __init__(self, lower, key):
        self._lower, self._key = lower, key

    def __getattr__(self, name):
        return getattr(self._lower(), name)

    def compile(self, compiler_options=None):
        key = self._key, key_of(compiler_options)
        if key not in _programs:
            counts["compiled"] += 1
            _programs[key] = self._lower().compile(compiler_options)
            if len(_programs) > MAX_PROGRAMS:
                _programs.popitem(last=False)
        else:
            counts["reused"] += 1
        _programs.move_to_end(key)
        return _programs[key]


def install():
    """Let mapped steps of this process use programs of earlier ones."""
    mapped = data_parallel._mapped

    @functools.wraps(mapped)
    def remembering(step, devices, in_axes, out_axes, donate_argnums):
        function = mapped(step, devices, in_axes, out_axes, donate_argnums)
        return Mapped(function, (step, devices, tuple(in_axes), tuple(out_axes), donate_argnums))

    data_parallel._mapped = remembering
