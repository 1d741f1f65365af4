"""How the commands were called: as `segnet NAME` or as `python -m segnet_jax.NAME`."""

import re
import sys

_MODULE = re.compile(r"python -m segnet_jax\.([a-z]+)")
SCRIPT, PACKAGE = "segnet", "python -m segnet_jax"


def as_called(text: str) -> str:
    """Rewrite commands such as `python -m segnet_jax.NAME` in a text to the form in which this process was called.

    The script `segnet` sets the first word of `sys.argv` to its own call, such as "segnet train".
    """
    called, _, _ = (sys.argv[0] if sys.argv else "").rpartition(" ")
    return _MODULE.sub(rf"{called} \1", text) if called in (SCRIPT, PACKAGE) else text
