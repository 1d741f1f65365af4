"""SegNet for JAX.

The names in `__all__` are imported on first use, so importing the package imports neither TensorFlow nor Orbax. `train`
and `evaluate` are the callable modules of these commands; the other names come from `segnet_jax.api`.
"""

import importlib
import sys

if sys.argv[:1] == ["-m"]:  # started as a command; JAX is not imported yet
    from segnet_jax.system.system_limits import leave_if_too_low

    leave_if_too_low()

__version__ = "0.1.0"
__all__ = ["Callback", "Config", "Curve", "EvaluationResult", "Loss"]
__all__ += ["Run", "Scores", "TrainedNetwork", "evaluate", "load", "train"]


def __getattr__(name: str):
    """Import a name of the API on first use."""
    if name == "train":
        return importlib.import_module("segnet_jax.train")
    if name == "evaluate":
        return importlib.import_module("segnet_jax.evaluate")
    if name in __all__:
        return getattr(importlib.import_module("segnet_jax.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
