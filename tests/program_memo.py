"""Compile equal programs once per test process, since tracing and compiling take half of a small run's time.

`install` wraps the steps that `data_parallel` returns and the initialization of a network. A result is reused only if
everything that it is traced from is equal: the step's code, closures and settings by value, the arguments' shapes,
types and shardings, JAX's settings, and every attribute of the package's modules and classes, so that a test's patches
count.
"""

import dataclasses
import functools
import sys
import types
from collections import OrderedDict

import jax
import numpy as np

from segnet_jax.distributed import data_parallel
from segnet_jax.training import state

MAX_PROGRAMS, MAX_SNAPSHOTS = 64, 100
OTHER_MODULES = ("jax", "jax.lax", "jax.numpy", "jax.stages")  # packages in which tests patch attributes
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, types.CodeType, np.dtype)
_programs: OrderedDict = OrderedDict()
_snapshots: dict[bytes, tuple] = {}  # keep the objects alive, so that their addresses are not reused
counts = {"compiled": 0, "reused": 0}


class Same:
    """A key that equals only itself and keeps its value alive, so that the value's address is not reused."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self):
        return id(self.value)


def key_of(value, seen=()):
    """Return a key that is equal for values that give the same program; unknown objects equal only themselves."""
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
    """Return a number for the attributes of the package's and JAX's public modules, their classes and dicts.

    It is the same as long as each of them is the same object.
    """
    found = []
    for name, module in sorted(sys.modules.items()):
        if name in OTHER_MODULES or (name.startswith("segnet_jax") and module is not None):
            for value in list(vars(module).values()):
                found.append(value)
                if isinstance(value, type) and str(value.__module__).startswith(("segnet_jax", "jax")):
                    found.extend(vars(value).values())
                elif type(value) is dict and value is not vars(module).get("__builtins__"):
                    found.extend(value.values())
    addresses = np.fromiter(map(id, found), np.int64).tobytes()
    if len(_snapshots) == MAX_SNAPSHOTS:
        _snapshots.clear()
        _programs.clear()
    return _snapshots.setdefault(addresses, (len(_snapshots), found))[0]


def jax_now():
    """Return JAX's settings."""
    return tuple((name, key_of(getattr(jax.config, name, value))) for name, value in jax.config.values.items())


def shapes_of(tree):
    """Return the properties of the arguments on which a program depends."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jax.typeof(leaf), getattr(leaf, "sharding", None)) for leaf in leaves)


class Mapped:
    """A mapped step whose `lower(...).compile(...)` returns the program of an equal step if there is one."""

    def __init__(self, function, settings):
        self._function, self._settings = function, settings

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __getattr__(self, name):
        return getattr(self._function, name)

    def lower(self, *arguments):
        key = key_of(self._settings), shapes_of(arguments), jax_now(), package_now()
        return Lowered(functools.cache(lambda: self._function.lower(*arguments)), key)


class Lowered:
    """A step for given arguments, traced only when an unknown attribute or program is requested."""

    def __init__(self, lower, key):
        self._lower, self._key = lower, key

    def __getattr__(self, name):
        return getattr(self._lower(), name)

    def compile(self, compiler_options=None):
        key = self._key, key_of(compiler_options)
        program = _programs.pop(key, None)
        counts["compiled" if program is None else "reused"] += 1
        if program is None:
            program = self._lower().compile(compiler_options)
        _programs[key] = program  # the last used one comes last
        if len(_programs) > MAX_PROGRAMS:
            _programs.popitem(last=False)
        return program


def remembered(function):
    """Return a function of a model that computes each result once; callers must not modify the returned trees."""
    results = {}

    @functools.wraps(function)
    def called(*arguments, **named):
        key = key_of((arguments, named)), jax_now(), package_now()
        if key not in results:
            results[key] = function(*arguments, **named)
        return jax.tree.map(lambda leaf: leaf, results[key])

    return called


def install():
    """Make this process reuse programs compiled by earlier tests; call before other modules import the functions."""
    state.init_variables = remembered(state.init_variables)
    state.variable_shapes = remembered(state.variable_shapes)
    mapped = data_parallel._mapped

    @functools.wraps(mapped)
    def remembering(step, devices, in_axes, out_axes, donate_argnums):
        function = mapped(step, devices, in_axes, out_axes, donate_argnums)
        return Mapped(function, (step, devices, tuple(in_axes), tuple(out_axes), donate_argnums))

    data_parallel._mapped = remembering
