"""Import a custom function of the user, such as mine:jitter.

Callers must pass only names given on this command line or in this Python call, never one from a stored file.
"""

import importlib
import logging
import os
import re
import sys
from collections.abc import Callable

from segnet_jax.system.did_you_mean import nearest_hint
from segnet_jax.system.errors import UserError

logger = logging.getLogger(__name__)


def import_function(name: str, option: str, example: str = "MODULE:FUNCTION, such as mine:jitter") -> Callable:
    """Import a function or a class; its module may be in the working directory.

    Args:
      name: module and function, such as "mine:jitter".
      option: the flag that names it, for messages.
      example: the form of the flag's value and an example, for messages.

    Raises:
      UserError: If the name is malformed, the module cannot be imported, or it has no such function.
    """
    if not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", name):
        raise UserError(f"{option} must be {example}, got {name!r}")
    module_name, function_name = name.split(":")
    if {"", os.getcwd()}.isdisjoint(sys.path):  # already on the path with python -m
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        logger.debug(f"importing {module_name}", exc_info=True)
        hint = "; give the module's name without .py" if module_name.endswith(".py") else ""
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{option} {name}: cannot import {module_name}: {why}{hint}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [each for each, value in vars(module).items() if callable(value)]
        hint = nearest_hint(function_name, known)
        raise UserError(f"{option} {name}: {module_name} has no function or class {function_name}{hint}")
    return function
